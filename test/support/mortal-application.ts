/**
 * One real proxy process in front of an application that ends and comes back on the same port, as often as a test wants: the
 * stage of the replay tier. Each life is a listener of the test's own, so what reached which life is seen byte by byte.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { PauseResult, PortConfig, ResumeResult } from "#proxy/contract/commands.ts";
import type { ProxyLimits } from "#proxy/contract/limits.ts";
import { LIMITS, ProxyProcess } from "./proxy-lab.ts";
import { RawEnd, within } from "./raw-ends.ts";

const WORKLOAD_KEY = Buffer.alloc(32, 3);
const WAIT_MS_MAX = 10_000;

export class MortalApplication {
  port = 0;
  /** 1 in its first life */
  life = 0;
  /** takes each connection; null: they are handed out by `accept` */
  serve: ((socket: Socket, life: number) => void) | null = null;
  #server: Server | null = null;
  readonly #sockets = new Set<Socket>();
  #arrived: RawEnd[] = [];
  #waiting: ((end: RawEnd) => void)[] = [];

  get connections(): number {
    return this.#sockets.size;
  }

  async begin(): Promise<void> {
    assert.equal(this.#server, null, "it lives");
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => this.#onSocket(socket));
    this.life++;
    this.#server = server;
    server.listen({ port: this.port, host: "127.0.0.1", backlog: 1024 });
    await once(server, "listening");
    this.port = (server.address() as AddressInfo).port;
  }

  #onSocket(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("error", () => {});
    if (this.serve !== null) {
      this.serve(socket, this.life);
      return;
    }
    const end = new RawEnd(socket);
    const taker = this.#waiting.shift();
    if (taker === undefined) this.#arrived.push(end);
    else taker(end);
  }

  /** The next connection nobody has taken. */
  async accept(): Promise<RawEnd> {
    const next = this.#arrived.shift();
    if (next !== undefined) return next;
    const { promise, resolve } = Promise.withResolvers<RawEnd>();
    this.#waiting.push(resolve);
    return await within("a connection to the application", promise);
  }

  /** As a process ends: first nobody listens, then its connections go. */
  end(how: "reset" | "fin" = "reset"): void {
    assert.ok(this.#server !== null, "it lives");
    this.#server.close();
    this.#server = null;
    for (const socket of this.#sockets) {
      if (how === "reset") socket.resetAndDestroy();
      else socket.destroy();
    }
    this.#sockets.clear();
    for (const end of this.#arrived.splice(0)) end.destroy();
  }

  async restart(how: "reset" | "fin" = "reset"): Promise<void> {
    this.end(how);
    await this.begin();
  }

  stop(): void {
    if (this.#server !== null) this.end();
    this.#waiting = [];
  }
}

export type PortShape = Partial<Omit<PortConfig, "listen" | "upstream">>;

export class ReplayStage {
  readonly application: MortalApplication;
  readonly proxy: ProxyProcess;
  /** where clients connect, one a shape */
  readonly ports: number[];
  readonly directory: string;
  readonly #clients: RawEnd[] = [];

  private constructor(
    application: MortalApplication,
    proxy: ProxyProcess,
    ports: number[],
    directory: string,
  ) {
    this.application = application;
    this.proxy = proxy;
    this.ports = ports;
    this.directory = directory;
  }

  /** All ports lead to the one application; they are of the replay tier unless the shape says otherwise. */
  static async start(
    shapes: PortShape[],
    limits: Partial<ProxyLimits> = {},
    { spillDir }: { spillDir?: string } = {},
  ): Promise<ReplayStage> {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-replay-"));
    const application = new MortalApplication();
    await application.begin();
    const proxy = await ProxyProcess.start({ socket: join(directory, "p.sock") });
    const upstream = { address: "127.0.0.1", port: application.port };
    await proxy.call(
      "configure",
      {
        workload: "replay",
        node: "a",
        downstream: "forward",
        listenAddress: "127.0.0.1",
        ports: shapes.map((shape) => ({ listen: 0, upstream, continuity: "replay", ...shape })),
        linkAddress: "127.0.0.1:0",
        spillDir: spillDir ?? directory,
        limits: { ...LIMITS, ...limits },
      },
      WORKLOAD_KEY,
    );
    const { result } = await proxy.call<{ ports: number[] }>("serve", { epoch: 1 });
    return new ReplayStage(application, proxy, result.ports, directory);
  }

  get port(): number {
    return this.ports[0] as number;
  }

  async dial(port = this.port): Promise<RawEnd> {
    const end = await RawEnd.dial(port);
    this.#clients.push(end);
    return end;
  }

  /** A client that has sent `text`, and the application's end when it has all of that. */
  async pair(text: string, port = this.port): Promise<{ client: RawEnd; server: RawEnd }> {
    const client = await this.dial(port);
    client.socket.write(text);
    const server = await this.application.accept();
    await server.has(Buffer.byteLength(text));
    return { client, server };
  }

  async pause(drainMs = 0, epoch = 1): Promise<PauseResult> {
    return (await this.proxy.call<PauseResult>("pause", { epoch, drainMs })).result;
  }
  async resume(epoch = 1): Promise<ResumeResult> {
    return (await this.proxy.call<ResumeResult>("resume", { epoch })).result;
  }

  async status(): Promise<{ heldBytes: number; spilledBytes: number; counters: Record<string, number> }> {
    type Status = { heldBytes: number; spilledBytes: number; counters: Record<string, number> };
    return (await this.proxy.call<Status>("status", {})).result;
  }

  async count(counter: string): Promise<number> {
    return (await this.status()).counters[counter] as number;
  }

  /** Asks again, until the proxy says so. */
  async until<T>(what: string, ask: () => Promise<T>, done: (answer: T) => boolean): Promise<T> {
    const deadlineMs = performance.now() + WAIT_MS_MAX;
    for (;;) {
      const answer = await ask();
      if (done(answer)) return answer;
      if (performance.now() > deadlineMs)
        throw new Error(`not within ${WAIT_MS_MAX} ms: ${what}; ${JSON.stringify(answer)}`);
      await nextTurn();
    }
  }

  /** Resolves when this many sessions wait for another life of the application. */
  async untilAway(count: number): Promise<void> {
    await this.until(
      `${count} sessions away`,
      () => this.proxy.sessions(),
      (all) => all.filter(({ state }) => state === "unavailable").length === count,
    );
  }

  /** Between two tests: the application lives, which the proxy knows, no client is left, nothing is held. */
  async clear(): Promise<void> {
    this.application.serve = null;
    for (const end of this.#clients.splice(0)) end.socket.resetAndDestroy();
    this.application.stop();
    await this.application.begin();
    const { role, epoch } = (await this.proxy.call<{ role: string; epoch: number }>("status", {})).result;
    if (role === "paused") await this.resume(epoch);
    await this.until(
      "no session",
      () => this.proxy.sessions(),
      (all) => all.length === 0,
    );
    // Whoever was dialled for in vain is gone too.
    await this.application.restart();
    // The proxy looks for an application that was away every few milliseconds only, and the next test may be quicker.
    await this.resume(epoch);
    const { heldBytes, spilledBytes } = await this.status();
    assert.deepEqual({ heldBytes, spilledBytes }, { heldBytes: 0, spilledBytes: 0 });
  }

  async stop(): Promise<void> {
    for (const end of this.#clients.splice(0)) end.destroy();
    await this.proxy.kill();
    this.application.stop();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export interface Answer {
  status: number;
  headers: Map<string, string>;
  body: string;
}

/** The complete answers in what a client received; all of them have a length, except those to HEAD. */
export function answersIn(received: Buffer, methods: string[] = []): Answer[] {
  const answers: Answer[] = [];
  let at = 0;
  for (;;) {
    const end = received.indexOf("\r\n\r\n", at);
    if (end < 0) return answers;
    const [statusLine = "", ...lines] = received.toString("latin1", at, end).split("\r\n");
    const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(statusLine)?.[1]);
    assert.ok(status >= 100, `no answer begins with ${JSON.stringify(statusLine)}`);
    const headers = new Map(
      lines.map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const;
      }),
    );
    if (status < 200) {
      at = end + 4;
      continue;
    }
    const isHead = methods[answers.length] === "HEAD";
    const length = isHead ? 0 : Number(headers.get("content-length") ?? 0);
    if (received.length < end + 4 + length) return answers;
    answers.push({ status, headers, body: received.toString("latin1", end + 4, end + 4 + length) });
    at = end + 4 + length;
  }
}

/** Resolves with the answers when there are `count`, and fails when the connection ends before. */
export async function answersOf(end: RawEnd, count: number, methods: string[] = []): Promise<Answer[]> {
  await end.until(
    `${count} answers`,
    () => answersIn(end.received, methods).length >= count || end.over !== null,
  );
  const answers = answersIn(end.received, methods);
  assert.equal(answers.length, count, `answers; the connection is ${end.over ?? "open"}`);
  return answers;
}

export function get(path: string, fields = ""): string {
  return `GET ${path} HTTP/1.1\r\nHost: app\r\n${fields}\r\n`;
}
export function post(path: string, body: string, fields = ""): string {
  return `POST ${path} HTTP/1.1\r\nHost: app\r\n${fields}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}
export function ok(body: string, fields = ""): string {
  return `HTTP/1.1 200 OK\r\n${fields}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}
