/**
 * WebSocket frames (RFC 6455 section 5), read one direction at a time: where each begins and ends. Payloads of data frames
 * are passed over, so whether text is UTF-8 or deflates (RFC 7692) is the application's business; those of control frames
 * (≤ 125 bytes) are gathered.
 */
import { strict as assert } from "node:assert";
import { Buffer } from "node:buffer";
import type { OpaqueReason } from "./opaque-reason.ts";

export const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;
export const CONTROL_BYTES_MAX = 125;
const HEADER_BYTES_MAX = 14;
const MASK_BYTES = 4;
const FIN = 0x80;
const RSV1 = 0x40;
const RSV23 = 0x30;
const MASKED = 0x80;
const LENGTH_16 = 126;
const LENGTH_64 = 127;
const NO_BYTES: Buffer = Buffer.alloc(0);

/** Called with the walker itself: what the frame is stands in its fields, valid during the call. */
export interface FrameHooks {
  /** the header is complete; the payload follows */
  onFrameStart?(walker: FrameWalker): void;
  /** the frame is complete; `walker.controlPayload` is that of a control frame */
  onFrame?(walker: FrameWalker): void;
  /** … of a control frame only: its payload, unmasked, ≤ 125 bytes */
  onControl?(opcode: number, payload: Buffer): void;
}

export interface FrameWalkerOptions {
  /** what they must be: a client's frames are, a server's are not */
  masked: boolean;
  /** permessage-deflate was negotiated: the first frame of a message may have RSV1 */
  deflate?: boolean;
  /** offset of the first byte fed; 0 */
  offset?: number;
  hooks: FrameHooks;
}

export class FrameWalker {
  readonly masked: boolean;
  readonly deflate: boolean;
  /** bytes seen so far, as an offset in the stream */
  offset: number;
  /** of the frame under way, or the last one */
  opcode = 0;
  fin = true;
  rsv1 = false;
  payloadBytes = 0;
  /** offset of its header's first byte */
  frameStart: number;
  /** offset of the first header of the data message under way; -1: none */
  messageStart = -1;
  /** the message under way (or, in `onFrame`, the last one) has RSV1 */
  messageCompressed = false;
  /** of a control frame, unmasked; given in `onFrame` */
  controlPayload: Buffer = NO_BYTES;
  /** a Close was completely seen */
  closed = false;
  reason: OpaqueReason | null = null;
  readonly #hooks: FrameHooks;
  /** the part of a header that has come */
  #header: Buffer | null = null;
  #headerBytes = 0;
  #inPayload = false;
  #left = 0;
  /** payload of a control frame under way, still masked */
  #control: Buffer | null = null;
  #key = 0;

  constructor(options: FrameWalkerOptions) {
    this.masked = options.masked;
    this.deflate = options.deflate ?? false;
    this.offset = options.offset ?? 0;
    this.frameStart = this.offset;
    this.#hooks = options.hooks;
  }

  /** inside a frame's header or payload */
  get midFrame(): boolean {
    return this.#headerBytes > 0 || this.#inPayload;
  }

  /** Nothing may follow what was not understood: the reason is given again for anything fed after it. */
  feed(chunk: Buffer): OpaqueReason | null {
    let at = 0;
    while (this.reason === null && at < chunk.length)
      at = this.#inPayload ? this.#payload(chunk, at) : this.#head(chunk, at);
    return this.reason;
  }

  /** An independent walker at the same place; it tells its own hooks. */
  clone(hooks: FrameHooks): FrameWalker {
    const copy = new FrameWalker({ masked: this.masked, deflate: this.deflate, offset: this.offset, hooks });
    copy.#restore(this.save());
    return copy;
  }

  #head(chunk: Buffer, at: number): number {
    let bytes = chunk;
    let start = at;
    let end = chunk.length;
    const before = this.#headerBytes;
    if (before === 0) this.frameStart = this.offset;
    else {
      // a header in pieces: bounded, so copied
      const header = this.#header as Buffer;
      chunk.copy(header, before, at, Math.min(chunk.length, at + HEADER_BYTES_MAX - before));
      bytes = header;
      start = 0;
      end = Math.min(HEADER_BYTES_MAX, before + chunk.length - at);
    }
    const length = this.#parse(bytes, start, end);
    if (this.reason !== null) {
      this.offset += chunk.length - at;
      return chunk.length;
    }
    if (length === 0) {
      if (before === 0) {
        this.#header = Buffer.alloc(HEADER_BYTES_MAX);
        chunk.copy(this.#header, 0, at);
      }
      this.#headerBytes = end - start;
      this.offset += chunk.length - at;
      return chunk.length;
    }
    this.#header = null;
    this.#headerBytes = 0;
    this.offset = this.frameStart + length;
    this.#begin();
    return at + length - before;
  }

