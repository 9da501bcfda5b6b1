/**
 * Frames of a link between two proxies of one workload: one TCP connection a session.
 *
 *   ┌─────────┬─────────────────┬─────────┐
 *   │ type u8 │ length u24 (BE) │ payload │
 *   └─────────┴─────────────────┴─────────┘
 *
 *   before authentication   acceptor ──NONCE──▶ dialler ──SECURE, TLS──▶ acceptor (`link-tls.ts`; everything below is inside it)
 *                           dialler ──HELLO──▶ acceptor ──WELCOME──▶ dialler
 *   then                    ACTIVE   the acceptor owns the session now: epoch u64, byte offsets in and out u64 each
 *                           DATA, FIN, CREDIT(u32: bytes the receiver has passed on; bounds what a link can pile up)
 *                           HOLD → HELD (no DATA follows), RESUME (the move was rolled back)
 *                           RST(code u8)
 *   where both ends can go on over another connection (`link-rejoin.ts`)
 *                           dialler ──REJOIN──▶ acceptor ──WELCOME──▶ dialler, in place of HELLO; then, first of all, in both directions
 *                           RESUMED(flags u8, bytes received u64, of these credited u64)
 *                           ASK → ACK(flags u8, bytes received u64), which also answers a FIN
 *   with a gateway, which     MOVE(epoch u64, port u16, address: who is about to own the session) → PREPARED(u8, 1: a link to it is parked)
 *   dials                     COUNT → COUNTED(u64: bytes application → client that the dialler has)
 *   where links share a connection (`trunk.ts`): a channel u32 stands in front of each frame, once
 *                           dialler ──TRUNK──▶ acceptor ──WELCOME──▶ dialler, in place of HELLO; then
 *                           OPEN → NONCE … as above, CLOSE → CLOSE
 *
 * Pure: bytes in, frames out. DATA is handed on as it arrives, in parts, without being gathered or copied.
 */
import { isIP } from "node:net";
import type { Endpoint } from "#proxy/contract/snapshot.ts";

export const FRAME = {
  nonce: 1,
  hello: 2,
  welcome: 3,
  active: 4,
  data: 5,
  fin: 6,
  rst: 7,
  hold: 8,
  held: 9,
  resume: 10,
  credit: 11,
  secure: 12,
  move: 13,
  prepared: 14,
  count: 15,
  counted: 16,
  rejoin: 17,
  resumed: 18,
  ask: 19,
  ack: 20,
  trunk: 21,
  open: 22,
  close: 23,
} as const;
export type FrameName = keyof typeof FRAME;
export type FrameType = (typeof FRAME)[FrameName];

/** Why a link ends the session (payload of RST). */
export const RST_CODE = { reset: 0, moved: 1, unknownSession: 2, mismatch: 3, broken: 4 } as const;

/** What an anchor says of a link that it was asked to prepare (payload of PREPARED). Of a version before: no, whatever the reason. */
export const PREPARED = { no: 0, ready: 1, unreachable: 2 } as const;
export type Prepared = keyof typeof PREPARED;

export function decodePrepared(payload: Buffer): Prepared {
  const [said] = payload;
  return said === PREPARED.ready ? "ready" : said === PREPARED.unreachable ? "unreachable" : "no";
}

export const HEADER_BYTES = 4;
export const CHANNEL_BYTES = 4;
export const DATA_BYTES_MAX = 256 * 1024;
export const CONTROL_BYTES_MAX = 1024;
const NO_BYTES: Buffer = Buffer.alloc(0);

const EXACT_BYTES: Partial<Record<FrameType, number>> = {
  [FRAME.nonce]: 16,
  [FRAME.welcome]: 32,
  [FRAME.active]: 24,
  [FRAME.fin]: 0,
  [FRAME.rst]: 1,
  [FRAME.hold]: 0,
  [FRAME.held]: 0,
  [FRAME.resume]: 0,
  [FRAME.credit]: 4,
  [FRAME.secure]: 0,
  [FRAME.prepared]: 1,
  [FRAME.count]: 0,
  [FRAME.counted]: 8,
  [FRAME.resumed]: 17,
  [FRAME.ask]: 0,
  [FRAME.ack]: 9,
  [FRAME.trunk]: 49,
  [FRAME.open]: 0,
  [FRAME.close]: 0,
};
/** epoch and port */
const MOVE_FIXED_BYTES = 10;

