/**
 * Frames of a channel:
 *
 *   ┌────────────────┬──────────────┬─────────────────────────┬────────────┐
 *   │ header length  │ body length  │ header: JSON, UTF-8     │ body bytes │
 *   │ u32 big endian │ u32          │ {"k":…,"id":…,"m":…,"p"}│            │
 *   └────────────────┴──────────────┴─────────────────────────┴────────────┘
 *   k  call | reply | error | event      id  number of the call, chosen by its caller
 *   m  method (call, event)              p   params, result or {code, source, retryable, message}
 *
 * Lengths are checked before a byte is allocated for them.
 */
import { fail } from "./error-codes.ts";
import type { HoldfastError } from "./errors.ts";

const PREFIX_BYTES = 8;
/** bodies below this are copied out of the chunk they came in, so that they do not keep 64 kB alive */
const COPY_BYTES_MAX = 4096;
const NO_BYTES = Buffer.alloc(0);

type Kind = "call" | "reply" | "error" | "event";
const KINDS = { call: true, reply: true, error: true, event: true } satisfies Record<Kind, true>;

export interface Frame {
  kind: Kind;
  id: number;
  method: string;
  params: unknown;
  body: Buffer;
}

/** Cuts a byte stream into frames. `feed` bytes as they come, then `next` until it gives null. */
export class FrameReader {
  #chunks: Buffer[] = [];
  #offset = 0;
  /** the part being gathered across chunks; allocated only after its length was checked */
  #part: Buffer | null = null;
  #filled = 0;
  #headerBytes = -1;
  #bodyBytes = 0;
  #header: Omit<Frame, "body"> | null = null;

  readonly #headerBytesMax: number;
  readonly #bodyBytesMax: number;

  constructor(headerBytesMax: number, bodyBytesMax: number) {
    this.#headerBytesMax = headerBytesMax;
    this.#bodyBytesMax = bodyBytesMax;
  }

  feed(chunk: Buffer): void {
    if (chunk.length > 0) this.#chunks.push(chunk);
  }

  /** True when the stream may end here. */
  get atBoundary(): boolean {
    return this.#headerBytes < 0 && this.#chunks.length === 0 && this.#part === null;
  }

  /** @throws HoldfastError `CHANNEL_PROTOCOL` */
  next(): Frame | null {
    if (this.#headerBytes < 0) {
      const prefix = this.#take(PREFIX_BYTES);
      if (prefix === null) return null;
      const headerBytes = prefix.readUInt32BE(0);
      const bodyBytes = prefix.readUInt32BE(4);
      if (headerBytes === 0 || headerBytes > this.#headerBytesMax) {
        throw protocolError(`a header of ${headerBytes} bytes (at most ${this.#headerBytesMax})`);
      }
      if (bodyBytes > this.#bodyBytesMax) {
        throw protocolError(`a body of ${bodyBytes} bytes (at most ${this.#bodyBytesMax})`);
      }
      this.#headerBytes = headerBytes;
      this.#bodyBytes = bodyBytes;
    }
    if (this.#header === null) {
      const bytes = this.#take(this.#headerBytes);
      if (bytes === null) return null;
      this.#header = parseHeader(bytes);
    }
    const body = this.#bodyBytes === 0 ? NO_BYTES : this.#take(this.#bodyBytes);
    if (body === null) return null;
    const frame = { ...this.#header, body: body.length <= COPY_BYTES_MAX ? Buffer.from(body) : body };
    this.#header = null;
    this.#headerBytes = -1;
    return frame;
  }

  #take(length: number): Buffer | null {
    if (this.#part === null) {
      const first = this.#chunks[0];
      if (first === undefined) return null;
      if (first.length - this.#offset >= length) {
        const bytes = first.subarray(this.#offset, this.#offset + length);
        this.#advance(first, length);
        return bytes;
      }
      this.#part = Buffer.allocUnsafeSlow(length);
      this.#filled = 0;
    }
    const part = this.#part;
    for (let chunk = this.#chunks[0]; chunk !== undefined && this.#filled < length; chunk = this.#chunks[0]) {
      const copied = chunk.copy(part, this.#filled, this.#offset);
      this.#filled += copied;
      this.#advance(chunk, copied);
    }
    if (this.#filled < length) return null;
    this.#part = null;
    return part;
  }

  #advance(chunk: Buffer, bytes: number): void {
    this.#offset += bytes;
    if (this.#offset === chunk.length) {
      this.#chunks.shift();
      this.#offset = 0;
    }
  }
}

/** What goes before the body. @param headerBytes of `json` in UTF-8 */
export function frameHead(json: string, headerBytes: number, bodyBytes: number): Buffer {
  const head = Buffer.allocUnsafe(PREFIX_BYTES + headerBytes);
  head.writeUInt32BE(headerBytes, 0);
  head.writeUInt32BE(bodyBytes, 4);
  head.write(json, PREFIX_BYTES);
  return head;
}

export function protocolError(what: string): HoldfastError {
  return fail("CHANNEL_PROTOCOL", `the peer sent ${what}: not a Holdfast process, or one of another version`);
}

function parseHeader(bytes: Buffer): Omit<Frame, "body"> {
  let header: unknown;
  try {
    header = JSON.parse(bytes.toString("utf8"));
  } catch {
    throw protocolError("a header that is not JSON");
  }
  if (!isRecord(header)) throw protocolError("a header that is not an object");
  const { k, id, m, p } = header;
  if (typeof k !== "string" || !Object.hasOwn(KINDS, k)) throw protocolError("a frame of unknown kind");
  const kind = k as Kind;
  if (kind !== "event" && !(Number.isSafeInteger(id) && (id as number) > 0)) {
    throw protocolError(`a ${kind} without a number`);
  }
  if (kind === "call" || kind === "event") {
    if (typeof m !== "string" || m.length === 0) throw protocolError(`a ${kind} without a method`);
    if (!isRecord(p)) throw protocolError(`a ${kind} without parameters`);
  }
  return {
    kind,
    id: kind === "event" ? 0 : (id as number),
    method: typeof m === "string" ? m : "",
    params: p,
  };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
