/**
 * WebSocket clients for test/apps/chat: each sends numbered messages and checks every answer against what it sent.
 * Started by load.ts inside the clients' network namespace; see protocol.ts.
 */
import { WebSocket } from "ws";
import { endpointText } from "#proxy/contract/address.ts";
import { Connection, type LoadClient, noteProblem, opened, runLoad, type Tally } from "./clients.ts";
import { closeWebSocket } from "./close-websocket.ts";
import { GapMeter } from "./gaps.ts";
import type { LoadOptions } from "./protocol.ts";

class ChatClient implements LoadClient {
  readonly gaps = new GapMeter(performance.now());
  readonly #id: string;
  readonly #socket: WebSocket;
  readonly #tally: Tally;
  readonly #window: number;
  readonly #connection: Connection;
  #sent = 0;
  #answered = 0;
  /** by how much the application's count is ahead of ours; anything but 0 is its loss or repetition */
  #countAhead = 0;
  /** what the application's sum has to be after each message that is not answered yet, oldest first */
  #sums: number[] = [];
  #sum = 0;

  constructor(id: string, socket: WebSocket, options: LoadOptions, tally: Tally) {
    this.#id = id;
    this.#socket = socket;
    this.#tally = tally;
    this.#window = options.window;
    socket.on("message", (data) => this.#answer(JSON.parse(String(data))));
    const connection = new Connection(id, tally);
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
    if (this.unanswered >= this.#window) return;
    this.#sent += 1;
    const payload = (Math.random() * 2 ** 32) >>> 0;
    this.#sum = (Math.imul(this.#sum, 31) + payload) >>> 0;
    this.#sums.push(this.#sum);
    this.#socket.send(`{"id":"${this.#id}","n":${this.#sent},"payload":${payload}}`);
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

  #answer(answer: { n: number; count: number; sum: number }): void {
    this.gaps.answer(performance.now());
    this.#tally.messages += 1;
    const skipped = answer.n - this.#answered - 1;
    if (skipped < 0 || answer.n > this.#sent) {
      this.#tally.repeated += 1;
      noteProblem(this.#tally, `${this.#id}: answer ${answer.n} after ${this.#answered}, ${this.#sent} sent`);
      return;
    }
    if (skipped > 0) {
      this.#tally.lost += skipped;
      noteProblem(this.#tally, `${this.#id}: answers ${this.#answered + 1} to ${answer.n - 1} never came`);
    }
    this.#answered = answer.n;
    const sum = this.#sums.splice(0, skipped + 1).at(-1);
    const ahead = answer.count - answer.n;
    if (ahead !== this.#countAhead) {
      if (ahead > this.#countAhead) this.#tally.repeated += ahead - this.#countAhead;
      else this.#tally.lost += this.#countAhead - ahead;
      noteProblem(this.#tally, `${this.#id}: the application counts ${answer.count} at message ${answer.n}`);
      this.#countAhead = ahead;
    } else if (ahead === 0 && answer.sum !== sum) {
      this.#tally.corrupt += 1;
      noteProblem(this.#tally, `${this.#id}: sum ${answer.sum} at message ${answer.n}, expected ${sum}`);
    }
  }
}

async function connect(index: number, options: LoadOptions, tally: Tally): Promise<LoadClient> {
  const socket = new WebSocket(`ws://${endpointText(options.target.address, options.target.port)}/`, {
    perMessageDeflate: false,
    handshakeTimeout: 10_000,
  });
  await opened(socket, { index, event: "open" });
  return new ChatClient(`${process.pid}-${index}`, socket, options, tally);
}

await runLoad(connect);
process.exit(0);
