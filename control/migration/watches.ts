/**
 * Watches of inotify(7) go along by hand: CRIU 4.2 refuses those on an overlay, drops what was not read yet, forgets
 * IN_ONESHOT and IN_EXCL_UNLINK, and sets them by a path that may be another file by then.
 *
 *   look    while the tree runs or is frozen: which instances, which watches, which files (`watched-files.ts`)
 *   lift    the tree is frozen: everything out of each instance, so that CRIU dumps empty ones
 *   put     into empty instances: at the target after the restore, at the source (`putBack`) before it goes on after all
 *
 * Between `lift` and `put` the state is in the journal too: an agent that dies in between is followed by one that puts it
 * back. Numbers of watches, the number the next one gets, and unread events are the same afterwards.
 */
import { closeSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as files from "#proxy/kernel/files.ts";
import type { InstanceState, Place, WatchEvent } from "../api/watches.ts";
import { borrow, giveBack } from "../runtime/borrowed.ts";
import { openRoot } from "../runtime/inside.ts";
import { descriptorsOf, innerPid, treeOf } from "../runtime/processes.ts";
import { readLink } from "../runtime/read-text.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import { putEvents, putOverflow, takeEvents } from "./watch-events.ts";
import {
  type Candidate,
  isAmbiguous,
  openPlace,
  readWatches,
  type SeenWatch,
  type WatchedFiles,
} from "./watched-files.ts";

export const INOTIFY = "anon_inode:inotify";
const O_ASYNC = 0o20000;
/** bits that any watch may be asked for without a change: those of the mask itself */
const EVENT_BITS = 0xfff;

/** An instance of a process of the tree. */
export interface Instance {
  pid: number;
  fd: number;
  watches: SeenWatch[];
  unreadBytes: number;
  isAsync: boolean;
}

/** Each instance once, whoever else has it (fork(2), dup(2)). */
export async function instancesOf(pids: number[]): Promise<Instance[]> {
  const instances: (Instance & { ours: number })[] = [];
  try {
    for (const pid of pids) {
      for (const { fd, target } of await descriptorsOf(pid)) {
        if (target !== INOTIFY) continue;
        const ours = taken(pid, fd);
        if (ours === null) continue;
        const known = instances.some((other) => descriptor.isSameOpenFile(other.ours, ours));
        const info = known ? null : fdinfo(pid, fd);
        if (info === null) giveBack(ours);
        else
          instances.push({
            pid,
            fd,
            ours,
            watches: readWatches(info).sort((one, other) => one.wd - other.wd),
            unreadBytes: descriptor.bytesUnread(ours),
            isAsync: (descriptor.fileFlags(ours) & O_ASYNC) !== 0,
          });
      }
    }
    return instances.map(({ ours: _, ...instance }) => instance);
  } finally {
    for (const { ours } of instances) giveBack(ours);
  }
}

/** A watch whose file has no name and no descriptor. */
export interface LostWatch {
  pid: number;
  fd: number;
  wd: number;
}

/** Watches that could not go along. Remembers in `files` where the others are. */
export async function lostWatches(files: WatchedFiles, pids: number[]): Promise<LostWatch[]> {
  const instances = await instancesOf(pids);
  const all = instances.flatMap(({ watches }) => watches);
  const found = await files.find(all, pids, { search: true });
  for (const { fd } of found.values()) closeSync(fd);
  return instances.flatMap(({ pid, fd, watches }) =>
    watches.filter(({ identity }) => !found.has(identity)).map(({ wd }) => ({ pid, fd, wd })),
  );
}

/**
 * Empties every instance of a frozen tree and gives what they held.
 * @param record keeps the state where the next agent finds it: called before anything is touched, and when all is known
 * @throws HoldfastError `WATCH_FILE`, with nothing touched: a watch on a file that cannot be found
 */
export async function lift(
  files: WatchedFiles,
  pids: number[],
  folder: string,
  record: (states: InstanceState[]) => void,
): Promise<InstanceState[]> {
  const instances = await instancesOf(pids);
  if (instances.length === 0) return [];
  const found = await files.find(
    instances.flatMap(({ watches }) => watches),
    pids,
    { search: false },
  );
  try {
    const states: InstanceState[] = [];
    for (const { pid, fd, watches, unreadBytes, isAsync } of instances) {
      const inner = await innerPid(pid);
      if (inner === null) throw noName({ pid, fd, wd: 0 }); // it was killed meanwhile
      states.push({
        pid: inner,
        fd,
        next: null,
        isAsync,
        events: unreadBytes > 0 ? null : [],
        watches: watches.map(({ wd, mask, identity }) => {
          const place = found.get(identity)?.place;
          if (place === undefined) throw noName({ pid, fd, wd });
          return { wd, mask, place };
        }),
      });
    }
    record(states);
    for (const [index, state] of states.entries()) {
      const { pid, fd, watches } = instances[index] as Instance;
      const ours = borrow(pid, fd);
      try {
        setAsync(ours, false);
        state.events = takeEvents(ours);
        try {
          for (const [at, seen] of watches.entries()) {
            const candidate = found.get(seen.identity);
            const watch = state.watches[at];
            if (candidate === undefined || watch === undefined || !isAmbiguous(seen, candidate.fd)) continue;
            watch.place = watchedOf(ours, seen, candidate, files.namesakes(candidate.place));
          }
        } catch (error) {
          putUnread(ours, state.events, folder); // nothing has been changed
          throw error;
        }
        empty(ours, state);
      } finally {
        giveBack(ours);
      }
    }
    record(states);
    return states;
  } finally {
    for (const { fd } of found.values()) closeSync(fd);
  }
}

/**
 * Where a file of the image has several names, the overlay shows several inodes that look the same: the kernel tells whether
 * one of them is what the instance watches, by not making another watch of it. If it does, that goes again.
 */
function watchedOf(inotify: number, seen: SeenWatch, first: Candidate, namesakes: Candidate[]): Place {
  try {
    for (const { place, fd } of [first, ...namesakes]) if (isWatched(inotify, seen, fd)) return place;
  } finally {
    for (const { fd } of namesakes) closeSync(fd);
  }
  throw fail("WATCH_FILE", `watch ${seen.wd} is on a file of the image that has other names elsewhere`);
}

/** The instance has nothing to read, before and after. */
function isWatched(inotify: number, { wd, mask }: SeenWatch, file: number): boolean {
  const events = mask & EVENT_BITS;
  try {
    const got = files.inotifyAdd(inotify, file, files.IN_MASK_CREATE | events);
    files.inotifyRemove(inotify, got);
    takeEvents(inotify);
    files.inotifySetNext(inotify, got);
    return false;
  } catch (error) {
    if (!(error instanceof HoldfastError) || error.code !== "EEXIST") throw error;
    return files.inotifyAdd(inotify, file, files.IN_MASK_ADD | events) === wd;
  }
}

/** The number of the next watch can only be had by one more watch; whatever it costs in events is read away. */
function empty(inotify: number, state: InstanceState): void {
  const numbers = new Set(state.watches.map(({ wd }) => wd));
  for (const wd of numbers) files.inotifyRemove(inotify, wd);
  const file = files.openPath("/");
  try {
    state.next = files.inotifyAdd(inotify, file, files.IN_DELETE_SELF);
    numbers.add(state.next);
    files.inotifyRemove(inotify, state.next);
  } finally {
    closeSync(file);
  }
  // another program may have caused some more, on a mount that it sees too
  const late = takeEvents(inotify).filter(({ wd, mask }) => !(mask & files.IN_IGNORED && numbers.has(wd)));
  state.events = [...(state.events ?? []), ...late];
}

/**
 * Fills instances that hold nothing of worth with what others held.
 * @param tree processes of the tree, in the agent's numbering; none of them runs
 * @returns instances whose unread events could only be told as overflowed
 * @throws HoldfastError `WATCH_FILE`, `WATCH_NUMBER`
 */
export async function put(
  states: InstanceState[],
  container: Sandbox,
  tree: number[],
): Promise<InstanceState[]> {
  const overflowed: InstanceState[] = [];
  await eachInstance(states, container, tree, ({ inotify, state, open }) => {
    for (const { wd } of watchesOf(inotify)) files.inotifyRemove(inotify, wd);
    takeEvents(inotify);
    if (!putUnread(inotify, state.events, scratch(container))) overflowed.push(state);
    for (const { wd, mask, place } of state.watches) watch(inotify, wd, mask, open(place));
    files.inotifySetNext(inotify, nextOf(state));
    assertSame(state, watchesOf(inotify));
  });
  return overflowed;
}

/** How an application stands that is given back what was taken out of it: it never ran since, it ran and was stopped again, or it runs. */
export type Standing = "stood" | "ran" | "runs";

/**
 * At the source, before the application goes on after all. Where it ran meanwhile (CRIU lets go of a tree that it cannot
 * dump, and of one whose agent died), it keeps what it has asked for since, and is told that events
 * were lost.
 * @param warn told of each instance that could not be filled
 */
export async function putBack(
  states: InstanceState[],
  container: Sandbox,
  standing: Standing,
  warn: (error: unknown) => void,
): Promise<void> {
  const root = states.length === 0 ? null : await container.applicationRoot();
  if (root === null) return;
  const tree = await treeOf(root);
  for (const state of states) {
    try {
      if (standing !== "stood") {
        const folder = standing === "ran" ? scratch(container) : null;
        await eachInstance([state], container, tree, (place) => mend(place, folder));
      } else if ((await put([state], container, tree)).length > 0) warn(overflowOf(state));
    } catch (error) {
      warn(error);
    }
  }
}

/** For the log. */
export function countsOf(states: InstanceState[]): { instances: number; watches: number; unread: number } {
  const sum = (count: (state: InstanceState) => number): number =>
    states.reduce((total, state) => total + count(state), 0);
  return {
    instances: states.length,
    watches: sum(({ watches }) => watches.length),
    unread: sum(({ events }) => events?.length ?? 0),
  };
}

/** What to log of an instance that has lost events, as its program knows. */
export function overflowOf({ pid, fd }: InstanceState): HoldfastError {
  return fail(
    "WATCH_EVENTS",
    `what process ${pid} had not read of its descriptor ${fd} (inotify) is told as an overflow`,
  );
}

interface InstancePlace {
  inotify: number;
  state: InstanceState;
  open: (place: Place) => number;
}

async function eachInstance(
  states: InstanceState[],
  container: Sandbox,
  tree: number[],
  use: (place: InstancePlace) => void,
): Promise<void> {
  if (states.length === 0) return;
  const pidOf = new Map<number, number>();
  for (const pid of tree) pidOf.set((await innerPid(pid)) ?? -1, pid);
  const root = openRoot(container);
  try {
    for (const state of states) {
      const pid = pidOf.get(state.pid) ?? -1;
      if (readLink(`/proc/${pid}/fd/${state.fd}`) !== INOTIFY) throw notThere(state);
      const inotify = borrow(pid, state.fd);
      try {
        // no signal for what happens here
        setAsync(inotify, false);
        try {
          use({ inotify, state, open: (place) => openPlace(place, root, pidOf) });
        } finally {
          setAsync(inotify, state.isAsync);
        }
      } finally {
        giveBack(inotify);
      }
    }
  } finally {
    closeSync(root);
  }
}

/**
 * An instance whose program ran while it was empty.
 * @param folder null: the program runs even now, and would read the rubbish that an overflow takes
 */
function mend({ inotify, state, open }: InstancePlace, folder: string | null): void {
  const present = new Set(watchesOf(inotify).map(({ wd }) => wd));
  const missing = state.watches.filter(({ wd }) => !present.has(wd));
  if (missing.length === 0 && state.watches.length > 0) return; // it was not emptied
  if (folder !== null) {
    takeEvents(inotify);
    putUnread(inotify, null, folder);
  }
  for (const { wd, mask, place } of missing) {
    const file = open(place);
    try {
      files.inotifySetNext(inotify, wd);
      files.inotifyAdd(inotify, file, files.IN_MASK_ADD | mask);
    } finally {
      closeSync(file);
    }
  }
  files.inotifySetNext(inotify, Math.max(nextOf(state), ...[...present].map((wd) => wd + 1)));
}

function nextOf({ next, watches }: InstanceState): number {
  return next ?? (watches.at(-1)?.wd ?? 0) + 1;
}

/** Where the agent makes files of its own while it works on watches: on a tmpfs, below a folder that is hidden. */
export function scratch(container: Sandbox): string {
  return container.hostPath("watches");
}

/**
 * @param events null: some that are lost
 * @returns whether they are there as they were
 */
function putUnread(inotify: number, events: WatchEvent[] | null, folder: string): boolean {
  if (events !== null && events.length === 0) return true;
  return withFolder(folder, () => {
    if (events !== null) return putEvents(inotify, events, folder);
    putOverflow(inotify, folder);
    return false;
  });
}

function watchesOf(inotify: number): SeenWatch[] {
  return readWatches(readFileSync(`/proc/self/fdinfo/${inotify}`, "latin1"));
}

function watch(inotify: number, wd: number, mask: number, file: number): void {
  try {
    files.inotifySetNext(inotify, wd);
    const got = files.inotifyAdd(inotify, file, mask);
    if (got !== wd)
      throw fail("WATCH_NUMBER", `watch ${wd} came out as ${got}: two watched names are one file here`, {
        source: "container",
      });
  } finally {
    closeSync(file);
  }
}

function assertSame(state: InstanceState, present: SeenWatch[]): void {
  const is = present.map(({ wd, mask }) => `${wd}:${mask}`);
  const was = state.watches.map(({ wd, mask }) => `${wd}:${mask}`);
  if (is.sort().join() !== was.sort().join())
    throw fail("WATCH_NUMBER", `watches of process ${state.pid}, descriptor ${state.fd} came out otherwise`);
}

function setAsync(inotify: number, isAsync: boolean): void {
  const flags = descriptor.fileFlags(inotify);
  if (((flags & O_ASYNC) !== 0) !== isAsync) descriptor.setFileFlags(inotify, flags ^ O_ASYNC);
}

function withFolder<T>(folder: string, work: () => T): T {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  try {
    return work();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** What is under its number now is another's. */
function notThere({ pid, fd }: InstanceState): HoldfastError {
  return fail("WATCH_FILE", `descriptor ${fd} of process ${pid} is no instance of inotify any more`);
}

function noName({ pid, fd, wd }: LostWatch): HoldfastError {
  return fail(
    "WATCH_FILE",
    `watch ${wd} of process ${pid}, descriptor ${fd}, is on a file that has no name in the container any more`,
  );
}

/** null: it has gone */
function taken(pid: number, fd: number): number | null {
  try {
    return borrow(pid, fd);
  } catch (error) {
    if (error instanceof HoldfastError && (error.code === "ESRCH" || error.code === "EBADF")) return null;
    throw error;
  }
}

function fdinfo(pid: number, fd: number): string | null {
  try {
    return readFileSync(`/proc/${pid}/fdinfo/${fd}`, "latin1");
  } catch {
    return null;
  }
}
