/**
 * Bytes of clients that were read while their application is unavailable: first in, first out; in memory, then in a file.
 *
 * One budget a workload, shared by all its sessions. The file has no name (unlinked as soon as it is open, so nothing
 * is left of it whoever dies) and its records are sealed (AES-256-GCM, a key of this process that is never written).
 *
 *   0 ─── given back to the disk ─── freedTo ─── read ─── oldest record ─── waits ─── fileEnd
 *
 * What the budget is charged is what is on disk, so it bounds a file that is read at one end and written at the other for ever.
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
/** of what was read, given back to the disk together: whole blocks of any file system */
const FREED_BYTES = 64 * 1024;

export interface HeldLimits {
  sessionBytesMax: number;
  workloadBytesMax: number;
  spillBytesMax: number;
  spillDir: string;
}

/**
 * Gives [from, to) of a file, in whole blocks, back to its disk; its other bytes stay where they are.
 * False: the file system cannot, and nothing was changed. @throws HoldfastError with the errno name as code
 */
export type FreeDisk = (fd: number, from: number, to: number) => boolean;

/** What all sessions of a workload may hold together. */
export class HeldBudget {
  readonly limits: HeldLimits;
  readonly freeDisk: FreeDisk;
  memoryBytes = 0;
  /** on disk, whether it was read or not, and what records cost beside it */
  spilledBytes = 0;
  readonly #key = randomBytes(KEY_BYTES);
  #records = 0n;

  constructor(limits: HeldLimits, freeDisk: FreeDisk) {
    this.limits = limits;
    this.freeDisk = freeDisk;
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
  #freedTo = 0;
  #mayFree = true;

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
      return this.#take(record);
    } catch (cause) {
      throw spillFailed(this.#budget.limits.spillDir, cause);
    }
  }

  #take(record: Spilled): Buffer {
    try {
      const sealed = Buffer.allocUnsafe(record.sealedBytes);
      const read = readSync(this.#fd, sealed, 0, sealed.length, record.at);
      if (read !== sealed.length) throw new Error(`${read} bytes instead of ${sealed.length}`);
      return this.#budget.unseal(record.nonce, sealed);
    } finally {
      this.#forget(record);
    }
  }

  /** Read, or not to be read: it is needed no more, and neither is what precedes it. */
  #forget({ at, sealedBytes }: Spilled): void {
    this.#budget.spilledBytes -= RECORD_BYTES;
    if (this.#spilled.length === 0) {
      this.#closeFile();
      return;
    }
    const readTo = at + sealedBytes;
    const end = readTo - (readTo % FREED_BYTES);
    if (end === this.#freedTo || !this.#mayFree) return;
    try {
      // all before it, again: some file systems give back nothing less than what was written at a time
      this.#mayFree = this.#budget.freeDisk(this.#fd, 0, end);
    } catch {
      this.#mayFree = false; // a disk that is full may have no room to note it: it stays charged
    }
    if (!this.#mayFree) return;
    this.#budget.spilledBytes -= end - this.#freedTo;
    this.#freedTo = end;
  }

  clear(): void {
    this.#budget.memoryBytes -= this.#memoryBytes;
    this.#memory = [];
    this.#memoryBytes = 0;
    this.#budget.spilledBytes -= this.#spilled.length * RECORD_BYTES;
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
    this.#budget.spilledBytes -= this.#fileEnd - this.#freedTo;
    this.#fileEnd = 0;
    this.#freedTo = 0;
    this.#mayFree = true;
  }
}

function spillFailed(directory: string, cause: unknown): HoldfastError {
  return fail(
    "SPILL_FAILED",
    `held bytes cannot be kept on disk in ${directory}: ${messageOf(cause)}; make room there, or set limits.spillBytesMax: 0`,
    { cause },
  );
}
