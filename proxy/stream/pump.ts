/**
 * One direction of a session: bytes from a source end to a sink end, in order, with back-pressure and half-close.
 *
 * The pump is where bytes wait that were read and have no way on: the sink is blocked, or there is none (not dialled
 * yet, or captured). So a capture finds everything in user space in one place: `pending()`.
 *
 *   source ──onData──▶ [queue] ──write──▶ sink
 *                         ▲ filled only while the sink is blocked or absent; the source is paused then, so a TCP
 *                           source leaves at most one chunk here and a link source at most its credit window
 *
 * What cannot be is asserted where it would first be seen: an assertion that fails ends its session (`LiveSession.guard`), and no other.
 */
import assert from "node:assert/strict";
import type { Leg } from "./leg.ts";

const NO_BYTES: Buffer = Buffer.alloc(0);
/** of every pump where nothing waits; never written to */
const NOTHING: Buffer[] = [];

export interface PumpOwner {
  /** The last byte and the FIN were handed to the sink. */
  onFinSent(): void;
}

export class Pump {
  /** everything ever read for this direction, across moves */
  bytes = 0;
  finRead = false;
  finSent = false;
  owner: PumpOwner | null = null;

  #source: Leg | null = null;
  #sink: Leg | null = null;
  #queue: Buffer[] = NOTHING;
  #head = 0;
  #queuedBytes = 0;
  /** the chunk that the sink has not taken whole: it gets credit when all of it has gone */
  #inFlightBytes = 0;
  /** of the queued and in-flight bytes, those that came from an earlier source: no credit for them */
  #foreignBytes = 0;
  #held = false;
  #spooling = false;
  #finHeld = false;

  get held(): boolean {
    return this.#held;
  }
  /** In user space: queued here or still with the sink. Whatever else the sink was given, the other side may have, also when it has gone. */
  get pendingBytes(): number {
    const isOutstanding = this.#inFlightBytes > 0 && this.#sink !== null;
    return this.#queuedBytes + (isOutstanding ? (this.#sink as Leg).outstandingBytes : 0);
  }
  get isBlocked(): boolean {
    return this.#inFlightBytes > 0 || this.#queuedBytes > 0;
  }

  /** Stop reading; what was read still goes out. */
  hold(): void {
    this.#held = true;
    this.#updateReading();
  }
  unhold(): void {
    this.#held = false;
    this.#flush();
  }

  /** The source is read although nothing can go on: its listener keeps what comes, and `receive` is not called. */
  get spooling(): boolean {
    return this.#spooling;
  }
  set spooling(on: boolean) {
    this.#spooling = on;
    this.#updateReading();
  }

  /** The FIN waits, though all bytes are out: others precede it. */
  holdFin(): void {
    this.#finHeld = true;
  }
  releaseFin(): void {
    this.#finHeld = false;
    this.#flush();
  }

