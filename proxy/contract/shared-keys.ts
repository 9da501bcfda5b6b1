/**
 * Keys that nodes share, as a ring: the first proves and seals, all are accepted. So a key is changed without anybody being
 * refused: the new one is added behind the old one on every node, then put first on every node, then the old one goes.
 */
import { createHmac, hkdfSync } from "node:crypto";

export const KEY_BYTES = 32;
export const KEYS_MAX = 8;

/** At least one; the first proves and seals. */
export type SharedKeys = readonly [Buffer, ...Buffer[]];

/** By which two nodes know which key is meant: 8 hex digits, from which nothing of the key can be had. */
export function keyId(key: Buffer): string {
  return createHmac("sha256", key).update("holdfast key id v1").digest("hex").slice(0, 8);
}

/** As they are told to a proxy: one after the other. */
export function joinKeys(keys: SharedKeys): Buffer {
  return Buffer.concat(keys);
}

/** null: no whole number of keys, none, or too many */
export function splitKeys(bytes: Buffer): SharedKeys | null {
  const count = bytes.length / KEY_BYTES;
  if (!Number.isInteger(count) || count > KEYS_MAX) return null;
  const [first, ...others] = Array.from({ length: count }, (_, index) =>
    Buffer.from(bytes.subarray(index * KEY_BYTES, (index + 1) * KEY_BYTES)),
  );
  return first === undefined ? null : [first, ...others];
}

/** What proxies of one workload, and gateways, prove themselves to each other with on links. */
export function linkKeysOf([first, ...others]: SharedKeys, workload: string): SharedKeys {
  const derive = (key: Buffer): Buffer =>
    Buffer.from(hkdfSync("sha256", key, "", `holdfast link ${workload}`, KEY_BYTES));
  return [derive(first), ...others.map(derive)];
}
