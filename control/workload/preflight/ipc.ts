/** What of an application's IPC namespace (ipc_namespaces(7)) cannot be carried. */

import type { Add } from "../../api/finding.ts";
import { notifyingQueues, openQueues } from "../../runtime/posix-queues.ts";

/** @param pids every process of the application, its root first */
export async function checkIpc(pids: number[], add: Add): Promise<void> {
  const [root] = pids;
  if (root === undefined) return;
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
