/**
 * Names of Unix connections in the images of a dump. An accepted socket has its listener's name, which CRIU 4.2 gives to none of those that
 * it makes (`bind_unix_sk`, criu/sk-unix.c), but goes by all the same: it removes whatever socket is at that path by now, and where nothing is
 * there any more and the connection's peer has gone, it waits for ever for the name to be bound (`peer_is_not_prepared`).
 *
 * Image formats: images/{fdinfo,sk-unix}.proto of CRIU (MIT).
 */
import { join } from "node:path";
import * as sock from "#proxy/kernel/socket.ts";
import { decodeImage, encodeImage } from "./image-file.ts";
import { readImage, writeImage } from "./image-files.ts";
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
  const changed = withoutConnectionNames(readImage(path));
  if (changed !== null) writeImage(path, changed);
}

/** Pure: `files.img` in which no connection has a name. null: it is so already */
export function withoutConnectionNames(image: Buffer): Buffer | null {
  let isChanged = false;
  const changed = decodeImage("files", image).map((entry) => {
    if (!isNamedConnection(entry)) return entry;
    isChanged = true;
    return changeField(entry, ENTRY_UNIX, withoutName);
  });
  return isChanged ? encodeImage("files", changed) : null;
}

function isNamedConnection(entry: Buffer): boolean {
  const socket = decodeFields(entry).find(({ number }) => number === ENTRY_UNIX)?.bytes;
  if (socket === undefined) return false;
  const fields = new Map(decodeFields(socket).map((field) => [field.number, field]));
  const number = (wanted: number): number => Number(fields.get(wanted)?.varint ?? 0n);
  const isNamed = (fields.get(NAME)?.bytes.length ?? 0) > 0;
  return isNamed && number(TYPE) !== sock.SOCK_DGRAM && number(STATE) === sock.TCP_ESTABLISHED;
}

function withoutName(socket: Buffer): Buffer {
  const none = encodeFields([[NAME, ""]]);
  const kept = decodeFields(socket).filter(({ number }) => ![NAME_FOLDER, NAME_DELETED].includes(number));
  return Buffer.concat(kept.map(({ number, raw }) => (number === NAME ? none : raw)));
}
