/**
 * CRIU's image files: two magics (u32 LE), then u32 LE length and message, again and again (https://criu.org/Images;
 * criu/include/magic.h). Pure: bytes in, values out.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { decodeFields } from "./protobuf.ts";

const COMMON_MAGIC = 0x54564319;
export const MAGICS = {
  core: 0x55053847,
  fdinfo: 0x56213732,
  files: 0x56303138,
  ids: 0x54432030,
  mm: 0x57492820,
  pstree: 0x50273030,
  remapFilePath: 0x59133954,
  tcpStream: 0x51465506,
} as const;
export type ImageKind = keyof typeof MAGICS;

/** The messages of an image. @throws HoldfastError `CRIU_IMAGE` when it is not one of that kind */
export function decodeImage(kind: ImageKind, image: Buffer): Buffer[] {
  const messages: Buffer[] = [];
  for (let at = firstAt(kind, image); at < image.length; ) {
    const message = messageAt(kind, image, at);
    messages.push(message);
    at += 4 + message.length;
  }
  return messages;
}

/** Of an image that has one message, and bytes of another kind behind it. @throws as {@link decodeImage} */
export function firstOfImage(kind: ImageKind, image: Buffer): { message: Buffer; rest: Buffer } {
  const at = firstAt(kind, image);
  const message = messageAt(kind, image, at);
  return { message, rest: image.subarray(at + 4 + message.length) };
}

function firstAt(kind: ImageKind, image: Buffer): number {
  if (image.length < 8 || image.readUInt32LE(0) !== COMMON_MAGIC || image.readUInt32LE(4) !== MAGICS[kind])
    throw invalid(kind);
  return 8;
}

function messageAt(kind: ImageKind, image: Buffer, at: number): Buffer {
  if (at + 4 > image.length) throw invalid(kind);
  const end = at + 4 + image.readUInt32LE(at);
  if (end > image.length) throw invalid(kind);
  return image.subarray(at + 4, end);
}

function invalid(kind: ImageKind): HoldfastError {
  return fail("CRIU_IMAGE", `not an image of CRIU (${kind})`);
}

export function encodeImage(kind: ImageKind, messages: Buffer[]): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32LE(COMMON_MAGIC, 0);
  head.writeUInt32LE(MAGICS[kind], 4);
  const parts: Buffer[] = [head];
  for (const message of messages) {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(message.length, 0);
    parts.push(length, message);
  }
  return Buffer.concat(parts);
}

/** A process of a dump, in the numbers of the container. */
export interface TreeEntry {
  pid: number;
  /** 0: of the root */
  parent: number;
  pgid: number;
  sid: number;
  /** the main one, too; of a zombie none */
  threads: number[];
}

/** Of `pstree.img`. @throws as {@link decodeImage} */
export function processesInTree(pstreeImage: Buffer): TreeEntry[] {
  return decodeImage("pstree", pstreeImage).map((message) => {
    const fields = decodeFields(message);
    const all = (wanted: number): number[] =>
      fields.filter(({ number }) => number === wanted).map(({ varint }) => Number(varint));
    const [pid = 0, parent = 0, pgid = 0, sid = 0] = [1, 2, 3, 4].map((wanted) => all(wanted)[0]);
    // CRIU writes any number as a zombie's thread (seen: 0, 72, 2181780960)
    const threads = all(5);
    return { pid, parent, pgid, sid, threads: threads.includes(pid) ? threads : [] };
  });
}

/** Every number that the restored tree needs: of processes, threads, and of groups and sessions whose leaders have ended. */
export function numbersInTree(pstreeImage: Buffer): Set<number> {
  return new Set(
    processesInTree(pstreeImage).flatMap(({ pid, pgid, sid, threads }) => [pid, pgid, sid, ...threads]),
  );
}

/** Address of a thread's `struct rseq`, which the kernel writes to (rseq(2)); null: it has none. */
export function rseqOf(coreImage: Buffer): number | null {
  // core_entry.thread_core = 5, thread_core_entry.rseq_entry = 15, rseq_entry.rseq_abi_pointer = 1
  return numberAt(coreImage, [5, 15, 1]);
}

/** The signal that a process was stopped by before anybody froze it (wait(2), WSTOPSIG); null: it was not stopped. */
export function stopSignalOf(coreImage: Buffer): number | null {
  return numberAt(coreImage, [3, 21]); // core_entry.tc = 3, task_core_entry.stop_signo = 21
}

/** PR_SET_CHILD_SUBREAPER (prctl(2)). */
export function isSubreaper(coreImage: Buffer): boolean {
  return numberAt(coreImage, [3, 18]) !== null; // core_entry.tc = 3, task_core_entry.child_subreaper = 18
}

/**
 * Whether CRIU gave files that are open, and whose names were removed while they had others, a name for as long as it needs them. It takes
 * those names away when it lets go of a tree that runs on.
 */
export function hasNamedFiles(remapFilePathImage: Buffer): boolean {
  // remap_file_path_entry.remap_type = 3: LINKED = 0, GHOST = 1, PROCFS = 2
  return decodeImage("remapFilePath", remapFilePathImage).some(
    (message) => (decodeFields(message).find(({ number }) => number === 3)?.varint ?? 0n) === 0n,
  );
}

/** @param path of field numbers, from `core_entry` on; null: not there, or 0 */
function numberAt(coreImage: Buffer, path: number[]): number | null {
  let [message] = decodeImage("core", coreImage);
  let value = 0n;
  for (const number of path) {
    const field =
      message === undefined ? undefined : decodeFields(message).find((of) => of.number === number);
    message = field?.bytes;
    value = field?.varint ?? 0n;
  }
  return value === 0n ? null : Number(value);
}
