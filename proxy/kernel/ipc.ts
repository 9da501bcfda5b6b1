/** IPC objects of the namespace that the calling thread is in: POSIX message queues (mq_overview(7)), System V semaphores and segments. */
import { constants as fileConstants } from "node:fs";
import { O_CLOEXEC } from "./files.ts";
import { check, libc } from "./libc.ts";
import { newMount } from "./mounts.ts";

/** A mount of the namespace's queues that is seen nowhere: a descriptor of its folder. */
export function queueFolder(): number {
  return newMount("mqueue");
}

export interface QueueAttributes {
  messagesMax: number;
  messageBytesMax: number;
  messages: number;
}

/** struct mq_attr is eight longs: flags, maxmsg, msgsize, curmsgs, and room. */
const QUEUE_ATTRIBUTES_BYTES = 64;

export function queueAttributes(fd: number): QueueAttributes {
  const attributes = Buffer.alloc(QUEUE_ATTRIBUTES_BYTES);
  check(libc().mq_getattr(fd, attributes), "mq_getattr");
  return {
    messagesMax: Number(attributes.readBigInt64LE(8)),
    messageBytesMax: Number(attributes.readBigInt64LE(16)),
    messages: Number(attributes.readBigInt64LE(24)),
  };
}

/** Makes a queue that must not be there yet. `name` begins with a slash. */
export function createQueue(name: string, attributes: Omit<QueueAttributes, "messages">): number {
  const structure = Buffer.alloc(QUEUE_ATTRIBUTES_BYTES);
  structure.writeBigInt64LE(BigInt(attributes.messagesMax), 8);
  structure.writeBigInt64LE(BigInt(attributes.messageBytesMax), 16);
  const { O_RDWR, O_CREAT, O_EXCL, O_NONBLOCK } = fileConstants;
  const flags = O_CLOEXEC | O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK;
  return check(libc().mq_open(name, flags, 0o600, structure), `mq_open(${name})`);
}

export interface QueueMessage {
  priority: number;
  bytes: Buffer;
}

/** Takes the oldest message of the highest priority. The descriptor must be non-blocking. */
export function receiveMessage(fd: number, bytesMax: number): QueueMessage {
  const bytes = Buffer.alloc(bytesMax);
  const priority = Buffer.alloc(4);
  const length = check(libc().mq_receive(fd, bytes, bytes.length, priority), "mq_receive");
  return { priority: priority.readUInt32LE(0), bytes: bytes.subarray(0, length) };
}

export function sendMessage(fd: number, { priority, bytes }: QueueMessage): void {
  check(libc().mq_send(fd, bytes, bytes.length, priority), "mq_send");
}

const GETALL = 13;
const SEMAPHORES_MAX = 32_000;

/** Values of a System V semaphore set in the calling thread's IPC namespace; null: gone, or not to be read. */
export function semaphoreValues(id: number, count: number): number[] | null {
  const values = Buffer.alloc(Math.min(count, SEMAPHORES_MAX) * 2);
  if (libc().semctl(id, 0, GETALL, values) < 0) return null;
  return Array.from({ length: values.length / 2 }, (_, index) => values.readUInt16LE(index * 2));
}

const IPC_RMID = 0;

/** shmctl(2) with IPC_RMID, in the calling thread's IPC namespace: the segment goes when nobody has it attached any more. */
export function removeSharedMemory(id: number): void {
  check(libc().shmctl(id, IPC_RMID, null), `shmctl(${id}, IPC_RMID)`);
}
