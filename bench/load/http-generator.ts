/**
 * The generator of HTTP/1.1 requests on connections that are kept alive: open loop, on a schedule (request i is due at
 * i / rate, and its latency counts from then, so a stall of the server is seen by every request that was due in it), or
 * closed loop. One request a connection at a time. A connection that fails is not opened again: it is an error, and the
 * figures of that run are void.
 *
 * Answers must have a Content-Length: the application sends one, and every peer passes it on.
 */
import net from "node:net";
import { build, type Histogram } from "hdr-histogram-js";
import type { HttpLoad, HttpReport, Percentiles } from "./http-load.ts";
import { Pacer } from "./pacer.ts";
import { serve } from "./program.ts";

const OPEN_MS_MAX = 10_000;
const DRAIN_MS_MAX = 2_000;
const READ_BYTES = 16 * 1024;
const HEAD_BYTES_MAX = 8 * 1024;
const LATENCY_US_MAX = 600_000_000;
const REQUEST = Buffer.from("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");

interface Listener {
  onAnswer(connection: Connection): void;
  onFailure(why: string): void;
}

class Connection {
  readonly #socket: net.Socket;
  readonly #listener: Listener;
  /** when its request was due; NaN: it has none */
  dueMs = Number.NaN;
  #head = "";
  #bodyBytesLeft = 0;
  #failed = false;

