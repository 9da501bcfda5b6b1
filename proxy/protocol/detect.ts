/**
 * What a connection carries, told from the client's first bytes; nothing is sent and nobody is kept waiting for it.
 *
 *   TLS        a record with the start of a ClientHello (RFC 8446 4.1.2, 5.1)
 *   HTTP/2     its preface (RFC 9113 3.4)
 *   HTTP/1.x   a whole request line (RFC 9112 3): half of one could also be an inline command of Redis
 */
import { Buffer } from "node:buffer";
import type { PortConfig } from "#proxy/contract/commands.ts";

export type Protocol = "detecting" | "tcp" | "tls" | "h2" | "http" | "websocket" | "tunnel";
export type Detected = Exclude<PortConfig["protocol"], "auto" | "websocket">;

/** a request line that is longer is taken for one without its end */
export const DETECT_BYTES_MAX = 8 * 1024;
/** handshake message and the headers of the records it came in */
export const CLIENT_HELLO_BYTES_MAX = 16 * 1024;
/** of one message; so many are read again for every byte of a slow client */
export const CLIENT_HELLO_RECORDS_MAX = 32;
const SERVER_NAME_BYTES_MAX = 255;

const LF = 0x0a;
const CR = 0x0d;
const RECORD_HANDSHAKE = 22;
const CLIENT_HELLO = 1;
const RECORD_HEADER_BYTES = 5;
const MESSAGE_HEADER_BYTES = 4;
const RECORD_BYTES_MAX = 16 * 1024;
const EXTENSION_SERVER_NAME = 0;
const EXTENSION_ALPN = 16;
const H2_PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");
const REQUEST_LINE = /^[A-Z-]{1,24} [!-~\x80-\xff]+ HTTP\/\d\.\d\r?$/;
/** … and what can still become one */
const REQUEST_START = /^[A-Z-]{1,24}( [!-~\x80-\xff]*( ([A-Z]+(\/[\d.]*)?)?\r?)?)?$/;

/**
 * @param prefix everything the client has sent so far
 * @param done no more of it will come before the answer is needed
 * @returns null: more bytes are needed
 */
export function detect(prefix: Buffer, done: boolean): Detected | null {
  const detected = prefix.length === 0 ? null : named(prefix);
  return detected === null && done ? "tcp" : detected;
}

function named(prefix: Buffer): Detected | null {
  if (prefix[0] === RECORD_HANDSHAKE) return startsHello(prefix);
  const compared = Math.min(prefix.length, H2_PREFACE.length);
  if (prefix.compare(H2_PREFACE, 0, compared, 0, compared) === 0)
    return prefix.length >= H2_PREFACE.length ? "h2" : null;
  let start = 0;
  for (let lines = 0; lines < 4 && prefix[start] === CR; lines++, start += 2) {
    if (start + 1 >= prefix.length) return null;
    if (prefix[start + 1] !== LF) return "tcp";
  }
  const lineEnd = prefix.indexOf(LF, start);
  if (lineEnd >= 0) return REQUEST_LINE.test(prefix.toString("latin1", start, lineEnd)) ? "http" : "tcp";
  const line = prefix.toString("latin1", start, prefix.length);
  if (line !== "" && !REQUEST_START.test(line)) return "tcp";
  return prefix.length < DETECT_BYTES_MAX ? null : "http";
}

function startsHello(prefix: Buffer): "tls" | "tcp" | null {
  const [, major, minor, , , handshake] = prefix;
  if (major !== undefined && major !== 3) return "tcp";
  if (minor !== undefined && minor > 4) return "tcp";
  if (prefix.length < RECORD_HEADER_BYTES) return null;
  const length = prefix.readUInt16BE(3);
  if (length === 0 || length > RECORD_BYTES_MAX) return "tcp";
  if (handshake === undefined) return null;
  return handshake === CLIENT_HELLO ? "tls" : "tcp";
}

export interface ClientHello {
  /** SNI (RFC 6066 3), null: none given */
  serverName: string | null;
  /** RFC 7301; empty: none offered */
  alpn: string[];
}

