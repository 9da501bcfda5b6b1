/**
 * What every kind of load has in common: the interval, its report, and the commands. A kind brings its clients.
 * Nothing reconnects: a reset is a reset.
 */
import { type EventEmitter, once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { blackoutOf, type GapMeter, waitingSince } from "./gaps.ts";
import {
  type LoadCommand,
  type LoadOptions,
  type LoadReport,
  loadDefaults,
  readLines,
  sendLine,
} from "./protocol.ts";

export interface Tally {
  messages: number;
  lost: number;
  repeated: number;
  corrupt: number;
  resets: number;
  problems: string[];
}

/** One client. It counts into the tally it was given. */
export interface LoadClient {
  readonly gaps: GapMeter;
  readonly alive: boolean;
  /** Messages (ws) or bytes (tcp) sent and not answered. */
  readonly unanswered: number;
  /** Sends what is due now, if the window allows. */
  tick(): void;
  pauseReading(): void;
  resumeReading(): void;
  /** In order; resolves when the connection is closed. */
  close(): Promise<void>;
}

export type ConnectClient = (index: number, options: LoadOptions, tally: Tally) => Promise<LoadClient>;

const problemsMax = 10;
const connectsAtOnce = 50;
const progressMs = 100;

export function newTally(): Tally {
  return { messages: 0, lost: 0, repeated: 0, corrupt: 0, resets: 0, problems: [] };
}

export function noteProblem(tally: Tally, problem: string): void {
  if (tally.problems.length < problemsMax) tally.problems.push(problem);
}

/** Whether a client's connection is there. One that ends before the client closes it is a reset, counted once. */
export class Connection {
  readonly #name: string;
  readonly #tally: Tally;
  #isThere = true;
  #closing = false;

  constructor(name: string, tally: Tally) {
    this.#name = name;
    this.#tally = tally;
  }

  get isThere(): boolean {
    return this.#isThere;
  }

  /** The client closes it. */
  closes(): void {
    this.#closing = true;
  }

  gone(reason: string): void {
    if (!this.#isThere) return;
    this.#isThere = false;
    if (this.#closing) return;
    this.#tally.resets += 1;
    noteProblem(this.#tally, `${this.#name}: ${reason}`);
  }
}

/** When the socket has had the event that tells it is open. @throws Error that names the client */
export async function opened(
  socket: EventEmitter,
  { index, event }: { index: number; event: string },
): Promise<void> {
  try {
    await once(socket, event);
  } catch (cause) {
    throw new Error(`client ${index}: ${(cause as Error).message}`, { cause });
  }
}

/** Runs a load process to its end: options are the JSON object in the first argument. */
export async function runLoad(connect: ConnectClient): Promise<void> {
  const options: LoadOptions = { ...loadDefaults, ...JSON.parse(process.argv[2] ?? "{}") };
  const tally = newTally();
  const clients: LoadClient[] = [];
  try {
    for (let next = 0; next < options.sessions; next += connectsAtOnce) {
      const indexes = Array.from(
        { length: Math.min(connectsAtOnce, options.sessions - next) },
        (_, i) => next + i,
      );
      clients.push(...(await Promise.all(indexes.map((index) => connect(index, options, tally)))));
    }
  } catch (error) {
    sendLine(process.stdout, {
      type: "failed",
      reason: error instanceof Error ? error.message : String(error),
    });
    return;
  }

  let sending = true;
  let isCounted = options.restMs === null;
  const timers = clients.map((client, index) => {
    const timer = { interval: undefined as NodeJS.Timeout | undefined };
    const restTurns = Math.max(1, Math.round((options.restMs ?? 0) / options.intervalMs));
    let turns = 0;
    const tick = () => {
      if (sending && client.alive && (isCounted || turns++ % restTurns === 0)) client.tick();
    };
    setTimeout(
      () => {
        tick();
        timer.interval = setInterval(tick, options.intervalMs);
      },
      (options.intervalMs * index) / clients.length,
    );
    return timer;
  });
  const aliveCount = () => clients.reduce((sum, client) => sum + (client.alive ? 1 : 0), 0);
  let total = 0;
  const progress = setInterval(
    () =>
      sendLine(process.stdout, { type: "progress", messages: total + tally.messages, alive: aliveCount() }),
    progressMs,
  );

  let markedAtMs = performance.now();
  const mark = () => {
    total += tally.messages;
    Object.assign(tally, newTally());
    for (const client of clients) client.gaps.mark();
    markedAtMs = performance.now();
    isCounted = true;
    sendLine(process.stdout, { type: "marked" });
  };

  const report = async () => {
    const nowMs = performance.now();
    const gaps = clients.map((client) => client.gaps.longest(nowMs));
    sending = false;
    const until = nowMs + options.drainMsMax;
    while (clients.some((client) => client.alive && client.unanswered > 0) && performance.now() < until)
      await sleep(5);
    const unanswered = clients.reduce((sum, client) => sum + client.unanswered, 0);
    if (unanswered > 0)
      noteProblem(tally, `${unanswered} unanswered after ${Math.round(performance.now() - nowMs)} ms`);
    const result: LoadReport = {
      sessions: clients.length,
      alive: aliveCount(),
      ...tally,
      lost: tally.lost + unanswered,
      blackoutMs: blackoutOf(gaps.map(({ ms }) => ms)),
      waitingSinceMs: performance.timeOrigin + waitingSince(gaps),
      durationMs: Math.round(nowMs - markedAtMs),
    };
    for (const client of clients) client.gaps.forget(performance.now());
    sending = true;
    isCounted = options.restMs === null;
    sendLine(process.stdout, { type: "report", report: result });
  };

  await new Promise<void>((stop) => {
    let queue: Promise<void> = Promise.resolve();
    const obey = (command: LoadCommand): void => {
      if (command.type === "mark") queue = queue.then(mark);
      else if (command.type === "report") queue = queue.then(report);
      else if (command.type === "pauseReading") for (const client of clients) client.pauseReading();
      else if (command.type === "resumeReading") for (const client of clients) client.resumeReading();
      else queue = queue.then(stop);
    };
    readLines<LoadCommand>(process.stdin, obey);
    process.stdin.once("end", () => stop());
    sendLine(process.stdout, { type: "ready", sessions: clients.length });
  });

  sending = false;
  clearInterval(progress);
  for (const timer of timers) clearInterval(timer.interval);
  await Promise.race([Promise.all(clients.map((client) => client.close())), sleep(2_000)]);
  sendLine(process.stdout, { type: "done" });
}
