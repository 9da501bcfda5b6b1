/**
 * The head of an HTTP/1.x message: its start line and fields, RFC 9112 sections 2 to 6.
 *
 * Strict where recipients are known to differ (bare LF, obs-fold, repeated or listed Content-Length, anything but one
 * "chunked" as Transfer-Encoding): the bytes are passed on unchanged whatever is thought of them here, so what two
 * readers could read in two ways is not read at all. What does not frame a message (Host, the target's form, the values of
 * other fields) is the application's business and only checked for characters that could end a line.
 *
 * A line is judged when its LF is there, so the verdict does not depend on how the bytes were cut.
 */
import { Buffer } from "node:buffer";
import type { OpaqueReason } from "./opaque-reason.ts";

export const HEAD_BYTES_MAX = 64 * 1024;
export const FIELDS_MAX = 256;
export const METHOD_BYTES_MAX = 24;
const CONTENT_LENGTH_DIGITS_MAX = 16;

const HT = 0x09;
const LF = 0x0a;
const CR = 0x0d;
const SP = 0x20;
const COLON = 0x3a;
const ZERO = 0x30;
const NINE = 0x39;
const UPPER_H = 0x48;
const LOWER = 0x20;

// classes of bytes, bits
const TCHAR = 1;
const VALUE = 2;
const TARGET = 4;
const METHOD = 8;
const CLASS: Uint8Array = classes();