  setSource(source: Leg | null): void {
    if (source !== this.#source) this.#foreignBytes = this.#queuedBytes + this.#inFlightBytes;
    this.#source = source;
    this.#updateReading();
  }

  setSink(sink: Leg): void {
    assert(sink === this.#sink || this.#inFlightBytes === 0, "a sink that has a chunk is removed first");
    this.#sink = sink;
    this.#flush();
  }

  /** `tail`: what the sink had not passed on of its outstanding chunk; it goes first when there is a sink again. */
  removeSink(tail: Buffer): void {
    const gone = this.#inFlightBytes - tail.length;
    assert(gone >= 0, "a sink gives back no more than it was given");
    this.#inFlightBytes = 0;
    this.#sink = null;
    if (tail.length > 0) this.#unshift(tail);
    if (gone > 0) this.#credit(gone);
    this.#updateReading();
  }

  receive(chunk: Buffer): void {
    this.bytes += chunk.length;
    if (this.#sink === null || this.isBlocked) {
      this.#push(this.#source?.reusesBuffer ? Buffer.from(chunk) : chunk);
      this.#updateReading();
    } else {
      this.#write(this.#sink.keepsChunk && this.#source?.reusesBuffer ? Buffer.from(chunk) : chunk);
      if (this.#inFlightBytes > 0) this.#updateReading();
    }
  }

  /** Bytes that were read and go nowhere. */
  skip(bytes: number): void {
    this.bytes += bytes;
    this.#source?.consumed(bytes);
  }

  receiveFin(): void {
    if (this.finRead) return;
    this.finRead = true;
    this.#flush();
  }

  drained(): void {
    const bytes = this.#inFlightBytes;
    this.#inFlightBytes = 0;
    if (bytes > 0) this.#credit(bytes);
    this.#flush();
  }

  /** A copy of what waits here. Call without a sink: an outstanding chunk is the sink's. */
  pending(): Buffer {
    if (this.#queuedBytes === 0) return NO_BYTES;
    return Buffer.concat(this.#queue.slice(this.#head));
  }

  /** As if what waits here had not been read yet: it is to be received again. */
  takeBack(): Buffer {
    const bytes = this.pending();
    this.clear();
    this.bytes -= bytes.length;
    assert(this.bytes >= 0, "what is taken back was received");
    return bytes;
  }

  /** Bytes that precede everything waiting here and were counted elsewhere (a snapshot's). */
  prepend(bytes: Buffer): void {
    if (bytes.length === 0) return;
    this.#foreignBytes += bytes.length;
    this.#unshift(bytes);
  }

  /** As {@link prepend}, when nothing waits, and sent at once. */
  resend(bytes: Buffer): void {
    this.prepend(bytes);
    this.#flush();
  }

  /** What waits here has moved on with a snapshot, or is kept elsewhere. */
  clear(): void {
    const bytes = this.#queuedBytes;
    this.#queue = NOTHING;
    this.#head = 0;
    this.#queuedBytes = 0;
    if (bytes > 0) this.#credit(bytes);
  }

  #push(chunk: Buffer): void {
    if (this.#queue === NOTHING) this.#queue = [chunk];
    else this.#queue.push(chunk);
    this.#queuedBytes += chunk.length;
  }

  #unshift(chunk: Buffer): void {
    if (this.#head > 0) this.#queue[--this.#head] = chunk;
    else this.#queue = [chunk, ...this.#queue];
    this.#queuedBytes += chunk.length;
  }

  #write(chunk: Buffer): void {
    assert(this.#inFlightBytes === 0, "a sink has one chunk at a time");
    if ((this.#sink as Leg).write(chunk)) this.#credit(chunk.length);
    else this.#inFlightBytes = chunk.length;
  }

  #flush(): void {
    while (this.#sink !== null && this.#inFlightBytes === 0 && this.#head < this.#queue.length) {
      const chunk = this.#queue[this.#head] as Buffer;
      this.#queue[this.#head++] = NO_BYTES;
      this.#queuedBytes -= chunk.length;
      if (this.#head === this.#queue.length) {
        assert(this.#queuedBytes === 0, "what waits is what was counted");
        this.#queue = NOTHING;
        this.#head = 0;
      }
      this.#write(chunk);
    }
    if (this.#sink !== null && !this.isBlocked && this.finRead && !this.finSent && !this.#finHeld) {
      this.finSent = true;
      this.#sink.finish();
      this.owner?.onFinSent();
    }
    this.#updateReading();
  }

  #credit(bytes: number): void {
    const foreign = Math.min(bytes, this.#foreignBytes);
    this.#foreignBytes -= foreign;
    if (bytes > foreign) this.#source?.consumed(bytes - foreign);
  }

  #updateReading(): void {
    if (this.#source === null) return;
    const goesOn = !this.#held && this.#sink !== null && !this.isBlocked;
    const want = !this.finRead && (this.#spooling || goesOn);
    if (want) this.#source.resumeReading();
    else this.#source.pauseReading();
  }
}
