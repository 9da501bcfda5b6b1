/**
 * Seals what leaves a node to be kept elsewhere: snapshots and held bytes. AES-256-GCM (NIST SP 800-38D), a subkey for
 * each kind by HKDF (RFC 5869), bound to workload and epoch, so that a record cannot be passed off as another's.
 *
 *   magic "HFS" │ version 1 │ nonce 12 bytes │ ciphertext │ tag 16 bytes
 *
 * Nonces are random: at 2³² records under one key the chance of a repeat is still below 2⁻³².
 */
import assert from "node:assert/strict";
import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from "node:crypto";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { KEY_BYTES, type SharedKeys } from "#proxy/contract/shared-keys.ts";

export interface SealContext {
  workload: string;
  epoch: number;
  /** what it is: "held", "image-manifest", … a label, never a secret */
  kind: string;
}

const CIPHER = "aes-256-gcm";
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const HEADER = Buffer.from("HFS\x01", "latin1");
const START = HEADER.length + NONCE_BYTES;

/** @param key 32 bytes, the first of those that all agents share */
export function seal(key: Buffer, context: SealContext, plain: Buffer): Buffer {
  const nonce = randomBytes(NONCE_BYTES);
  const cipher = createCipheriv(CIPHER, subkey(key, context.kind), nonce, { authTagLength: TAG_BYTES });
  cipher.setAAD(associated(context));
  const sealed = cipher.update(plain);
  const last = cipher.final();
  return Buffer.concat([HEADER, nonce, sealed, last, cipher.getAuthTag()]);
}

/** @throws HoldfastError `SEAL_INVALID`: altered, cut, sealed with another key or for another workload, epoch or kind */
export function unseal(keys: SharedKeys, context: SealContext, sealed: Buffer): Buffer {
  if (sealed.length < START + TAG_BYTES || !sealed.subarray(0, HEADER.length).equals(HEADER)) {
    throw invalid(context, "it was not sealed by this version of Holdfast, or is cut short");
  }
  const nonce = sealed.subarray(HEADER.length, START);
  for (const key of keys) {
    const decipher = createDecipheriv(CIPHER, subkey(key, context.kind), nonce, { authTagLength: TAG_BYTES });
    decipher.setAAD(associated(context));
    decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
    const plain = decipher.update(sealed.subarray(START, sealed.length - TAG_BYTES));
    try {
      return Buffer.concat([plain, decipher.final()]);
    } catch {
      // not with this one
    }
  }
  throw invalid(context, "it was altered, or sealed with another key or for something else");
}

/** A key for one purpose, from the shared one. */
export function subkey(key: Buffer, label: string): Buffer {
  assert.equal(key.length, KEY_BYTES);
  return Buffer.from(hkdfSync("sha256", key, Buffer.alloc(0), `holdfast seal v1 ${label}`, KEY_BYTES));
}

/** JSON quotes its strings, so no two contexts give the same bytes. */
function associated({ workload, epoch, kind }: SealContext): Buffer {
  return Buffer.concat([HEADER, Buffer.from(JSON.stringify([workload, epoch, kind]))]);
}

function invalid({ workload, epoch, kind }: SealContext, why: string): HoldfastError {
  return fail("SEAL_INVALID", `sealed ${kind} of workload ${workload} at epoch ${epoch} is refused: ${why}`);
}
