/**
 * Clients of an application that is restarted, at a fixed rate: HTTP clients on a keep-alive connection each (GET, every
 * fifth a POST), and WebSocket clients. They do what clients do: what is due is sent as soon as the connection is free, a
 * connection that is lost is made again, nothing is sent again by them. Everything they send has an id of its own.
 */
import { Agent, request } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { WebSocket } from "ws";
import { GapMeter } from "#test/load/gaps.ts";
import { serve } from "../load/program.ts";

/**
 * start: resolves when all have been answered once. recovered: resolves with how many have not been answered since it was
 * asked, 0 as soon as that is so. stop: what is due is sent and waited for
 */
export type TrafficAsk =
  | { type: "start"; port: number; http: number; websocket: number; everyMs: number; run: string }
  | { type: "recovered"; msMax: number }
  | { type: "stop" };

export interface TrafficReport {
  /** requests and messages that were due; the first of each client is left out */
  due: number;
  /** … and had no proper answer, by what came instead */
  errors: Record<string, number>;
  /** connections that had been made and ended, not by us */
  lostConnections: number;
  /** answers to what had its answer already */
  answeredTwice: number;
  /** of each client, the longest time between two proper answers */
  gapsMs: number[];
  /** ids of everything that had its proper answer: "get-…", "post-…", "message-…" */
  answered: string[];
}

const POST_EVERY = 5;
const ANSWER_MS_MAX = 20_000;
const MESSAGES_MS_MAX = 3_000;
const DIAL_AGAIN_MS = 20;
const CHECK_MS = 5;
const HANDSHAKE_MS_MAX = 10_000;

interface Tally {
  due: number;
  errors: Record<string, number>;
  lostConnections: number;
  answeredTwice: number;
  answered: string[];
}

abstract class Client {
  readonly gaps = new GapMeter(performance.now());
  readonly #name: string;
  protected readonly tally: Tally;
  answers = 0;
  protected sent = 0;
  protected closing = false;

  constructor(name: string, tally: Tally) {
    this.#name = name;
    this.tally = tally;
  }

  abstract open(): Promise<void>;
  abstract send(): void;
  abstract get isIdle(): boolean;
  abstract close(): void;

  protected nextId(kind: "get" | "post" | "message"): string {
    return `${kind}-${this.#name}-${++this.sent}`;
  }

  protected answer(id: string): void {
    this.answers++;
    this.gaps.answer(performance.now());
    this.tally.answered.push(id);
  }

  protected fail(what: string, times = 1): void {
    if (times > 0) this.tally.errors[what] = (this.tally.errors[what] ?? 0) + times;
  }

  protected lose(): void {
    if (!this.closing) this.tally.lostConnections++;
  }
}

class HttpClient extends Client {
  readonly #index: number;
  readonly #port: number;
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 1 });
  readonly #known = new WeakSet<object>();
  #due = 0;
  #isBusy = false;

  constructor(index: number, run: string, tally: Tally, port: number) {
    super(`${run}-h${index}`, tally);
    this.#index = index;
    this.#port = port;
  }

  async open(): Promise<void> {
    this.send();
    while (!this.isIdle) await delay(CHECK_MS);
  }

  send(): void {
    this.#due++;
    if (!this.#isBusy) void this.#sendDue();
  }

  get isIdle(): boolean {
    return this.#due === 0 && !this.#isBusy;
  }

  close(): void {
    this.closing = true;
    this.#agent.destroy();
  }

  async #sendDue(): Promise<void> {
    this.#isBusy = true;
    while (this.#due > 0) {
      this.#due--;
      // Clients are not in step: at any moment one in five of them is at a POST.
      const isPost = (this.sent + this.#index) % POST_EVERY === 0;
      const id = this.nextId(isPost ? "post" : "get");
      const wrong = await this.#exchange(id, isPost);
      if (wrong === null) this.answer(id);
      else this.fail(wrong);
    }
    this.#isBusy = false;
  }

  /** @returns what came instead of a proper answer; null: it came */
  #exchange(id: string, isPost: boolean): Promise<string | null> {
    return new Promise((resolve) => {
      const sending = request(
        {
          host: "127.0.0.1",
          port: this.#port,
          path: `/${id}`,
          method: isPost ? "POST" : "GET",
          agent: this.#agent,
          timeout: ANSWER_MS_MAX,
        },
        (response) => {
          response.resume();
          response.once("error", () => resolve("cut off in the answer"));
          response.once("end", () => {
            if (response.statusCode !== 200) resolve(`status ${response.statusCode}`);
            else resolve(response.headers["x-id"] === id ? null : "another's answer");
          });
        },
      );
      sending.once("socket", (socket) => {
        if (this.#known.has(socket)) return;
        this.#known.add(socket);
        socket.once("connect", () => socket.once("close", () => this.lose()));
      });
      sending.once("timeout", () => sending.destroy(new Error("no answer")));
      sending.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
      sending.end(isPost ? id : undefined);
    });
  }
}

