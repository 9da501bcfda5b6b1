/**
 * Sessions as bytes, for the trip from one node to the other.
 *
 *   "HFS2"  u32 CRC-32 of all that follows  u32 sessions  session…
 *
 * Numbers are big-endian; strings carry a u8 length, byte strings a u32 length; optional parts a u8 0 or 1. The checksum
 * finds accidents. It is no defence against forgery: that is the business of whoever carries the bytes (TLS between
 * agents, sealed values in the store). Whatever arrives is therefore checked field by field; nothing is allocated
 * before the bytes that fill it are seen to be there.
 *
 * A later layout gets another magic: both sides of a move run the same version or refuse each other.
 */
import { strict as assert } from "node:assert";
import { isUtf8 } from "node:buffer";
import { isIPv4, isIPv6 } from "node:net";
import { crc32 } from "node:zlib";
import { HoldfastError } from "./errors.ts";
import type { Endpoint, LegSnapshot, LegState, SessionSnapshot } from "./snapshot.ts";

export interface SnapshotLimits {
  /** more sessions than this are refused before any is read */
  sessionsMax: number;
  /** length of the whole encoding, queues included */
  bytesMax: number;
}

const MAGIC = Buffer.from("HFS2", "latin1");
const HEADER_BYTES = MAGIC.length + 8;
const STRING_BYTES_MAX = 255;
/** RFC 7323 2.3 */
const WINDOW_SCALE_MAX = 14;
const WRITER_BYTES_START = 64 * 1024;

// an index is on the wire: append only
const STATES: readonly LegState[] = [
  "ESTABLISHED",
  "FIN_WAIT1",
  "FIN_WAIT2",
  "CLOSE",
  "CLOSE_WAIT",
  "LAST_ACK",
  "CLOSING",
];
const FINS = ["none", "read", "sent"] as const;

/** Shape and ranges are the caller's promise: a breach is our own bug (AssertionError). */
export function encodeSessions(sessions: SessionSnapshot[]): Buffer {
  const writer = new Writer();
  writer.raw(MAGIC);
  writer.u32(0);
  writer.u32(sessions.length);
  for (const session of sessions) writeSession(writer, session);
  const bytes = writer.finish();
  bytes.writeUInt32BE(crc32(bytes.subarray(MAGIC.length + 4)), MAGIC.length);
  return bytes;
}

/**
 * The sessions' byte strings are views of `bytes`: do not change it afterwards.
 * Everything wrong is HoldfastError code SNAPSHOT_INVALID, source "peer"; nothing else is thrown.
 */
export function decodeSessions(bytes: Buffer, limits: SnapshotLimits): SessionSnapshot[] {
  if (bytes.length > limits.bytesMax)
    throw invalid(`${bytes.length} bytes, more than the ${limits.bytesMax} allowed`);
  if (bytes.length < HEADER_BYTES) throw invalid("it ends within the header");
  if (!bytes.subarray(0, MAGIC.length).equals(MAGIC)) throw invalid("unknown format or version");
  if (bytes.readUInt32BE(MAGIC.length) !== crc32(bytes.subarray(MAGIC.length + 4)))
    throw invalid("checksum differs");
  const reader = new Reader(bytes, MAGIC.length + 4);
  const count = reader.u32();
  if (count > limits.sessionsMax)
    throw invalid(`${count} sessions, more than the ${limits.sessionsMax} allowed`);
  const sessions: SessionSnapshot[] = [];
  const ids = new Set<string>();
  for (let index = 0; index < count; index++) {
    const session = readSession(reader);
    if (ids.has(session.id)) throw invalid(`session ${session.id} occurs twice`);
    ids.add(session.id);
    sessions.push(session);
  }
  reader.end();
  return sessions;
}

function invalid(why: string): HoldfastError {
  return new HoldfastError(
    `the session snapshot is not valid: ${why}; both nodes must run the same version`,
    {
      code: "SNAPSHOT_INVALID",
      source: "peer",
    },
  );
}

// ---- session

