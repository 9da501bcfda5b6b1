/**
 * A trunk: one connection that carries many links of two proxies, each on a channel of its own (ARCHITECTURE, "Trunks"). Here is what
 * both its ends do; who dials one, and when, is `trunks.ts`.
 *
 * What is written in one turn of the event loop goes out in one piece. While too much waits for the kernel, each channel queues what it
 * has, and they are served in turn.
 */
import assert from "node:assert/strict";
import { CHANNEL_BYTES, DATA_BYTES_MAX, FRAME, type FrameType, frame, HEADER_BYTES } from "./link-codec.ts";
import {
  type ConnectionSink,
  type Gone,
  type LinkConnection,
  NOBODY,
  type SocketConnection,
} from "./link-connection.ts";

export const CHANNELS_MAX = 65_536;
/** Dialler: channels whose greeting is under way; others wait. Below what an acceptor lets greet at a time. */
const OPENING_MAX = 256;
/** Acceptor: no dialler has so many, so that one which never greets takes this from a proxy and no more. */
const OPENED_MAX = 2 * OPENING_MAX;
/** of a channel: from when it is wanted */
const GREETING_MS_MAX = 5_000;
/** what may wait in this process for the kernel to take it, beside what channels queue */
const ROOM_BYTES = 256 * 1024;
/** of a channel that is served in its turn */
const SHARE_BYTES = 16 * 1024;
/** what a channel may queue before its link has to wait */
const QUEUED_BYTES_MAX = SHARE_BYTES;
/**
 * What may wait in this process where no credit bounds it: what the other end has asked for. One that asks and does not read is not kept
 * answers for; an honest one has, of CHANNELS_MAX links, about 200 bytes each to come.
 */
const WAITING_BYTES_MAX = 32 * 1024 * 1024;
/** smaller ones are copied together */
const SMALL_BYTES = 2_048;
const BLOCK_BYTES = 16 * 1024;
const CLOSE_FRAME: Buffer = frame(FRAME.close);

/** Of a number that we have closed and the other end has not yet. */
const CLOSING = Symbol("closing");

export interface TrunkOptions {
  /** channels at a time */
  channelsMax: number;
  /** Acceptor: the other end has opened one; null at the dialler. Gives it a sink, or destroys it. */
  onOpen: ((channel: Channel) => void) | null;
  /** It has no channel any more; it may be ended, or get others. */
  onEmpty(): void;
  onGone(why: Gone): void;
  /** A bug of ours has come up in it; it is destroyed. */
  onBroken(error: unknown): void;
}

/** What a trunk needs of its connection. */
export type TrunkConnection = Pick<
  SocketConnection,
  | "sink"
  | "progress"
  | "fd"
  | "queuedBytes"
  | "greeted"
  | "carryChannels"
  | "writeAll"
  | "flushed"
  | "end"
  | "destroy"
>;

/** @param isData of a DATA frame, without its header */
interface Queued {
  bytes: Buffer;
  isData: boolean;
}

/** Nothing is written on it before it is open: its acceptor speaks first. */
export class Channel implements LinkConnection {
  readonly #trunk: Trunk;
  #sink: ConnectionSink;
  #isOver = false;
  /** not null until its greeting is over */
  #timer: NodeJS.Timeout | null;
  /** where the other end takes no trunks: what carries the link instead */
  #own: LinkConnection | null = null;
  /** -1: not open yet */
  number = -1;
  /** what waits for its turn */
  queue: Queued[] | null = null;
  queuedBytes = 0;

  constructor(trunk: Trunk, sink: ConnectionSink) {
    this.#trunk = trunk;
    this.#sink = sink;
    this.#timer = setTimeout(() => this.#tooLate(), GREETING_MS_MAX);
  }

