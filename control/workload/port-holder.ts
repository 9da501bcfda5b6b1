/** Who listens on a port of this node: sock_diag(7) knows the socket's inode, /proc/PID/fd whose it is. */
import { readdir, readFile, readlink } from "node:fs/promises";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { listSockets } from "#proxy/kernel/diag.ts";

const ANY = ["0.0.0.0", "::"];

/**
 * What keeps another socket from being bound there, as "process 42 (nginx)".
 * @param own processes that are meant to be there. null: nobody, or one of those
 */
export async function holderOf(at: Endpoint, own: ReadonlySet<number>): Promise<string | null> {
  const isAny = ANY.includes(at.address);
  for (const { local, inode } of listSockets({ states: ["LISTEN"] })) {
    const isThere = isAny || ANY.includes(local.address) || local.address === at.address;
    if (local.port !== at.port || !isThere) continue;
    const pid = await ownerOf(inode);
    if (pid === null) return "a process that this agent cannot see";
    if (!own.has(pid)) return `process ${pid} (${await nameOf(pid)})`;
  }
  return null;
}

async function ownerOf(inode: number): Promise<number | null> {
  const wanted = `socket:[${inode}]`;
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const fds = await readdir(`/proc/${name}/fd`).catch(() => []);
    for (const fd of fds) {
      if ((await readlink(`/proc/${name}/fd/${fd}`).catch(() => "")) === wanted) return Number(name);
    }
  }
  return null;
}

async function nameOf(pid: number): Promise<string> {
  return (await readFile(`/proc/${pid}/comm`, "utf8").catch(() => "ended")).trim();
}