/**
 * The names in a ClientHello, in one record or several; beyond the bounds above it has none.
 *
 * @returns "incomplete": more bytes are needed
 */
export function tlsClientHello(prefix: Buffer): ClientHello | "incomplete" | "invalid" {
  const fragments: Buffer[] = [];
  let gathered = 0;
  let wanted = MESSAGE_HEADER_BYTES;
  for (let at = 0; gathered < wanted; ) {
    if (fragments.length === CLIENT_HELLO_RECORDS_MAX) return { serverName: null, alpn: [] };
    if (at + RECORD_HEADER_BYTES > prefix.length) return notYet(prefix);
    const length = prefix.readUInt16BE(at + 3);
    if (prefix[at] !== RECORD_HANDSHAKE || prefix[at + 1] !== 3 || length === 0 || length > RECORD_BYTES_MAX)
      return "invalid";
    at += RECORD_HEADER_BYTES;
    const fragment = prefix.subarray(at, at + length);
    fragments.push(fragment);
    gathered += fragment.length;
    at += length;
    if (gathered >= MESSAGE_HEADER_BYTES && wanted === MESSAGE_HEADER_BYTES) {
      const header = Buffer.concat(fragments, MESSAGE_HEADER_BYTES);
      if (header[0] !== CLIENT_HELLO) return "invalid";
      wanted += header.readUIntBE(1, 3);
    }
    if (fragment.length < length && gathered < wanted) return notYet(prefix);
  }
  return parseHello(new Reader(Buffer.concat(fragments).subarray(MESSAGE_HEADER_BYTES, wanted)));
}

function notYet(prefix: Buffer): "incomplete" | ClientHello {
  return prefix.length < CLIENT_HELLO_BYTES_MAX ? "incomplete" : { serverName: null, alpn: [] };
}

function parseHello(hello: Reader): ClientHello | "invalid" {
  hello.skip(2 + 32);
  hello.vector(1);
  hello.vector(2);
  hello.vector(1);
  const result: ClientHello = { serverName: null, alpn: [] };
  // RFC 5246 7.4.1.2: they may be missing altogether
  const extensions = hello.left > 0 ? hello.vector(2) : hello;
  while (extensions.left > 0 && !extensions.broken) {
    const type = extensions.number(2);
    const body = extensions.vector(2);
    if (type === EXTENSION_SERVER_NAME) result.serverName = serverName(body);
    if (type === EXTENSION_ALPN) result.alpn = protocolNames(body);
  }
  return hello.broken || extensions.broken ? "invalid" : result;
}

function serverName(body: Reader): string | null {
  const list = body.vector(2);
  while (list.left > 0 && !list.broken) {
    const type = list.number(1);
    const name = list.vector(2).text();
    if (type === 0 && name.length <= SERVER_NAME_BYTES_MAX && /^[\x21-\x7e]+$/.test(name)) return name;
  }
  return null;
}

function protocolNames(body: Reader): string[] {
  const list = body.vector(2);
  const names: string[] = [];
  while (list.left > 0 && !list.broken) names.push(list.vector(1).text());
  return names;
}

/** Reads what may be cut short or lie about its lengths: then it is `broken`, and empty. */
class Reader {
  broken = false;
  #bytes: Buffer;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get left(): number {
    return this.#bytes.length;
  }

  skip(length: number): Buffer {
    if (length > this.#bytes.length) {
      this.broken = true;
      this.#bytes = this.#bytes.subarray(0, 0);
      return this.#bytes;
    }
    const taken = this.#bytes.subarray(0, length);
    this.#bytes = this.#bytes.subarray(length);
    return taken;
  }

  number(size: 1 | 2): number {
    const bytes = this.skip(size);
    return bytes.length === size ? bytes.readUIntBE(0, size) : 0;
  }

  vector(lengthSize: 1 | 2): Reader {
    return new Reader(this.skip(this.number(lengthSize)));
  }

  text(): string {
    return this.#bytes.toString("latin1", 0, this.#bytes.length);
  }
}
