/**
 * What of a link's bytes is where, at one of its ends. Positions are bytes of the link, from its beginning; FIN is behind the last.
 *
 * Flow control is by credit: the sender may have LINK_WINDOW_BYTES on the way and not yet passed on. DATA for which there is no credit stays
 * with the sender, who can take it back. What a link that can go on over another connection has sent is kept until it is acknowledged.
 */
import assert from "node:assert/strict";
import { Kept } from "./kept.ts";
import type { Received } from "./link-codec.ts";

export const LINK_WINDOW_BYTES = 256 * 1024;
const CREDIT_BYTES_MIN = LINK_WINDOW_BYTES / 4;
const NO_BYTES: Buffer = Buffer.alloc(0);

/** What this end sends. */
export class Outgoing {
  #sentBytes = 0;
  #ackedBytes = 0;
  /** credit from the other end, from the beginning */
  #creditedBytes = 0;
  #kept: Kept | null = null;
  /** taken and not framed: for want of credit or a connection, or because sending is held */
  #unsent: Buffer = NO_BYTES;
  #isHeld = false;
  #finHeld = false;
  #finSent = false;
  #finAcked = false;

  get sentBytes(): number {
    return this.#sentBytes;
  }
  get creditedBytes(): number {
    return this.#creditedBytes;
  }
  get hasUnsent(): boolean {
    return this.#unsent.length > 0;
  }
  get unsentBytes(): number {
    return this.#unsent.length;
  }
  get isHeld(): boolean {
    return this.#isHeld;
  }
  get finSent(): boolean {
    return this.#finSent;
  }
  get finAcked(): boolean {
    return this.#finAcked;
  }
  /** The other end is not known to have all that it was sent. */
  get isOutstanding(): boolean {
    return this.#sentBytes > this.#ackedBytes || (this.#finSent && !this.#finAcked);
  }

  offer(chunk: Buffer): void {
    this.#unsent = chunk;
  }

