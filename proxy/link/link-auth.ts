/**
 * Who may open a link: whoever has a link key of the workload (32 bytes each, from the agent). The dialler uses the first it has.
 *
 *   acceptor → NONCE   16 random bytes
 *   dialler  → HELLO   greeting, 16 random bytes of its own, HMAC-SHA256(key, "dialler" ‖ NONCE ‖ greeting ‖ its bytes)
 *   acceptor → WELCOME HMAC-SHA256(key, "acceptor" ‖ the HELLO): it has the key too, and this is no replay
 *
 * Left out: encryption (`link-tls.ts`).
 */
import { createHmac, timingSafeEqual } from "node:crypto";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";

export const LINK_VERSION = 1;
export const NONCE_BYTES = 16;
const MAC_BYTES = 32;
const TEXT_BYTES_MAX = 255;

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

export function encodeHello(key: Buffer, nonce: Buffer, own: Buffer, greeting: Greeting): Buffer {
  const fixed = Buffer.alloc(20);
  fixed.writeUInt8(LINK_VERSION, 0);
  fixed.writeUInt8(greeting.fresh ? 1 : 0, 1);
  fixed.writeUInt16BE(greeting.port, 2);
  fixed.writeBigUInt64BE(BigInt(greeting.epoch), 4);
  fixed.writeBigUInt64BE(BigInt(greeting.acceptedAtMs), 12);
  const texts = [greeting.session, greeting.anchor, greeting.client].map((text) => {
    const bytes = Buffer.from(text).subarray(0, TEXT_BYTES_MAX);
    return Buffer.concat([Buffer.of(bytes.length), bytes]);
  });
  const signed = Buffer.concat([fixed, ...texts, own]);
  return Buffer.concat([signed, mac(key, "dialler", nonce, signed)]);
}

/** What it says, and the key that signed it. Null when it is not from somebody with one of the keys, or not of this version. */
export function decodeHello(
  keys: SharedKeys,
  nonce: Buffer,
  hello: Buffer,
): { greeting: Greeting; key: Buffer } | null {
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
    fresh: signed[1] === 1,
    port: signed.readUInt16BE(2),
    epoch: Number(signed.readBigUInt64BE(4)),
    acceptedAtMs: Number(signed.readBigUInt64BE(12)),
  };
  return { greeting, key };
}

export function welcome(key: Buffer, hello: Buffer): Buffer {
  return mac(key, "acceptor", hello);
}

export function isWelcome(key: Buffer, hello: Buffer, answer: Buffer): boolean {
  return timingSafeEqual(welcome(key, hello), answer);
}

function mac(key: Buffer, role: "dialler" | "acceptor", ...parts: Buffer[]): Buffer {
  const hmac = createHmac("sha256", key).update(role);
  for (const part of parts) hmac.update(part);
  return hmac.digest();
}
