/**
 * /proc/PID/smaps as runs of memory with the same properties (proc(5), Documentation/filesystems/proc.rst). Pure.
 *
 * The kernel merges neighbours that are alike and splits them again as it likes, so what is compared is the runs: the same
 * addresses with the same permissions, flags and file at the same offset, however many mappings they are made of.
 */
import { nameWhenDeleted } from "./deleted-names.ts";
import type { Facts } from "./fingerprint.ts";

/** One mapping as the kernel has it now; addresses below 2^53. */
export interface Mapping {
  start: number;
  end: number;
  permissions: string;
  offset: number;
  name: string;
  /** two letters each, without {@link KERNEL_FLAGS} */
  flags: readonly string[];
  /** memory protection key (pkeys(7)); 0: none of its own */
  key: number;
}

const HEADER = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)$/gm;
/**
 * VmFlags that say how the kernel keeps a mapping and nothing a process could observe: ac, nr (whether it is accounted: a
 * reservation larger than the machine's memory is restored unaccounted), sd (soft-dirty), mr, mw, me, ms (may be made
 * readable …; follows from the file's own mode), um, uw, ui (tracked by a userfaultfd: one of the application's own is
 * refused), nl (non-linear, gone).
 */
const KERNEL_FLAGS = new Set(["ac", "nr", "sd", "mr", "mw", "me", "ms", "um", "uw", "ui", "nl"]);
/** how the last line of each mapping begins (show_smap() in fs/proc/task_mmu.c) */
export const LAST_LINE = "VmFlags:";
const FLAGS = `\n${LAST_LINE}`;
const KEY = "ProtectionKey:";
/** placed by the kernel, above what a process may map */
const KERNEL_MAPPINGS = new Set(["[vsyscall]"]);
/** names that stand for where the heap and the stack are: a run is the same with or without */
const POSITIONS = new Set(["[heap]", "[stack]"]);
/** anonymous shared memory, as the kernel calls it, and as it is called when CRIU has made it */
const SHARED_MEMORY = "/dev/zero (deleted)";
const SHARED_MEMORY_RESTORED = `/memfd:${SHARED_MEMORY}`;
/**
 * How a program calls memory of its own (PR_SET_VMA_ANON_NAME, prctl(2)), as Go since 1.25 does with all of it. It is shown in /proc and
 * means nothing else; CRIU 4.2 does not carry it, and nobody outside can set it.
 */
const LABEL = /^\[anon:.*\]$/;
const LABEL_OF_SHARED = /^\[anon_shmem:.*\]$/;

/** `1000-3000` (hexadecimal) → permissions, flags, offset and file; runs, in order of address. */
export function memoryFacts(smaps: string): Facts {
  const facts: Facts = {};
  let run: Mapping | null = null;
  const close = (): void => {
    if (run === null) return;
    const file =
      run.name === "" || run.name.startsWith("[") ? run.name : `${run.name} at ${run.offset.toString(16)}`;
    const key = run.key === 0 ? "" : `key ${run.key}`;
    const what = [run.permissions, ...run.flags, key, file].filter((part) => part !== "");
    facts[`${run.start.toString(16)}-${run.end.toString(16)}`] = what.join(" ");
  };
  for (const mapping of mappingsOf(smaps)) {
    if (run !== null && isContinued(run, mapping)) {
      run.end = mapping.end;
      continue;
    }
    close();
    run = mapping;
  }
  close();
  return facts;
}

/** Of whole mappings what {@link mappingsOf} reads: the first line of each, its key and its flags; a fifth of it, about. */
export function condensed(smaps: string): string {
  const kept: string[] = [];
  for (let at = 0; at < smaps.length; ) {
    const header = smaps.indexOf("\n", at) + 1;
    // in the other lines there is nothing of the application's
    const flags = header === 0 ? -1 : smaps.indexOf(LAST_LINE, header);
    if (flags < 0) {
      kept.push(smaps.slice(at));
      break;
    }
    const before = smaps.lastIndexOf("\n", flags - 2) + 1;
    const end = smaps.indexOf("\n", flags) + 1 || smaps.length;
    kept.push(smaps.slice(at, header), smaps.slice(smaps.startsWith(KEY, before) ? before : flags, end));
    at = end;
  }
  return kept.join("");
}

export function* mappingsOf(smaps: string): Generator<Mapping> {
  for (const header of smaps.matchAll(HEADER)) {
    const [, start = "", end = "", permissions = "", offset = "", name = ""] = header;
    if (KERNEL_MAPPINGS.has(name)) continue;
    const at = smaps.indexOf(FLAGS, header.index);
    const flags = (at < 0 ? "" : smaps.slice(at + FLAGS.length, smaps.indexOf("\n", at + 1)))
      .trim()
      .split(" ")
      .filter((flag) => flag !== "" && !KERNEL_FLAGS.has(flag));
    yield {
      start: Number.parseInt(start, 16),
      end: Number.parseInt(end, 16),
      permissions,
      offset: Number.parseInt(offset, 16),
      name: nameOf(name),
      flags,
      key: keyBefore(smaps, at),
    };
  }
}

/** The line before the flags, where the processor has keys. */
function keyBefore(smaps: string, flagsAt: number): number {
  const line = smaps.slice(smaps.lastIndexOf("\n", flagsAt - 1) + 1, Math.max(0, flagsAt));
  return line.startsWith(KEY) ? Number.parseInt(line.slice(KEY.length), 10) : 0;
}

function nameOf(name: string): string {
  if (POSITIONS.has(name) || LABEL.test(name)) return "";
  return name === SHARED_MEMORY_RESTORED || LABEL_OF_SHARED.test(name)
    ? SHARED_MEMORY
    : nameWhenDeleted(name);
}

function isContinued(run: Mapping, next: Mapping): boolean {
  if (run.end !== next.start || run.permissions !== next.permissions) return false;
  if (run.flags.join() !== next.flags.join() || run.key !== next.key || run.name !== next.name) return false;
  const isFile = run.name !== "" && !run.name.startsWith("[");
  return !isFile || run.offset + (run.end - run.start) === next.offset;
}
