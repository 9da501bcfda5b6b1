/**
 * Who may open a link: whoever has a link key of the workload (32 bytes each, from the agent). The dialler uses the first it has.
 *
 *   acceptor → NONCE   16 random bytes
 *   dialler  → HELLO   greeting, 16 random bytes of its own, HMAC-SHA256(key, "dialler" ‖ NONCE ‖ greeting ‖ its bytes)
 *   acceptor → WELCOME HMAC-SHA256(key, "acceptor" ‖ the HELLO): it has the key too, and this is no replay
 *
 *   dialler  → REJOIN  in place of HELLO, by a dialler whose link was welcomed before: session, attempt, 16 random bytes,
 *                      HMAC(secret, NONCE ‖ these), HMAC(key, "rejoin" ‖ NONCE ‖ these)
 *
 *   dialler  → TRUNK   version, 16 random bytes, HMAC(key, "trunk" ‖ NONCE ‖ these), in place of HELLO: links will share this connection
 *
 * A link's secret is HMAC(key, "secret" ‖ the HELLO or REJOIN that was welcomed last), so each greeting makes the next one, and nobody has it
 * who has not the key and has seen into TLS.
 *
 * Left out: encryption (`link-tls.ts`).
 */
import { createHmac, timingSafeEqual } from "node:crypto";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";

export const LINK_VERSION = 1;
const TRUNK_VERSION = 1;
export const NONCE_BYTES = 16;
const MAC_BYTES = 32;
const TEXT_BYTES_MAX = 255;
const FRESH_FLAG = 1;
const RESUMABLE_FLAG = 2;

export interface Greeting {
  session: string;
  /** index into the workload's ports */
  port: number;
  epoch: number;
  /** node of the dialling anchor */
  anchor: string;
  /** the client's address, for people */
  client: string;
  acceptedAtMs: number;
  /** the session has never reached an owner: dial the application for it */
  fresh: boolean;
}

/** @param resumable the dialler can go on over another connection; only to an acceptor that can */
export function encodeHello(
  key: Buffer,
  nonce: Buffer,
  own: Buffer,
  greeting: Greeting,
  resumable = false,
): Buffer {
  const fixed = Buffer.alloc(20);
  fixed.writeUInt8(LINK_VERSION, 0);
  fixed.writeUInt8((greeting.fresh ? FRESH_FLAG : 0) | (resumable ? RESUMABLE_FLAG : 0), 1);
  fixed.writeUInt16BE(greeting.port, 2);
  fixed.writeBigUInt64BE(BigInt(greeting.epoch), 4);
  fixed.writeBigUInt64BE(BigInt(greeting.acceptedAtMs), 12);
  const texts = [greeting.session, greeting.anchor, greeting.client].map(encodeText);
  const signed = Buffer.concat([fixed, ...texts, own]);
  return Buffer.concat([signed, mac(key, "dialler", nonce, signed)]);
}

/** What it says, and the key that signed it. Null when it is not from somebody with one of the keys, or not of this version. */
export function decodeHello(
  keys: SharedKeys,
  nonce: Buffer,
  hello: Buffer,
): { greeting: Greeting; key: Buffer; resumable: boolean } | null {
  const end = hello.length - MAC_BYTES;
  if (end < 20 + 3 + NONCE_BYTES) return null;
  const signed = hello.subarray(0, end);
  const key = keys.find((one) => timingSafeEqual(hello.subarray(end), mac(one, "dialler", nonce, signed)));
  if (key === undefined) return null;
  if (signed[0] !== LINK_VERSION) return null;
  const texts: string[] = [];
  let at = 20;
  for (let i = 0; i < 3; i++) {
    const length = signed[at] ?? 0;
    if (at + 1 + length > end - NONCE_BYTES) return null;
    texts.push(signed.toString("utf8", at + 1, at + 1 + length));
    at += 1 + length;
  }
  if (at !== end - NONCE_BYTES) return null;
  const greeting = {
    session: texts[0] as string,
    anchor: texts[1] as string,
    client: texts[2] as string,
    fresh: ((signed[1] as number) & FRESH_FLAG) !== 0,
    port: signed.readUInt16BE(2),
    epoch: Number(signed.readBigUInt64BE(4)),
    acceptedAtMs: Number(signed.readBigUInt64BE(12)),
  };
  return { greeting, key, resumable: ((signed[1] as number) & RESUMABLE_FLAG) !== 0 };
}

