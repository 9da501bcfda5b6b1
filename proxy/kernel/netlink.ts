/**
 * Dumps over netlink(7), as sock_diag(7) gives them: a request, then messages until the kernel says DONE.
 * Sources: include/uapi/linux/netlink.h, include/uapi/linux/sock_diag.h, net/netlink/af_netlink.c.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as libc from "./libc.ts";
import * as sock from "./socket.ts";

export const NLMSG_HEADER_BYTES = 16;
export const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
export const NLM_F_REQUEST = 0x1;
export const NLM_F_ACK = 0x4;
const NLM_F_DUMP = 0x300;
/** what was listed changed meanwhile: something may be missing, or there twice */
const NLM_F_DUMP_INTR = 0x10;
export const SOCK_DIAG_BY_FAMILY = 20;

export const ANSWER_BYTES = 64 * 1024;
/** A dump that the kernel calls inconsistent is asked for again; the last answer counts. */
const DUMP_TRIES_MAX = 3;
/** The answer to a request is there when send returns; the bound is for a kernel that never says DONE. */
const ANSWERS_MAX = 100_000;

/** One end of a netlink socket. */
export interface Conversation {
  send(request: Buffer): number;
  /** @returns bytes of the answer */
  receive(into: Buffer): number;
}

/** struct nlmsghdr, and so many bytes after it, zero. */
export function netlinkRequest(type: number, flags: number, payloadBytes: number): Buffer {
  const request = Buffer.alloc(NLMSG_HEADER_BYTES + payloadBytes);
  request.writeUInt32LE(request.length, 0);
  request.writeUInt16LE(type, 4);
  request.writeUInt16LE(flags, 6);
  return request;
}

/** A request whose answer is a dump. */
export function dumpRequest(type: number, payloadBytes: number): Buffer {
  return netlinkRequest(type, NLM_F_REQUEST | NLM_F_DUMP, payloadBytes);
}

/**
 * The messages' payloads, each of at least so many bytes.
 * Errors (source "kernel"): what the kernel refused the request with; KERNEL_UNKNOWN, it answered in another form.
 */
export function dump(on: Conversation, request: Buffer, messageBytesMin: number): Buffer[] {
  for (let attempt = 1; ; attempt++) {
    if (on.send(request) !== request.length) throw unexpectedAnswer();
    const { messages, isConsistent } = readDump(on, messageBytesMin);
    if (isConsistent || attempt === DUMP_TRIES_MAX) return messages;
  }
}

/** Over a socket of family AF_NETLINK. */
export function conversation(fd: number): Conversation {
  return {
    send: (request) => sock.send(fd, request, 0),
    receive: (into) => sock.recv(fd, into, 0),
  };
}

/** Every message is read before anything else is asked, or it would be taken for the next answer. */
function readDump(on: Conversation, messageBytesMin: number): { messages: Buffer[]; isConsistent: boolean } {
  const messages: Buffer[] = [];
  let isConsistent = true;
  for (let answers = 0; answers < ANSWERS_MAX; answers++) {
    const answer = Buffer.allocUnsafe(ANSWER_BYTES);
    const size = on.receive(answer);
    for (let at = 0; at + NLMSG_HEADER_BYTES <= size; ) {
      const length = answer.readUInt32LE(at);
      const type = answer.readUInt16LE(at + 4);
      if (length < NLMSG_HEADER_BYTES || at + length > size) throw unexpectedAnswer();
      if ((answer.readUInt16LE(at + 6) & NLM_F_DUMP_INTR) !== 0) isConsistent = false;
      if (type === NLMSG_DONE) return { messages, isConsistent };
      if (type === NLMSG_ERROR) throw refusedDump(-answer.readInt32LE(at + NLMSG_HEADER_BYTES));
      if (length < NLMSG_HEADER_BYTES + messageBytesMin) throw unexpectedAnswer();
      messages.push(answer.subarray(at + NLMSG_HEADER_BYTES, at + length));
      at += (length + 3) & ~3;
    }
  }
  throw unexpectedAnswer();
}

function refusedDump(errno: number): HoldfastError {
  const code = libc.errnoName(errno);
  return new HoldfastError(`the kernel refused a dump of sockets with ${code}`, { code, source: "kernel" });
}

export function unexpectedAnswer(): HoldfastError {
  return fail("KERNEL_UNKNOWN", "netlink answered in a form this version does not know");
}
