/**
 * Calls and events over any duplex stream: the Unix socket to a proxy, the TLS stream between agents.
 *
 * Frames are those of `frames.ts`.
 *
 * Order: frames are looked at in arrival order. An event whose handler returns a promise stops everything behind it,
 * the stream included, until the promise settles: a receiver that writes to disk is never flooded, and a call sent
 * after events runs after them. Calls run side by side. So an event handler must not await a call on its own channel:
 * the reply would wait behind the event.
 *
 * Whatever the peer sends, nothing throws: a frame that cannot be understood closes the channel (`CHANNEL_PROTOCOL`),
 * and lengths are checked before a byte is allocated for them. Authentication is the stream's business.
 */
import { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { fail } from "./error-codes.ts";
import { type ErrorSource, HoldfastError, messageOf } from "./errors.ts";
import { type Frame, FrameReader, frameHead, protocolError } from "./frames.ts";

export interface Reply {
  result?: unknown;
  body?: Buffer | Buffer[];
}

// biome-ignore lint/suspicious/noConfusingVoidType: a handler with nothing to say needs no `return undefined`.
type Nothing = void;
type Outcome = Promise<Reply | Nothing> | Reply | Nothing;

/**
 * Handlers may name the type they expect (`(params: Hold) => …`); that is an assumption about the peer. Where the peer
 * is not one of our own processes, wrap it in {@link checked}.
 */
export type Handler = {
  handle(params: unknown, body: Buffer): Outcome;
}["handle"];

export interface ChannelOptions {
  /** for error messages: "agent b", "proxy chat" */
  name?: string;
  headerBytesMax?: number;
  bodyBytesMax?: number;
  /** calls of the peer being worked on, or answered and not yet read; one more closes the channel */
  callsMax?: number;
  handlers?: Record<string, Handler>;
}

export interface CallOptions {
  body?: Buffer | Buffer[];
  timeoutMs?: number;
  signal?: AbortSignal;
}

const HEADER_BYTES_MAX = 16 * 1024 * 1024;
const BODY_BYTES_MAX = 256 * 1024 * 1024;
const CALLS_MAX = 4096;
/** after `close()`: how long the peer may take to read what was already sent */
const CLOSE_MS_MAX = 2_000;

const SOURCES = {
  downstream: true,
  upstream: true,
  link: true,
  kernel: true,
  criu: true,
  container: true,
  store: true,
  peer: true,
  config: true,
  migration: true,
} satisfies Record<ErrorSource, true>;

interface PendingCall {
  resolve(value: { result: unknown; body: Buffer }): void;
  reject(error: HoldfastError): void;
  /** forget the timer and the abort listener */
  settle(): void;
}

/** A handler that only sees parameters its schema (zod or alike) accepts; others are answered `CHANNEL_PARAMS`. */
export function checked<T>(
  schema: { parse(value: unknown): T },
  handler: (params: T, body: Buffer) => Outcome,
): Handler {
  return (params, body) => {
    let good: T;
    try {
      good = schema.parse(params);
    } catch (cause) {
      throw fail("CHANNEL_PARAMS", `parameters refused: ${messageOf(cause)}`, { cause });
    }
    return handler(good, body);
  };
}

export class Channel {
  readonly #stream: Duplex;
  readonly #name: string;
  readonly #headerBytesMax: number;
  readonly #bodyBytesMax: number;
  readonly #callsMax: number;
  readonly #handlers = new Map<string, Handler>();
  readonly #pending = new Map<number, PendingCall>();
  readonly #reader: FrameReader;
  #nextId = 1;
  #callsInHand = 0;
  #open = true;
  /** an event handler's promise is pending */
  #busy = false;
  #ended = false;
  #finished = false;
  #drained: { promise: Promise<void>; resolve(): void; reject(error: HoldfastError): void } | null = null;

  /** Resolves when the channel is over: null for an orderly end, else why. Never rejects. */
  readonly closed: Promise<HoldfastError | null>;
  readonly #resolveClosed: (reason: HoldfastError | null) => void;

  constructor(stream: Duplex, options: ChannelOptions = {}) {
    this.#stream = stream;
    this.#name = options.name ?? "peer";
    this.#headerBytesMax = options.headerBytesMax ?? HEADER_BYTES_MAX;
    this.#bodyBytesMax = options.bodyBytesMax ?? BODY_BYTES_MAX;
    this.#callsMax = options.callsMax ?? CALLS_MAX;
    this.#reader = new FrameReader(this.#headerBytesMax, this.#bodyBytesMax);
    for (const [method, handler] of Object.entries(options.handlers ?? {}))
      this.#handlers.set(method, handler);
    const closed = Promise.withResolvers<HoldfastError | null>();
    this.closed = closed.promise;
    this.#resolveClosed = closed.resolve;

    // A frame is written as one piece: Nagle would only hold back its tail.
    if (stream instanceof Socket) stream.setNoDelay(true);
    stream.on("data", this.#onData);
    stream.on("drain", this.#onDrain);
    stream.on("end", this.#onEnd);
    stream.on("error", this.#onError);
    stream.on("close", this.#onClose);
    if (stream.destroyed) queueMicrotask(this.#onClose);
  }

  get isOpen(): boolean {
    return this.#open;
  }

  /** Register before the peer may use it: with the constructor, or in the same turn. */
  on(method: string, handler: Handler): void {
    this.#handlers.set(method, handler);
  }

  /**
   * @throws HoldfastError what the peer's handler threw, or `CHANNEL_CLOSED` (retryable; the peer may or may not have
   * acted), `CHANNEL_TIMEOUT` (likewise), `CHANNEL_ABORTED`, `CHANNEL_TOO_LARGE` (not sent).
   */
  call<T>(method: string, params: object, options: CallOptions = {}): Promise<{ result: T; body: Buffer }> {
    if (!this.#open) return Promise.reject(this.#closedError());
    if (options.signal?.aborted) return Promise.reject(this.#abortedError(method, options.signal));
    const { promise, resolve, reject } = Promise.withResolvers<{ result: T; body: Buffer }>();
    const id = this.#nextId++;
    const { timeoutMs, signal } = options;
    const giveUp = (error: HoldfastError) => {
      if (!this.#pending.delete(id)) return;
      settle();
      reject(error);
    };
    const timer =
      timeoutMs === undefined
        ? undefined
        : setTimeout(() => giveUp(this.#timeoutError(method, timeoutMs)), timeoutMs);
    const onAbort = signal && (() => giveUp(this.#abortedError(method, signal)));
    if (signal && onAbort) signal.addEventListener("abort", onAbort);
    const settle = () => {
      clearTimeout(timer);
      if (signal && onAbort) signal.removeEventListener("abort", onAbort);
    };
    this.#pending.set(id, { resolve: resolve as PendingCall["resolve"], reject, settle });
    try {
      this.#write({ k: "call", id, m: method, p: params }, options.body);
    } catch (error) {
      giveUp(asHoldfastError(error));
    }
    return promise;
  }

  /** One way. Resolves when the stream can take more: await it, and the sender goes at the receiver's pace. */
  async send(method: string, params: object, body?: Buffer | Buffer[]): Promise<void> {
    if (!this.#open) throw this.#closedError();
    if (!this.#write({ k: "event", m: method, p: params }, body)) {
      this.#drained ??= Promise.withResolvers<void>();
      await this.#drained.promise;
    }
  }

  /** What was written is still delivered; what arrives is dropped; pending calls reject with `CHANNEL_CLOSED`. */
  close(): void {
    if (!this.#open) return;
    this.#giveUp(this.#closedError());
    this.#stream.end();
    this.#stream.resume();
    const timer = setTimeout(() => this.#stream.destroy(), CLOSE_MS_MAX);
    timer.unref();
    this.#stream.once("close", () => clearTimeout(timer));
    this.#stream.once("end", () => this.#stream.destroy());
    if (this.#ended) this.#stream.once("finish", () => this.#stream.destroy());
    this.#finish(null);
  }

  readonly #onData = (chunk: Buffer) => {
    if (!this.#open) return;
    this.#reader.feed(chunk);
    if (!this.#busy) this.#work();
  };

  readonly #onDrain = () => {
    this.#drained?.resolve();
    this.#drained = null;
  };

  readonly #onEnd = () => {
    this.#ended = true;
    if (!this.#busy) this.#finishEnded();
  };

  readonly #onError = (cause: Error) => {
    this.#fail(fail("CHANNEL_CLOSED", `connection to ${this.#name} lost: ${messageOf(cause)}`, { cause }));
  };

  readonly #onClose = () => {
    // After an orderly end, frames that wait behind a slow event handler are still to be worked on.
    if (this.#ended && this.#busy) return;
    if (this.#ended) this.#finishEnded();
    else this.#fail(this.#closedError());
  };

  /** Handles complete frames until there are none, or an event handler makes us wait. */
  #work(): void {
    while (this.#open) {
      let frame: Frame | null;
      try {
        frame = this.#reader.next();
      } catch (error) {
        this.#fail(asHoldfastError(error));
        return;
      }
      if (frame === null) break;
      const waiting = this.#dispatch(frame);
      if (waiting !== null) {
        this.#busy = true;
        this.#stream.pause();
        void waiting.then(() => {
          this.#busy = false;
          this.#work();
          if (!this.#busy) this.#stream.resume();
        });
        return;
      }
    }
    if (this.#ended) this.#finishEnded();
  }

  /** A promise (that never rejects) when what follows has to wait. */
  #dispatch(frame: Frame): Promise<void> | null {
    switch (frame.kind) {
      case "call":
        this.#answer(frame);
        return null;
      case "event":
        return this.#runEvent(frame);
      case "reply":
      case "error": {
        if (frame.id >= this.#nextId) {
          this.#fail(protocolError(`an answer to call ${frame.id}, which was never made`));
          return null;
        }
        const call = this.#pending.get(frame.id);
        // Absent: it timed out or was aborted here.
        if (call === undefined) return null;
        this.#pending.delete(frame.id);
        call.settle();
        if (frame.kind === "reply") call.resolve({ result: frame.params, body: frame.body });
        else call.reject(errorFromWire(frame.params, this.#name));
        return null;
      }
    }
  }

  #runEvent(frame: Frame): Promise<void> | null {
    const handler = this.#handlers.get(frame.method);
    if (handler === undefined) {
      this.#fail(
        protocolError(`event ${JSON.stringify(frame.method.slice(0, 80))}, which is not known here`),
      );
      return null;
    }
    // Nobody waits for an event's outcome: a handler that fails ends the channel, and `closed` tells why.
    try {
      const outcome = handler(frame.params, frame.body);
      if (!(outcome instanceof Promise)) return null;
      return outcome.then(
        () => undefined,
        (error) => this.#fail(asHoldfastError(error)),
      );
    } catch (error) {
      this.#fail(asHoldfastError(error));
      return null;
    }
  }

  #answer(frame: Frame): void {
    if (this.#callsInHand >= this.#callsMax) {
      this.#fail(protocolError(`more than ${this.#callsMax} calls at once`));
      return;
    }
    this.#callsInHand += 1;
    const { id, method } = frame;
    const handler = this.#handlers.get(method);
    if (handler === undefined) {
      this.#replyError(
        id,
        fail(
          "CHANNEL_METHOD",
          `method ${JSON.stringify(method.slice(0, 80))} is not known: is the peer a newer version?`,
        ),
      );
      return;
    }
    try {
      const outcome = handler(frame.params, frame.body);
      if (outcome instanceof Promise) {
        outcome.then(
          (reply) => this.#reply(id, reply),
          (error) => this.#replyError(id, error),
        );
      } else this.#reply(id, outcome);
    } catch (error) {
      this.#replyError(id, error);
    }
  }

  readonly #onAnswered = () => {
    this.#callsInHand -= 1;
  };

  #reply(id: number, reply: Reply | Nothing): void {
    if (!this.#open) return;
    try {
      this.#write({ k: "reply", id, p: reply?.result }, reply?.body, this.#onAnswered);
    } catch (error) {
      this.#replyError(id, error);
    }
  }

  #replyError(id: number, error: unknown): void {
    if (!this.#open) return;
    const plain = asHoldfastError(error).toJSON();
    this.#write(
      { k: "error", id, p: { ...plain, message: plain.message.slice(0, 4096) } },
      undefined,
      this.#onAnswered,
    );
  }

  /** False when the stream wants a pause. @throws HoldfastError `CHANNEL_TOO_LARGE`, `INTERNAL` (not JSON) */
  #write(header: object, body?: Buffer | Buffer[], onWritten?: () => void): boolean {
    const json = JSON.stringify(header);
    const headerBytes = Buffer.byteLength(json);
    const parts = body === undefined ? [] : Array.isArray(body) ? body : [body];
    let bodyBytes = 0;
    for (const part of parts) bodyBytes += part.length;
    if (headerBytes > this.#headerBytesMax || bodyBytes > this.#bodyBytesMax) {
      throw fail(
        "CHANNEL_TOO_LARGE",
        `a frame of ${headerBytes} + ${bodyBytes} bytes to ${this.#name} is too large (at most ${this.#headerBytesMax} + ${this.#bodyBytesMax}): split it`,
      );
    }
    const head = frameHead(json, headerBytes, bodyBytes);
    const stream = this.#stream;
    if (bodyBytes === 0) return stream.write(head, onWritten);
    // Corked, the parts leave in one writev and nothing is joined in user space.
    stream.cork();
    let ready = stream.write(head);
    const last = parts.length - 1;
    for (const [index, part] of parts.entries())
      ready = stream.write(part, index === last ? onWritten : undefined);
    stream.uncork();
    return ready && !stream.writableNeedDrain;
  }

  #finishEnded(): void {
    if (!this.#open) return;
    if (this.#reader.atBoundary) {
      this.#giveUp(this.#closedError());
      this.#stream.end();
      this.#finish(null);
    } else {
      this.#fail(fail("CHANNEL_CLOSED", `connection to ${this.#name} ended in the middle of a frame`));
    }
  }

  #fail(reason: HoldfastError): void {
    if (!this.#open) return;
    this.#giveUp(reason.code === "CHANNEL_CLOSED" ? reason : this.#closedError(reason));
    this.#stream.destroy();
    this.#finish(reason);
  }

  #giveUp(error: HoldfastError): void {
    this.#open = false;
    const calls = [...this.#pending.values()];
    this.#pending.clear();
    for (const call of calls) {
      call.settle();
      call.reject(error);
    }
    this.#drained?.reject(error);
    this.#drained = null;
  }

  #finish(reason: HoldfastError | null): void {
    if (this.#finished) return;
    this.#finished = true;
    this.#resolveClosed(reason);
  }

  #closedError(cause?: HoldfastError): HoldfastError {
    const why = cause === undefined ? "" : `: ${cause.message}`;
    return fail("CHANNEL_CLOSED", `connection to ${this.#name} is closed${why}`, { cause });
  }

  #timeoutError(method: string, timeoutMs: number): HoldfastError {
    return fail("CHANNEL_TIMEOUT", `${this.#name} did not answer "${method}" within ${timeoutMs} ms`);
  }

  #abortedError(method: string, signal: AbortSignal): HoldfastError {
    return fail("CHANNEL_ABORTED", `"${method}" to ${this.#name} was given up: ${messageOf(signal.reason)}`, {
      cause: signal.reason,
    });
  }
}

export function asHoldfastError(error: unknown): HoldfastError {
  if (error instanceof HoldfastError) return error;
  return fail("INTERNAL", messageOf(error), { cause: error });
}

/** The peer's error as our own class; fields it got wrong are replaced, never trusted. */
export function errorFromWire(value: unknown, name: string): HoldfastError {
  const fields: Record<string, unknown> = isRecord(value) ? value : {};
  const { code, source, retryable, message } = fields;
  return new HoldfastError(typeof message === "string" ? message : `${name} failed and did not say why`, {
    code: typeof code === "string" && /^[A-Z][A-Z0-9_]{0,63}$/.test(code) ? code : "INTERNAL",
    source: typeof source === "string" && Object.hasOwn(SOURCES, source) ? (source as ErrorSource) : "peer",
    retryable: retryable === true,
  });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
