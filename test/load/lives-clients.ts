/**
 * Clients for test/apps/lives that do not mind which life of it answers: every other one asks by HTTP over one keep-alive
 * connection (now and then by POST), the rest talk over a WebSocket. Each answer is checked. Started by load.ts.
 */
import { Client } from "undici";
import { WebSocket } from "ws";
import { endpointText } from "#proxy/contract/address.ts";
import { Connection, type LoadClient, noteProblem, opened, runLoad, type Tally } from "./clients.ts";
import { closeWebSocket } from "./close-websocket.ts";
import { GapMeter } from "./gaps.ts";
import type { LoadOptions } from "./protocol.ts";

const ANSWER_MS_MAX = 30_000;

class HttpClient implements LoadClient {
  readonly gaps = new GapMeter(performance.now());
  readonly #client: Client;
  readonly #tally: Tally;
  readonly #name: string;
  readonly #postEvery: number;
  readonly #connection: Connection;
  unanswered = 0;
  #count = 0;
  #connects = 0;

  constructor(name: string, origin: string, options: LoadOptions, tally: Tally) {
    this.#name = name;
    this.#postEvery = options.postEvery;
    this.#tally = tally;
    this.#connection = new Connection(name, tally);
    this.#client = new Client(origin, { headersTimeout: ANSWER_MS_MAX, bodyTimeout: ANSWER_MS_MAX });
    this.#client.on("connect", () => {
      if (++this.#connects > 1) this.#connection.gone("connected again");
    });
  }

  get alive(): boolean {
    return this.#connection.isThere;
  }

  tick(): void {
    if (this.unanswered === 0) void this.ask();
  }

  async ask(): Promise<void> {
    this.unanswered = 1;
    const path = `/${this.#name}/${++this.#count}`;
    const method = this.#postEvery > 0 && this.#count % this.#postEvery === 0 ? "POST" : "GET";
    try {
      const { statusCode, body } = await this.#client.request({
        path,
        method,
        body: method === "POST" ? path : null,
      });
      const answer = await body.text();
      this.unanswered = 0;
      this.gaps.answer(performance.now());
      this.#tally.messages += 1;
      if (statusCode === 200 && (JSON.parse(answer) as { path: string }).path === path) return;
      this.#tally.corrupt += 1;
      noteProblem(this.#tally, `${method} ${path}: ${statusCode} ${answer.trim()}`);
    } catch (error) {
      this.unanswered = 0;
      this.#connection.gone(error instanceof Error ? error.message : String(error));
    }
  }

  pauseReading(): void {}
  resumeReading(): void {}

  async close(): Promise<void> {
    await this.#client.close();
  }
}

class TalkClient implements LoadClient {
  readonly gaps = new GapMeter(performance.now());
  readonly #socket: WebSocket;
  readonly #window: number;
  readonly #connection: Connection;
  #sent = 0;
  #answered = 0;

  constructor(name: string, socket: WebSocket, options: LoadOptions, tally: Tally) {
    this.#socket = socket;
    this.#window = options.window;
    socket.on("message", (data) => {
      this.gaps.answer(performance.now());
      tally.messages += 1;
      const number = Number(String(data).split(" ")[1]);
      const skipped = number - this.#answered - 1;
      if (skipped > 0) tally.lost += skipped;
      else if (skipped < 0) tally.repeated += 1;
      if (skipped !== 0) noteProblem(tally, `${name}: ${number} after ${this.#answered}`);
      this.#answered = Math.max(this.#answered, number);
    });
    const connection = new Connection(name, tally);
    this.#connection = connection;
    socket.on("error", (error) => connection.gone(error.message));
    socket.on("close", (code) => connection.gone(`closed with ${code}`));
  }

  get alive(): boolean {
    return this.#connection.isThere;
  }

  get unanswered(): number {
    return this.#sent - this.#answered;
  }

  tick(): void {
    if (this.unanswered < this.#window) this.#socket.send(String(++this.#sent));
  }

  pauseReading(): void {
    this.#socket.pause();
  }
  resumeReading(): void {
    this.#socket.resume();
  }

  close(): Promise<void> {
    this.#connection.closes();
    return closeWebSocket(this.#socket);
  }
}

async function connect(index: number, options: LoadOptions, tally: Tally): Promise<LoadClient> {
  const at = endpointText(options.target.address, options.target.port);
  if (index % 2 === 0) {
    const client = new HttpClient(`http-${index}`, `http://${at}`, options, tally);
    await client.ask();
    return client;
  }
  const socket = new WebSocket(`ws://${at}/`, { handshakeTimeout: 10_000 });
  await opened(socket, { index, event: "open" });
  return new TalkClient(`ws-${index}`, socket, options, tally);
}

await runLoad(connect);
process.exit(0);