export interface Active {
  epoch: number;
  /** bytes of the session that the owner has, counted from its beginning: client → application */
  bytesIn: number;
  /** application → client: the first byte that comes on this link has this number */
  bytesOut: number;
}

/** Who is about to own the session. */
export interface Destination {
  epoch: number;
  link: Endpoint;
}

export function frameHeader(type: FrameType, length: number): Buffer {
  const header = Buffer.allocUnsafe(HEADER_BYTES);
  header[0] = type;
  header.writeUIntBE(length, 1, 3);
  return header;
}

export function frame(type: FrameType, payload: Buffer = NO_BYTES): Buffer {
  return Buffer.concat([frameHeader(type, payload.length), payload]);
}

export function encodeActive(active: Active): Buffer {
  const payload = Buffer.alloc(24);
  payload.writeBigUInt64BE(BigInt(active.epoch), 0);
  payload.writeBigUInt64BE(BigInt(active.bytesIn), 8);
  payload.writeBigUInt64BE(BigInt(active.bytesOut), 16);
  return frame(FRAME.active, payload);
}

export function decodeActive(payload: Buffer): Active {
  return {
    epoch: Number(payload.readBigUInt64BE(0)),
    bytesIn: Number(payload.readBigUInt64BE(8)),
    bytesOut: Number(payload.readBigUInt64BE(16)),
  };
}

export function encodeCredit(bytes: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(bytes, 0);
  return frame(FRAME.credit, payload);
}

/** @param code of {@link RST_CODE} */
export function encodeRst(code: number): Buffer {
  return frame(FRAME.rst, Buffer.of(code));
}

export function encodeMove({ epoch, link }: Destination): Buffer {
  const fixed = Buffer.alloc(MOVE_FIXED_BYTES);
  fixed.writeBigUInt64BE(BigInt(epoch), 0);
  fixed.writeUInt16BE(link.port, 8);
  return frame(FRAME.move, Buffer.concat([fixed, Buffer.from(link.address, "latin1")]));
}

/** null: no address of a port */
export function decodeMove(payload: Buffer): Destination | null {
  const epoch = Number(payload.readBigUInt64BE(0));
  const port = payload.readUInt16BE(8);
  const address = payload.toString("latin1", MOVE_FIXED_BYTES);
  return isIP(address) === 0 || port === 0 ? null : { epoch, link: { address, port } };
}

export function encodeCounted(bytes: number): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeBigUInt64BE(BigInt(bytes), 0);
  return frame(FRAME.counted, payload);
}

/** What an end of a link has of what the other framed. */
export interface Received {
  /** bytes of DATA, from the link's beginning */
  bytes: number;
  fin: boolean;
}

/** What an end of a link says first on another connection. */
export interface Resumed extends Received {
  /** of `bytes`, those that it has given credit for */
  creditedBytes: number;
  /** dialler: it has answered a HOLD and heard no RESUME */
  holds: boolean;
}

const FIN_FLAG = 1;
const HOLDS_FLAG = 2;

export function encodeResumed({ bytes, creditedBytes, fin, holds }: Resumed): Buffer {
  const payload = Buffer.alloc(17);
  payload[0] = (fin ? FIN_FLAG : 0) | (holds ? HOLDS_FLAG : 0);
  payload.writeBigUInt64BE(BigInt(bytes), 1);
  payload.writeBigUInt64BE(BigInt(creditedBytes), 9);
  return frame(FRAME.resumed, payload);
}

export function decodeResumed(payload: Buffer): Resumed {
  return {
    ...decodeAck(payload),
    holds: ((payload[0] as number) & HOLDS_FLAG) !== 0,
    creditedBytes: Number(payload.readBigUInt64BE(9)),
  };
}

