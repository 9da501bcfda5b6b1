/** A client of test/apps/echo (counted) that sends as fast as it may and checks every byte that comes back. */
import type { Socket } from "node:net";

export class CountedClient {
  readonly socket: Socket;
  sentBytes = 0;
  answeredBytes = 0;
  /** why it is over: "end" after the application's FIN, an error code, null while it lives */
  over: string | null = null;
  corruptAt = -1;
  readonly #windowBytes: number;
  readonly #chunkBytes: number;
  readonly #seed: number;
  #sending = false;
  #waiters: (() => void)[] = [];

  constructor(socket: Socket, options: { seed: number; chunkBytes?: number; windowBytes?: number }) {
    this.socket = socket;
    this.#seed = options.seed;
    this.#chunkBytes = options.chunkBytes ?? 1024;
    this.#windowBytes = options.windowBytes ?? 64 * 1024;
    socket.on("data", (bytes) => this.#check(bytes as Buffer));
    socket.on("end", () => this.#end("end"));
    socket.on("error", (error: NodeJS.ErrnoException) => this.#end(error.code ?? error.message));
    socket.on("close", () => this.#end("close"));
  }

  #end(reason: string): void {
    this.over ??= reason;
    this.#sending = false;
    this.#wake();
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }

  #byte(at: number): number {
    return (at * 31 + this.#seed * 17 + (at >>> 8)) & 0xff;
  }

  #check(bytes: Buffer): void {
    for (let i = 0; i < bytes.length && this.corruptAt < 0; i++) {
      const at = this.answeredBytes + i;
      if (((bytes[i] as number) ^ ((at ^ (at >>> 8) ^ (at >>> 16)) & 0xff)) !== this.#byte(at))
        this.corruptAt = at;
    }
    this.answeredBytes += bytes.length;
    if (this.#sending) this.#fill();
    this.#wake();
  }

  send(bytes: number): void {
    const chunk = Buffer.allocUnsafe(bytes);
    for (let i = 0; i < bytes; i++) chunk[i] = this.#byte(this.sentBytes + i);
    this.sentBytes += bytes;
    this.socket.write(chunk);
  }

  /** Keeps the window full until `stop`. */
  run(): void {
    this.#sending = true;
    this.#fill();
  }

  #fill(): void {
    while (this.#sending && this.sentBytes - this.answeredBytes + this.#chunkBytes <= this.#windowBytes) {
      this.send(this.#chunkBytes);
    }
  }

  stop(): void {
    this.#sending = false;
  }

  async until(done: () => boolean): Promise<void> {
    while (!done()) {
      if (this.over !== null) {
        throw new Error(
          `client over (${this.over}): ${this.answeredBytes} of ${this.sentBytes} bytes answered`,
        );
      }
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
    if (this.corruptAt >= 0) throw new Error(`byte ${this.corruptAt} is wrong`);
  }

  /** Why it is over, at the latest after it is. */
  async untilOver(): Promise<string> {
    while (this.over === null) await new Promise<void>((resolve) => this.#waiters.push(resolve));
    return this.over;
  }

  /** Everything sent was answered, each byte right. */
  settled(): Promise<void> {
    this.stop();
    return this.until(() => this.answeredBytes === this.sentBytes || this.corruptAt >= 0);
  }

  /** `more` further bytes are answered: the session is alive. */
  async progress(more = 10_000): Promise<void> {
    const goal = this.answeredBytes + more;
    this.run();
    await this.until(() => this.answeredBytes >= goal || this.corruptAt >= 0);
  }
}
