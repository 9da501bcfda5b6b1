/**
 * What goes out on a trunk. What is written in one turn of the event loop goes out in one piece. While too much waits for the kernel, each
 * channel queues what it has, and they are served in turn.
 */
import assert from "node:assert/strict";
import { CHANNEL_BYTES, DATA_BYTES_MAX, FRAME, HEADER_BYTES } from "./link-codec.ts";
import type { SocketConnection } from "./link-connection.ts";

/** what may wait in this process for the kernel to take it, beside what channels queue */
const ROOM_BYTES = 256 * 1024;
/** of a channel that is served in its turn */
const SHARE_BYTES = 16 * 1024;
/** what a channel may queue before its link has to wait */
export const QUEUED_BYTES_MAX = SHARE_BYTES;
/**
 * What may wait in this process where no credit bounds it: what the other end has asked for. One that asks and does not read is not kept
 * answers for; an honest one has, of CHANNELS_MAX links, about 200 bytes each to come.
 */
const WAITING_BYTES_MAX = 32 * 1024 * 1024;
/** smaller ones are copied together */
const SMALL_BYTES = 2_048;
const BLOCK_BYTES = 16 * 1024;

/** @param isData of a DATA frame, without its header */
export interface Queued {
  bytes: Buffer;
  isData: boolean;
}

/** What has something to send. */
export interface SendingChannel {
  readonly number: number;
  readonly isOpen: boolean;
  /** what waits for its turn; null: nothing does */
  queue: Queued[] | null;
  queuedBytes: number;
  /** It had its turn. */
  served(): void;
}

/** Whose channels they are. */
export interface SendingHost<C> {
  /** It is over, and all that it had queued is sent. */
  finished(channel: C): void;
  /** The other end has us keep more than is right. */
  overfull(): void;
}

export class TrunkSending<C extends SendingChannel> {
  readonly #connection: Pick<SocketConnection, "queuedBytes" | "writeAll">;
  readonly #host: SendingHost<C>;
  /** those that have something queued, the next first */
  readonly #turns = new Set<C>();
  #isOver = false;

  // what was framed in this turn
  #out: Buffer[] = [];
  #outBytes = 0;
  #block: Buffer = Buffer.alloc(0);
  /** of the block: what is used, and from where on it is not in `#out` yet */
  #used = 0;
  #from = 0;
  #isFlushing = false;
  /** the other end has us keep more than is right */
  #isOverfull = false;
  /** of what channels queue, what is not DATA */
  #waitingBytes = 0;
  /** bytes framed since the beginning, and at which of them each write that is under way ends */
  #framedBytes = 0;
  readonly #writes: number[] = [];
  #writtenBytes = 0;
  #waiters: { atBytes: number; resolve(): void }[] = [];

  constructor(connection: Pick<SocketConnection, "queuedBytes" | "writeAll">, host: SendingHost<C>) {
    this.#connection = connection;
    this.#host = host;
  }

  /** @param bytes a frame, whole. It waits behind what its channel has queued. */
  send(channel: C, bytes: Buffer): void {
    if (channel.queue !== null) {
      channel.queue.push({ bytes, isData: false });
      channel.queuedBytes += bytes.length;
      this.#waitingBytes += bytes.length;
      this.#boundWaiting();
    } else this.frame(channel.number, bytes);
  }

  sendData(channel: C, part: Buffer): void {
    const room = this.#turns.size === 0 ? this.#room : 0;
    const now = part.subarray(0, Math.max(0, room));
    if (now.length > 0) this.#frameData(channel.number, now);
    if (now.length === part.length) return;
    const bytes = part.subarray(now.length);
    channel.queue ??= [];
    channel.queue.push({ bytes, isData: true });
    channel.queuedBytes += bytes.length;
    this.#turns.add(channel);
    this.#flushSoon();
  }

  /** Resolves when all that the channel had to send is with the kernel, or nothing is sent any more. */
  async flushed(channel: C): Promise<void> {
    while (!this.#isOver && channel.queue !== null) {
      await this.#written(this.#framedBytes + 1);
    }
    await this.#written(this.#framedBytes);
  }

  /** What it has queued is not sent. */
  drop(channel: C): void {
    for (const { bytes, isData } of channel.queue ?? []) if (!isData) this.#waitingBytes -= bytes.length;
    channel.queue = null;
    channel.queuedBytes = 0;
    this.#turns.delete(channel);
  }