class TalkClient extends Client {
  readonly #port: number;
  #socket: WebSocket | null = null;
  #unanswered = new Set<string>();
  #known = new Set<string>();

  constructor(name: string, tally: Tally, port: number) {
    super(name, tally);
    this.#port = port;
  }

  async open(): Promise<void> {
    this.#dial();
    while (this.#socket === null) await delay(CHECK_MS);
    this.send();
    while (!this.isIdle) await delay(CHECK_MS);
  }

  send(): void {
    const id = this.nextId("message");
    if (this.#socket === null) {
      this.fail("not connected");
      return;
    }
    this.#unanswered.add(id);
    this.#socket.send(id, () => {}); // told by "close"
  }

  get isIdle(): boolean {
    return this.#unanswered.size === 0;
  }

  close(): void {
    this.closing = true;
    this.#giveUp();
    this.#socket?.terminate();
  }

  #dial(): void {
    const socket = new WebSocket(`ws://127.0.0.1:${this.#port}/`, {
      perMessageDeflate: false,
      handshakeTimeout: HANDSHAKE_MS_MAX,
    });
    socket.once("open", () => {
      this.#socket = socket;
    });
    socket.on("error", () => {}); // "close" follows
    socket.once("close", () => {
      if (this.#socket === socket) {
        this.#socket = null;
        this.lose();
        this.#giveUp();
      }
      if (!this.closing) setTimeout(() => this.#dial(), DIAL_AGAIN_MS);
    });
    socket.on("message", (data) => {
      const id = String(data);
      if (this.#unanswered.delete(id)) {
        this.#known.add(id);
        this.answer(id);
      } else if (this.#known.has(id)) {
        this.tally.answeredTwice++;
      } else {
        this.fail("another's answer");
      }
    });
  }

  #giveUp(): void {
    this.fail("message not answered", this.#unanswered.size);
    this.#unanswered.clear();
  }
}

let clients: Client[] = [];
let timers: { interval: NodeJS.Timeout | undefined }[] = [];
let tally: Tally;

async function start(ask: TrafficAsk & { type: "start" }): Promise<void> {
  leave(); // what was not stopped, since something failed
  tally = { due: 0, errors: {}, lostConnections: 0, answeredTwice: 0, answered: [] };
  clients = [
    ...Array.from({ length: ask.http }, (_, i) => new HttpClient(i, ask.run, tally, ask.port)),
    ...Array.from({ length: ask.websocket }, (_, i) => new TalkClient(`${ask.run}-w${i}`, tally, ask.port)),
  ];
  await Promise.all(clients.map((client) => client.open()));
  const nowMs = performance.now();
  for (const { gaps } of clients) {
    gaps.forget(nowMs);
    gaps.mark();
  }
  timers = clients.map((client, index) => {
    const timer = { interval: undefined as NodeJS.Timeout | undefined };
    const tick = (): void => {
      tally.due++;
      client.send();
    };
    const offsetMs = (ask.everyMs * index) / clients.length;
    timer.interval = setTimeout(() => {
      tick();
      timer.interval = setInterval(tick, ask.everyMs);
    }, offsetMs);
    return timer;
  });
}

async function recovered(msMax: number): Promise<number> {
  const before = clients.map(({ answers }) => answers);
  const deadlineMs = performance.now() + msMax;
  for (;;) {
    const waiting = clients.filter(({ answers }, index) => answers === before[index]).length;
    if (waiting === 0 || performance.now() > deadlineMs) return waiting;
    await delay(CHECK_MS);
  }
}

function endTicks(): void {
  for (const { interval } of timers) clearInterval(interval);
  timers = [];
}

function leave(): void {
  endTicks();
  for (const client of clients) client.close();
  clients = [];
}

async function stop(): Promise<TrafficReport> {
  endTicks();
  const nowMs = performance.now();
  const gapsMs = clients.map(({ gaps }) => gaps.longest(nowMs).ms);
  const over = (client: Client, msMax: number): boolean => client.isIdle || performance.now() - nowMs > msMax;
  const isOver = (client: Client): boolean =>
    over(client, client instanceof TalkClient ? MESSAGES_MS_MAX : ANSWER_MS_MAX * 2);
  while (!clients.every(isOver)) await delay(CHECK_MS);
  leave();
  return { ...tally, gapsMs };
}

serve((ask: TrafficAsk): Promise<undefined | number | TrafficReport> => {
  if (ask.type === "start") return start(ask).then(() => undefined);
  return ask.type === "recovered" ? recovered(ask.msMax) : stop();
});
