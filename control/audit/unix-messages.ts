/**
 * Messages that a Unix socket has received and its application has not read (unix(7), SOCK_DGRAM and SOCK_SEQPACKET). CRIU 4.2
 * stops at one without bytes, so that all behind it would be lost, and forgets the senders' names (criu/sk-queue.c).
 */
import * as sock from "#proxy/kernel/socket.ts";

const SO_PEEK_OFF = 42;
/** one message, which the kernel bounds by the sender's SO_SNDBUF */
const MESSAGE_BYTES_MAX = 1 << 20;
const MESSAGES_MAX = 10_000;
/** struct sockaddr_un: the family comes first */
const NAME_AT = 2;

const into = Buffer.alloc(MESSAGE_BYTES_MAX);

/**
 * `5 from /run/a, 0`: bytes and senders, oldest first; "": none. Only of a tree that does not run: meanwhile peeking goes on where
 * it was (SO_PEEK_OFF, socket(7)), for the application too. An empty one is seen by the first look only (`peeked`, net/core/datagram.c).
 */
export function messagesWaiting(fd: number, type: number): string {
  const before = sock.getsockoptInt(fd, sock.SOL_SOCKET, SO_PEEK_OFF);
  sock.setsockoptInt(fd, sock.SOL_SOCKET, SO_PEEK_OFF, 0);
  const found: string[] = [];
  try {
    while (found.length < MESSAGES_MAX) {
      const seen = sock.tryPeekMessage(fd, into);
      if (seen === null) break;
      found.push(textOf(seen, type));
    }
  } finally {
    sock.setsockoptInt(fd, sock.SOL_SOCKET, SO_PEEK_OFF, before);
  }
  return found.join(", ");
}

/** Whether CRIU would not carry the oldest one as it is. Also of a tree that runs. */
export function isNextLost(fd: number, type: number): boolean {
  const isPeeking = sock.getsockoptInt(fd, sock.SOL_SOCKET, SO_PEEK_OFF) >= 0;
  const next = isPeeking ? null : sock.tryPeekMessage(fd, into);
  return next !== null && (next.length === 0 || nameOf(next, type) !== "");
}

function textOf(message: { length: number; from: Buffer }, type: number): string {
  const name = nameOf(message, type);
  return name === "" ? String(message.length) : `${message.length} from ${name}`;
}

/** Of a connection it is the peer's, which is compared by itself. */
function nameOf({ from }: { from: Buffer }, type: number): string {
  if (type !== sock.SOCK_DGRAM || from.length <= NAME_AT) return "";
  const name = from.subarray(NAME_AT);
  return name[0] === 0 ? `@${name.toString("utf8", 1)}` : name.toString("utf8").replace(/\0.*$/s, "");
}