function writeSession(writer: Writer, session: SessionSnapshot): void {
  writer.string(session.id);
  writer.u16(session.port);
  writer.string(session.edge);
  writer.count(session.acceptedAtMs);
  writer.count(session.bytesIn);
  writer.count(session.bytesOut);
  writeLeg(writer, session.upstream);
  writeLeg(writer, session.downstream);
  writer.bytes(session.pendingIn);
  writer.bytes(session.pendingOut);
  writer.choice(session.finIn, FINS);
  writer.choice(session.finOut, FINS);
  writer.bytes(session.watch);
}

function readSession(reader: Reader): SessionSnapshot {
  const id = reader.string();
  if (id.length === 0) throw invalid("a session has no id");
  return {
    id,
    port: reader.u16(),
    edge: reader.string(),
    acceptedAtMs: reader.count(),
    bytesIn: reader.count(),
    bytesOut: reader.count(),
    upstream: readLeg(reader),
    downstream: readLeg(reader),
    pendingIn: reader.bytes(),
    pendingOut: reader.bytes(),
    finIn: reader.choice(FINS),
    finOut: reader.choice(FINS),
    watch: reader.bytes(),
  };
}

// ---- leg

function writeLeg(writer: Writer, leg: LegSnapshot | null): void {
  writer.flag(leg !== null);
  if (leg === null) return;
  writer.choice(leg.state, STATES);
  writer.u8(leg.family);
  writeEndpoint(writer, leg.local);
  writeEndpoint(writer, leg.remote);
  writer.u16(leg.mss);
  writer.flag(leg.sackOk);
  writer.flag(leg.windowScale !== null);
  if (leg.windowScale !== null) {
    writer.u8(leg.windowScale.snd);
    writer.u8(leg.windowScale.rcv);
  }
  writer.flag(leg.timestamp !== null);
  if (leg.timestamp !== null) writer.u32(leg.timestamp);
  writer.u32(leg.window.snd_wl1);
  writer.u32(leg.window.snd_wnd);
  writer.u32(leg.window.max_window);
  writer.u32(leg.window.rcv_wnd);
  writer.u32(leg.window.rcv_wup);
  writer.u32(leg.receive.seq);
  writer.bytes(leg.receive.bytes);
  writer.u32(leg.send.seq);
  writer.bytes(leg.send.bytes);
  writer.u32(leg.send.unsentBytes);
  writer.flag(leg.noDelay);
  writer.flag(leg.keepAlive);
}

function readLeg(reader: Reader): LegSnapshot | null {
  if (!reader.flag()) return null;
  const state = reader.choice(STATES);
  const family = reader.u8();
  if (family !== 4 && family !== 6) throw invalid(`address family ${family}`);
  // a reset leg has lost its peer's address
  const portMin = state === "CLOSE" ? 0 : 1;
  const leg: LegSnapshot = {
    family,
    local: readEndpoint(reader, family, portMin),
    remote: readEndpoint(reader, family, portMin),
    state,
    mss: reader.u16(),
    sackOk: reader.flag(),
    windowScale: reader.flag() ? { snd: readScale(reader), rcv: readScale(reader) } : null,
    timestamp: reader.flag() ? reader.u32() : null,
    window: {
      snd_wl1: reader.u32(),
      snd_wnd: reader.u32(),
      max_window: reader.u32(),
      rcv_wnd: reader.u32(),
      rcv_wup: reader.u32(),
    },
    receive: { seq: reader.u32(), bytes: reader.bytes() },
    send: { seq: reader.u32(), bytes: reader.bytes(), unsentBytes: reader.u32() },
    noDelay: reader.flag(),
    keepAlive: reader.flag(),
  };
  if (leg.send.unsentBytes > leg.send.bytes.length) throw invalid("more bytes unsent than queued");
  return leg;
}

function writeEndpoint(writer: Writer, endpoint: Endpoint): void {
  writer.string(endpoint.address);
  writer.u16(endpoint.port);
}

function readEndpoint(reader: Reader, family: 4 | 6, portMin: number): Endpoint {
  const address = reader.string();
  const port = reader.u16();
  const numeric = family === 4 ? isIPv4(address) : isIPv6(address) && !address.includes("%");
  if (!numeric) throw invalid(`a leg's address is not IPv${family}`);
  if (port < portMin) throw invalid("a leg has port 0");
  return { address, port };
}