  get sink(): ConnectionSink {
    return this.#sink;
  }
  set sink(sink: ConnectionSink) {
    this.#sink = sink;
    if (this.#own !== null) this.#own.sink = sink;
  }
  get progress(): number {
    return (this.#own ?? this.#trunk).progress;
  }
  get fd(): number {
    return (this.#own ?? this.#trunk).fd;
  }
  get isOpen(): boolean {
    return !this.#isOver && (this.#own?.isOpen ?? true);
  }
  get isShared(): boolean {
    return this.#own === null;
  }
  get isFull(): boolean {
    return this.#own?.isFull ?? this.queuedBytes > QUEUED_BYTES_MAX;
  }

  /** The trunk's greeting is all there is. */
  secure(key: Buffer, onSecure: () => void): void {
    if (this.#own !== null) this.#own.secure(key, onSecure);
    else this.#fail("fault");
  }

  greeted(): void {
    this.#own?.greeted();
    this.#stopTimer();
  }

  write(bytes: Buffer): void {
    if (this.#own !== null) this.#own.write(bytes);
    else if (!this.#isOver) this.#trunk.send(this, bytes);
  }

  writeData(part: Buffer): void {
    if (this.#own !== null) this.#own.writeData(part);
    else if (!this.#isOver) this.#trunk.sendData(this, part);
  }

  flushed(): Promise<void> {
    return this.#own?.flushed() ?? this.#trunk.flushed(this);
  }

  doubt(): void {
    this.#trunk.doubt();
  }

  end(): void {
    if (this.#own !== null) this.#own.end();
    else this.#close(false);
  }

  destroy(): void {
    if (this.#own !== null) this.#own.destroy();
    else this.#close(true);
  }

  // ---- for its trunk

  deliverData(part: Buffer): void {
    try {
      this.#sink.onData(part, this.number);
    } catch (error) {
      this.#sink.onThrown(error);
    }
  }

  deliver(type: FrameType, payload: Buffer): void {
    try {
      this.#sink.onFrame(type, payload, this.number);
    } catch (error) {
      this.#sink.onThrown(error);
    }
  }

  served(): void {
    if (this.#isOver) return;
    try {
      this.#sink.onWritten();
    } catch (error) {
      this.#sink.onThrown(error);
    }
  }

  gone(why: Gone): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#stopTimer();
    try {
      this.#sink.onGone(why);
    } catch (error) {
      this.#sink.onThrown(error);
    }
  }

  /** The link has this connection instead, which nothing has been written on. */
  instead(connection: LinkConnection): void {
    this.#stopTimer();
    this.#own = connection;
    connection.sink = this.#sink;
  }

  #close(now: boolean): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#trunk.closed(this, now);
    // not before: the next OPEN is behind its CLOSE
    this.#stopTimer();
  }

  #stopTimer(): void {
    if (this.#timer === null) return;
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.number >= 0) this.#trunk.greeted();
  }

  #tooLate(): void {
    this.#trunk.doubt();
    this.#fail("broken");
  }

  #fail(why: Gone): void {
    const sink = this.#sink;
    this.destroy();
    try {
      sink.onGone(why);
    } catch (error) {
      sink.onThrown(error);
    }
  }
}

export class Trunk implements ConnectionSink {
  readonly #connection: TrunkConnection;
  readonly #options: TrunkOptions;
  /** by number */
  readonly #channels: (Channel | typeof CLOSING | undefined)[] = [];
  /** numbers below `#channels.length` that are nobody's */
  readonly #free: number[] = [];
  /** dialler: not open yet */
  readonly #wanted = new Set<Channel>();
  /** those that have something queued, the next first */
  readonly #turns = new Set<Channel>();
  #openChannels = 0;
  #closingChannels = 0;
  /** of the channels that are open, those whose greeting is under way */
  #opening = 0;
  #isReady = false;
  #isOver = false;
  #isRetired = false;
  #frames = 0;

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

  /** @param connect gives it the connection; greeted or not */
  constructor(connect: (sink: ConnectionSink) => TrunkConnection, options: TrunkOptions) {
    this.#options = options;
    this.#connection = connect(this);
  }

  get progress(): number {
    return this.#connection.progress + this.#frames;
  }
  get fd(): number {
    return this.#connection.fd;
  }
  get isOpen(): boolean {
    return !this.#isOver;
  }
  /** It takes another link. */
  get hasRoom(): boolean {
    const { size } = this.#wanted;
    const used = this.#openChannels + this.#closingChannels + size;
    return !this.#isOver && !this.#isRetired && used < this.#options.channelsMax;
  }
  /** links that it carries, or is about to */
  get links(): number {
    return this.#openChannels + this.#wanted.size;
  }

  /** Its greeting is over. */
  ready(): void {
    this.#connection.greeted();
    this.#connection.carryChannels();
    this.#connection.sink = this;
    this.#isReady = true;
    this.#openWanted();
  }

  /** Dialler. */
  open(sink: ConnectionSink): Channel {
    const channel = new Channel(this, sink);
    this.#wanted.add(channel);
    if (this.#isReady) this.#openWanted();
    return channel;
  }

  /** Dialler: those that are not open yet, which are theirs now who ask. */
  takeWanted(): Channel[] {
    const wanted = [...this.#wanted];
    this.#wanted.clear();
    return wanted;
  }

  /** Dialler: it gets no more links. An acceptor's other end would not know that. */
  doubt(): void {
    if (this.#options.onOpen === null) this.retire();
  }

  /** It gets no more links, and ends with its last. */
  retire(): void {
    if (this.#isRetired) return;
    this.#isRetired = true;
    if (this.links === 0) this.end();
  }

  /** It is over; its connection is somebody else's. */
  leave(): void {
    this.#isOver = true;
    this.#options.onGone("broken");
  }

  /** What was written is still delivered. */
  end(): void {
    if (this.#isOver) return;
    this.#flush();
    this.#stop();
    this.#connection.end();
    this.#endChannels("broken");
    this.#options.onGone("broken");
  }

  destroy(): void {
    if (this.#isOver) return;
    this.#connection.destroy();
    this.onGone("broken");
  }

  // ---- for its channels

  greeted(): void {
    this.#opening--;
    this.#openWanted();
  }

  send(channel: Channel, bytes: Buffer): void {
    if (channel.queue !== null) {
      channel.queue.push({ bytes, isData: false });
      channel.queuedBytes += bytes.length;
      this.#waitingBytes += bytes.length;
      this.#boundWaiting();
    } else this.#frame(channel.number, bytes);
  }

  sendData(channel: Channel, part: Buffer): void {
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

  async flushed(channel: Channel): Promise<void> {
    while (!this.#isOver && channel.queue !== null) {
      await this.#written(this.#framedBytes + 1);
    }
    await this.#written(this.#framedBytes);
    // its last link may have ended it, this one's frames included
    if (this.#isOver) await this.#connection.flushed();
  }

  /** It is over at this end. @param now nothing that it queued is sent any more */
  closed(channel: Channel, now: boolean): void {
    if (this.#isOver) return;
    const { number } = channel;
    if (number < 0) {
      this.#wanted.delete(channel);
      this.#whenEmpty();
      return;
    }
    if (now) this.#dropQueue(channel);
    this.send(channel, CLOSE_FRAME);
    // what it queued is sent first
    if (channel.queue === null) this.#leave(channel, number);
  }

  // ---- frames (ConnectionSink)

  onData(part: Buffer, number: number): void {
    this.#frames++;
    const channel = this.#channels[number];
    if (channel === CLOSING) return;
    if (channel === undefined) this.#fault();
    else channel.deliverData(part);
  }

  onFrame(type: FrameType, payload: Buffer, number: number): void {
    this.#frames++;
    const channel = this.#channels[number];
    if (type === FRAME.open) {
      this.#opened(number);
      return;
    }
    if (channel === undefined) {
      this.#fault();
      return;
    }
    if (type !== FRAME.close) {
      if (channel !== CLOSING) channel.deliver(type, payload);
      return;
    }
    if (channel === CLOSING) {
      this.#closingChannels--;
      this.#release(number);
      return;
    }
    this.#dropQueue(channel);
    this.#frame(number, CLOSE_FRAME);
    this.#openChannels--;
    this.#release(number);
    channel.gone("broken");
    this.#whenEmpty();
  }

  onWritten(): void {
    this.#writtenBytes = this.#writes.shift() ?? this.#writtenBytes;
    let done = 0;
    for (const { atBytes, resolve } of this.#waiters) {
      if (atBytes > this.#writtenBytes) break;
      resolve();
      done++;
    }
    if (done > 0) this.#waiters.splice(0, done);
    if (this.#turns.size > 0) this.#flush();
  }

  onGone(why: Gone): void {
    if (this.#isOver) return;
    this.#stop();
    // a link whose trunk was at fault may go on over another one
    this.#endChannels(why === "refused" ? "refused" : "broken");
    this.#options.onGone(why);
  }

  /** What a channel's sink throws is the channel's (`Channel.deliver`): here is what the trunk itself does. */
  onThrown(error: unknown): void {
    this.#options.onBroken(error);
    this.destroy();
  }

  #stop(): void {
    this.#isOver = true;
    this.#connection.sink = NOBODY;
    for (const { resolve } of this.#waiters) resolve();
    this.#waiters = [];
    this.#turns.clear();
    this.#out = [];
  }

  #endChannels(why: Gone): void {
    const channels = [...this.#channels, ...this.#wanted];
    this.#channels.length = 0;
    this.#wanted.clear();
    for (const channel of channels) if (channel instanceof Channel) channel.gone(why);
  }

  #fault(): void {
    this.#connection.destroy();
    this.onGone("fault");
  }

  // ---- channels

  #openWanted(): void {
    if (!this.#isReady || this.#isOver) return;
    for (const channel of this.#wanted) {
      if (this.#opening >= OPENING_MAX) return;
      this.#wanted.delete(channel);
      const number = this.#free.pop() ?? this.#channels.length;
      assert(this.#channels[number] === undefined, "a number is one channel's");
      this.#channels[number] = channel;
      channel.number = number;
      this.#openChannels++;
      this.#opening++;
      this.#frame(number, frame(FRAME.open));
    }
  }

  /** Acceptor. Numbers have no gaps, so that they cost no more than there are channels. */
  #opened(number: number): void {
    const { onOpen, channelsMax } = this.#options;
    const isFree = this.#channels[number] === undefined && number <= this.#channels.length;
    const isTooMany = number >= channelsMax || this.#opening >= OPENED_MAX;
    if (onOpen === null || !isFree || isTooMany) {
      this.#fault();
      return;
    }
    const channel = new Channel(this, NOBODY);
    channel.number = number;
    this.#channels[number] = channel;
    this.#openChannels++;
    this.#opening++;
    if (this.#isRetired) channel.destroy();
    else onOpen(channel);
  }

  /** Ours is said; the number is free when theirs is. */
  #leave(channel: Channel, number: number): void {
    if (this.#channels[number] !== channel) return;
    this.#channels[number] = CLOSING;
    this.#openChannels--;
    this.#closingChannels++;
    this.#openWanted();
    this.#whenEmpty();
  }

  #release(number: number): void {
    this.#channels[number] = undefined;
    // the acceptor is told which is next
    if (this.#options.onOpen === null) this.#free.push(number);
    this.#openWanted();
  }

  #whenEmpty(): void {
    if (this.#isOver || this.links > 0) return;
    if (this.#isRetired) this.end();
    else this.#options.onEmpty();
  }

  #dropQueue(channel: Channel): void {
    for (const { bytes, isData } of channel.queue ?? []) if (!isData) this.#waitingBytes -= bytes.length;
    channel.queue = null;
    channel.queuedBytes = 0;
    this.#turns.delete(channel);
  }

  // ---- sending

  get #room(): number {
    return ROOM_BYTES - this.#outBytes - this.#connection.queuedBytes;
  }

  #frame(number: number, bytes: Buffer): void {
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
    if (this.#isOverfull) this.#fault();
    else this.#flush();
  };

  #flush(): void {
    this.#serve();
    this.#cut();
    if (this.#out.length === 0) return;
    const out = this.#out;
    this.#out = [];
    this.#outBytes = 0;
    this.#writes.push(this.#framedBytes);
    this.#connection.writeAll(out);
  }

  /** Those that wait, in turn, while there is room. */
  #serve(): void {
    for (const channel of this.#turns) {
      if (this.#room <= 0) return;
      this.#turns.delete(channel);
      this.#serveOne(channel);
    }
  }

  #serveOne(channel: Channel): void {
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
        this.#frame(number, part);
      }
      if (part.length < bytes.length) next.bytes = bytes.subarray(part.length);
      else queue.shift();
    }
    if (queue !== null && queue.length > 0) {
      this.#turns.add(channel);
    } else {
      channel.queue = null;
      if (!channel.isOpen) {
        this.#leave(channel, number);
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