  /** → bytes of the header, 0: not complete */
  #parse(bytes: Buffer, start: number, end: number): number {
    if (end - start < 2) return 0;
    const first = bytes[start] as number;
    const second = bytes[start + 1] as number;
    this.fin = (first & FIN) !== 0;
    this.rsv1 = (first & RSV1) !== 0;
    this.opcode = first & 0xf;
    const short = second & 0x7f;
    this.reason = this.#judge(first, second, short);
    if (this.reason !== null) return 0;
    let size = 2;
    if (short === LENGTH_16) size += 2;
    else if (short === LENGTH_64) size += 8;
    const total = this.masked ? size + MASK_BYTES : size;
    if (end - start < total) return 0;
    this.payloadBytes = short;
    if (short === LENGTH_16) {
      this.payloadBytes = bytes.readUInt16BE(start + 2);
      if (this.payloadBytes < LENGTH_16) this.reason = "websocket-length";
    } else if (short === LENGTH_64) {
      this.payloadBytes = bytes.readUInt32BE(start + 2) * 2 ** 32 + bytes.readUInt32BE(start + 6);
      if (this.payloadBytes <= 0xffff || this.payloadBytes > Number.MAX_SAFE_INTEGER)
        this.reason = "websocket-length";
    }
    this.#key = this.masked ? bytes.readUInt32BE(start + size) : 0;
    return total;
  }

  #judge(first: number, second: number, short: number): OpaqueReason | null {
    const control = this.opcode >= OPCODE.close;
    if (((second & MASKED) !== 0) !== this.masked) return "websocket-mask";
    if (this.opcode > OPCODE.pong || (this.opcode > OPCODE.binary && !control)) return "websocket-opcode";
    if ((first & RSV23) !== 0) return "websocket-reserved-bits";
    // RFC 7692 6: on the first frame of a message only
    if (this.rsv1 && (!this.deflate || control || this.opcode === OPCODE.continuation))
      return "websocket-reserved-bits";
    if (control) return !this.fin || short > CONTROL_BYTES_MAX ? "websocket-control" : null;
    // RFC 6455 5.5.1
    if (this.closed) return "websocket-close";
    if ((this.opcode === OPCODE.continuation) !== this.messageStart >= 0) return "websocket-continuation";
    return null;
  }

  #begin(): void {
    if (this.opcode < OPCODE.close) {
      if (this.opcode !== OPCODE.continuation) {
        this.messageStart = this.frameStart;
        this.messageCompressed = this.rsv1;
      }
    } else this.#control = this.payloadBytes === 0 ? null : Buffer.alloc(this.payloadBytes);
    this.#left = this.payloadBytes;
    this.#inPayload = true;
    this.#hooks.onFrameStart?.(this);
    if (this.#left === 0) this.#end();
  }

  #payload(chunk: Buffer, at: number): number {
    const length = Math.min(this.#left, chunk.length - at);
    if (this.#control !== null) chunk.copy(this.#control, this.#control.length - this.#left, at, at + length);
    this.#left -= length;
    this.offset += length;
    if (this.#left === 0) this.#end();
    return at + length;
  }

  #end(): void {
    this.#inPayload = false;
    if (this.opcode >= OPCODE.close) {
      this.controlPayload = this.#control ?? NO_BYTES;
      this.#control = null;
      if (this.masked) unmask(this.controlPayload, this.#key);
      if (this.opcode === OPCODE.close) {
        if (!isClosePayload(this.controlPayload)) {
          this.reason = "websocket-close";
          return;
        }
        this.closed = true;
      }
      this.#hooks.onControl?.(this.opcode, this.controlPayload);
    }
    this.#hooks.onFrame?.(this);
    if (this.opcode < OPCODE.close && this.fin) this.messageStart = -1;
    this.controlPayload = NO_BYTES;
  }

  /** Everything that `restore` needs, as numbers and one byte string (≤ 125 bytes). */
  save(): SavedWalker {
    return {
      offset: this.offset,
      frameStart: this.frameStart,
      messageStart: this.messageStart,
      opcode: this.opcode,
      fin: this.fin,
      rsv1: this.rsv1,
      messageCompressed: this.messageCompressed,
      closed: this.closed,
      inPayload: this.#inPayload,
      payloadBytes: this.payloadBytes,
      left: this.#left,
      key: this.#key,
      held: this.#inPayload
        ? Buffer.from(this.#control?.subarray(0, this.#control.length - this.#left) ?? NO_BYTES)
        : Buffer.from(this.#header?.subarray(0, this.#headerBytes) ?? NO_BYTES),
    };
  }

  /** null: no walker can be in that state */
  static restore(saved: SavedWalker, options: FrameWalkerOptions): FrameWalker | null {
    const walker = new FrameWalker(options);
    return walker.#restore(saved) ? walker : null;
  }

  #restore(saved: SavedWalker): boolean {
    const control = saved.opcode >= OPCODE.close;
    const { held, offset, frameStart, messageStart, left, payloadBytes } = saved;
    if (saved.opcode > OPCODE.pong || frameStart > offset || messageStart > offset) return false;
    if (saved.inPayload) {
      if (left === 0 || left > payloadBytes || (control && payloadBytes > CONTROL_BYTES_MAX)) return false;
      if (held.length !== (control ? payloadBytes - left : 0)) return false;
      if (!control && messageStart < 0) return false;
    } else if (held.length >= HEADER_BYTES_MAX) return false;
    this.offset = offset;
    this.frameStart = frameStart;
    this.messageStart = messageStart;
    this.opcode = saved.opcode;
    this.fin = saved.fin;
    this.rsv1 = saved.rsv1;
    this.messageCompressed = saved.messageCompressed;
    this.closed = saved.closed;
    this.payloadBytes = payloadBytes;
    this.#inPayload = saved.inPayload;
    this.#left = left;
    this.#key = saved.key;
    if (saved.inPayload) {
      if (!control) return true;
      this.#control = Buffer.alloc(payloadBytes);
      held.copy(this.#control);
      return true;
    }
    if (held.length === 0) return true;
    this.#header = Buffer.alloc(HEADER_BYTES_MAX);
    held.copy(this.#header);
    this.#headerBytes = held.length;
    return this.#parse(this.#header, 0, held.length) === 0 && this.reason === null;
  }
}

export interface SavedWalker {
  offset: number;
  frameStart: number;
  messageStart: number;
  opcode: number;
  fin: boolean;
  rsv1: boolean;
  messageCompressed: boolean;
  closed: boolean;
  inPayload: boolean;
  payloadBytes: number;
  left: number;
  key: number;
  /** of a header or of a control frame's payload, as it came */
  held: Buffer;
}

function unmask(payload: Buffer, key: number): void {
  for (let i = 0; i < payload.length; i++)
    payload[i] = (payload[i] as number) ^ ((key >>> (24 - 8 * (i & 3))) & 0xff);
}

/** RFC 6455 7.4, and the codes registered since. */
function isClosePayload(payload: Buffer): boolean {
  if (payload.length === 0) return true;
  if (payload.length === 1) return false;
  const code = payload.readUInt16BE(0);
  if (code >= 3000) return code <= 4999;
  return code >= 1000 && code <= 1014 && (code < 1004 || code > 1006);
}

/** A whole frame as a server sends it: unmasked, final. */
export function encodeFrame(opcode: number, payload: Buffer = NO_BYTES): Buffer {
  assert.ok(opcode < OPCODE.close || payload.length <= CONTROL_BYTES_MAX, "a control frame's payload");
  let header: Buffer;
  if (payload.length < LENGTH_16) header = Buffer.of(FIN | opcode, payload.length);
  else if (payload.length <= 0xffff) {
    header = Buffer.of(FIN | opcode, LENGTH_16, 0, 0);
    header.writeUInt16BE(payload.length, 2);
  } else {
    header = Buffer.alloc(10);
    header[0] = FIN | opcode;
    header[1] = LENGTH_64;
    header.writeBigUInt64BE(BigInt(payload.length), 2);
  }
  return Buffer.concat([header, payload]);
}

export function encodePing(payload: Buffer): Buffer {
  return encodeFrame(OPCODE.ping, payload);
}

export function encodePong(payload: Buffer): Buffer {
  return encodeFrame(OPCODE.pong, payload);
}

/** A server's Close. @param reason at most 123 bytes of UTF-8 */
export function encodeClose(code: number, reason: string): Buffer {
  const payload = Buffer.alloc(2 + Buffer.byteLength(reason));
  payload.writeUInt16BE(code, 0);
  payload.write(reason, 2);
  return encodeFrame(OPCODE.close, payload);
}
