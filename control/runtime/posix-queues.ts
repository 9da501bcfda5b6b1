/**
 * POSIX message queues of an application (mq_overview(7)): CRIU carries the System V objects of an IPC namespace, and these
 * not. They are read while the application is frozen, and made again in the namespace that CRIU has made for the restored
 * one, before its files are opened.
 *
 * A message can be read only by receiving it. So at the source each queue is emptied and filled again in the same order,
 * in one go; nobody runs who could see it.
 *
 * Left out: a process that waits for a notification (mq_notify(3)) cannot be registered again from outside: it is refused.
 */
import {
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  statfsSync,
  symlinkSync,
  unlinkSync,
} from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as ipc from "#proxy/kernel/ipc.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import { openRoot, pathOf } from "./inside.ts";
import { descriptorsOf } from "./processes.ts";

const QUEUES_BYTES_MAX = 32 * 2 ** 20;
/** ipc/mqueue.c */
export const MQUEUE_MAGIC = 0x19800202;
const MODE_BITS = 0o7777;

const count = z.number().int().nonnegative();
const queueSchema = z.strictObject({
  /** without the slash */
  name: z.string().regex(/^[^/\0]{1,254}$/),
  mode: count.max(MODE_BITS),
  uid: count,
  gid: count,
  messagesMax: count.positive(),
  messageBytesMax: count.positive(),
  /** in the order in which they are received */
  messages: z.array(z.strictObject({ priority: count.max(32_768), base64: z.string() })),
});
type PosixQueue = z.infer<typeof queueSchema>;

/** A descriptor of a queue as CRIU is told of it. */
export interface OpenQueue {
  pid: number;
  fd: number;
  /** `file[MNT_ID:INODE]`, both in hexadecimal: the mount is the namespace's own, and seen nowhere */
  key: string;
  /** with a slash; null: it has been unlinked */
  name: string | null;
}

/** Queue descriptors of these processes that were opened by name (mq_open(3)). */
export async function openQueues(pids: number[]): Promise<OpenQueue[]> {
  const queues: OpenQueue[] = [];
  for (const pid of pids) {
    const mounts = new Set(
      (await readFile(`/proc/${pid}/mountinfo`, "utf8").catch(() => ""))
        .split("\n")
        .map((line) => line.split(" ", 1)[0]),
    );
    for (const { fd, target } of await descriptorsOf(pid)) {
      if (!/^\/[^/]+$/.test(target)) continue;
      const text = readIfThere(`/proc/${pid}/fdinfo/${fd}`);
      const mount = /^mnt_id:\s*(\d+)$/m.exec(text)?.[1];
      const inode = /^ino:\s*(\d+)$/m.exec(text)?.[1];
      if (mount === undefined || inode === undefined || mounts.has(mount)) continue;
      if (fileSystemOf(`/proc/${pid}/fd/${fd}`) !== MQUEUE_MAGIC) continue;
      const key = `file[${Number(mount).toString(16)}:${Number(inode).toString(16)}]`;
      queues.push({ pid, fd, key, name: target.endsWith(" (deleted)") ? null : target });
    }
  }
  return queues;
}

/** Names of queues of a process's IPC namespace that notify somebody of their next message. */
export function notifyingQueues(pid: number): string[] {
  return namespaces.inIpcNamespaceOf(pid, () =>
    inFolder((folder) =>
      readdirSync(folder).filter(
        (name) => (/NOTIFY_PID:(\d+)/.exec(readIfThere(`${folder}/${name}`))?.[1] ?? "0") !== "0",
      ),
    ),
  );
}

/**
 * All queues of a frozen process's IPC namespace with what is in them; for {@link makeQueues}.
 * @throws HoldfastError `QUEUES_SPACE` for more than 32 MiB; `QUEUE_NOTIFIES`
 */
export function readQueues(pid: number): Buffer {
  const [notifies] = notifyingQueues(pid);
  if (notifies !== undefined) {
    throw fail(
      "QUEUE_NOTIFIES",
      `a process waits for a notification of message queue /${notifies} (mq_notify)`,
    );
  }
  const queues = namespaces.inIpcNamespaceOf(pid, () =>
    inFolder((folder) => readdirSync(folder).map((name) => readQueue(folder, name))),
  );
  return Buffer.from(JSON.stringify(queues));
}