function readScale(reader: Reader): number {
  const scale = reader.u8();
  if (scale > WINDOW_SCALE_MAX) throw invalid(`window scale ${scale}`);
  return scale;
}

// ---- primitives

class Writer {
  #buffer = Buffer.allocUnsafe(WRITER_BYTES_START);
  #at = 0;

  #reserve(size: number): number {
    const start = this.#at;
    this.#at += size;
    if (this.#at > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#buffer.length * 2, this.#at));
      this.#buffer.copy(larger, 0, 0, start);
      this.#buffer = larger;
    }
    return start;
  }

  u8(value: number): void {
    const at = this.#reserveThen(1, value, 0xff);
    this.#buffer.writeUInt8(value, at);
  }

  u16(value: number): void {
    const at = this.#reserveThen(2, value, 0xffff);
    this.#buffer.writeUInt16BE(value, at);
  }

  u32(value: number): void {
    const at = this.#reserveThen(4, value, 0xffffffff);
    this.#buffer.writeUInt32BE(value, at);
  }

  /** A whole number up to 2^53 - 1. */
  count(value: number): void {
    const at = this.#reserveThen(8, value, Number.MAX_SAFE_INTEGER);
    this.#buffer.writeDoubleBE(value, at);
  }

  flag(value: boolean): void {
    this.u8(value ? 1 : 0);
  }

  choice<T extends string>(value: T, choices: readonly T[]): void {
    const index = choices.indexOf(value);
    if (index < 0) assert.fail(`"${value}" has no number on the wire`);
    this.u8(index);
  }

  string(value: string): void {
    const size = Buffer.byteLength(value);
    if (size > STRING_BYTES_MAX) assert.fail(`"${value}" is longer than ${STRING_BYTES_MAX} bytes`);
    this.u8(size);
    const at = this.#reserve(size);
    this.#buffer.write(value, at);
  }

  bytes(value: Buffer): void {
    this.u32(value.length);
    if (value.length > 0) this.raw(value);
  }

  raw(value: Buffer): void {
    const start = this.#reserve(value.length);
    value.copy(this.#buffer, start);
  }

  /** The result is the caller's. */
  finish(): Buffer {
    return this.#buffer.subarray(0, this.#at);
  }

  #reserveThen(size: number, value: number, most: number): number {
    if (!Number.isInteger(value) || value < 0 || value > most) {
      // not `assert(condition, text)`: the text would be made for every field of every leg
      assert.fail(`${value} is not a whole number up to ${most}`);
    }
    return this.#reserve(size);
  }
}

class Reader {
  readonly #buffer: Buffer;
  #at: number;

  constructor(buffer: Buffer, at: number) {
    this.#buffer = buffer;
    this.#at = at;
  }

  #take(size: number): number {
    const start = this.#at;
    if (size > this.#buffer.length - start) throw invalid("it ends too early");
    this.#at = start + size;
    return start;
  }

  u8(): number {
    return this.#buffer.readUInt8(this.#take(1));
  }

  u16(): number {
    return this.#buffer.readUInt16BE(this.#take(2));
  }

  u32(): number {
    return this.#buffer.readUInt32BE(this.#take(4));
  }

  count(): number {
    const value = this.#buffer.readDoubleBE(this.#take(8));
    if (!Number.isSafeInteger(value) || value < 0 || Object.is(value, -0))
      throw invalid("a number is out of range");
    return value;
  }

  flag(): boolean {
    const value = this.u8();
    if (value > 1) throw invalid("a flag is neither 0 nor 1");
    return value === 1;
  }

  choice<T extends string>(choices: readonly T[]): T {
    const value = choices[this.u8()];
    if (value === undefined) throw invalid("an unknown state");
    return value;
  }

  string(): string {
    const size = this.u8();
    const start = this.#take(size);
    const bytes = this.#buffer.subarray(start, start + size);
    if (!isUtf8(bytes)) throw invalid("a string is not UTF-8");
    return bytes.toString("utf8");
  }

  bytes(): Buffer {
    const size = this.u32();
    const start = this.#take(size);
    return this.#buffer.subarray(start, start + size);
  }

  end(): void {
    if (this.#at !== this.#buffer.length) throw invalid("it goes on after the last session");
  }
}