export function encodeAck({ bytes, fin }: Received): Buffer {
  const payload = Buffer.alloc(9);
  payload[0] = fin ? FIN_FLAG : 0;
  payload.writeBigUInt64BE(BigInt(bytes), 1);
  return frame(FRAME.ack, payload);
}

export function decodeAck(payload: Buffer): Received {
  return { fin: ((payload[0] as number) & FIN_FLAG) !== 0, bytes: Number(payload.readBigUInt64BE(1)) };
}

export interface FrameSink {
  /** a part of a DATA frame; never empty. @param channel 0 where frames have none */
  onData(part: Buffer, channel: number): void;
  onControl(type: FrameType, payload: Buffer, channel: number): void;
}

/** Cuts a byte stream into frames. After an error it stays dead: the link is to be closed. */
export class FrameDecoder {
  readonly #sink: FrameSink;
  /** bytes of a header or a control payload that is not complete */
  #partial: Buffer = NO_BYTES;
  #dataLeft = 0;
  /** of the DATA frame */
  #channel = 0;
  #error: string | null = null;
  #stopped = false;
  /** bytes in front of each header */
  readonly #prefix: number;

  /** @param hasChannels a channel stands in front of each frame */
  constructor(sink: FrameSink, hasChannels = false) {
    this.#sink = sink;
    this.#prefix = hasChannels ? CHANNEL_BYTES : 0;
  }

  get error(): string | null {
    return this.#error;
  }

  /** The sink is no longer interested: what is still to come of this chunk is dropped. */
  stop(): void {
    this.#stopped = true;
  }

  /** False when the bytes cannot be a link's; `error` says why. */
  feed(chunk: Buffer): boolean {
    let at = 0;
    let bytes = chunk;
    while (this.#error === null && !this.#stopped) {
      if (this.#dataLeft > 0) {
        const length = Math.min(this.#dataLeft, bytes.length - at);
        if (length === 0) return true;
        this.#dataLeft -= length;
        at += length;
        this.#sink.onData(bytes.subarray(at - length, at), this.#channel);
        continue;
      }
      if (this.#partial.length > 0) {
        bytes = Buffer.concat([this.#partial, bytes.subarray(at)]);
        at = 0;
        this.#partial = NO_BYTES;
      }
      const header = at + this.#prefix;
      const start = header + HEADER_BYTES;
      if (bytes.length < start) {
        this.#keep(bytes, at);
        return true;
      }
      const channel = this.#prefix === 0 ? 0 : bytes.readUInt32BE(at);
      const type = bytes[header] as FrameType;
      const length = bytes.readUIntBE(header + 1, 3);
      const wrong = checkHeader(type, length);
      if (wrong !== null) {
        this.#error = wrong;
        return false;
      }
      if (type === FRAME.data) {
        at = start;
        this.#dataLeft = length;
        this.#channel = channel;
        continue;
      }
      if (bytes.length < start + length) {
        this.#keep(bytes, at);
        return true;
      }
      at = start + length;
      this.#sink.onControl(type, bytes.subarray(start, at), channel);
    }
    return this.#error === null;
  }

  #keep(bytes: Buffer, at: number): void {
    this.#partial = at === bytes.length ? NO_BYTES : Buffer.from(bytes.subarray(at));
  }
}

function checkHeader(type: FrameType, length: number): string | null {
  if (type === FRAME.data) {
    return length > 0 && length <= DATA_BYTES_MAX ? null : `a DATA frame of ${length} bytes`;
  }
  if (type === FRAME.hello || type === FRAME.rejoin)
    return length <= CONTROL_BYTES_MAX ? null : `a HELLO of ${length} bytes`;
  if (type === FRAME.move)
    return length > MOVE_FIXED_BYTES && length <= CONTROL_BYTES_MAX ? null : `a MOVE of ${length} bytes`;
  const exact = EXACT_BYTES[type];
  if (exact === undefined) return `a frame of unknown type ${type}`;
  return exact === length ? null : `a frame of type ${type} with ${length} bytes instead of ${exact}`;
}