/** Whose link goes on. */
export interface Rejoin {
  session: string;
  /** of the dialler's, from 1: a later one has a higher number */
  attempt: number;
}

export function encodeRejoin(
  { key, secret }: { key: Buffer; secret: Buffer },
  nonce: Buffer,
  own: Buffer,
  { session, attempt }: Rejoin,
): Buffer {
  const number = Buffer.alloc(4);
  number.writeUInt32BE(attempt);
  const said = Buffer.concat([encodeText(session), number, own]);
  const signed = Buffer.concat([said, mac(secret, "rejoin", nonce, said)]);
  return Buffer.concat([signed, mac(key, "rejoin", nonce, signed)]);
}

/** null: not from somebody with one of the keys. Whether the secret is right is asked with {@link provesSecret}. */
export function decodeRejoin(
  keys: SharedKeys,
  nonce: Buffer,
  rejoin: Buffer,
): { rejoin: Rejoin; key: Buffer } | null {
  const end = rejoin.length - MAC_BYTES;
  const length = rejoin[0] ?? 0;
  if (end !== 1 + length + 4 + NONCE_BYTES + MAC_BYTES) return null;
  const key = keys.find((one) =>
    timingSafeEqual(rejoin.subarray(end), mac(one, "rejoin", nonce, rejoin.subarray(0, end))),
  );
  if (key === undefined) return null;
  const session = rejoin.toString("utf8", 1, 1 + length);
  return { rejoin: { session, attempt: rejoin.readUInt32BE(1 + length) }, key };
}

/** @param rejoin that {@link decodeRejoin} has read */
export function provesSecret(secret: Buffer, nonce: Buffer, rejoin: Buffer): boolean {
  const end = rejoin.length - 2 * MAC_BYTES;
  const proof = rejoin.subarray(end, end + MAC_BYTES);
  return timingSafeEqual(proof, mac(secret, "rejoin", nonce, rejoin.subarray(0, end)));
}

/** Of a link whose HELLO, or REJOIN, is this. */
export function secretOf(key: Buffer, hello: Buffer): Buffer {
  return mac(key, "secret", hello);
}

export function welcome(key: Buffer, hello: Buffer): Buffer {
  return mac(key, "acceptor", hello);
}

export function isWelcome(key: Buffer, hello: Buffer, answer: Buffer): boolean {
  return timingSafeEqual(welcome(key, hello), answer);
}

/** To have links share a connection. */
export function encodeTrunk(key: Buffer, nonce: Buffer, own: Buffer): Buffer {
  const signed = Buffer.concat([Buffer.of(TRUNK_VERSION), own]);
  return Buffer.concat([signed, mac(key, "trunk", nonce, signed)]);
}

/** The key that signed it; null: none of these, or it is not of this version. */
export function decodeTrunk(keys: SharedKeys, nonce: Buffer, trunk: Buffer): Buffer | null {
  const end = trunk.length - MAC_BYTES;
  if (end !== 1 + NONCE_BYTES || trunk[0] !== TRUNK_VERSION) return null;
  const signed = trunk.subarray(0, end);
  return keys.find((one) => timingSafeEqual(trunk.subarray(end), mac(one, "trunk", nonce, signed))) ?? null;
}

function encodeText(text: string): Buffer {
  const bytes = Buffer.from(text).subarray(0, TEXT_BYTES_MAX);
  return Buffer.concat([Buffer.of(bytes.length), bytes]);
}

function mac(
  key: Buffer,
  role: "dialler" | "acceptor" | "rejoin" | "secret" | "trunk",
  ...parts: Buffer[]
): Buffer {
  const hmac = createHmac("sha256", key).update(role);
  for (const part of parts) hmac.update(part);
  return hmac.digest();
}