function classes(): Uint8Array {
  const table = new Uint8Array(256);
  for (let byte = 0; byte < 256; byte++) {
    const text = String.fromCharCode(byte);
    if (/[!#$%&'*+\-.^_`|~0-9A-Za-z]/.test(text)) table[byte] = TCHAR;
    if (byte === HT || (byte >= SP && byte !== 0x7f)) table[byte] = (table[byte] as number) | VALUE;
    // not ASCII is against RFC 3986, and frames nothing: some clients send it
    if (byte > SP && byte !== 0x7f) table[byte] = (table[byte] as number) | TARGET;
    if (/[A-Z-]/.test(text)) table[byte] = (table[byte] as number) | METHOD;
  }
  return table;
}

/** A byte of a field's name or another token (RFC 9110 5.6.2). */
export function isTokenByte(byte: number): boolean {
  return ((CLASS[byte] as number) & TCHAR) !== 0;
}

/** A byte that may stand in a field's value. */
export function isValueByte(byte: number): boolean {
  return ((CLASS[byte] as number) & VALUE) !== 0;
}

export interface Method {
  readonly name: string;
  /** RFC 9110 9.2.2 */
  readonly idempotent: boolean;
}

const METHODS: readonly (Method & { bytes: Buffer })[] = [
  { name: "GET", idempotent: true },
  { name: "POST", idempotent: false },
  { name: "HEAD", idempotent: true },
  { name: "PUT", idempotent: true },
  { name: "DELETE", idempotent: true },
  { name: "OPTIONS", idempotent: true },
  { name: "PATCH", idempotent: false },
  { name: "CONNECT", idempotent: false },
  { name: "TRACE", idempotent: true },
].map((method) => ({ ...method, bytes: Buffer.from(method.name, "latin1") }));

function methodOf(bytes: Buffer, start: number, end: number): Method {
  for (const method of METHODS) {
    const name = method.bytes;
    if (name.length !== end - start) continue;
    let at = 0;
    while (at < name.length && name[at] === bytes[start + at]) at++;
    if (at === name.length) return method;
  }
  return { name: bytes.toString("latin1", start, end), idempotent: false };
}

/** @param bytes the method's name and nothing else */
export function methodNamed(bytes: Buffer): Method {
  return methodOf(bytes, 0, bytes.length);
}

// what a line turned out to be; positive: where the next one begins
const INCOMPLETE = 0;
const WRONG = -1;
const LAST = -2;

export type HeadVerdict = "incomplete" | "complete" | "wrong";

/**
 * Reads one head, at once or as it arrives: `parse` is called with the same bytes and more of them behind. After
 * "complete" the fields say how the message is framed; after "wrong", `reason` says why. `reset` before the next one.
 */
export class HeadParser {
  /** bytes of the head, its empty line included */
  headBytes = 0;
  reason: OpaqueReason = "request-line";
  /** of a request */
  method: Method = METHODS[0] as Method;
  /** of an answer; 0 in a request */
  status = 0;
  /** 0 or 1: HTTP/1.minor */
  minor = 1;
  /** -1: none given */
  contentLength = -1;
  chunked = false;
  close = false;
  keepAlive = false;
  /** Connection names Upgrade */
  connectionUpgrade = false;
  /** Upgrade is there: does it name websocket? */
  upgrade: "websocket" | "tunnel" | null = null;
  expectsContinue = false;
  #lineStart = 0;
  #fields = 0;
  #isRequest = true;

  reset(isRequest: boolean): void {
    this.#isRequest = isRequest;
    this.#lineStart = 0;
    this.#fields = 0;
    this.status = 0;
    this.contentLength = -1;
    this.chunked = false;
    this.close = false;
    this.keepAlive = false;
    this.connectionUpgrade = false;
    this.upgrade = null;
    this.expectsContinue = false;
  }

  /** @param start where the head begins in `bytes` @param end of what there is */
  parse(bytes: Buffer, start: number, end: number): HeadVerdict {
    const to = Math.min(end, start + HEAD_BYTES_MAX);
    let at = start + this.#lineStart;
    if (at === start && start < to) {
      const first = bytes[start] as number;
      // what cannot become a head is not waited for
      if (this.#isRequest ? ((CLASS[first] as number) & METHOD) === 0 : first !== UPPER_H)
        return this.#wrong(this.#isRequest ? "request-line" : "status-line");
    }
    for (;;) {
      let next: number;
      if (at !== start) next = this.#fieldLine(bytes, at, to);
      else if (this.#isRequest) next = this.#requestLine(bytes, at, to);
      else next = this.#statusLine(bytes, at, to);
      if (next > 0) {
        at = next;
        continue;
      }
      if (next === LAST) {
        this.headBytes = at + 2 - start;
        return this.#framing();
      }
      if (next === WRONG) {
        const lineEnd = bytes.indexOf(LF, at);
        if (lineEnd >= 0 && lineEnd < to) return "wrong";
      }
      this.#lineStart = at - start;
      return end - start >= HEAD_BYTES_MAX ? this.#wrong("head-too-large") : "incomplete";
    }
  }

  #wrong(reason: OpaqueReason): "wrong" {
    this.reason = reason;
    return "wrong";
  }

  #wrongLine(reason: OpaqueReason): number {
    this.reason = reason;
    return WRONG;
  }

  #requestLine(bytes: Buffer, at: number, to: number): number {
    let i = at;
    while (i < to && ((CLASS[bytes[i] as number] as number) & METHOD) !== 0) i++;
    if (i === to) return INCOMPLETE;
    const methodEnd = i;
    if (bytes[i] !== SP || i === at || i - at > METHOD_BYTES_MAX) return this.#wrongLine("method");
    const target = ++i;
    while (i < to && ((CLASS[bytes[i] as number] as number) & TARGET) !== 0) i++;
    if (i === to) return INCOMPLETE;
    if (bytes[i] === LF) return this.#wrongLine("bare-lf");
    if (bytes[i] !== SP || i === target) return this.#wrongLine("request-line");
    const next = this.#version(bytes, i + 1, to);
    if (next <= 0) return next;
    this.method = methodOf(bytes, at, methodEnd);
    return this.#lineEnd(bytes, next, to, "request-line");
  }

  #statusLine(bytes: Buffer, at: number, to: number): number {
    let i = this.#version(bytes, at, to);
    if (i <= 0) return i;
    if (i + 4 > to) return this.#tooShort(bytes, i, to, "status-line");
    if (bytes[i] !== SP) return this.#wrongLine("status-line");
    let status = 0;
    for (const end = i + 4; ++i < end; ) {
      const digit = (bytes[i] as number) - ZERO;
      if (digit < 0 || digit > 9) return this.#wrongLine("status-line");
      status = status * 10 + digit;
    }
    if (status < 100) return this.#wrongLine("status-line");
    this.status = status;
    if (i === to) return INCOMPLETE;
    // the space before an empty reason is often forgotten
    if (bytes[i] !== SP) return this.#lineEnd(bytes, i, to, "status-line");
    while (i < to && ((CLASS[bytes[i] as number] as number) & VALUE) !== 0) i++;
    return this.#lineEnd(bytes, i, to, "status-line");
  }

  /** "HTTP/1.0" or "HTTP/1.1" at `at` → the place behind it */
  #version(bytes: Buffer, at: number, to: number): number {
    if (at + 8 > to) return this.#tooShort(bytes, at, to, "http-version");
    const known =
      bytes[at] === UPPER_H &&
      bytes[at + 1] === 0x54 &&
      bytes[at + 2] === 0x54 &&
      bytes[at + 3] === 0x50 &&
      bytes[at + 4] === 0x2f &&
      bytes[at + 5] === 0x31 &&
      bytes[at + 6] === 0x2e;
    const minor = (bytes[at + 7] as number) - ZERO;
    if (!known || minor < 0 || minor > 1) return this.#wrongLine("http-version");
    this.minor = minor;
    return at + 8;
  }

  /** Fewer bytes than a part of the line has: will there be more? */
  #tooShort(bytes: Buffer, at: number, to: number, reason: OpaqueReason): number {
    const lineEnd = bytes.indexOf(LF, at);
    return lineEnd >= 0 && lineEnd < to ? this.#wrongLine(reason) : INCOMPLETE;
  }

  #lineEnd(bytes: Buffer, at: number, to: number, otherwise: OpaqueReason): number {
    if (at === to) return INCOMPLETE;
    if (bytes[at] === LF) return this.#wrongLine("bare-lf");
    if (bytes[at] !== CR) return this.#wrongLine(otherwise);
    if (at + 1 === to) return INCOMPLETE;
    return bytes[at + 1] === LF ? at + 2 : this.#wrongLine("bare-cr");
  }

  #fieldLine(bytes: Buffer, at: number, to: number): number {
    let i = at;
    while (i < to && ((CLASS[bytes[i] as number] as number) & TCHAR) !== 0) i++;
    if (i === to) return INCOMPLETE;
    const nameEnd = i;
    if (bytes[i] !== COLON || i === at) {
      const first = bytes[at];
      if (first === SP || first === HT) return this.#wrongLine("obs-fold");
      const end = this.#lineEnd(bytes, i, to, "field-name");
      if (end <= 0) return end;
      return i === at ? LAST : this.#wrongLine("field-name");
    }
    i++;
    while (i < to && (bytes[i] === SP || bytes[i] === HT)) i++;
    const value = i;
    while (i < to && ((CLASS[bytes[i] as number] as number) & VALUE) !== 0) i++;
    const next = this.#lineEnd(bytes, i, to, "field-value");
    if (next <= 0) return next;
    if (++this.#fields > FIELDS_MAX) return this.#wrongLine("too-many-fields");
    switch (nameEnd - at) {
      case 6:
        if (isNamed(bytes, at, EXPECT)) this.#expect(bytes, value, i);
        break;
      case 7:
        if (isNamed(bytes, at, UPGRADE)) this.#upgradeTo(bytes, value, i);
        break;
      case 10:
        if (isNamed(bytes, at, CONNECTION)) return this.#connection(bytes, value, i) ? next : WRONG;
        break;
      case 14:
        if (isNamed(bytes, at, CONTENT_LENGTH)) return this.#length(bytes, value, i) ? next : WRONG;
        // gateways of the CGI kind know "_" and "-" apart no longer
        if (isNamed(bytes, at, CONTENT_LENGTH_CGI)) return this.#wrongLine("content-length");
        break;
      case 17:
        if (isNamed(bytes, at, TRANSFER_ENCODING)) return this.#coding(bytes, value, i) ? next : WRONG;
        if (isNamed(bytes, at, TRANSFER_ENCODING_CGI)) return this.#wrongLine("transfer-encoding");
    }
    return next;
  }

  #expect(bytes: Buffer, from: number, to: number): void {
    if (lowerCase(bytes, from, to) === "100-continue") this.expectsContinue = true;
  }

  #upgradeTo(bytes: Buffer, from: number, to: number): void {
    const named = listOf(bytes, from, to).includes("websocket");
    if (named || this.upgrade === null) this.upgrade = named ? "websocket" : "tunnel";
  }

  #connection(bytes: Buffer, from: number, to: number): boolean {
    // what nearly all say, without making a string of it
    if (to - from === KEEP_ALIVE.length && isNamed(bytes, from, KEEP_ALIVE)) {
      this.keepAlive = true;
      return true;
    }
    for (const option of listOf(bytes, from, to)) {
      if (option === "close") this.close = true;
      else if (option === "keep-alive") this.keepAlive = true;
      else if (option === "upgrade") this.connectionUpgrade = true;
      // an intermediary would have to take it out (RFC 9110 7.6.1)
      else if (option === "content-length" || option === "transfer-encoding") {
        this.reason = option;
        return false;
      }
    }
    return true;
  }

  #length(bytes: Buffer, from: number, to: number): boolean {
    this.reason = "content-length";
    let end = to;
    while (end > from && (bytes[end - 1] === SP || bytes[end - 1] === HT)) end--;
    if (this.contentLength >= 0 || end === from || end - from > CONTENT_LENGTH_DIGITS_MAX) return false;
    // octal to some
    if (bytes[from] === ZERO && end - from > 1) return false;
    let length = 0;
    for (let i = from; i < end; i++) {
      const byte = bytes[i] as number;
      if (byte < ZERO || byte > NINE) return false;
      length = length * 10 + byte - ZERO;
    }
    this.contentLength = length;
    return length <= Number.MAX_SAFE_INTEGER;
  }

  #coding(bytes: Buffer, from: number, to: number): boolean {
    this.reason = "transfer-encoding";
    if (this.chunked || lowerCase(bytes, from, to) !== "chunked") return false;
    this.chunked = true;
    return true;
  }

  /** RFC 9112 6.1, 6.3: what the fields must not say together. */
  #framing(): HeadVerdict {
    if (!this.chunked) return "complete";
    if (this.contentLength >= 0) return this.#wrong("length-and-transfer-encoding");
    return this.minor === 0 ? this.#wrong("transfer-encoding") : "complete";
  }
}

