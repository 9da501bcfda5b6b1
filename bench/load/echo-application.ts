/**
 * The application behind peers that carry messages: it sends back what it gets, as plain bytes at one port, as WebSocket
 * messages at another, and counts it, so that generators can be checked.
 *
 * Left out: what the generator does not send (fragments, frames beyond 125 bytes): such a connection is closed.
 * Source: RFC 6455 sections 4.2 and 5.
 */
import { acceptOf, MESSAGE_BYTES } from "./conversation.ts";
import { serve } from "./program.ts";
import { read, write } from "./raw-sockets.ts";
import { type Session, SocketServer } from "./socket-server.ts";

/** Where it listens, at 127.0.0.1; messages it has seen there; sessions that are open. */
interface EchoPort {
  port: number;
  seen: number;
  sessions: number;
}

export interface EchoState {
  tcp: EchoPort;
  websocket: EchoPort;
}

const READ_BYTES = 64 * 1024;
const HEAD_BYTES_MAX = 8 * 1024;
const OPCODE = 0x0f;
const CLOSE = 0x08;
const MASKED = 0x80;
const FRAME_HEAD_BYTES = 6;
const PAYLOAD_BYTES_MAX = 125;

const into = Buffer.allocUnsafeSlow(READ_BYTES);
const out = Buffer.allocUnsafeSlow(2 * READ_BYTES);
let tcpBytes = 0;
let messages = 0;

class BytesSession implements Session {
  onReadable(fd: number): boolean {
    const bytes = read(fd, into);
    if (bytes === null) return true;
    tcpBytes += bytes;
    // A client that does not read what it asked for is not served any more.
    return bytes > 0 && write(fd, into, bytes) === bytes;
  }
}

class WebSocketSession implements Session {
  /** of its handshake, as far as it is here; null: it is over */
  #head: string | null = "";
  /** the beginning of a frame that is not here in full */
  #rest: Buffer | null = null;

  onReadable(fd: number): boolean {
    const bytes = read(fd, into);
    if (bytes === null) return true;
    if (bytes === 0) return false;
    return this.#head === null ? this.#echo(fd, bytes) : this.#upgrade(fd, this.#head, bytes);
  }

  #upgrade(fd: number, before: string, bytes: number): boolean {
    this.#head = before + into.toString("latin1", 0, bytes);
    if (!this.#head.includes("\r\n\r\n")) return this.#head.length <= HEAD_BYTES_MAX;
    const key = /\r\nsec-websocket-key: *(\S+)\r\n/i.exec(this.#head)?.[1];
    this.#head = key === undefined ? "" : null;
    const reply =
      key === undefined
        ? "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n"
        : "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
          `Sec-WebSocket-Accept: ${acceptOf(key)}\r\n\r\n`;
    return write(fd, Buffer.from(reply)) === reply.length;
  }

  #echo(fd: number, bytes: number): boolean {
    const data = this.#rest === null ? into : Buffer.concat([this.#rest, into.subarray(0, bytes)]);
    const length = this.#rest === null ? bytes : data.length;
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
    this.#rest = at < length ? Buffer.from(data.subarray(at, length)) : null;
    return written === 0 || write(fd, out, written) === written;
  }
}

const server = new SocketServer();
const tcp = server.listen(() => new BytesSession());
const websocket = server.listen(() => new WebSocketSession());

serve(
  (): EchoState => ({
    tcp: { port: tcp, seen: Math.floor(tcpBytes / MESSAGE_BYTES), sessions: server.count(BytesSession) },
    websocket: { port: websocket, seen: messages, sessions: server.count(WebSocketSession) },
  }),
);
server.start();
