/**
 * The numbers of processes in the target's container: the restored tree needs those it had, and CRIU, which restores it in
 * the same PID namespace, must not have one of them (pid_namespaces(7)).
 *
 * Which ones the tree has is certain only when it is dumped: a tree that forks all the time has others by then than when the
 * move was prepared. So CRIU is started with a number that is probably free, and again if it was not.
 */
import { join } from "node:path";
import { numbersInTree } from "../criu/image-file.ts";
import { readImage } from "../criu/image-files.ts";
import { runCommand } from "../runtime/command.ts";
import { childrenOf, highestInnerTid, innerPid } from "../runtime/processes.ts";

/** numbers that a tree may go on by while a move prepares, before CRIU's are reached */
const MARGIN = 1_000;
/** what a start of CRIU takes, with those that start it and what it tries */
const START = 30;
/** kernel/pid.c: numbers that are not given out again when all were (RESERVED_PIDS) */
const RESERVED = 300;

/** The next process in the namespace of `initPid` gets the number after it (`ns_last_pid`, admin-guide/sysctl/kernel.rst). */
export async function setLastNumber(initPid: number, last: number): Promise<void> {
  const script = `echo ${last} > /proc/sys/kernel/ns_last_pid`;
  await runCommand("nsenter", ["-t", String(initPid), "-p", "--", "/bin/sh", "-c", script], {
    source: "container",
  });
}

/** Numbers that a namespace gives out are below it. */
export async function numbersMax(initPid: number): Promise<number> {
  const text = await runCommand(
    "nsenter",
    ["-t", String(initPid), "-p", "--", "/bin/cat", "/proc/sys/kernel/pid_max"],
    { source: "container" },
  );
  return Number(text);
}

/** Before the tree's numbers are certain: the last number before those of CRIU. */
export function aheadOf(highestTid: number, max: number): number {
  const last = highestTid + MARGIN;
  return last + START < max ? last : RESERVED;
}

/** Where twice START numbers begin that are not needed: for those that start CRIU, and for CRIU. The number before it. */
export function besides(needed: ReadonlySet<number>, max: number): number {
  for (let last = RESERVED; last + 2 * START < max; ) {
    let taken = 0;
    for (let number = last + 1; number <= last + 2 * START; number++) if (needed.has(number)) taken = number;
    if (taken === 0) return last;
    last = taken;
  }
  return RESERVED; // a tree that has them all: CRIU says what it lacks
}

/**
 * Whether CRIU has a number that the dumped tree needs, or will give one to what it starts: the child that restores, and helpers.
 * @param workerPid of the process that started CRIU and waits for it outside of the container
 */
export async function isInTheWay(workerPid: number, needed: ReadonlySet<number>): Promise<boolean> {
  for (const criu of await childrenOf(workerPid)) {
    const numbers = [await innerPid(criu), await highestInnerTid([criu])];
    for (const first of numbers) if (first !== null && isNeeded(first, needed)) return true;
  }
  return false;
}

/** Whether one of the START numbers from `first` on is needed. */
export function isNeeded(first: number, needed: ReadonlySet<number>): boolean {
  for (let number = first; number < first + START; number++) if (needed.has(number)) return true;
  return false;
}

/** Of images that are complete. */
export function neededNumbers(imagesDir: string): Set<number> {
  return numbersInTree(readImage(join(imagesDir, "pstree.img")));
}
