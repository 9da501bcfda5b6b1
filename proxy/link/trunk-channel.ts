/** A link's channel on a trunk (`trunk.ts`): to the link it is a connection. */
import type { FrameType } from "./link-codec.ts";
import type { ConnectionSink, Gone, LinkConnection } from "./link-connection.ts";
import { QUEUED_BYTES_MAX, type Queued, type SendingChannel } from "./trunk-sending.ts";

/** of a channel: from when it is wanted */
const GREETING_MS_MAX = 5_000;

/** The trunk that it is on. */
export interface ChannelTrunk {
  readonly progress: number;
  readonly fd: number;
  /** One of its channels' greetings is over. */
  greeted(): void;
  /** @param bytes a frame, whole */
  send(channel: Channel, bytes: Buffer): void;
  sendData(channel: Channel, part: Buffer): void;
  flushed(channel: Channel): Promise<void>;
  doubt(): void;
  /** It is over at this end. @param now nothing that it queued is sent any more */
  closed(channel: Channel, now: boolean): void;
}

/** Nothing is written on it before it is open: its acceptor speaks first. */
export class Channel implements LinkConnection, SendingChannel {
  readonly #trunk: ChannelTrunk;
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

  constructor(trunk: ChannelTrunk, sink: ConnectionSink) {
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
