/**
 * Events of inotify(7) that a program has not read yet: taken out of an instance, and put into one again.
 *
 * Nothing writes into such a queue but the kernel, so an event is put in by making it happen: the number of its watch is
 * given to a file of ours for a moment, and what the event tells of is done to that. What must not be seen is that the watch
 * ends again, which is an event too (IN_IGNORED). The kernel drops what does not fit: so the queue is filled with rubbish
 * first, up to the event that says so (IN_Q_OVERFLOW, put in once only), and room is made for just the events to keep:
 *
 *   rubbish … rubbish OVERFLOW event event event      full: IN_IGNORED of our watches is dropped
 *   └──── read away ─────────┘ └── left over ──┘      a queue is read from its start
 *
 * (fsnotify_insert_event, fs/notify/notification.c; inotify_merge, fs/notify/inotify/inotify_fsnotify.c)
 */
import {
  chmodSync,
  closeSync,
  fchmodSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmdirSync,
  rmSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as files from "#proxy/kernel/files.ts";
import type { WatchEvent } from "../api/watches.ts";

/** struct inotify_event without its name: i32 wd, u32 mask, u32 cookie, u32 len */
const EVENT_BYTES = 16;
/** A queue that is longer is told as overflowed. fs.inotify.max_queued_events is 16,384 unless somebody raised it. */
const EVENTS_MAX = 4_096;
/** of rubbish, after which something is wrong */
const RUBBISH_MAX = 4_194_304;
const RUBBISH_AT_ONCE = 1_024;
/** above what the kernel gives out in years, below what it would wrap around at */
const RUBBISH_WD = 0x7fff0000;
const READ_BYTES_MAX = 1 << 20;

/** Takes all that is there; never waits. */
export function takeEvents(inotify: number): WatchEvent[] {
  const events: WatchEvent[] = [];
  for (;;) {
    const bytes = descriptor.bytesUnread(inotify);
    if (bytes === 0) return events;
    const into = Buffer.alloc(Math.min(bytes, READ_BYTES_MAX));
    events.push(...readEvents(into.subarray(0, descriptor.read(inotify, into))));
  }
}

/** Pure: what read(2) of an instance gives. */
export function readEvents(bytes: Buffer): WatchEvent[] {
  const events: WatchEvent[] = [];
  for (let at = 0; at + EVENT_BYTES <= bytes.length; ) {
    const length = bytes.readUInt32LE(at + 12);
    const name = bytes.toString("latin1", at + EVENT_BYTES, at + EVENT_BYTES + length);
    events.push({
      wd: bytes.readInt32LE(at),
      mask: bytes.readUInt32LE(at + 4),
      cookie: bytes.readUInt32LE(at + 8),
      name: name.replace(/\0.*$/s, ""),
    });
    at += EVENT_BYTES + length;
  }
  return events;
}

/** One thing to do, which the kernel tells by one or two events. */
type Deed =
  | { kind: "one"; event: WatchEvent }
  | { kind: "renamed"; from: WatchEvent; to: WatchEvent }
  | { kind: "gone"; event: WatchEvent };

const BITS = 0xfff;

/**
 * Pure: what to do for these events to come about, in their order. null: some of them cannot be made to, as the queue had
 * overflowed or a file system was unmounted.
 */
export function deedsFor(events: WatchEvent[]): Deed[] | null {
  if (events.length > EVENTS_MAX) return null;
  const deeds: Deed[] = [];
  for (let at = 0; at < events.length; at++) {
    const event = events[at] as WatchEvent;
    const next = events[at + 1];
    const bits = event.mask & BITS;
    if (event.wd < 1 || event.mask & (files.IN_UNMOUNT | files.IN_Q_OVERFLOW)) return null;
    if (bits === files.IN_MOVED_FROM && next?.cookie === event.cookie && next.mask & files.IN_MOVED_TO) {
      deeds.push({ kind: "renamed", from: event, to: next });
      at++;
    } else if (bits === files.IN_DELETE_SELF) {
      if (next?.wd !== event.wd || !(next.mask & files.IN_IGNORED)) return null;
      deeds.push({ kind: "gone", event });
      at++;
    } else if (event.mask & files.IN_IGNORED || isSingle(bits)) deeds.push({ kind: "one", event });
    else return null;
  }
  return deeds;
}

function isSingle(bits: number): boolean {
  return bits !== 0 && (bits & (bits - 1)) === 0;
}

/**
 * Puts events into an instance that has no watches and nothing to read; that is so again afterwards but for the events.
 * Where some of them cannot be made to happen, the one that says that events were lost (IN_Q_OVERFLOW) takes the place of
 * all: a program that is told so looks for itself.
 * @param folder of ours, empty, on any file system; emptied again
 * @returns whether the events are there as they were
 */
export function putEvents(inotify: number, events: WatchEvent[], folder: string): boolean {
  if (events.length === 0) return true;
  const deeds = deedsFor(events);
  const rubbish = new Rubbish(inotify, folder);
  try {
    const queued = rubbish.fill();
    if (deeds === null || events.length >= queued) {
      rubbish.end(); // its IN_IGNORED finds no room
      rubbish.read(queued);
      return false;
    }
    // it is one longer than full by the event that says so; the last of ours leaves it full again
    rubbish.read(events.length + 1);
    const stage = new Stage(inotify, folder, foldersOf(events));
    for (const deed of deeds) stage.play(deed);
    stage.close();
    rubbish.end();
    rubbish.read(queued - events.length); // and the one that says that it is full
    return true;
  } finally {
    rubbish.close();
    for (const name of readdirSync(folder)) rmSync(`${folder}/${name}`, { recursive: true, force: true });
  }
}

/** Tells the program that events were lost. The instance has no watches and nothing to read. */
export function putOverflow(inotify: number, folder: string): void {
  putEvents(inotify, [{ wd: -1, mask: files.IN_Q_OVERFLOW, cookie: 0, name: "" }], folder);
}

/** Events without a name: all of one size, so that so and so many of them can be read. */
class Rubbish {
  readonly #inotify: number;
  readonly #file: number;
  readonly #wd: number;

  constructor(inotify: number, folder: string) {
    this.#inotify = inotify;
    this.#file = openSync(`${folder}/rubbish`, "w");
    files.inotifySetNext(inotify, RUBBISH_WD);
    this.#wd = files.inotifyAdd(inotify, this.#file, files.IN_MODIFY | files.IN_ATTRIB);
  }

  /** Until the queue says that it is full; how many events without that one. */
  fill(): number {
    let bytes = descriptor.bytesUnread(this.#inotify);
    for (let made = 0; made < RUBBISH_MAX; made += RUBBISH_AT_ONCE) {
      // equal neighbours would become one event
      for (let each = 0; each < RUBBISH_AT_ONCE; each += 2) {
        writeSync(this.#file, "x", 0);
        fchmodSync(this.#file, 0o600);
      }
      const now = descriptor.bytesUnread(this.#inotify);
      if (now < bytes + RUBBISH_AT_ONCE * EVENT_BYTES) return now / EVENT_BYTES - 1;
      bytes = now;
    }
    throw fail("WATCH_EVENTS", "fs.inotify.max_queued_events is too large to move events that were not read");
  }

  read(events: number): void {
    const into = Buffer.alloc(Math.min(events * EVENT_BYTES, READ_BYTES_MAX));
    for (let left = events * EVENT_BYTES; left > 0; )
      left -= descriptor.read(this.#inotify, into.subarray(0, Math.min(left, into.length)));
  }

  /** Leaves IN_IGNORED, which a full queue drops. */
  end(): void {
    files.inotifyRemove(this.#inotify, this.#wd);
  }

  close(): void {
    closeSync(this.#file);
  }
}

/** Watches on folders. The events of a folder's own end and move do not say what it was (inotify_handle_inode_event). */
function foldersOf(events: WatchEvent[]): Set<number> {
  return new Set(events.filter(({ name, mask }) => name !== "" || mask & files.IN_ISDIR).map(({ wd }) => wd));
}

/** Files of ours that have the numbers of the program's watches for a moment. */
class Stage {
  readonly #inotify: number;
  readonly #folder: string;
  readonly #folders: Set<number>;
  /** number → the file or folder that has it */
  readonly #props = new Map<number, string>();
  #made = 0;

  constructor(inotify: number, folder: string, folders: Set<number>) {
    this.#inotify = inotify;
    this.#folder = folder;
    this.#folders = folders;
  }

  play(deed: Deed): void {
    if (deed.kind === "renamed") {
      this.#rename(deed.from, deed.to);
      return;
    }
    const { event } = deed;
    const prop = this.#prop(event.wd);
    if (deed.kind === "gone") {
      this.#listen(event.wd, files.IN_DELETE_SELF);
      this.#props.delete(event.wd);
      rmSync(prop, { recursive: true });
    } else if (event.mask & files.IN_IGNORED) this.#drop(event.wd);
    else if (event.name === "") this.#act(event, prop, this.#folders.has(event.wd));
    else this.#child(event, nameIn(prop, event.name));
  }

  /** What is still watched: where the queue is full nobody hears of the end. */
  close(): void {
    for (const wd of [...this.#props.keys()]) this.#drop(wd);
  }

  #rename(from: WatchEvent, to: WatchEvent): void {
    const before = nameIn(this.#prop(from.wd), from.name);
    const after = nameIn(this.#prop(to.wd), to.name);
    this.#make(before, (from.mask & files.IN_ISDIR) !== 0);
    const both = from.wd === to.wd ? files.IN_MOVED_FROM | files.IN_MOVED_TO : 0;
    this.#during(from.wd, both || files.IN_MOVED_FROM, () =>
      this.#during(to.wd, both || files.IN_MOVED_TO, () => renameSync(before, after)),
    );
    rmSync(after, { recursive: true });
  }

  #child(event: WatchEvent, path: Buffer): void {
    const bit = event.mask & BITS;
    const isFolder = (event.mask & files.IN_ISDIR) !== 0;
    if (bit !== files.IN_CREATE && bit !== files.IN_MOVED_TO) this.#make(path, isFolder);
    this.#act(event, path, isFolder);
    rmSync(path, { recursive: true, force: true });
  }

  #act(event: WatchEvent, path: string | Buffer, isFolder: boolean): void {
    const bit = event.mask & BITS;
    const during = (work: () => unknown): void => this.#during(event.wd, bit, work);
    const aside = `${this.#folder}/aside`;
    if (bit === files.IN_CREATE) during(() => this.#make(path, isFolder));
    else if (bit === files.IN_DELETE) during(() => (isFolder ? rmdirSync(path) : unlinkSync(path)));
    else if (bit === files.IN_ATTRIB) during(() => chmodSync(path, 0o700));
    else if (bit === files.IN_MOVED_FROM || bit === files.IN_MOVE_SELF) {
      during(() => renameSync(path, aside));
      if (bit === files.IN_MOVE_SELF) renameSync(aside, path);
      else rmSync(aside, { recursive: true });
    } else if (bit === files.IN_MOVED_TO) {
      this.#make(aside, isFolder);
      during(() => renameSync(aside, path));
    } else if (bit === files.IN_MODIFY || bit === files.IN_CLOSE_WRITE) {
      const file = openSync(path, "r+");
      if (bit === files.IN_MODIFY) {
        during(() => writeSync(file, "y", 0));
        closeSync(file);
      } else during(() => closeSync(file));
    } else this.#look(bit, path, isFolder, during);
  }

  /** Opened, read and closed without a change. */
  #look(bit: number, path: string | Buffer, isFolder: boolean, during: (work: () => unknown) => void): void {
    if (bit === files.IN_ACCESS) {
      if (isFolder) during(() => readdirSync(path));
      else {
        const file = openSync(path, "r");
        during(() => readSync(file, Buffer.alloc(1), 0, 1, 0));
        closeSync(file);
      }
    } else if (bit === files.IN_OPEN) {
      let file = -1;
      during(() => {
        file = openSync(path, "r");
      });
      closeSync(file);
    } else {
      const file = openSync(path, "r");
      during(() => closeSync(file));
    }
  }

  #make(path: string | Buffer, isFolder: boolean): void {
    if (isFolder) mkdirSync(path);
    else {
      const file = openSync(path, "wx");
      writeSync(file, "x");
      closeSync(file);
    }
  }

  /** A file or folder of ours that has this number. */
  #prop(wd: number): string {
    const known = this.#props.get(wd);
    if (known !== undefined) return known;
    const path = `${this.#folder}/${this.#made++}`;
    this.#make(path, this.#folders.has(wd));
    this.#props.set(wd, path);
    files.inotifySetNext(this.#inotify, wd);
    const got = this.#listen(wd, QUIET);
    if (got !== wd) throw fail("WATCH_NUMBER", `watch ${wd} came out as ${got}`);
    return path;
  }

  #drop(wd: number): void {
    if (this.#props.delete(wd)) files.inotifyRemove(this.#inotify, wd);
  }

  /** By a descriptor, as the file may have another name afterwards. */
  #during(wd: number, mask: number, work: () => unknown): void {
    const file = files.openPath(this.#props.get(wd) ?? "");
    try {
      files.inotifyAdd(this.#inotify, file, mask);
      work();
      files.inotifyAdd(this.#inotify, file, QUIET);
    } finally {
      closeSync(file);
    }
  }

  #listen(wd: number, mask: number): number {
    const file = files.openPath(this.#props.get(wd) ?? "");
    try {
      return files.inotifyAdd(this.#inotify, file, mask);
    } finally {
      closeSync(file);
    }
  }
}

/** IN_EXCL_UNLINK alone: no event at all but that of its end. */
const QUIET = 0x04000000;

function nameIn(folder: string, name: string): Buffer {
  return Buffer.concat([Buffer.from(`${folder}/`), Buffer.from(name, "latin1")]);
}