const EXPECT = Buffer.from("expect", "latin1");
const UPGRADE = Buffer.from("upgrade", "latin1");
const CONNECTION = Buffer.from("connection", "latin1");
const KEEP_ALIVE = Buffer.from("keep-alive", "latin1");
const CONTENT_LENGTH = Buffer.from("content-length", "latin1");
const TRANSFER_ENCODING = Buffer.from("transfer-encoding", "latin1");
// "_" | 0x20 is 0x7f
const CONTENT_LENGTH_CGI = Buffer.from("content\x7flength", "latin1");
const TRANSFER_ENCODING_CGI = Buffer.from("transfer\x7fencoding", "latin1");

/** In any case. The bytes are of a field line, where setting the bit makes no letter or "-" of anything else. */
function isNamed(bytes: Buffer, at: number, name: Buffer): boolean {
  for (let i = 0; i < name.length; i++) if (((bytes[at + i] as number) | LOWER) !== name[i]) return false;
  return true;
}

function lowerCase(bytes: Buffer, from: number, to: number): string {
  return bytes.toString("latin1", from, to).trim().toLowerCase();
}

function listOf(bytes: Buffer, from: number, to: number): string[] {
  const text = lowerCase(bytes, from, to);
  return text.includes(",") ? text.split(",").map((item) => item.trim()) : [text];
}

