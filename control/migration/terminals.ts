/**
 * What waits in the terminals whose master is the application's own. CRIU 4.2 puts back what was typed by typing it once more, so
 * that it is echoed twice, and what was written by writing it once more, so that it is translated twice; a line that is not complete, the
 * end of input, output that was stopped (^S), and all that a terminal has which nobody but its master has open it drops.
 *
 * So all of it is taken out of the frozen application, before CRIU looks, and put into the restored one, which is stopped. What was taken
 * is on disk by then, so that a rollback, also one by the next agent, puts it back.
 *
 * Not kept: in which column the cursor is (a tab that is erased afterwards), a ^V whose character has not come, and what a master in
 * packet mode has not been told yet, which the audit finds.
 */
import { constants, readSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { POLLHUP, POLLIN, POLLOUT, pollNow } from "#proxy/kernel/polling.ts";
import * as terminal from "#proxy/kernel/terminals.ts";
import type { Tree } from "../audit/tree.ts";
import { byInnerPid, readBeside, writeBeside } from "./beside-images.ts";
import { type SocketPlace, withSocketAt } from "./sockets.ts";

/** In the folder of the images: it goes to the target with them, and outlives an agent. */
export const FILE = "terminals.json";
const NAME = /^\/dev\/(pts\/|ptmx$|tty|console$)/;
/** N_TTY_BUF_SIZE of drivers/tty/n_tty.c, of which one is never used */
const TYPED_BYTES_MAX = 4095;
/** Of all terminals, coded: they are put back byte by byte, about one a microsecond. */
const BYTES_MAX = 512 * 1024;
const READ_BYTES = 4096;
const TERMINALS_MAX = 10_000;
const LINES_MAX = 4096;

/** where one descriptor is: as the container numbers its processes, which a restore keeps */
const place = z.strictObject({ pid: z.number().int().positive(), fd: z.number().int().nonnegative() });
const line = z.strictObject({
  bytes: z.base64(),
  /** its last byte ends it, or the end of input came after it */
  ends: z.enum(["by byte", "by end of input"]),
});
const waiting = z.strictObject({
  master: place,
  /** lines that nobody has read, oldest first; then what is not complete */
  lines: z.array(line).max(LINES_MAX),
  typed: z.base64(),
  /** what the master's holder has not read */
  written: z.base64(),
  /** output: by the byte for that (^S), or by tcflow(3); each goes on by its counterpart only */
  stopped: z.enum(["by byte", "by call"]).nullable(),
});
const record = z.strictObject({ terminals: z.array(waiting).max(TERMINALS_MAX) });
export type Terminals = z.infer<typeof record>;
type Waiting = Terminals["terminals"][number];

interface Ends {
  master?: SocketPlace & { inner: number };
  hasSlave: boolean;
}

// ---- at the source ----

/**
 * Takes out what waits, and writes it down. While the application is frozen.
 * @throws HoldfastError `TERMINAL_FULL` when there is more than can be put back
 */
export function leaveTerminals(imagesDir: string, tree: Pick<Tree, "descriptors">): void {
  const terminals: Waiting[] = [];
  const write = (all: Waiting[]): void =>
    writeBeside(imagesDir, FILE, { terminals: all } satisfies Terminals);
  let full: string | null = null;
  let bytes = 0;
  for (const { master, hasSlave } of endsIn(tree).values()) {
    if (master === undefined) continue; // hung up, as it will be; or CRIU says that it is another's
    const at = { pid: master.inner, fd: master.fd };
    const found = withSocketAt(master, (ours) =>
      withoutWaiting(ours, () => taken(ours, hasSlave, at, (one) => write([...terminals, one]))),
    );
    if (found === null) continue;
    terminals.push(found);
    const typed = typedBytesOf(found);
    bytes += typed + found.written.length;
    if (typed > TYPED_BYTES_MAX) full = `more than ${TYPED_BYTES_MAX} bytes were typed into a terminal`;
    if (bytes > BYTES_MAX) full = `more than ${BYTES_MAX} bytes were sent through terminals`;
    if (full !== null) break;
  }
  if (full !== null)
    throw fail("TERMINAL_FULL", `${full} and not read: try again when the application has read them`);
}

/** Takes out what waits in one, which is on disk when this returns, or where it was. null: nothing */
function taken(
  master: number,
  hasSlave: boolean,
  at: Waiting["master"],
  write: (one: Waiting) => void,
): Waiting | null {
  const found = whatWaits(master, hasSlave);
  if (found === null) return null;
  const one = { master: at, ...found };
  try {
    write(one);
  } catch (error) {
    putBack(master, one);
    throw error;
  }
  return one;
}

/** For reads and writes of it, by whomever: the application does not run. Who else reads or writes there would have us wait. */
function withoutWaiting<T>(fd: number, work: () => T): T {
  const flags = descriptor.fileFlags(fd);
  descriptor.setFileFlags(fd, flags | constants.O_NONBLOCK);
  try {
    return work();
  } finally {
    descriptor.setFileFlags(fd, flags);
  }
}

function endsIn({ descriptors }: Pick<Tree, "descriptors">): Map<number, Ends> {
  const found = new Map<number, Ends>();
  for (const { pid, fd, inner, link } of descriptors) {
    if (!NAME.test(link)) continue;
    withSocketAt({ pid, fd }, (ours) => {
      const ofMaster = terminal.numberOfMaster(ours);
      const number = ofMaster ?? terminal.numberOfSlave(ours);
      if (number === null) return;
      const ends = found.get(number) ?? { hasSlave: false };
      if (ofMaster === null) ends.hasSlave = true;
      else ends.master ??= { pid, fd, inner };
      found.set(number, ends);
    });
  }
  return found;
}

type Found = Omit<Waiting, "master">;

/** null: nothing waits */
function whatWaits(master: number, hasSlave: boolean): Found | null {
  if (hasSlave) {
    const slave = terminal.openSlave(master);
    try {
      return ofBoth(master, slave);
    } finally {
      descriptor.close(slave);
    }
  }
  // it has never been open, as far as anybody can tell
  if ((pollNow(master, POLLIN) & POLLHUP) === 0) return null;
  return { lines: [], typed: "", written: unreadBy(master).toString("base64"), stopped: null };
}

function ofBoth(master: number, slave: number): Found | null {
  const before = terminal.Settings.of(slave);
  const lines: Found["lines"] = [];
  while (before.isByLine && isReadable(slave) && lines.length < LINES_MAX) {
    const bytes = readOnce(slave);
    const last = bytes.at(-1) ?? 0;
    const isWhole = last === NEWLINE || before.endsLine(last);
    lines.push({ bytes: bytes.toString("base64"), ends: isWhole ? "by byte" : "by end of input" });
  }
  before.asBytes().set(slave);
  const typed = readAll(slave);
  before.set(slave);
  const written = [unreadBy(master)];
  let stopped: Found["stopped"] = null;
  // there is room now, so it is not for want of that
  if (!isWritable(slave)) {
    terminal.resumeOutput(slave);
    stopped = isWritable(slave) ? "by call" : "by byte";
    written.push(unreadBy(master)); // what was echoed and waited for that
    if (stopped === "by call") terminal.stopOutput(slave);
  }
  const text = Buffer.concat(written).toString("base64");
  if (lines.length + typed.length + text.length === 0 && stopped === null) return null;
  return { lines, typed: typed.toString("base64"), written: text, stopped };
}

function unreadBy(master: number): Buffer {
  const inPackets = terminal.isInPacketMode(master);
  if (inPackets) terminal.setPacketMode(master, false);
  const bytes = readAll(master);
  if (inPackets) terminal.setPacketMode(master, true);
  return bytes;
}

function typedBytesOf({ lines, typed }: Found): number {
  return [...lines.map(({ bytes }) => bytes), typed].reduce(
    (sum, text) => sum + Buffer.byteLength(text, "base64"),
    0,
  );
}

/** Looking has all that was sent arrive (tty_buffer_flush_work() in n_tty_poll()). */
function isReadable(fd: number): boolean {
  return (pollNow(fd, POLLIN) & POLLIN) !== 0;
}

function isWritable(fd: number): boolean {
  return (pollNow(fd, POLLOUT) & POLLOUT) !== 0;
}

function readAll(fd: number): Buffer {
  const parts: Buffer[] = [];
  for (let length = 0; length < BYTES_MAX && isReadable(fd); ) {
    const part = readOnce(fd);
    if (part.length === 0) break;
    parts.push(part);
    length += part.length;
  }
  return Buffer.concat(parts);
}

/** Empty: there is nothing any more. */
function readOnce(fd: number): Buffer {
  const into = Buffer.alloc(READ_BYTES);
  try {
    return into.subarray(0, readSync(fd, into));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EAGAIN") return into.subarray(0, 0);
    throw error;
  }
}

// ---- at the target, and where it goes on ----

/** Into the restored application, which is stopped. @throws HoldfastError `TERMINALS_INVALID`, `TERMINAL_LOST` */
export async function putBackTerminals(imagesDir: string, pids: number[]): Promise<void> {
  const left = readBeside(imagesDir, FILE, record, "TERMINALS_INVALID");
  if (left === null) return;
  const byInner = await byInnerPid(pids);
  for (const one of left.terminals) putBackOne(byInner, one);
}

/**
 * Into an application that stays where it is. May be repeated: what is back is struck out.
 * @param back what is back already, of those that the file may still name @throws what the first that failed has thrown
 */
export async function takeBackTerminals(imagesDir: string, pids: number[], back: Set<string>): Promise<void> {
  const left = readBeside(imagesDir, FILE, record, "TERMINALS_INVALID");
  if (left === null) return;
  const byInner = await byInnerPid(pids);
  const keyOf = ({ master: { pid, fd } }: Waiting): string => `${pid}/${fd}`;
  const failed: unknown[] = [];
  for (const one of left.terminals.filter((each) => !back.has(keyOf(each)))) {
    try {
      putBackOne(byInner, one);
      back.add(keyOf(one));
      // for the next agent; there may be no space for it
      const terminals = left.terminals.filter((each) => !back.has(keyOf(each)));
      if (terminals.length > 0) writeBeside(imagesDir, FILE, { terminals } satisfies Terminals);
    } catch (error) {
      failed.push(error);
    }
  }
  if (left.terminals.every((one) => back.has(keyOf(one)))) rmSync(join(imagesDir, FILE), { force: true });
  else throw failed[0];
}

/** One whose process has gone is passed over. */
function putBackOne(byInner: Map<number, number>, one: Waiting): void {
  const pid = byInner.get(one.master.pid);
  if (pid === undefined) return;
  withSocketAt({ pid, fd: one.master.fd }, (master) => withoutWaiting(master, () => putBack(master, one)));
}

function putBack(master: number, one: Waiting): void {
  // of our own: as it is closed, a master that has no other hears of that
  const slave = terminal.openSlave(master);
  const inPackets = terminal.isInPacketMode(master);
  try {
    if (inPackets) terminal.setPacketMode(master, false);
    const settings = terminal.Settings.of(slave);
    const beyond = writeAndType(slave, one, settings);
    if (one.stopped === "by byte" && settings.stop !== 0) terminal.type(slave, settings.stop);
    else if (one.stopped !== null) terminal.stopOutput(slave);
    // only where a move did not happen for it: it waits behind the rest, as before
    writeAll(master, beyond);
  } finally {
    if (inPackets) terminal.setPacketMode(master, true);
    descriptor.close(slave);
  }
}

/** @returns what was typed and does not fit */
function writeAndType(slave: number, one: Waiting, settings: terminal.Settings): Buffer {
  const lines = one.lines.map(({ bytes, ends }) => ({ bytes: Buffer.from(bytes, "base64"), ends }));
  const typed = Buffer.from(one.typed, "base64");
  const endOfInput = unusedIn([...lines.map(({ bytes }) => bytes), typed]);
  const beyond: Buffer[] = [];
  let room = TYPED_BYTES_MAX;
  const type = (bytes: Buffer): void => {
    for (const byte of bytes.subarray(0, room)) terminal.type(slave, byte);
    beyond.push(bytes.subarray(room));
    room = Math.max(0, room - bytes.length);
  };
  try {
    settings.verbatim({ line: 0, input: endOfInput }).set(slave);
    writeAll(slave, Buffer.from(one.written, "base64"));
    for (const { bytes, ends } of lines) {
      const last = ends === "by byte" ? (bytes.at(-1) ?? 0) : 0;
      settings.verbatim({ line: last, input: endOfInput }).set(slave);
      type(bytes);
      if (ends === "by end of input" && room > 0) type(Buffer.of(endOfInput));
    }
    settings.verbatim({ line: 0, input: endOfInput }).set(slave);
    type(typed);
  } finally {
    settings.set(slave);
  }
  return Buffer.concat(beyond);
}

function writeAll(fd: number, bytes: Buffer): void {
  for (let left = bytes; left.length > 0; ) {
    const written = tryWrite(fd, left);
    if (written === 0)
      throw fail(
        "TERMINAL_LOST",
        `${left.length} bytes that waited in a terminal could not be put into it again`,
      );
    left = left.subarray(written);
  }
}

/** 0: there is no room now */
function tryWrite(fd: number, bytes: Buffer): number {
  if (!isWritable(fd)) return 0;
  try {
    return writeSync(fd, bytes);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EAGAIN") return 0;
    throw error;
  }
}

const NEWLINE = 0x0a;

/** A byte that none of them has. */
function unusedIn(texts: Buffer[]): number {
  for (let byte = 1; byte < 256; byte++)
    if (byte !== NEWLINE && texts.every((text) => !text.includes(byte))) return byte;
  return 0;
}
