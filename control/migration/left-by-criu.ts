/**
 * What is left of an application at which CRIU was at work when it was killed: by a person, or because memory was short.
 *
 * From when it has been told the external files to when it lets go, CRIU has one process after the other run code of its own: the main thread waits
 * in that for orders, and any thread makes calls by instructions and registers that are put in the place of its own (compel, a part of
 * CRIU). When their tracer ends all threads run on from where they are. With CRIU 4.2 that means:
 *
 * - A thread that has made a call for CRIU stands at the breakpoint behind it, with its own registers again, and waits to be let go without that signal.
 *   Nobody does that now: SIGTRAP ends its process. So do all that have been dumped, up to the end.
 * - A main thread that waits for orders finds that nobody gives any, takes its own registers back and goes on. CRIU's memory stays in it
 *   (`/memfd:CRIUMFD`).
 * - Between two steps of a call: what was put in the place of the program's own instructions stays there (text that differed was seen once, of
 *   about 50 times), or a thread hears no signal for ever.
 * - All others are as they were.
 *
 * Sources: compel/src/lib/infect.c (`parasite_run`, `compel_execute_syscall`, `parasite_memfd_exchange`), compel/plugins/std/infect.c (`fini`),
 * compel/arch/ARCH/src/lib/infect.c (`code_syscall`); `ptrace_stop` in kernel/signal.c, `exit_ptrace` in kernel/ptrace.c.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { livingOf } from "../runtime/frozen-tree.ts";
import { listNames, readText } from "../runtime/read-text.ts";

export interface Left {
  /** lines for people; none: all go on as if nothing had been */
  readonly harm: string[];
  /** PIDs of those that have memory of CRIU's, which they do not use */
  readonly memory: number[];
}

/** half a second: on a busy node what is about its end may take that long */
const LOOKS = 25;
const LOOK_MS = 20;
const MEMORY = "/memfd:CRIUMFD";
/** at the beginning of what may be run: a call and breakpoints, of x86-64 and of arm64 … */
const CALLS = ["0f05cccccccccccc", "010000d4000020d4"];
const CALL_BYTES = 8;
/** … and behind that the name of its memory, for the call that makes it */
const NAME = "CRIUMFD\0";
/** all that can be: C libraries leave some out, and do this for a moment only */
const NO_SIGNAL = "fffffffffffbfeff";

/**
 * When CRIU has ended, and nobody holds them. Waits a moment: a process is about its end.
 * @param living PIDs, of when CRIU had stopped them and had done nothing else
 */
export async function leftByCriu(living: readonly number[]): Promise<Left> {
  if (living.length === 0) return { harm: [], memory: [] };
  let deaf: Set<string> | null = null;
  for (let look = 0; look < LOOKS; look++) {
    await delay(LOOK_MS);
    const now = new Set(living.flatMap(deafOf));
    deaf = new Set([...(deaf ?? now)].filter((thread) => now.has(thread)));
  }
  const alive = new Set(livingOf([...living]));
  const memory: number[] = [];
  const harm = living.flatMap((pid) => {
    if (!alive.has(pid)) return [`process ${pid} has ended`];
    const maps = readText(`/proc/${pid}/maps`);
    if (maps.includes(MEMORY)) memory.push(pid);
    const lines: string[] = [];
    if (hasOtherBytes(pid, maps)) lines.push(`process ${pid} has bytes of CRIU's in its program`);
    if ([...(deaf ?? [])].some((thread) => thread.startsWith(`${pid}/`)))
      lines.push(`process ${pid} may hear no signals any more`);
    return lines;
  });
  return { harm, memory };
}

/** Its threads that hear no signal, as "PID/TID". */
function deafOf(pid: number): string[] {
  return listNames(`/proc/${pid}/task`)
    .filter((tid) => readText(`/proc/${pid}/task/${tid}/status`).includes(`SigBlk:\t${NO_SIGNAL}\n`))
    .map((tid) => `${pid}/${tid}`);
}

function hasOtherBytes(pid: number, maps: string): boolean {
  let memory: number;
  try {
    memory = openSync(`/proc/${pid}/mem`, "r");
  } catch {
    return false; // it has ended meanwhile
  }
  try {
    const bytes = Buffer.alloc(CALL_BYTES + NAME.length);
    return [...maps.matchAll(/^([0-9a-f]+)-\S+ ..x/gm)].some(([, start]) => {
      try {
        readSync(memory, bytes, 0, bytes.length, BigInt(`0x${start}`));
      } catch {
        return false; // of the kernel's own, or cannot be read
      }
      return (
        CALLS.includes(bytes.toString("hex", 0, CALL_BYTES)) || bytes.toString("latin1", CALL_BYTES) === NAME
      );
    });
  } finally {
    closeSync(memory);
  }
}
