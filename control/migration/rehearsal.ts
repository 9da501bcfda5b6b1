/** What a move measures while nobody waits yet, so that a rehearsal can say how long clients would (`prediction.ts`). */
import { readdirSync, readFileSync } from "node:fs";
import type { ImagePiece } from "../criu/images.ts";
import { imageBytes } from "../runtime/processes.ts";
import type { Measured } from "./prediction.ts";

/** less than this says nothing of a rate */
const RATE_BYTES_MIN = 256 * 1024;
/** reading less is mostly starting to read */
const READ_BYTES_MIN = 32 * 1024 * 1024;
const LAYER = /^layer-(\d+)\//;

export class Rehearsal {
  criuMs = 0;
  scanMs = 0;
  callMs = Number.POSITIVE_INFINITY;
  #sendMs = 0;
  #sendMsAlone = 0;
  #sentBytesAlone = 0;
  #layers = new Map<number, number>();
  #roundsMs = 0;

  /** Runs `work` and adds the time it takes. */
  async timed<T>(what: "criuMs" | "scanMs", work: () => Promise<T>): Promise<T> {
    const atMs = performance.now();
    const result = await work();
    this[what] += performance.now() - atMs;
    return result;
  }

  /** The quickest of several questions to the target is the way there and back. */
  async asked<T>(work: () => Promise<T>): Promise<T> {
    const atMs = performance.now();
    const result = await work();
    this.callMs = Math.min(this.callMs, performance.now() - atMs);
    return result;
  }

  /** Rounds of copies, with what they send. */
  async rounds<T>(work: () => Promise<T>): Promise<T> {
    const atMs = performance.now();
    const result = await work();
    this.#roundsMs += performance.now() - atMs;
    return result;
  }

  /** @param isAlone nothing else is sent beside it, now: else the time says nothing of a rate */
  async sent(pieces: ImagePiece[], isAlone: () => boolean, send: () => Promise<void>): Promise<void> {
    const wasAlone = isAlone();
    const atMs = performance.now();
    await send();
    const ms = performance.now() - atMs;
    const isRate = wasAlone && isAlone();
    this.#sendMs += ms;
    if (isRate) this.#sendMsAlone += ms;
    for (const { name, bytes, from } of pieces) {
      // what the target has already does not travel
      const sent = from === undefined ? bytes.length : 0;
      if (isRate) this.#sentBytesAlone += sent;
      const layer = Number(LAYER.exec(name)?.[1] ?? 0);
      this.#layers.set(layer, (this.#layers.get(layer) ?? 0) + sent);
    }
  }

  /** @param legs connections of sessions at this node's proxy */
  async measured(
    pids: number[],
    of: Pick<Measured, "downstream" | "legs" | "storeMs" | "holdMsMax" | "leavesPages" | "copiedBytesMax">,
  ): Promise<Measured> {
    const bytes = await imageBytes(pids);
    const rounds = this.#layers.size;
    const readMs = this.#roundsMs - this.#sendMs;
    const count = (folder: string): number =>
      pids.reduce((total, pid) => total + listed(`/proc/${pid}/${folder}`), 0);
    return {
      ...of,
      processes: pids.length,
      threads: count("task"),
      mappings: pids.reduce((total, pid) => total + lines(`/proc/${pid}/maps`), 0),
      descriptors: count("fd"),
      imageBytes: bytes,
      lastRoundBytes: rounds === 0 ? null : (this.#layers.get(Math.max(...this.#layers.keys())) ?? 0),
      readBytesPerMs: rounds > 0 && bytes > READ_BYTES_MIN && readMs > 0 ? (bytes * rounds) / readMs : null,
      sendBytesPerMs:
        this.#sentBytesAlone > RATE_BYTES_MIN && this.#sendMsAlone > 0
          ? this.#sentBytesAlone / this.#sendMsAlone
          : null,
      scanMs: this.scanMs,
      callMs: Number.isFinite(this.callMs) ? this.callMs : 0,
      criuMs: this.criuMs,
    };
  }
}

function listed(folder: string): number {
  try {
    return readdirSync(folder).length;
  } catch {
    return 0;
  }
}

function lines(file: string): number {
  try {
    return readFileSync(file, "utf8").split("\n").length - 1;
  } catch {
    return 0;
  }
}