  /** The first of the writes that are under way has ended. */
  onWritten(): void {
    this.#writtenBytes = this.#writes.shift() ?? this.#writtenBytes;
    let done = 0;
    for (const { atBytes, resolve } of this.#waiters) {
      if (atBytes > this.#writtenBytes) break;
      resolve();
      done++;
    }
    if (done > 0) this.#waiters.splice(0, done);
    if (this.#turns.size > 0) this.flush();
  }

  /** All that is framed goes to the connection, and what waits while there is room. */
  flush(): void {
    this.#serve();
    this.#cut();
    if (this.#out.length === 0) return;
    const out = this.#out;
    this.#out = [];
    this.#outBytes = 0;
    this.#writes.push(this.#framedBytes);
    this.#connection.writeAll(out);
  }

  /** Nothing is sent any more. */
  stop(): void {
    this.#isOver = true;
    for (const { resolve } of this.#waiters) resolve();
    this.#waiters = [];
    this.#turns.clear();
    this.#out = [];
  }

  get #room(): number {
    return ROOM_BYTES - this.#outBytes - this.#connection.queuedBytes;
  }

  /** Now, whatever is queued. */
  frame(number: number, bytes: Buffer): void {
    const block = this.#blockFor(CHANNEL_BYTES + bytes.length);
    block.writeUInt32BE(number, this.#used);
    bytes.copy(block, this.#used + CHANNEL_BYTES);
    this.#add(CHANNEL_BYTES + bytes.length);
    this.#boundWaiting();
  }

  #boundWaiting(): void {
    if (this.#waitingBytes - this.#room <= WAITING_BYTES_MAX) return;
    this.#isOverfull = true;
    this.#flushSoon();
  }

  #frameData(number: number, part: Buffer): void {
    assert(part.length > 0 && part.length <= DATA_BYTES_MAX, "a DATA frame has bytes, and not too many");
    const isSmall = part.length <= SMALL_BYTES;
    const headerBytes = CHANNEL_BYTES + HEADER_BYTES;
    const block = this.#blockFor(headerBytes + (isSmall ? part.length : 0));
    block.writeUInt32BE(number, this.#used);
    block[this.#used + CHANNEL_BYTES] = FRAME.data;
    block.writeUIntBE(part.length, this.#used + CHANNEL_BYTES + 1, 3);
    if (isSmall) part.copy(block, this.#used + headerBytes);
    this.#add(headerBytes + (isSmall ? part.length : 0));
    if (isSmall) return;
    this.#cut();
    this.#out.push(part);
    this.#outBytes += part.length;
    this.#framedBytes += part.length;
  }

  #blockFor(bytes: number): Buffer {
    if (this.#used + bytes > this.#block.length) {
      this.#cut();
      this.#block = Buffer.allocUnsafeSlow(BLOCK_BYTES);
      this.#used = 0;
      this.#from = 0;
    }
    return this.#block;
  }

  #add(bytes: number): void {
    this.#used += bytes;
    this.#outBytes += bytes;
    this.#framedBytes += bytes;
    this.#flushSoon();
  }

  #cut(): void {
    if (this.#used > this.#from) this.#out.push(this.#block.subarray(this.#from, this.#used));
    this.#from = this.#used;
  }

  #flushSoon(): void {
    if (this.#isFlushing) return;
    this.#isFlushing = true;
    process.nextTick(this.#flushInTurn);
  }
  readonly #flushInTurn = (): void => {
    this.#isFlushing = false;
    if (this.#isOver) return;
    // not in the middle of what has filled it
    if (this.#isOverfull) this.#host.overfull();
    else this.flush();
  };

  /** Those that wait, in turn, while there is room. */
  #serve(): void {
    for (const channel of this.#turns) {
      if (this.#room <= 0) return;
      this.#turns.delete(channel);
      this.#serveOne(channel);
    }
  }

  #serveOne(channel: C): void {
    const { queue, number } = channel;
    let share = SHARE_BYTES;
    while (queue !== null && share > 0) {
      const [next] = queue;
      if (next === undefined) break;
      const { bytes, isData } = next;
      const part = isData ? bytes.subarray(0, share) : bytes;
      share -= part.length;
      channel.queuedBytes -= part.length;
      if (isData) this.#frameData(number, part);
      else {
        this.#waitingBytes -= part.length;
        this.frame(number, part);
      }
      if (part.length < bytes.length) next.bytes = bytes.subarray(part.length);
      else queue.shift();
    }
    if (queue !== null && queue.length > 0) {
      this.#turns.add(channel);
    } else {
      channel.queue = null;
      if (!channel.isOpen) {
        this.#host.finished(channel);
        return;
      }
    }
    channel.served();
  }

  #written(atBytes: number): Promise<void> {
    if (this.#isOver || atBytes <= this.#writtenBytes) return Promise.resolve();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiters.push({ atBytes, resolve });
    return promise;
  }
}