  constructor(port: number, listener: Listener) {
    this.#listener = listener;
    this.#socket = net.connect({
      host: "127.0.0.1",
      port,
      noDelay: true,
      onread: {
        buffer: Buffer.allocUnsafeSlow(READ_BYTES),
        callback: (bytes, buffer) => {
          this.#read((buffer as Buffer).toString("latin1", 0, bytes));
          return true;
        },
      },
    });
    this.#socket.on("error", () => {}); // "close" follows
    this.#socket.once("close", () => this.#fail("a connection closed"));
  }

  get fd(): number {
    return (this.#socket as unknown as { _handle: { fd: number } })._handle.fd;
  }

  send(dueMs: number): void {
    this.dueMs = dueMs;
    this.#socket.write(REQUEST);
  }

  close(): void {
    this.#failed = true;
    this.#socket.destroy();
  }

  #read(text: string): void {
    if (this.#bodyBytesLeft > 0) {
      this.#bodyBytesLeft -= text.length;
    } else {
      this.#head += text;
      const end = this.#head.indexOf("\r\n\r\n");
      if (end < 0) {
        if (this.#head.length > HEAD_BYTES_MAX) this.#fail("a header without an end");
        return;
      }
      const length = /\r\ncontent-length: *(\d+)\r\n/i.exec(this.#head.slice(0, end + 2))?.[1];
      if (!this.#head.startsWith("HTTP/1.1 200 ") || length === undefined) {
        this.#fail(`not a 200 with a length: ${JSON.stringify(this.#head.slice(0, 60))}`);
        return;
      }
      this.#bodyBytesLeft = Number(length) - (this.#head.length - end - 4);
      this.#head = "";
    }
    if (this.#bodyBytesLeft < 0 || Number.isNaN(this.dueMs)) this.#fail("more bytes than were asked for");
    else if (this.#bodyBytesLeft === 0) this.#listener.onAnswer(this);
  }

  #fail(why: string): void {
    if (this.#failed) return;
    this.close();
    this.#listener.onFailure(why);
  }
}

class Run implements Listener {
  readonly #load: HttpLoad;
  readonly #connections: Connection[];
  /** without a request */
  readonly #free: Connection[] = [];
  readonly #latency = histogram();
  readonly #lateness = histogram();
  readonly #done = Promise.withResolvers<void>();
  #opening = Promise.withResolvers<void>();
  #opened = false;
  #startMs = 0;
  #endMs = Number.POSITIVE_INFINITY;
  #sent = 0;
  /** open loop: how many are due in the whole run, and which is sent next */
  #total = 0;
  #next = 0;
  /** … and those before this one had to wait for a connection: their delay is not the generator's */
  #starvedBefore = 0;
  #answered = 0;
  #answeredInTime = 0;
  #errors = 0;
  #problem: string | null = null;

  constructor(load: HttpLoad) {
    this.#load = load;
    this.#connections = Array.from({ length: load.connections }, () => new Connection(load.port, this));
  }

  async run(): Promise<HttpReport> {
    const { perSecond, seconds } = this.#load;
    try {
      // One each, so that the way through the peer to the application stands before the clock starts.
      for (const connection of this.#connections) this.#send(connection, performance.now());
      await within(this.#opening.promise, OPEN_MS_MAX);
      if (this.#free.length < this.#connections.length) {
        this.#problem ??= "connections that cannot be opened, or are not answered";
        this.#errors ||= this.#connections.length - this.#free.length;
        return this.#report();
      }
      this.#opened = true;
      this.#startMs = performance.now();
      this.#endMs = this.#startMs + seconds * 1000;
      if (perSecond === null) {
        for (const connection of this.#free.splice(0)) this.#send(connection, performance.now());
      } else {
        this.#total = Math.floor(perSecond * seconds);
        this.#onSchedule(new Pacer((this.#connections[0] as Connection).fd), perSecond);
      }
      await within(this.#done.promise, seconds * 1000 + DRAIN_MS_MAX);
      return this.#report();
    } finally {
      for (const connection of this.#connections) connection.close();
    }
  }

  onAnswer(connection: Connection): void {
    const nowMs = performance.now();
    this.#answered++;
    if (this.#opened) {
      this.#latency.recordValue(micros(nowMs - connection.dueMs));
      if (nowMs <= this.#endMs) this.#answeredInTime++;
    }
    connection.dueMs = Number.NaN;
    if (this.#opened && this.#load.perSecond === null && nowMs < this.#endMs) this.#send(connection, nowMs);
    else this.#free.push(connection);
    this.#settle(nowMs);
  }

  onFailure(why: string): void {
    this.#errors++;
    this.#problem ??= why;
    this.#settle(performance.now());
  }

  #send(connection: Connection, dueMs: number): void {
    this.#sent++;
    connection.send(dueMs);
  }

  #settle(nowMs: number): void {
    if (this.#free.length + this.#errors < this.#connections.length) return;
    if (!this.#opened) this.#opening.resolve();
    else if (this.#errors === this.#connections.length || (nowMs >= this.#endMs && this.#next >= this.#total))
      this.#done.resolve();
  }

  #onSchedule(pacer: Pacer, perSecond: number): void {
    const dueAt = (index: number): number => this.#startMs + (index * 1000) / perSecond;
    const turn = (): void => {
      let nowMs = performance.now();
      const due = Math.min(this.#total, Math.floor(((nowMs - this.#startMs) * perSecond) / 1000) + 1);
      while (this.#next < due && this.#free.length > 0) {
        const dueMs = dueAt(this.#next);
        if (this.#next >= this.#starvedBefore) this.#lateness.recordValue(micros(nowMs - dueMs));
        this.#next++;
        this.#send(this.#free.pop() as Connection, dueMs);
        nowMs = performance.now();
      }
      if (this.#next < due) this.#starvedBefore = due;
      this.#settle(nowMs);
      const overMs = this.#endMs + DRAIN_MS_MAX;
      if (nowMs >= overMs || this.#errors === this.#connections.length) return;
      if (
        nowMs >= this.#endMs &&
        this.#next === this.#total &&
        this.#free.length === this.#connections.length
      )
        return;
      const idle = this.#free.length > 0;
      pacer.sleepUntil(
        idle && this.#next < this.#total ? dueAt(this.#next) : nowMs < this.#endMs ? this.#endMs : overMs,
      );
      setImmediate(turn);
    };
    turn();
  }

  #report(): HttpReport {
    const nowMs = performance.now();
    const { perSecond, seconds } = this.#load;
    const waiting = this.#connections.filter(({ dueMs }) => !Number.isNaN(dueMs));
    for (const { dueMs } of waiting) this.#latency.recordValue(micros(nowMs - dueMs));
    for (let index = this.#next; index < this.#total; index++)
      this.#latency.recordValue(micros(nowMs - this.#startMs - (index * 1000) / (perSecond as number)));
    return {
      sent: this.#sent,
      answered: this.#answered,
      unanswered: waiting.length + this.#total - Math.min(this.#next, this.#total),
      errors: this.#errors,
      problem: this.#problem,
      perSecond: this.#answeredInTime / seconds,
      latencyUs: percentiles(this.#latency),
      latenessUs: percentiles(this.#lateness),
    };
  }
}

/** Resolves when it does, or when the time is over. */
async function within(event: Promise<void>, ms: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  await Promise.race([event, promise]);
  clearTimeout(timer);
}

function histogram(): Histogram {
  return build({
    lowestDiscernibleValue: 1,
    highestTrackableValue: LATENCY_US_MAX,
    numberOfSignificantValueDigits: 3,
  });
}

function micros(ms: number): number {
  return Math.max(1, Math.round(ms * 1000));
}

function percentiles(of: Histogram): Percentiles {
  const at = (percentile: number): number => (of.totalCount === 0 ? 0 : of.getValueAtPercentile(percentile));
  return { p50: at(50), p90: at(90), p99: at(99), p999: at(99.9), max: at(100) };
}

serve((load: HttpLoad) => new Run(load).run());
