/**
 * Descriptors of /dev/tty, the name of whatever controls its process. CRIU 4.2 dumps the first one only where the process that has it
 * has the terminal too, before others, and is in the foreground (`tty_verify_ctty` in criu/tty.c); and opens each again in a process
 * that may have none by then, as only the leaders of sessions are given theirs (`tty_find_restoring_task`).
 */
import { readFileSync, statSync } from "node:fs";
import { tryIoctlInt } from "#proxy/kernel/descriptors.ts";
import { KCMP_FILE, kcmp } from "#proxy/kernel/processes.ts";
import { majorOf, numberOfMaster, SLAVE_MAJOR } from "#proxy/kernel/terminals.ts";
import type { Add } from "../../api/finding.ts";
import { withSocketAt } from "../../migration/sockets.ts";
import { descriptorsOf, isPathOnly } from "../../runtime/processes.ts";

/** Documentation/admin-guide/devices.txt: 5, 0 and 5, 2 */
const TTY = 0x500;
const PTMX = 0x502;
/** asm-generic/ioctls.h */
const TIOCGPGRP = 0x540f;
const TIOCGSID = 0x5429;
const TIOCGDEV = 0x80045432;

interface Process {
  pid: number;
  session: number;
  /** its controlling terminal's number; 0: none */
  terminal: number;
  foreground: number;
}

interface Opened {
  by: Process;
  fd: number;
  device: number;
}

/** What CRIU notes of a terminal where it meets it first, as the process sees it. */
interface Noted {
  pid: number;
  session: number;
  group: number;
}

/** @param pids parents first, as CRIU goes through them */
export async function checkTerminals(pids: number[], add: Add): Promise<void> {
  const opened: Opened[] = [];
  for (const pid of pids) opened.push(...(await terminalsOf(pid)));
  const current = opened.filter(({ device }) => device === TTY);
  const [first] = current;
  if (first === undefined) return;
  const refused = isDumped(first, opened) ? current.find((one) => !isOpenedAgain(one, current)) : first;
  if (refused === undefined) return;
  const { by, fd } = refused;
  add(
    "descriptor.controlling-terminal",
    "error",
    `process ${by.pid} has /dev/tty open (descriptor ${fd}), which CRIU carries only where the session's leader has it and the terminal, in the foreground, and no process above has the terminal's other end`,
    "end what runs in that terminal before a move, or let it use the terminal it was started with (standard input) and close /dev/tty",
    { pid: by.pid, fd, path: "/dev/tty" },
  );
}

async function terminalsOf(pid: number): Promise<Opened[]> {
  const found: Opened[] = [];
  let by: Process | null = null;
  for (const { fd, target } of await descriptorsOf(pid)) {
    if (!target.startsWith("/dev/")) continue;
    const device = deviceOf(pid, fd);
    if (device !== TTY && device !== PTMX && majorOf(device) !== SLAVE_MAJOR) continue;
    if (isPathOnly(pid, fd)) continue; // refused by itself
    by ??= processOf(pid);
    if (by !== null) found.push({ by, fd, device });
  }
  return found.sort((one, other) => one.fd - other.fd);
}

/** Whether the first terminal that CRIU meets of that session, with the leader in the foreground, is of the same process. */
function isDumped(current: Opened, opened: Opened[]): boolean {
  const { session } = controlled(current, realDevice(current));
  const known = new Set<string>();
  for (const one of opened) {
    if (one.device === TTY) continue;
    const [name, noted] = one.device === PTMX ? notedMaster(one) : notedSlave(one);
    if (known.has(name)) continue;
    known.add(name);
    if (noted.session === session && noted.group === session) return noted.pid === current.by.pid;
  }
  return false;
}

function notedMaster({ by: { pid }, fd }: Opened): [string, Noted] {
  const [index = null, session = 0, group = 0] =
    withSocketAt({ pid, fd }, (ours) => [
      numberOfMaster(ours),
      ...[TIOCGSID, TIOCGPGRP].map((request) => tryIoctlInt(ours, request)),
    ]) ?? [];
  return [`master ${index}`, { pid, session: Math.max(0, session ?? 0), group: Math.max(0, group ?? 0) }];
}

function notedSlave(one: Opened): [string, Noted] {
  return [`slave ${one.device}`, controlled(one, one.device)];
}

/** The kernel tells of a terminal's session only those whom it controls (tiocgsid() in drivers/tty/tty_jobctrl.c). */
function controlled({ by }: Opened, device: number | null): Noted {
  const { pid, session, foreground } = by;
  return by.terminal === device ? { pid, session, group: foreground } : { pid, session: 0, group: 0 };
}

/** In the leader, by which it is opened, or that another has it from. */
function isOpenedAgain(one: Opened, current: Opened[]): boolean {
  const device = realDevice(one);
  return current.some(
    ({ by, fd }) =>
      by.pid === by.session &&
      by.terminal === device &&
      (by.pid === one.by.pid ? fd === one.fd : kcmp(by.pid, one.by.pid, KCMP_FILE, fd, one.fd) === 0),
  );
}

/** The terminal that /dev/tty was when it was opened. null: it has hung up */
function realDevice({ by: { pid }, fd }: Opened): number | null {
  const device = withSocketAt({ pid, fd }, (ours) => tryIoctlInt(ours, TIOCGDEV));
  return device === null || device < 0 ? null : device;
}

/** stat(5): session, tty_nr, tpgid. null: it has gone */
function processOf(pid: number): Process | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    const [session = 0, terminal = 0, foreground = 0] = fields.slice(3, 6).map(Number);
    return { pid, session, terminal, foreground };
  } catch {
    return null;
  }
}

/** 0: it was closed, or is no device */
function deviceOf(pid: number, fd: number): number {
  try {
    const found = statSync(`/proc/${pid}/fd/${fd}`);
    return found.isCharacterDevice() ? found.rdev : 0;
  } catch {
    return 0;
  }
}
