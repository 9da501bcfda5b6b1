/**
 * Sessions as bytes, for the trip from one node to the other.
 *
 *   "HFS2"  u32 CRC-32 of all that follows  u32 sessions  session…
 *   "HFS3"  the same, where a load balancer has named clients: with `client` and `headerAwaited` at the end of each session;
 *           its checksum is of the magic too, so that neither is read as the other
 *
 * Numbers are big-endian; strings carry a u8 length, byte strings a u32 length; optional parts a u8 0 or 1. The checksum
 * finds accidents. It is no defence against forgery: that is the business of whoever carries the bytes (TLS between
 * agents, sealed values in the store). Whatever arrives is therefore checked field by field; nothing is allocated
 * before the bytes that fill it are seen to be there.
 *
 * A later layout gets another magic, and is used only where it is needed: a version that does not know it refuses it.
 */
import { isIPv4, isIPv6 } from "node:net";
import { crc32 } from "node:zlib";
import { ByteReader, ByteWriter } from "./byte-codec.ts";
import { fail } from "./error-codes.ts";
import type { HoldfastError } from "./errors.ts";
import type { Endpoint, LegSnapshot, LegState, SessionSnapshot } from "./snapshot.ts";

export interface SnapshotLimits {
  /** more sessions than this are refused before any is read */
  sessionsMax: number;
  /** length of the whole encoding, queues included */
  bytesMax: number;
}

const MAGIC = Buffer.from("HFS2", "latin1");
const MAGIC_NAMED = Buffer.from("HFS3", "latin1");
const HEADER_BYTES = MAGIC.length + 8;
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
  const writer = new ByteWriter(WRITER_BYTES_START);
  const isNamed = sessions.some(({ client, headerAwaited }) => client !== "" || headerAwaited);
  writer.raw(isNamed ? MAGIC_NAMED : MAGIC);
  writer.u32(0);
  writer.u32(sessions.length);
  for (const session of sessions) {
    writeSession(writer, session);
    if (!isNamed) continue;
    writer.string(session.client);
    writer.flag(session.headerAwaited);
  }
  const bytes = writer.finish();
  bytes.writeUInt32BE(checksumOf(bytes, isNamed), MAGIC.length);
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
  const magic = bytes.subarray(0, MAGIC.length);
  const isNamed = magic.equals(MAGIC_NAMED);
  if (!isNamed && !magic.equals(MAGIC)) throw invalid("unknown format or version");
  if (bytes.readUInt32BE(MAGIC.length) !== checksumOf(bytes, isNamed)) throw invalid("checksum differs");
  const reader = new ByteReader(bytes, invalid, MAGIC.length + 4);
  const count = reader.u32();
  if (count > limits.sessionsMax)
    throw invalid(`${count} sessions, more than the ${limits.sessionsMax} allowed`);
  const sessions: SessionSnapshot[] = [];
  const ids = new Set<string>();
  for (let index = 0; index < count; index++) {
    const session = readSession(reader);
    if (isNamed) {
      session.client = reader.string();
      session.headerAwaited = reader.flag();
    }
    if (ids.has(session.id)) throw invalid(`session ${session.id} occurs twice`);
    ids.add(session.id);
    sessions.push(session);
  }
  reader.end("it goes on after the last session");
  return sessions;
}

function checksumOf(bytes: Buffer, isNamed: boolean): number {
  return crc32(bytes.subarray(MAGIC.length + 4), isNamed ? crc32(MAGIC_NAMED) : 0);
}

function invalid(why: string): HoldfastError {
  return fail(
    "SNAPSHOT_INVALID",
    `the session snapshot is not valid: ${why}; both nodes must run the same version`,
  );
}

// ---- session

function writeSession(writer: ByteWriter, session: SessionSnapshot): void {
  writer.string(session.id);
  writer.u16(session.port);
  writer.string(session.anchor);
  writer.count(session.acceptedAtMs);
  writer.count(session.bytesIn);
  writer.count(session.bytesOut);
  writeLeg(writer, session.upstream);
  writeLeg(writer, session.downstream);
  writer.bytes(session.pendingIn);
  writer.bytes(session.pendingOut);
  writer.choice(session.finIn, FINS);
  writer.choice(session.finOut, FINS);
  writer.bytes(session.filter);
}

function readSession(reader: ByteReader): SessionSnapshot {
  const id = reader.string();
  if (id.length === 0) throw invalid("a session has no id");
  return {
    id,
    port: reader.u16(),
    anchor: reader.string(),
    acceptedAtMs: reader.count(),
    client: "",
    headerAwaited: false,
    bytesIn: reader.count(),
    bytesOut: reader.count(),
    upstream: readLeg(reader),
    downstream: readLeg(reader),
    pendingIn: reader.bytes(),
    pendingOut: reader.bytes(),
    finIn: reader.choice(FINS),
    finOut: reader.choice(FINS),
    filter: reader.bytes(),
  };
}

// ---- leg

function writeLeg(writer: ByteWriter, leg: LegSnapshot | null): void {
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

function readLeg(reader: ByteReader): LegSnapshot | null {
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

function writeEndpoint(writer: ByteWriter, endpoint: Endpoint): void {
  writer.string(endpoint.address);
  writer.u16(endpoint.port);
}

function readEndpoint(reader: ByteReader, family: 4 | 6, portMin: number): Endpoint {
  const address = reader.string();
  const port = reader.u16();
  const numeric = family === 4 ? isIPv4(address) : isIPv6(address) && !address.includes("%");
  if (!numeric) throw invalid(`a leg's address is not IPv${family}`);
  if (port < portMin) throw invalid("a leg has port 0");
  return { address, port };
}

function readScale(reader: ByteReader): number {
  const scale = reader.u8();
  if (scale > WINDOW_SCALE_MAX) throw invalid(`window scale ${scale}`);
  return scale;
}
