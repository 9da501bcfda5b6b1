/**
 * The application behind peers that carry messages: it sends back what it gets, as plain bytes at one port, as WebSocket
 * messages at another, and counts it, so that generators can be checked. On raw sockets, so that it is not the limit.
 *
 * Left out: what the generator does not send (fragments, frames beyond 125 bytes): such a connection is closed.
 * Source: RFC 6455 sections 4.2 and 5.
 */
import { acceptOf, MESSAGE_BYTES } from "./conversation.ts";
import { serve } from "./program.ts";
import { accept, close, EPOLLIN, eventLoopFd, listen, Poller, read, write } from "./raw-sockets.ts";

export interface EchoState {
  /** where it listens, at 127.0.0.1; how many messages it has seen there; how many sessions are open */
  tcp: { port: number; seen: number; sessions: number };
  websocket: { port: number; seen: number; sessions: number };
}

const READ_BYTES = 64 * 1024;
const HEAD_BYTES_MAX = 8 * 1024;
/** the channel of Node's IPC: Stage.spawn has it behind the three standard descriptors */
const IPC_FD = 3;
const OPCODE = 0x0f;
const CLOSE = 0x08;
const MASKED = 0x80;
const FRAME_HEAD_BYTES = 6;
const PAYLOAD_BYTES_MAX = 125;

interface Session {
  kind: "tcp" | "websocket";
  /** websocket: the head of its handshake, as far as it is here; null: it is over */
  head: string | null;
  /** websocket: the beginning of a frame that is not here in full */
  rest: Buffer | null;
}

const into = Buffer.allocUnsafeSlow(READ_BYTES);
const out = Buffer.allocUnsafeSlow(READ_BYTES);
const poller = new Poller();
const listeners = { tcp: listen(), websocket: listen() };
const sessions: (Session | undefined)[] = [];
const open = { tcp: 0, websocket: 0 };
let tcpBytes = 0;
let messages = 0;

function onConnection(kind: Session["kind"]): void {
  for (;;) {
    const fd = accept(listeners[kind].fd);
    if (fd === null) return;
    sessions[fd] = { kind, head: kind === "tcp" ? null : "", rest: null };
    open[kind]++;
    poller.watch(fd, EPOLLIN);
  }
}

function onBytes(fd: number, session: Session): void {
  const bytes = read(fd, into);
  if (bytes === null) return;
  if (bytes === 0 || !answer(fd, session, bytes)) {
    sessions[fd] = undefined;
    open[session.kind]--;
    close(fd);
  }
}

/** @returns false: it is to be closed */
function answer(fd: number, session: Session, bytes: number): boolean {
  if (session.kind === "tcp") {
    tcpBytes += bytes;
    // A client that does not read what it asked for is not served any more.
    return write(fd, into, bytes) === bytes;
  }
  return session.head === null ? echoFrames(fd, session, bytes) : upgrade(fd, session, bytes);
}

function upgrade(fd: number, session: Session, bytes: number): boolean {
  session.head += into.toString("latin1", 0, bytes);
  const head = session.head as string;
  if (!head.includes("\r\n\r\n")) return head.length <= HEAD_BYTES_MAX;
  const key = /\r\nsec-websocket-key: *(\S+)\r\n/i.exec(head)?.[1];
  const reply =
    key === undefined
      ? "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n"
      : "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
        `Sec-WebSocket-Accept: ${acceptOf(key)}\r\n\r\n`;
  session.head = key === undefined ? "" : null;
  return write(fd, Buffer.from(reply)) === reply.length;
}

function echoFrames(fd: number, session: Session, bytes: number): boolean {
  const data = session.rest === null ? into : Buffer.concat([session.rest, into.subarray(0, bytes)]);
  const length = session.rest === null ? bytes : data.length;
  let at = 0;
  let written = 0;
  while (length - at >= FRAME_HEAD_BYTES) {
    const second = data[at + 1] as number;
    const payloadBytes = second & ~MASKED;
    if ((second & MASKED) === 0 || payloadBytes > PAYLOAD_BYTES_MAX) return false;
    if (length - at < FRAME_HEAD_BYTES + payloadBytes) break;
    const first = data[at] as number;
    if ((first & OPCODE) === CLOSE) return false;
    out[written++] = first;
    out[written++] = payloadBytes;
    const mask = at + 2;
    at += FRAME_HEAD_BYTES;
    for (let index = 0; index < payloadBytes; index++)
      out[written++] = (data[at + index] as number) ^ (data[mask + (index & 3)] as number);
    at += payloadBytes;
    messages++;
  }
  session.rest = at < length ? Buffer.from(data.subarray(at, length)) : null;
  return written === 0 || write(fd, out, written) === written;
}

const loop = eventLoopFd(IPC_FD);
poller.watch(loop, EPOLLIN);
poller.watch(listeners.tcp.fd, EPOLLIN);
poller.watch(listeners.websocket.fd, EPOLLIN);

/** Serves until Node's event loop, that has the benchmark's questions, has something to do. */
function turn(): void {
  for (;;) {
    const count = poller.wait(Number.MAX_SAFE_INTEGER);
    let asked = false;
    for (let index = 0; index < count; index++) {
      const fd = poller.fdAt(index);
      const session = sessions[fd];
      if (session !== undefined) onBytes(fd, session);
      else if (fd === loop) asked = true;
      else if (fd === listeners.tcp.fd) onConnection("tcp");
      else if (fd === listeners.websocket.fd) onConnection("websocket");
    }
    if (asked) {
      setImmediate(turn);
      return;
    }
  }
}

serve(
  (): EchoState => ({
    tcp: { port: listeners.tcp.port, seen: Math.floor(tcpBytes / MESSAGE_BYTES), sessions: open.tcp },
    websocket: { port: listeners.websocket.port, seen: messages, sessions: open.websocket },
  }),
);
setImmediate(turn);
