/** An anchor and an owner of one workload within the test's process, a wire of the test's between them, and clients that check each byte. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import type { TestContext } from "node:test";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { startGatewayHere, ToldStore } from "./gateway-stage.ts";
import { type InProcessOptions, LINK_KEY, makeProxy } from "./in-process-proxy.ts";
import { RawEnd, within } from "./raw-ends.ts";
import { Wire } from "./wire.ts";

export interface Linked {
  anchor: WorkloadProxy;
  owner: WorkloadProxy;
  wire: Wire;
  /** of both proxies' logs, from warnings on */
  lines: Record<string, unknown>[];
  /** port where clients connect */
  listen: number;
  stop(): void;
}

export interface LinkedOptions {
  /** who holds the clients; default: gateway */
  as?: "gateway" | "anchor";
  links?: "encrypted" | "plain";
  limits?: InProcessOptions["limits"];
  /** takes each connection to the application; default: an echo */
  serve?: (socket: Socket) => void;
}

export async function startLinked(options: LinkedOptions = {}): Promise<Linked> {
  const { as = "gateway", links = "encrypted", limits = {}, serve } = options;
  const application = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => {});
    if (serve === undefined) socket.pipe(socket);
    else serve(socket);
  });
  application.listen(0, "127.0.0.1");
  await once(application, "listening");
  const upstream = { address: "127.0.0.1", port: (application.address() as AddressInfo).port };
  const wire = await Wire.open();
  const there = makeProxy({ links, limits, node: "o", port: { protocol: "tcp", upstream } });
  await there.proxy.openLinks();
  there.proxy.role = "owner";
  there.proxy.epoch = 1;
  wire.to = there.proxy.linkEndpoint as Wire["to"];
  const here = as === "gateway" ? startGateway(wire) : startAnchor(wire, options);
  return {
    anchor: here.proxy,
    owner: there.proxy,
    wire,
    get lines() {
      return [...here.lines, ...there.lines];
    },
    listen: here.listen,
    stop: () => {
      here.stop();
      there.proxy.stop();
      wire.close();
      application.close();
    },
  };
}

interface Here {
  proxy: WorkloadProxy;
  lines: Record<string, unknown>[];
  listen: number;
  stop(): void;
}

function startAnchor(wire: Wire, { links = "encrypted", limits = {} }: LinkedOptions): Here {
  const { proxy, lines } = makeProxy({ links, limits, node: "g", port: { protocol: "tcp" } });
  proxy.openListeners();
  proxy.role = "anchor";
  proxy.epoch = 1;
  proxy.owner = { node: "o", link: wire.at };
  return { proxy, lines, listen: proxy.listeners[0]?.port as number, stop: () => proxy.stop() };
}

function startGateway(wire: Wire): Here {
  const store = new ToldStore();
  store.put("w", { node: "o", epoch: 1, link: wire.at, ports: [1] });
  const { gateway, lines } = startGatewayHere({ store, key: LINK_KEY, listeners: [{}] });
  const [proxy] = gateway.proxies;
  return {
    proxy: proxy as WorkloadProxy,
    lines,
    listen: gateway.ports[0] as number,
    stop: () => gateway.stop(),
  };
}

/** What of a stream is at a position says where it is: a byte lost, repeated or moved shows at once. */
export function patternAt(from: number, length: number): Buffer {
  const first = from >> 2;
  const words = Buffer.allocUnsafe(((length + 3) >> 2) * 4 + 4);
  for (let at = 0; at < words.length; at += 4)
    words.writeUInt32LE(Math.imul(first + (at >> 2) + 1, 0x9e3779b1) >>> 0, at);
  return words.subarray(from & 3, (from & 3) + length);
}

export interface TalkerOptions {
  /** default: until it is told to finish */
  totalBytes?: number;
  chunkBytes?: number;
  /** between two chunks; default: as fast as they are taken */
  everyMs?: number;
}

