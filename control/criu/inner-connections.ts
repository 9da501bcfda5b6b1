/**
 * TCP connections whose both ends are the application's, with bytes that were never sent since the reader is behind.
 *
 * CRIU gives a restored socket such bytes outside of repair mode (`libsoccr_restore_queue`, soccr/soccr.c of CRIU 4.2): they leave at once,
 * over the loopback device. Where the other end is not restored yet, the kernel answers with a reset, and the restore fails. So in the
 * images they are bytes that were sent and not acknowledged, which the kernel sends again when the application goes on. Of connections
 * to others they stay as they are: those are sent with the next window, and not after a time-out.
 */
import { join } from "node:path";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { encodeImage, firstOfImage } from "./image-file.ts";
import { readImage, writeImage } from "./image-files.ts";
import { decodeFields, encodeFields } from "./protobuf.ts";
import { type InetSocketImage, inetSockets } from "./socket-images.ts";

/** tcp_stream_entry, images/tcp-stream.proto */
const UNSENT_LENGTH = 12;

/** After a dump, before its images are sent. @throws HoldfastError `CRIU_IMAGE`, `CRIU_PROTOCOL` */
export function takeUnsentForSent(imagesDir: string): void {
  for (const inode of innerConnections(inetSockets(readImage(join(imagesDir, "files.img"))))) {
    const path = join(imagesDir, `tcp-stream-${inode.toString(16)}.img`);
    const changed = withoutUnsent(readImage(path));
    if (changed !== null) writeImage(path, changed);
  }
}

/** Pure. Inodes of sockets that have another of these as their peer. */
export function innerConnections(sockets: readonly InetSocketImage[]): number[] {
  const connected = sockets.filter(
    ({ protocol, state }) =>
      protocol === sock.IPPROTO_TCP && state !== sock.TCP_LISTEN && state !== sock.TCP_CLOSE,
  );
  const ends = ({ local, remote }: InetSocketImage, isMirrored: boolean): string =>
    (isMirrored ? [remote, local] : [local, remote])
      .map(({ address, port }) => `${ipText.unmapped(address)} ${port}`)
      .join(" ");
  const known = new Set(connected.map((socket) => ends(socket, false)));
  return connected.filter((socket) => known.has(ends(socket, true))).map(({ inode }) => inode);
}

/** Pure. The image with all that is in its queue as sent; null: it is so already */
export function withoutUnsent(image: Buffer): Buffer | null {
  const { message, rest } = firstOfImage("tcpStream", image);
  const fields = decodeFields(message);
  if (!fields.some(({ number, varint }) => number === UNSENT_LENGTH && varint > 0n)) return null;
  const none = encodeFields([[UNSENT_LENGTH, 0]]);
  const changed = fields.map(({ number, raw }) => (number === UNSENT_LENGTH ? none : raw));
  return Buffer.concat([encodeImage("tcpStream", [Buffer.concat(changed)]), rest]);
}
