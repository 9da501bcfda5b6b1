/**
 * The processes of an application as they are at one moment. A tree that forks all the time is another one a moment later:
 * it is listed again wherever it is used, and who has ended meanwhile is left out.
 */
import { readFile } from "node:fs/promises";
import { privateMappings, type TracedProcess } from "../criu/process-memory.ts";
import { identify, isSameProcess, type ProcessIdentity, treeOf } from "../runtime/processes.ts";

interface Numbers {
  identity: ProcessIdentity;
  innerPid: number;
  parent: number;
}

/** The process and everything below it that has memory, parents first. */
export async function tracedTree(root: number): Promise<TracedProcess[]> {
  const tree: Numbers[] = [];
  for (const pid of await treeOf(root)) {
    const numbers = await numbersOf(pid);
    if (numbers !== null) tree.push(numbers);
  }
  const innerPids = new Map(tree.map(({ identity, innerPid }) => [identity.pid, innerPid]));
  return tree.map(({ identity, innerPid, parent }) => ({
    pid: identity.pid,
    innerPid,
    innerParent: innerPids.get(parent) ?? null,
    isAlive: () => isSameProcess(identity),
  }));
}

/**
 * What a copy of their anonymous memory takes where pages that several share count once, in bytes (smaps_rollup, proc(5)).
 * A process that has ended counts nothing.
 */
export async function anonymousBytes(processes: TracedProcess[]): Promise<number> {
  let kilobytes = 0;
  for (const { pid } of processes) {
    const rollup = await readFile(`/proc/${pid}/smaps_rollup`, "utf8").catch(() => "");
    kilobytes += Number(/^Pss_Anon:\s*(\d+) kB$/m.exec(rollup)?.[1] ?? 0);
  }
  return kilobytes * 1024;
}

/** Address space of their private mappings, in bytes: what the kernel counts where it commits no more than it has. */
export async function reservedBytes(pids: number[]): Promise<number> {
  let bytes = 0;
  for (const pid of pids) {
    const maps = await readFile(`/proc/${pid}/maps`, "utf8").catch(() => "");
    for (const { start, end } of privateMappings(maps)) bytes += end - start;
  }
  return bytes;
}

/** null: it has ended, or is a zombie */
async function numbersOf(pid: number): Promise<Numbers | null> {
  const identity = await identify(pid);
  const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
  const innerPid = Number(/^NSpid:.*?(\d+)$/m.exec(status)?.[1] ?? 0);
  const parent = Number(/^PPid:\s*(\d+)$/m.exec(status)?.[1] ?? 0);
  return identity === null || innerPid === 0 ? null : { identity, innerPid, parent };
}
