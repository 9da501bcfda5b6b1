/** What of an application's IPC namespace (ipc_namespaces(7)) cannot be carried. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { KCMP_SYSVSEM, kcmp } from "#proxy/kernel/processes.ts";
import type { Add } from "../../api/finding.ts";
import { hasSemaphores } from "../../audit/ipc-objects.ts";
import { notifyingQueues, openQueues } from "../../runtime/posix-queues.ts";

/** @param pids every process of the application, its root first */
export async function checkIpc(pids: number[], add: Add): Promise<void> {
  const [root] = pids;
  if (root === undefined) return;
  await checkUndo(pids, root, add);
  for (const name of notifyingQueues(root)) {
    add(
      "ipc.queue-notifies",
      "error",
      `a process waits to be notified of the next message of queue /${name} (mq_notify)`,
      "let it wait in mq_receive or poll in place of that",
      { path: `/${name}` },
    );
  }
  for (const { pid, fd, name } of await openQueues(pids)) {
    if (name !== null) continue;
    add(
      "ipc.queue-unlinked",
      "error",
      `process ${pid} has descriptor ${fd} of a message queue that was unlinked`,
      "let it unlink the queue when it ends",
      { pid, fd },
    );
  }
}

/**
 * What the kernel would do to semaphores when a process ends (semop(2), SEM_UNDO) it shows nobody, and CRIU 4.2 does not carry it. But kcmp(2)
 * tells who has a list of it: another one than a process that has just begun, which has none. Making a thread makes one too.
 */
async function checkUndo(pids: number[], root: number, add: Add): Promise<void> {
  if (!hasSemaphores(root)) return;
  const fresh = spawn("cat", { stdio: ["pipe", "ignore", "ignore"] });
  try {
    await once(fresh, "spawn");
    for (const pid of pids) {
      if (kcmp(fresh.pid as number, pid, KCMP_SYSVSEM) <= 0) continue;
      add(
        "ipc.semaphore-undo",
        "warning",
        `process ${pid} may have asked the kernel to undo what it did to semaphores when it ends (SEM_UNDO), which is not carried: of what it holds while it is moved nothing is given back if it is killed later`,
        "nothing, if it uses its semaphores without, or holds none for long; else let it lock a file in place of that",
        { pid },
      );
    }
  } finally {
    fresh.stdin.end();
  }
}
