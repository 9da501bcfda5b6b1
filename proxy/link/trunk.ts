/**
 * A trunk: one connection that carries many links of two proxies, each on a channel of its own (ARCHITECTURE, "Trunks"). Here is what
 * both its ends do about the channels; who dials one, and when, is `trunks.ts`, and in which turn they send `trunk-sending.ts`.
 */
import assert from "node:assert/strict";
import { FRAME, type FrameType, frame } from "./link-codec.ts";
import { type ConnectionSink, type Gone, NOBODY, type SocketConnection } from "./link-connection.ts";
import { Channel, type ChannelTrunk } from "./trunk-channel.ts";
import { type SendingHost, TrunkSending } from "./trunk-sending.ts";

export const CHANNELS_MAX = 65_536;
/** Dialler: channels whose greeting is under way; others wait. Below what an acceptor lets greet at a time. */
const OPENING_MAX = 256;
/** Acceptor: no dialler has so many, so that one which never greets takes this from a proxy and no more. */
const OPENED_MAX = 2 * OPENING_MAX;
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

export class Trunk implements ConnectionSink, ChannelTrunk, SendingHost<Channel> {
  readonly #connection: TrunkConnection;
  readonly #options: TrunkOptions;
  readonly #sending: TrunkSending<Channel>;
  /** by number */
  readonly #channels: (Channel | typeof CLOSING | undefined)[] = [];
  /** numbers below `#channels.length` that are nobody's */
  readonly #free: number[] = [];
  /** dialler: not open yet */
  readonly #wanted = new Set<Channel>();
  #openChannels = 0;
  #closingChannels = 0;
  /** of the channels that are open, those whose greeting is under way */
  #opening = 0;
  #isReady = false;
  #isOver = false;
  #isRetired = false;
  #frames = 0;

  /** @param connect gives it the connection; greeted or not */
  constructor(connect: (sink: ConnectionSink) => TrunkConnection, options: TrunkOptions) {
    this.#options = options;
    this.#connection = connect(this);
    this.#sending = new TrunkSending<Channel>(this.#connection, this);
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
    this.#sending.stop();
    this.#options.onGone("broken");
  }

  /** What was written is still delivered. */
  end(): void {
    if (this.#isOver) return;
    this.#sending.flush();
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
    this.#sending.send(channel, bytes);
  }

  sendData(channel: Channel, part: Buffer): void {
    this.#sending.sendData(channel, part);
  }

  async flushed(channel: Channel): Promise<void> {
    await this.#sending.flushed(channel);
    // its last link may have ended it, this one's frames included
    if (this.#isOver) await this.#connection.flushed();
  }

  closed(channel: Channel, now: boolean): void {
    if (this.#isOver) return;
    const { number } = channel;
    if (number < 0) {
      this.#wanted.delete(channel);
      this.#whenEmpty();
      return;
    }
    if (now) this.#sending.drop(channel);
    this.send(channel, CLOSE_FRAME);
    // what it queued is sent first
    if (channel.queue === null) this.finished(channel);
  }

  // ---- for what it sends

  /** Its CLOSE is said; the number is free when theirs is. */
  finished(channel: Channel): void {
    const { number } = channel;
    if (this.#channels[number] !== channel) return;
    this.#channels[number] = CLOSING;
    this.#openChannels--;
    this.#closingChannels++;
    this.#openWanted();
    this.#whenEmpty();
  }

  overfull(): void {
    this.#fault();
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
    this.#sending.drop(channel);
    this.#sending.frame(number, CLOSE_FRAME);
    this.#openChannels--;
    this.#release(number);
    channel.gone("broken");
    this.#whenEmpty();
  }

  onWritten(): void {
    this.#sending.onWritten();
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
    this.#sending.stop();
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
      this.#sending.frame(number, frame(FRAME.open));
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
}