  /** What of the chunk is to be framed now; null: nothing may be. @param keeps it is kept until it is acknowledged */
  next(keeps: boolean): Buffer | null {
    const credit = LINK_WINDOW_BYTES + this.#creditedBytes - this.#sentBytes;
    if (this.#isHeld || credit <= 0 || this.#unsent.length === 0) return null;
    const part = this.#unsent.subarray(0, credit);
    // an empty part of it would keep all of it
    this.#unsent = part.length < this.#unsent.length ? this.#unsent.subarray(part.length) : NO_BYTES;
    this.#sentBytes += part.length;
    if (keeps) this.#keep(part);
    return part;
  }

  #keep(part: Buffer): void {
    this.#kept ??= new Kept();
    this.#kept.push(part);
    const { bytes } = this.#kept;
    if (bytes !== this.#sentBytes - this.#ackedBytes) assert.fail("what is sent is acknowledged or kept");
    if (bytes > LINK_WINDOW_BYTES) assert.fail("no more is kept than may be on its way");
  }

  /** Bytes of the chunk that never left. */
  takeUnsent(): Buffer {
    const bytes = this.#unsent.length === 0 ? NO_BYTES : Buffer.from(this.#unsent);
    this.#unsent = NO_BYTES;
    return bytes;
  }

  /** What was sent and is not known to have arrived. */
  takeUnacknowledged(): Buffer {
    const bytes = Buffer.concat(this.unacknowledged());
    this.#kept = null;
    this.#ackedBytes = this.#sentBytes;
    return bytes;
  }

  unacknowledged(): readonly Buffer[] {
    return this.#kept?.chunks() ?? [];
  }

  forget(): void {
    this.#kept = null;
  }

  /** False while it is held, or when it was sent: there is none to frame. */
  finish(): boolean {
    if (this.#finSent) return false;
    if (this.#isHeld) {
      this.#finHeld = true;
      return false;
    }
    this.#finSent = true;
    return true;
  }

  hold(): void {
    this.#isHeld = true;
  }

  /** What was held may go: see `next`, `takeHeldFin`. */
  unhold(): void {
    this.#isHeld = false;
  }

  /** A FIN was held, which is to be sent with `finish`. Asked once. */
  takeHeldFin(): boolean {
    const wasHeld = this.#finHeld;
    this.#finHeld = false;
    return wasHeld;
  }

  credit(bytes: number): void {
    this.#creditedBytes += bytes;
  }

  /** The other end has so much. False: it cannot have. */
  acknowledge({ bytes, fin }: Received): boolean {
    if (bytes > this.#sentBytes || (fin && !this.#finSent)) return false;
    if (bytes > this.#ackedBytes) {
      this.#kept?.drop(bytes - this.#ackedBytes);
      this.#ackedBytes = bytes;
    }
    if (fin) this.#finAcked = true;
    return true;
  }

  /** What the other end says on another connection. False: that cannot be. */
  resume({ bytes, creditedBytes, fin }: Received & { creditedBytes: number }): boolean {
    const fits =
      bytes >= this.#ackedBytes &&
      bytes <= this.#sentBytes &&
      creditedBytes >= this.#creditedBytes &&
      creditedBytes <= bytes &&
      (this.#finSent || !fin);
    if (fits) this.#creditedBytes = creditedBytes;
    return fits;
  }
}

/** What this end receives. */
export class Incoming {
  #receivedBytes = 0;
  /** … of which the other end knows */
  #toldBytes = 0;
  #creditedBytes = 0;
  #uncredited = 0;
  #isDelivering = false;
  /** arrived before it is delivered; at most the window */
  #backlog: Buffer[] | null = null;
  #finInBacklog = false;
  #finReceived = false;

  get bytes(): number {
    return this.#receivedBytes;
  }
  get creditedBytes(): number {
    return this.#creditedBytes;
  }
  get fin(): boolean {
    return this.#finReceived;
  }
  get received(): Received {
    return { bytes: this.#receivedBytes, fin: this.#finReceived };
  }
  /** that the other end has not been told of */
  get untoldBytes(): number {
    return this.#receivedBytes - this.#toldBytes;
  }
  get isDelivering(): boolean {
    return this.#isDelivering;
  }

  /** False: the other end may not have sent these. */
  take(bytes: number): boolean {
    this.#receivedBytes += bytes;
    return this.#receivedBytes <= LINK_WINDOW_BYTES + this.#creditedBytes && !this.#finReceived;
  }

  /** Until it is delivered. */
  keep(part: Buffer): void {
    this.#backlog ??= [];
    this.#backlog.push(part);
  }

  takeFin(): void {
    this.#finReceived = true;
    this.#finInBacklog = !this.#isDelivering;
  }

  /** What has arrived before; from now on all is delivered at once. */
  startDelivering(to: { onData(part: Buffer): void; onFin(): void }): void {
    this.#isDelivering = true;
    const backlog = this.#backlog;
    this.#backlog = null;
    for (const chunk of backlog ?? []) to.onData(chunk);
    if (!this.#finInBacklog) return;
    this.#finInBacklog = false;
    to.onFin();
  }

  forget(): void {
    this.#backlog = null;
  }

  /** So many of its bytes have left the process. */
  consume(bytes: number): void {
    this.#uncredited += bytes;
  }

  /** There is credit to give. */
  get hasCredit(): boolean {
    return this.#uncredited >= CREDIT_BYTES_MIN;
  }

  /** @returns the credit that the other end is told of now */
  takeCredit(): number {
    const bytes = this.#uncredited;
    this.#creditedBytes += bytes;
    this.#uncredited = 0;
    this.#toldBytes = Math.max(this.#toldBytes, this.#creditedBytes);
    return bytes;
  }

  /** The other end is told of all. */
  told(): void {
    this.#toldBytes = this.#receivedBytes;
  }
}
