/**
 * Raw TCP clients for test/apps/echo (counted): each sends a pattern of bytes of its own and checks every byte that
 * comes back. Once bytes are wrong there is no telling lost from repeated: the client counts as corrupt.
 * Started by load.ts inside the clients' network namespace; see protocol.ts.
 */
import { connect as connectSocket, type Socket } from "node:net";
import { Connection, type LoadClient, noteProblem, opened, runLoad, type Tally } from "./clients.ts";
import { GapMeter } from "./gaps.ts";
import type { LoadOptions } from "./protocol.ts";

class EchoClient implements LoadClient {
  readonly gaps = new GapMeter(performance.now());
  readonly #index: number;
  readonly #socket: Socket;
  readonly #options: LoadOptions;
  readonly #tally: Tally;
  readonly #connection: Connection;
  #corrupt = false;
  #sentBytes = 0;
  #answeredBytes = 0;

  constructor(index: number, socket: Socket, options: LoadOptions, tally: Tally) {
    this.#index = index;
    this.#socket = socket;
    this.#options = options;
    this.#tally = tally;
    const connection = new Connection(`client ${index}`, tally);
    this.#connection = connection;
    socket.on("data", (bytes: Buffer) => this.#answer(bytes));
    socket.on("error", (error) => connection.gone(error.message));
    socket.on("end", () => connection.gone("ended by the server"));
    socket.on("close", () => connection.gone("closed"));
  }

  get alive(): boolean {
    return this.#connection.isThere;
  }

  get unanswered(): number {
    return this.#corrupt ? 0 : this.#sentBytes - this.#answeredBytes;
  }

  tick(): void {
    const { chunkBytes, windowBytes } = this.#options;
    if (this.unanswered + chunkBytes > windowBytes) return;
    const chunk = Buffer.allocUnsafe(chunkBytes);
    for (let i = 0; i < chunkBytes; i++) chunk[i] = this.#pattern(this.#sentBytes + i);
    this.#sentBytes += chunkBytes;
    this.#socket.write(chunk);
  }

  pauseReading(): void {
    this.#socket.pause();
  }

  resumeReading(): void {
    this.#socket.resume();
  }

  close(): Promise<void> {
    this.#connection.closes();
    return new Promise((done) => {
      if (this.#socket.destroyed) return done();
      this.#socket.once("close", () => done());
      this.#socket.end();
    });
  }

  /** No period that is a power of two, different for each client. */
  #pattern(position: number): number {
    return (position * 7 + (position >>> 8) * 13 + this.#index) & 0xff;
  }

  #answer(bytes: Buffer): void {
    this.gaps.answer(performance.now());
    this.#tally.messages += 1;
    if (this.#corrupt) return;
    for (let i = 0; i < bytes.length; i++) {
      const position = this.#answeredBytes + i;
      const key = (position ^ (position >>> 8) ^ (position >>> 16)) & 0xff;
      if (bytes[i] === (this.#pattern(position) ^ key)) continue;
      this.#corrupt = true;
      this.#tally.corrupt += 1;
      noteProblem(this.#tally, `client ${this.#index}: wrong byte at ${position}`);
      return;
    }
    this.#answeredBytes += bytes.length;
    if (this.#answeredBytes > this.#sentBytes) {
      this.#tally.repeated += this.#answeredBytes - this.#sentBytes;
      this.#corrupt = true;
      noteProblem(
        this.#tally,
        `client ${this.#index}: ${this.#answeredBytes} bytes back, ${this.#sentBytes} sent`,
      );
    }
  }
}

async function connect(index: number, options: LoadOptions, tally: Tally): Promise<LoadClient> {
  const socket = connectSocket({ host: options.target.address, port: options.target.port, noDelay: true });
  await opened(socket, { index, event: "connect" });
  return new EchoClient(index, socket, options, tally);
}

await runLoad(connect);
process.exit(0);