/** Sends a pattern to an echo, and checks what comes back. */
export class Talker {
  sentBytes = 0;
  receivedBytes = 0;
  readonly #socket: Socket;
  #total: number;
  readonly #chunk: number;
  readonly #everyMs: number;
  #timer: NodeJS.Timeout | null = null;
  readonly #over = Promise.withResolvers<void>();

  constructor(port: number, options: TalkerOptions = {}) {
    const { totalBytes = Number.POSITIVE_INFINITY, chunkBytes = 16_384, everyMs = 0 } = options;
    this.#total = totalBytes;
    this.#chunk = chunkBytes;
    this.#everyMs = everyMs;
    this.#over.promise.catch(() => {});
    this.#socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
    this.#socket.on("connect", () => this.#send());
    this.#socket.on("drain", () => this.#send());
    this.#socket.on("error", (error) => this.#over.reject(error));
    this.#socket.on("data", (bytes: Buffer) => this.#check(bytes));
    this.#socket.on("end", () => {
      if (this.receivedBytes === this.#total) this.#over.resolve();
      else this.#over.reject(new Error(`it ended after ${this.receivedBytes} of ${this.#total} bytes`));
    });
  }

  #check(bytes: Buffer): void {
    const right = patternAt(this.receivedBytes, bytes.length);
    const at = bytes.equals(right) ? -1 : bytes.findIndex((byte, index) => byte !== right[index]);
    if (at >= 0) this.#socket.destroy(new Error(`another byte than the one at ${this.receivedBytes + at}`));
    this.receivedBytes += bytes.length;
  }

  #send(): void {
    if (this.#socket.writableEnded || this.#timer !== null) return;
    while (this.sentBytes < this.#total) {
      const length = Math.min(this.#chunk, this.#total - this.sentBytes);
      const chunk = patternAt(this.sentBytes, length);
      this.sentBytes += length;
      const isTaken = this.#socket.write(chunk);
      if (this.#everyMs > 0) {
        this.#timer = setTimeout(() => {
          this.#timer = null;
          this.#send();
        }, this.#everyMs);
        return;
      }
      if (!isTaken) return;
    }
    this.#socket.end();
  }

  /** Sends no more than it has. */
  finish(): void {
    this.#total = Math.min(this.#total, this.sentBytes);
    if (this.#timer === null) this.#send();
  }

  /** So many bytes more have come back. */
  async receives(bytes: number, msMax = 30_000): Promise<void> {
    const until = this.receivedBytes + bytes;
    const { promise, resolve } = Promise.withResolvers<void>();
    const look = (): void => {
      if (this.receivedBytes >= until) resolve();
    };
    this.#socket.on("data", look);
    await Promise.race([within(`${bytes} bytes come back`, promise, msMax), this.#over.promise]);
    this.#socket.off("data", look);
  }

  /** All of it has come back, and the end. */
  async done(msMax = 30_000): Promise<void> {
    await within(`${this.receivedBytes} of ${this.#total} bytes came back`, this.#over.promise, msMax);
    this.destroy();
  }

  destroy(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#socket.destroy();
  }
}

/** Clients that have been answered once, and say nothing more. @param it they end with it */
export async function idleClients(it: TestContext, port: number, count: number): Promise<RawEnd[]> {
  const clients = await Promise.all(Array.from({ length: count }, () => RawEnd.dial(port)));
  it.after(() => {
    for (const client of clients) client.destroy();
  });
  for (const client of clients) client.socket.write("x");
  await Promise.all(clients.map((client) => client.has(1)));
  return clients;
}

export function assertNobodyNoticed({ anchor, owner, lines }: Linked): void {
  for (const { counters } of [anchor, owner]) {
    const { sessionsReset, sessionsBroken, linkMismatches, linksLate } = counters;
    assert.deepEqual(
      { sessionsReset, sessionsBroken, linkMismatches, linksLate },
      { sessionsReset: 0, sessionsBroken: 0, linkMismatches: 0, linksLate: 0 },
      JSON.stringify(lines.slice(0, 5)),
    );
  }
}