/** A view of a complete head, valid as long as its bytes are; nothing is made before it is asked for. */
export class HttpHead {
  readonly #bytes: Buffer;
  readonly #start: number;
  readonly #end: number;
  #lines: string[] | null = null;

  /** @param start first byte of the start line @param end behind the empty line */
  constructor(bytes: Buffer, start: number, end: number) {
    this.#bytes = bytes;
    this.#start = start;
    this.#end = end;
  }

  /** Start line and fields as they came, the empty line included; latin1. */
  text(): string {
    return this.#bytes.toString("latin1", this.#start, this.#end);
  }

  /** of a request; "" in an answer */
  get method(): string {
    return this.isRequest ? this.#word(0) : "";
  }

  /** of a request, as it came; "" in an answer */
  get target(): string {
    return this.isRequest ? this.#word(1) : "";
  }

  /** "HTTP/1.0" or "HTTP/1.1" */
  get version(): string {
    return this.#word(this.isRequest ? 2 : 0);
  }

  /** of an answer; 0 in a request */
  get status(): number {
    return this.isRequest ? 0 : Number(this.#word(1));
  }

  get isRequest(): boolean {
    return !this.#startLine().startsWith("HTTP/");
  }

  /** Value of the first field of that name (in any case), without the white space around it. */
  field(name: string): string | null {
    return this.fields(name)[0] ?? null;
  }

  /** Values of all fields of that name, in order. */
  fields(name: string): string[] {
    const wanted = name.toLowerCase();
    const values: string[] = [];
    for (const line of this.#all()) {
      if (line.charCodeAt(wanted.length) !== COLON) continue;
      if (line.slice(0, wanted.length).toLowerCase() === wanted)
        values.push(trimWhiteSpace(line.slice(wanted.length + 1)));
    }
    return values;
  }

  #all(): string[] {
    this.#lines ??= this.text().split("\r\n");
    return this.#lines;
  }

  #startLine(): string {
    return this.#all()[0] ?? "";
  }

  #word(index: number): string {
    return this.#startLine().split(" ", 3)[index] ?? "";
  }
}

/** Not `trim`, which takes U+00A0 away as well. */
function trimWhiteSpace(text: string): string {
  return text.replace(/^[ \t]+|[ \t]+$/g, "");
}
