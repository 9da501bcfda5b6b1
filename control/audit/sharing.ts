/**
 * Who shares what: descriptors of one file description, tasks with common tables (kcmp(2)). The kernel does not number what is
 * shared, so its first holder stands for it, in the order of the container's numbers.
 */
import * as procs from "#proxy/kernel/processes.ts";

export interface Holder {
  pid: number;
  fd: number;
  /** `12/5` */
  name: string;
}

/**
 * The first holder of the same file description, for each of these, which come in order of name. Only those that `key` calls
 * alike are compared.
 */
export function descriptionsOf<T extends Holder>(holders: T[], key: (holder: T) => string): Map<T, T> {
  const alike = new Map<string, T[]>();
  for (const holder of holders) {
    const group = alike.get(key(holder));
    if (group === undefined) alike.set(key(holder), [holder]);
    else group.push(holder);
  }
  const first = new Map<T, T>();
  for (const group of alike.values()) {
    const rank = new Map(group.map((holder, index) => [holder, index]));
    const inOrder = (a: T, b: T): number => (rank.get(a) ?? 0) - (rank.get(b) ?? 0);
    // kcmp orders what it compares: n log n calls
    const sorted = group.length === 1 ? group : [...group].sort((a, b) => order(a, b) || inOrder(a, b));
    let head = sorted[0] as T;
    for (const holder of sorted) {
      if (holder !== head && order(head, holder) !== 0) head = holder;
      first.set(holder, head);
    }
  }
  return first;
}

function order(a: Holder, b: Holder): number {
  const result = procs.kcmp(a.pid, b.pid, procs.KCMP_FILE, a.fd, b.fd);
  return result === 1 ? -1 : result === 2 ? 1 : 0;
}

export const SEMAPHORE_UNDO = "semaphore undo";
/** KCMP_* → what a task may share with another */
const TABLES: [type: number, name: string][] = [
  [procs.KCMP_VM, "memory"],
  [procs.KCMP_FILES, "descriptors"],
  [procs.KCMP_FS, "folders"],
  [procs.KCMP_SIGHAND, "signal handlers"],
  [procs.KCMP_SYSVSEM, SEMAPHORE_UNDO],
];

/** Names of what two tasks share, in a fixed order. A kernel without kcmp says nothing. */
export function sharedTables(tid: number, other: number): string {
  const shared = TABLES.filter(([type]) => procs.kcmp(tid, other, type, 0, 0) === 0);
  return shared.map(([, name]) => name).join(", ");
}
