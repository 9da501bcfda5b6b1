/**
 * Messages that a Unix socket has received and its application has not read (unix(7), SOCK_DGRAM and SOCK_SEQPACKET). CRIU 4.2
 * stops at one without bytes, so that all behind it would be lost, and forgets the senders' names (criu/sk-queue.c).
 */
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";

/** one message, which the kernel bounds by the sender's SO_SNDBUF */
const MESSAGE_BYTES_MAX = 1 << 20;
const MESSAGES_MAX = 10_000;
/** struct sockaddr_un: the family comes first */
const NAME_AT = 2;
const POLL_ENDED = polling.EPOLLRDHUP;

const firstByte = Buffer.alloc(1);

interface Message {
  length: number;
  from: Buffer;
}

/**
 * `5 from /run/a, 0`: bytes and senders, oldest first; "": none. Only of a tree that does not run, since peeking is for all who have
 * the socket. An empty one is seen by the first look only (`peeked`, net/core/datagram.c).
 */
export function messagesWaiting(fd: number, type: number): string {
  const look = lookerAt(fd, type);
  if (look === null) return "";
  const into = Buffer.allocUnsafe(MESSAGE_BYTES_MAX);
  const found: string[] = [];
  sock.peekingOn(fd, () => {
    while (found.length < MESSAGES_MAX) {
      const seen = look(into);
      if (seen === null) break;
      found.push(textOf(seen, type));
    }
  });
  return found.join(", ");
}

/** Whether CRIU would not carry the oldest one as it is. Also of a tree that runs. */
export function isNextLost(fd: number, type: number): boolean {
  const look = sock.peeksOn(fd) ? null : lookerAt(fd, type);
  const next = look === null ? null : look(firstByte);
  return next !== null && (next.length === 0 || nameOf(next, type) !== "");
}

/**
 * Peeks at the next message. null: nothing waits, or an error does, which whoever looks would take (SO_ERROR). Where the other end
 * is closed, the end of a connection reads as a message without bytes, and is none.
 */
function lookerAt(fd: number, type: number): ((into: Buffer) => Message | null) | null {
  const ready = polling.pollNow(fd, polling.POLLIN | POLL_ENDED);
  if ((ready & (polling.POLLIN | polling.POLLERR)) !== polling.POLLIN) return null;
  const mayBeEnd = type === sock.SOCK_SEQPACKET && (ready & POLL_ENDED) !== 0;
  return (into) => {
    const seen = sock.tryPeekMessage(fd, into);
    return seen?.length === 0 && mayBeEnd ? null : seen;
  };
}

function textOf(message: Message, type: number): string {
  const name = nameOf(message, type);
  return name === "" ? String(message.length) : `${message.length} from ${name}`;
}

/** Of a connection it is the peer's, which is compared by itself. */
function nameOf({ from }: Message, type: number): string {
  if (type !== sock.SOCK_DGRAM || from.length <= NAME_AT) return "";
  const name = from.subarray(NAME_AT);
  return name[0] === 0 ? `@${name.toString("utf8", 1)}` : name.toString("utf8").replace(/\0.*$/s, "");
}
