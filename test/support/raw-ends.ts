/**
 * The two raw TCP ends around a proxy that a test looks at byte by byte: what each received, and how it came to its end.
 * Nothing here knows a protocol. Every wait is for an event and has a bound.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

const WAIT_MS_MAX = 10_000;

/** `promise`, or a rejection that says what did not happen. */
export async function within<T>(what: string, promise: Promise<T>, msMax = WAIT_MS_MAX): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`not within ${msMax} ms: ${what}`)), msMax);
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** One end of a connection, that keeps what it receives. */
export class RawEnd {
  readonly socket: Socket;
  receivedBytes = 0;
  /** false: what it receives is only counted */
  keeps = true;
  /** "end" after a FIN, a system error's code after a failure (ECONNRESET after a RST), null as long as it is open */
  over: string | null = null;
  #chunks: Buffer[] = [];
  #changed = Promise.withResolvers<void>();

  constructor(socket: Socket) {
    this.socket = socket;
    const finish = (over: string): void => {
      this.over ??= over;
      this.#signal();
    };
    socket.on("data", (chunk: Buffer) => {
      if (this.keeps) this.#chunks.push(chunk);
      this.receivedBytes += chunk.length;
      this.#signal();
    });
    socket.on("drain", () => this.#signal());
    socket.on("end", () => finish("end"));
    socket.on("error", (error: NodeJS.ErrnoException) => finish(error.code ?? error.message));
    socket.on("close", () => finish("close"));
  }

  static async dial(port: number): Promise<RawEnd> {
    const socket = connect({ host: "127.0.0.1", port, allowHalfOpen: true, noDelay: true });
    const end = new RawEnd(socket);
    await once(socket, "connect");
    return end;
  }

  #signal(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  get received(): Buffer {
    if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)];
    return this.#chunks[0] ?? Buffer.alloc(0);
  }

  /** Looks again after each byte and each end, until `done`. */
  async until(what: string, done: () => boolean): Promise<void> {
    while (!done())
      await within(`${what}; ${this.receivedBytes} bytes, ${this.over ?? "open"}`, this.#changed.promise);
  }

  /** At least so many bytes, or its end. */
  async has(bytes: number): Promise<void> {
    await this.until(`${bytes} bytes`, () => this.receivedBytes >= bytes || this.over !== null);
  }

  /** How it ends. */
  async ending(): Promise<string> {
    await this.until("its end", () => this.over !== null);
    return this.over ?? "";
  }

  /** Sends `bytes` in parts of these lengths; `between` is awaited after each with the count sent so far. */
  async send(
    bytes: Buffer,
    lengths: number[],
    between?: (sentBytes: number) => Promise<void>,
  ): Promise<void> {
    let at = 0;
    for (const length of lengths) {
      if (length === 0) continue;
      if (!this.socket.write(bytes.subarray(at, at + length)) && this.over === null)
        await this.until("drain", () => !this.socket.writableNeedDrain || this.over !== null);
      at += length;
      await between?.(at);
    }
    assert.equal(at, bytes.length, "the parts are the whole");
  }

  destroy(): void {
    this.socket.destroy();
  }
}

/** A raw TCP application whose connections are handed out in the order they arrive. */
export class RawApplication {
  readonly #server: Server;
  readonly #arrived: RawEnd[] = [];
  readonly #waiting: ((end: RawEnd) => void)[] = [];
  /** takes connections in place of `accept` */
  onFurther: ((end: RawEnd) => void) | null = null;
  /** accepted since the start */
  connections = 0;

  private constructor(server: Server) {
    this.#server = server;
    server.on("connection", (socket) => {
      const end = new RawEnd(socket);
      this.connections++;
      if (this.onFurther !== null) {
        this.onFurther(end);
        return;
      }
      const taker = this.#waiting.shift();
      if (taker === undefined) this.#arrived.push(end);
      else taker(end);
    });
  }

  static async start(): Promise<RawApplication> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    const application = new RawApplication(server);
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return application;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** The next connection that nobody has taken yet. */
  async accept(): Promise<RawEnd> {
    const next = this.#arrived.shift();
    if (next !== undefined) return next;
    const { promise, resolve } = Promise.withResolvers<RawEnd>();
    this.#waiting.push(resolve);
    return await within("a connection to the application", promise);
  }

  close(): void {
    this.#server.close();
    for (const end of this.#arrived) end.destroy();
  }
}
