/**
 * Objects of the container's IPC namespace (sysvipc(7), mq_overview(7)) and its sysctls.
 *
 * /proc/sysvipc shows the namespace of whoever opens it, so the calling thread goes there and comes back, all in one
 * synchronous stretch.
 */
import { closeSync, readdirSync, statfsSync, statSync } from "node:fs";
import * as ipc from "#proxy/kernel/ipc.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import { openFolderIn, pathOf } from "../runtime/inside.ts";
import { MQUEUE_MAGIC } from "../runtime/posix-queues.ts";
import { readText } from "../runtime/read-text.ts";
import type { Facts } from "./fingerprint.ts";

const SYSCTLS = [
  "shmmax",
  "shmall",
  "shmmni",
  "shm_rmid_forced",
  "msgmax",
  "msgmnb",
  "msgmni",
  "sem",
  "auto_msgmni",
];
const QUEUE_SYSCTLS = ["queues_max", "msg_max", "msgsize_max", "msg_default", "msgsize_default"];
/** columns of /proc/sysvipc that say who did what when last, or how many pages are resident */
const KEPT_BY_THE_KERNEL = new Set([
  "cpid",
  "lpid",
  "lspid",
  "lrpid",
  "atime",
  "dtime",
  "ctime",
  "otime",
  "stime",
  "rtime",
  "rss",
  "swap",
]);

/** @param pid a process of the tree, whose namespace CRIU may have made for it */
export function ipcFacts(pid: number): Facts {
  const facts: Facts = {};
  namespaces.inIpcNamespaceOf(pid, () => {
    for (const kind of ["shm", "sem", "msg"]) tableFacts(kind, readText(`/proc/sysvipc/${kind}`), facts);
    for (const name of SYSCTLS) facts[`kernel.${name}`] = readText(`/proc/sys/kernel/${name}`).trim();
    for (const name of QUEUE_SYSCTLS)
      facts[`fs.mqueue.${name}`] = readText(`/proc/sys/fs/mqueue/${name}`).trim();
  });
  let queues = -1;
  try {
    queues = openFolderIn({ init: { pid } }, "/dev/mqueue");
    // files of the application's own would not be read like this
    if (statfsSync(pathOf(queues)).type === MQUEUE_MAGIC) queueFacts(pathOf(queues), facts);
  } catch {
    // no /dev/mqueue in this container
  } finally {
    if (queues !== -1) closeSync(queues);
  }
  return facts;
}

/** Whether there are semaphores of System V in a process's namespace. */
export function hasSemaphores(pid: number): boolean {
  return namespaces.inIpcNamespaceOf(pid, () => readText("/proc/sysvipc/sem").trimEnd().includes("\n"));
}

function tableFacts(kind: string, text: string, facts: Facts): void {
  const [head = "", ...lines] = text.trimEnd().split("\n");
  const names = head.trim().split(/\s+/);
  for (const line of lines) {
    const values = line.trim().split(/\s+/);
    const id = values[1] ?? "";
    const shown = names.flatMap((name, index) =>
      KEPT_BY_THE_KERNEL.has(name) ? [] : [`${name}=${values[index]}`],
    );
    facts[`${kind} ${id}`] = shown.join(" ");
    if (kind !== "sem") continue;
    const count = Number(values[names.indexOf("nsems")]);
    facts[`sem ${id} values`] = ipc.semaphoreValues(Number(id), count)?.join(" ") ?? "unreadable";
  }
}

/** A queue's file says how many bytes wait in it, and who is to be told. */
function queueFacts(folder: string, facts: Facts): void {
  for (const name of readdirSync(folder)) {
    try {
      const { mode, uid, gid } = statSync(`${folder}/${name}`);
      const text = readText(`${folder}/${name}`)
        .trim()
        .replace(/\s+/g, " ")
        .replace(/ NOTIFY_PID:.*$/, "");
      facts[`queue ${name}`] = `${mode.toString(8)} ${uid}:${gid} ${text}`;
    } catch {
      // it went while it was looked at
    }
  }
}