/** Makes the queues in the IPC namespace of a process. @throws HoldfastError `QUEUES_INVALID`, or of the kernel */
export function makeQueues(pid: number, encoded: Buffer): void {
  const parsed = z.array(queueSchema).safeParse(parseJson(encoded));
  if (!parsed.success)
    throw fail("QUEUES_INVALID", "message queues of a peer are not what this version sends");
  namespaces.inIpcNamespaceOf(pid, () => {
    for (const queue of parsed.data) {
      const fd = ipc.createQueue(`/${queue.name}`, queue);
      try {
        for (const { priority, base64 } of queue.messages)
          ipc.sendMessage(fd, { priority, bytes: Buffer.from(base64, "base64") });
        fchownSync(fd, queue.uid, queue.gid);
        fchmodSync(fd, queue.mode);
      } finally {
        closeSync(fd);
      }
    }
  });
}

/**
 * Shows the queues of another process's IPC namespace where a container shows those of its init.
 * @param process whose namespace it is
 */
export async function showQueues(container: { init: { pid: number } }, process: number): Promise<void> {
  const mountinfo = await readFile(`/proc/${container.init.pid}/mountinfo`, "utf8");
  for (const line of mountinfo.split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    const [, , , , mountPoint = "", options = ""] = before.split(" ");
    if (after.split(" ")[0] !== "mqueue") continue;
    const named = { nosuid: mounts.MS_NOSUID, nodev: mounts.MS_NODEV, noexec: mounts.MS_NOEXEC };
    const flags = options.split(",").reduce((sum, name) => sum | (named[name as keyof typeof named] ?? 0), 0);
    // the other way round, /proc would be the container's
    namespaces.inIpcNamespaceOf(process, () =>
      namespaces.inMountNamespaceOf(container.init.pid, () => {
        // a folder of the host that holds the container itself shows it once more, and what is hidden of that stays
        if (!mounts.unmountVisible(mountPoint)) return;
        mounts.mount("mqueue", after.split(" ")[1] ?? "mqueue", mountPoint, flags);
      }),
    );
  }
}

/**
 * Where CRIU finds the queues that the application has open. It opens a `file[…]` that nobody hands to it by that name without
 * its first letter, below the root: symbolic links stand there while it restores. The mount they lead through is the one
 * that {@link showQueues} has made.
 */
export class QueueStands {
  #container: { init: { pid: number } };
  /** in the root of the container, by their names there */
  #links: Map<string, string>;

  constructor(container: { init: { pid: number } }, queues: { key: string; name: string }[]) {
    this.#container = container;
    this.#links = new Map(queues.map(({ key, name }) => [key.slice(1), name]));
  }

  put(): void {
    this.#inRoot((root) => {
      for (const [link, name] of this.#links) symlinkSync(`/dev/mqueue${name}`, join(root, link));
    });
  }

  remove(): void {
    this.#inRoot((root) => {
      for (const link of this.#links.keys()) unlinkSync(join(root, link));
    });
  }

  #inRoot(use: (root: string) => void): void {
    const root = openRoot(this.#container);
    try {
      use(pathOf(root));
    } finally {
      closeSync(root);
    }
  }
}

function readQueue(folder: string, name: string): PosixQueue {
  const fd = openSync(`${folder}/${name}`, constants.O_RDWR | constants.O_NONBLOCK);
  try {
    const { mode, uid, gid } = fstatSync(fd);
    const { messagesMax, messageBytesMax, messages: held } = ipc.queueAttributes(fd);
    if (held * messageBytesMax > QUEUES_BYTES_MAX) {
      throw fail("QUEUES_SPACE", `message queue /${name} may hold more than ${QUEUES_BYTES_MAX} bytes`);
    }
    const messages: ipc.QueueMessage[] = [];
    try {
      while (messages.length < held) messages.push(ipc.receiveMessage(fd, messageBytesMax));
    } finally {
      for (const message of messages) ipc.sendMessage(fd, message);
    }
    return {
      name,
      mode: mode & MODE_BITS,
      uid,
      gid,
      messagesMax,
      messageBytesMax,
      messages: messages.map(({ priority, bytes }) => ({ priority, base64: bytes.toString("base64") })),
    };
  } finally {
    closeSync(fd);
  }
}

function inFolder<T>(use: (folder: string) => T): T {
  const fd = ipc.queueFolder();
  try {
    return use(`/proc/self/fd/${fd}`);
  } finally {
    descriptor.close(fd);
  }
}

/** statfs(2) f_type; null: it is gone */
function fileSystemOf(path: string): number | null {
  try {
    return statfsSync(path).type;
  } catch {
    return null;
  }
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch {
    return null;
  }
}
