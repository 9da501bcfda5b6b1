/**
 * Bytes of clients that were read while their application is unavailable: first in, first out; in memory, then in a file.
 *
 * One budget a workload, shared by all its sessions. The file has no name (unlinked as soon as it is open, so nothing
 * is left of it whoever dies) and its records are sealed (AES-256-GCM, a key of this process that is never written).
 */
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { closeSync, openSync, readSync, unlinkSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fail } from "../contract/error-codes.ts";
import { type HoldfastError, messageOf } from "../contract/errors.ts";

const CIPHER = "aes-256-gcm";
const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
/** pieces in memory that are joined, or a client that sends one byte at a time would cost a hundred times as much */
const JOINED_BYTES_MAX = 4096;
/** what a record costs beside its bytes: in memory, charged to the disk, where such records are the exception */
const RECORD_BYTES = 256;

export interface HeldLimits {
  sessionBytesMax: number;
  workloadBytesMax: number;
  spillBytesMax: number;
  spillDir: string;
}

/** What all sessions of a workload may hold together. */
export class HeldBudget {
  readonly limits: HeldLimits;
  memoryBytes = 0;
  spilledBytes = 0;
  readonly #key = randomBytes(KEY_BYTES);
  #records = 0n;

  constructor(limits: HeldLimits) {
    this.limits = limits;
  }

  seal(bytes: Buffer): { nonce: Buffer; sealed: Buffer } {
    const nonce = Buffer.alloc(NONCE_BYTES);
    nonce.writeBigUInt64BE(this.#records++);
    const cipher = createCipheriv(CIPHER, this.#key, nonce);
    return { nonce, sealed: Buffer.concat([cipher.update(bytes), cipher.final(), cipher.getAuthTag()]) };
  }

  /** @throws when the file was changed under us */
  unseal(nonce: Buffer, sealed: Buffer): Buffer {
    const decipher = createDecipheriv(CIPHER, this.#key, nonce);
    decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
    return Buffer.concat([decipher.update(sealed.subarray(0, sealed.length - TAG_BYTES)), decipher.final()]);
  }
}

interface Spilled {
  nonce: Buffer;
  at: number;
  sealedBytes: number;
}

export class HeldBytes {
  readonly #budget: HeldBudget;
  /** oldest first; a record once the file is in use, and memory is for what is older than the file */
  #memory: Buffer[] = [];
  #memoryBytes = 0;
  #spilled: Spilled[] = [];
  #fd = -1;
  #fileEnd = 0;

  constructor(budget: HeldBudget) {
    this.#budget = budget;
  }

  get isEmpty(): boolean {
    return this.#memory.length === 0 && this.#spilled.length === 0;
  }
  get isSpilled(): boolean {
    return this.#spilled.length > 0;
  }

  /**
   * Takes a copy. False: over the limits, nothing was taken.
   * @throws HoldfastError `SPILL_FAILED`: the disk refused
   */
  push(chunk: Buffer): boolean {
    const { limits } = this.#budget;
    const fits =
      this.#spilled.length === 0 &&
      this.#memoryBytes + chunk.length <= limits.sessionBytesMax &&
      this.#budget.memoryBytes + chunk.length <= limits.workloadBytesMax;
    if (!fits) return this.#spill(chunk);
    const last = this.#memory.at(-1);
    if (last !== undefined && last.length + chunk.length <= JOINED_BYTES_MAX)
      this.#memory[this.#memory.length - 1] = Buffer.concat([last, chunk]);
    else this.#memory.push(Buffer.from(chunk));
    this.#memoryBytes += chunk.length;
    this.#budget.memoryBytes += chunk.length;
    return true;
  }

  /** The oldest chunk, or null. @throws HoldfastError `SPILL_FAILED` */
  shift(): Buffer | null {
    const chunk = this.#memory.shift();
    if (chunk !== undefined) {
      this.#memoryBytes -= chunk.length;
      this.#budget.memoryBytes -= chunk.length;
      return chunk;
    }
    const record = this.#spilled.shift();
    if (record === undefined) return null;
    try {
      const sealed = Buffer.allocUnsafe(record.sealedBytes);
      const read = readSync(this.#fd, sealed, 0, sealed.length, record.at);
      if (read !== sealed.length) throw new Error(`${read} bytes instead of ${sealed.length}`);
      const bytes = this.#budget.unseal(record.nonce, sealed);
      this.#budget.spilledBytes -= record.sealedBytes + RECORD_BYTES;
      if (this.#spilled.length === 0) this.#closeFile();
      return bytes;
    } catch (cause) {
      throw spillFailed(this.#budget.limits.spillDir, cause);
    }
  }

  clear(): void {
    this.#budget.memoryBytes -= this.#memoryBytes;
    this.#memory = [];
    this.#memoryBytes = 0;
    for (const record of this.#spilled) this.#budget.spilledBytes -= record.sealedBytes + RECORD_BYTES;
    this.#spilled = [];
    this.#closeFile();
  }

  #spill(chunk: Buffer): boolean {
    const { limits } = this.#budget;
    if (this.#budget.spilledBytes + chunk.length + TAG_BYTES + RECORD_BYTES > limits.spillBytesMax)
      return false;
    try {
      if (this.#fd < 0) {
        const path = join(limits.spillDir, `.held-${process.pid}-${randomBytes(8).toString("hex")}`);
        this.#fd = openSync(path, "wx+", 0o600);
        unlinkSync(path);
      }
      const { nonce, sealed } = this.#budget.seal(chunk);
      let written = 0;
      while (written < sealed.length)
        written += writeSync(this.#fd, sealed, written, sealed.length - written, this.#fileEnd + written);
      this.#spilled.push({ nonce, at: this.#fileEnd, sealedBytes: sealed.length });
      this.#fileEnd += sealed.length;
      this.#budget.spilledBytes += sealed.length + RECORD_BYTES;
      return true;
    } catch (cause) {
      throw spillFailed(limits.spillDir, cause);
    }
  }

  #closeFile(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
    this.#fileEnd = 0;
  }
}

function spillFailed(directory: string, cause: unknown): HoldfastError {
  return fail(
    "SPILL_FAILED",
    `held bytes cannot be kept on disk in ${directory}: ${messageOf(cause)}; make room there, or set limits.spillBytesMax: 0`,
    { cause },
  );
}
