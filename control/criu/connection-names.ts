/**
 * Names of Unix connections in the images of a dump. An accepted socket has its listener's name, which CRIU 4.2 gives to none of those that
 * it makes (`bind_unix_sk`, criu/sk-unix.c), but goes by all the same: it removes whatever socket is at that path by now, and where nothing is
 * there any more and the connection's peer has gone, it waits for ever for the name to be bound (`peer_is_not_prepared`).
 *
 * Image formats: images/{fdinfo,sk-unix}.proto of CRIU (MIT).
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as sock from "#proxy/kernel/socket.ts";
import { decodeImage, encodeImage } from "./image-file.ts";
import { changeField, decodeFields, encodeFields } from "./protobuf.ts";

/** of file_entry */
const ENTRY_UNIX = 16;
/** of unix_sk_entry; the last two say where its name leads */
const TYPE = 3;
const STATE = 4;
const NAME = 11;
const NAME_FOLDER = 14;
const NAME_DELETED = 15;

/** After a dump, before its images are sent. @throws HoldfastError `CRIU_IMAGE`, `CRIU_PROTOCOL` */
export function leaveConnectionNames(imagesDir: string): void {
  const path = join(imagesDir, "files.img");
  const image = readFileSync(path);
  const changed = withoutConnectionNames(image);
  if (!changed.equals(image)) writeFileSync(path, changed);
}

/** Pure: `files.img` in which no connection has a name. */
export function withoutConnectionNames(image: Buffer): Buffer {
  return encodeImage(
    "files",
    decodeImage("files", image).map((entry) =>
      changeField(entry, ENTRY_UNIX, (socket) => (isConnection(socket) ? withoutName(socket) : socket)),
    ),
  );
}

function isConnection(socket: Buffer): boolean {
  const number = (wanted: number): number =>
    Number(decodeFields(socket).find((field) => field.number === wanted)?.varint ?? 0n);
  return number(TYPE) !== sock.SOCK_DGRAM && number(STATE) === sock.TCP_ESTABLISHED;
}

function withoutName(socket: Buffer): Buffer {
  const none = encodeFields([[NAME, ""]]);
  const kept = decodeFields(socket).filter(({ number }) => ![NAME_FOLDER, NAME_DELETED].includes(number));
  return Buffer.concat(kept.map(({ number, raw }) => (number === NAME ? none : raw)));
}
