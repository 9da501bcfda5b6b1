/**
 * What a load generator says on one connection, and whether what comes back is the answer: pure, and cheap, since it is
 * done for each of a hundred thousand messages a second. Every answer is looked at, to the byte where it is an echo.
 *
 * Sources: RFC 9112 section 6 (only Content-Length: every peer here passes it on), RFC 6455 sections 4 and 5.
 */
import { createHash } from "node:crypto";
import type { Load, Protocol } from "./load.ts";

export const MESSAGE_BYTES = 64;
const WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const WEBSOCKET_KEY = "aG9sZGZhc3QgYmVuY2ghIQ==";
const HEAD_BYTES_MAX = 8 * 1024;
const CRLF_CRLF = 0x0a0d0a0d;
/** FIN and opcode 2 */
const BINARY = 0x82;
const MASKED = 0x80;
/** any that is not zero, so that whoever does not unmask is found out */
const MASK = [0x37, 0xfa, 0x21, 0x3d] as const;

export interface Conversation {
  /** The next request. Its memory is used again for the one after it. */
  next(): Buffer;
  /**
   * What has come.
   * @returns whether the answer is whole now
   * @throws Error when it is not an answer to the request
   */
  take(bytes: Buffer, length: number): boolean;
}

export function converse(protocol: Protocol, bulk?: Load["bulk"]): Conversation {
  switch (protocol) {
    case "http":
      return new HttpConversation(bulk);
    case "tcp":
      return new EchoConversation(0);
    case "websocket":
      return new EchoConversation(2);
  }
}

/** What opens a connection before the first request; null: nothing does. */
export function greet(protocol: Protocol): Conversation | null {
  return protocol === "websocket" ? new Handshake() : null;
}

/** Sec-WebSocket-Accept */
export function acceptOf(key: string): string {
  return createHash("sha1")
    .update(key + WEBSOCKET_GUID)
    .digest("base64");
}

class HttpConversation implements Conversation {
  readonly #request: Buffer;
  #head = "";
  #bodyBytesLeft = 0;
  /** of the last answer that came in one piece: the next one is most likely the same */
  #headBytes = 0;
  #wholeBytes = 0;

  constructor(bulk: Load["bulk"]) {
    const [line, length, body] =
      bulk?.direction === "up"
        ? ["POST /", `Content-Length: ${bulk.bytes}\r\n`, Buffer.alloc(bulk.bytes)]
        : [`GET /${bulk?.bytes ?? ""}`, "", Buffer.alloc(0)];
    const head = `${line} HTTP/1.1\r\nHost: localhost\r\n${length}\r\n`;
    this.#request = Buffer.concat([Buffer.from(head), body]);
  }

  next(): Buffer {
    return this.#request;
  }

  take(bytes: Buffer, length: number): boolean {
    if (
      length === this.#wholeBytes &&
      this.#bodyBytesLeft === 0 &&
      this.#head === "" &&
      bytes.toString("latin1", 0, 13) === "HTTP/1.1 200 " &&
      bytes.readUInt32LE(this.#headBytes - 4) === CRLF_CRLF
    )
      return true;
    if (this.#bodyBytesLeft > 0) {
      this.#bodyBytesLeft -= length;
    } else {
      const fresh = this.#head === "";
      this.#head += bytes.toString("latin1", 0, length);
      const end = this.#head.indexOf("\r\n\r\n");
      if (end < 0) {
        if (this.#head.length > HEAD_BYTES_MAX) throw new Error("a header without an end");
        return false;
      }
      const contentLength = /\r\ncontent-length: *(\d+)\r\n/i.exec(this.#head.slice(0, end + 2))?.[1];
      if (!this.#head.startsWith("HTTP/1.1 200 ") || contentLength === undefined)
        throw new Error(`not a 200 with a length: ${JSON.stringify(this.#head.slice(0, 60))}`);
      this.#bodyBytesLeft = Number(contentLength) - (this.#head.length - end - 4);
      this.#head = "";
      if (fresh && this.#bodyBytesLeft === 0) [this.#headBytes, this.#wholeBytes] = [end + 4, length];
    }
    if (this.#bodyBytesLeft < 0) throw new Error("more bytes than were asked for");
    return this.#bodyBytesLeft === 0;
  }
}

/** A message with a number of its own, as plain bytes or as a frame. */
class EchoConversation implements Conversation {
  readonly #request: Buffer;
  readonly #answer: Buffer;
  readonly #requestAt: number;
  readonly #answerAt: number;
  readonly #mask: number;
  #sequence = 0;
  #taken = 0;

  /** @param headBytes of the answer's frame: none, or two */
  constructor(headBytes: 0 | 2) {
    const framed = headBytes === 2;
    const payload = Buffer.from(Array.from({ length: MESSAGE_BYTES }, (_, index) => 0x40 + (index % 26)));
    this.#answer = framed ? Buffer.concat([Buffer.from([BINARY, MESSAGE_BYTES]), payload]) : payload;
    this.#request = framed
      ? Buffer.concat([
          Buffer.from([BINARY, MASKED | MESSAGE_BYTES, ...MASK]),
          payload.map((byte, index) => byte ^ (MASK[index % 4] as number)),
        ])
      : Buffer.from(payload);
    this.#requestAt = framed ? headBytes + MASK.length : 0;
    this.#answerAt = headBytes;
    this.#mask = framed ? Buffer.from(MASK).readInt32LE(0) : 0;
  }

  next(): Buffer {
    this.#sequence = (this.#sequence + 1) | 0;
    this.#answer.writeInt32LE(this.#sequence, this.#answerAt);
    this.#request.writeInt32LE(this.#sequence ^ this.#mask, this.#requestAt);
    this.#taken = 0;
    return this.#request;
  }

  take(bytes: Buffer, length: number): boolean {
    const end = this.#taken + length;
    if (end > this.#answer.length) throw new Error("more bytes than were asked for");
    if (bytes.compare(this.#answer, this.#taken, end, 0, length) !== 0)
      throw new Error(`not the echo: ${bytes.toString("hex", 0, Math.min(length, 16))}`);
    this.#taken = end;
    return end === this.#answer.length;
  }
}

class Handshake implements Conversation {
  #head = "";

  next(): Buffer {
    return Buffer.from(
      "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
        `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${WEBSOCKET_KEY}\r\n\r\n`,
    );
  }

  take(bytes: Buffer, length: number): boolean {
    this.#head += bytes.toString("latin1", 0, length);
    const end = this.#head.indexOf("\r\n\r\n");
    if (end < 0 && this.#head.length <= HEAD_BYTES_MAX) return false;
    const accept = /\r\nsec-websocket-accept: *(\S+)\r\n/i.exec(this.#head)?.[1];
    if (!this.#head.startsWith("HTTP/1.1 101 ") || accept !== acceptOf(WEBSOCKET_KEY))
      throw new Error(`not upgraded: ${JSON.stringify(this.#head.slice(0, 60))}`);
    if (end + 4 !== this.#head.length) throw new Error("more bytes than were asked for");
    return true;
  }
}
