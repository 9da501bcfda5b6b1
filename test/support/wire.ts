/**
 * A wire between two proxies, in user space: every connection to it is joined to one of its own to where it leads. A test may delay what
 * passes, let nothing pass for a while, tear it, or look at it.
 */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

import { SO_RCVBUF, SOL_SOCKET, setsockoptInt } from "#proxy/kernel/socket.ts";

export type Direction = "up" | "down";

interface Pair {
  near: Socket;
  far: Socket;
}

interface Parcel {
  atMs: number;
  deliver(): void;
}

/** SO_RCVBUF, SO_SNDBUF where it is paced */
export const PACED_QUEUE_BYTES = 128 * 1024;

function boundUnread(socket: Socket): void {
  const { _handle: handle } = socket as { _handle?: { fd?: number } | null };
  setsockoptInt(handle?.fd ?? -1, SOL_SOCKET, SO_RCVBUF, PACED_QUEUE_BYTES);
}

export class Wire {
  /** where connections are led; changed for the ones that come later */
  to: { address: string; port: number } = { address: "127.0.0.1", port: 0 };
  /** one way */
  delayMs = 0;
  /**
   * Downwards a piece is read each turn of the event loop, and the kernel takes little: what there is otherwise waits at its sender. Set
   * before what connects.
   */
  paceDown = false;
  /** connections since the start */
  connections = 0;
  /** bytes since the start that were passed on, in each direction */
  readonly passed: Record<Direction, number> = { up: 0, down: 0 };
  /** called before bytes pass; what it returns passes in their place */
  tap: (bytes: Buffer, direction: Direction, connection: number) => Buffer = (bytes) => bytes;
  readonly #server: Server;
  readonly #pairs = new Set<Pair>();
  readonly #waiting: Parcel[] = [];
  #timer: NodeJS.Timeout | null = null;
  #isStalled = false;

  private constructor(server: Server) {
    this.#server = server;
    server.on("connection", (near) => this.#join(near));
  }

  static async open(): Promise<Wire> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return new Wire(server);
  }

  get at(): { address: string; port: number } {
    return { address: "127.0.0.1", port: (this.#server.address() as AddressInfo).port };
  }
  get open(): number {
    return this.#pairs.size;
  }

  /** Both ends of each connection see it end, in the middle of whatever it is. */
  cut(): void {
    for (const pair of this.#pairs) this.#tear(pair);
  }

  /** Nothing passes, and nobody is told: neither bytes nor new connections nor ends. */
  stall(): void {
    this.#isStalled = true;
  }
  /** What was on its way before arrives, as by TCP. @param drop of connections from before nothing passes any more, and no word */
  heal({ drop = false } = {}): void {
    if (drop) {
      this.#waiting.length = 0;
      for (const { near, far } of this.#pairs) {
        near.pause();
        far.pause();
        near.removeAllListeners("data");
        far.removeAllListeners("data");
        this.#dead.add(near).add(far);
      }
      this.#pairs.clear();
    }
    this.#isStalled = false;
    this.#deliver();
  }

  close(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#waiting.length = 0;
    for (const socket of this.#dead) socket.destroy();
    for (const pair of this.#pairs) this.#tear(pair);
    this.#server.close();
  }
  readonly #dead = new Set<Socket>();

  #join(near: Socket): void {
    const number = ++this.connections;
    near.on("error", () => {});
    near.setNoDelay(true);
    this.#later(() => {
      const far = connect({ host: this.to.address, port: this.to.port, allowHalfOpen: true, noDelay: true });
      const pair = { near, far };
      this.#pairs.add(pair);
      if (this.paceDown) far.once("connect", () => boundUnread(far));
      far.on("error", () => this.#later(() => this.#tear(pair)));
      near.on("error", () => this.#later(() => this.#tear(pair)));
      this.#pass(pair, "up", number);
      this.#pass(pair, "down", number);
    });
  }

  #pass(pair: Pair, direction: Direction, number: number): void {
    const [from, to] = direction === "up" ? [pair.near, pair.far] : [pair.far, pair.near];
    from.on("data", (bytes: Buffer) => {
      if (direction === "down" && this.paceDown) {
        from.pause();
        setImmediate(() => from.resume());
      }
      this.#later(() => {
        if (!this.#pairs.has(pair)) return;
        const passing = this.tap(bytes, direction, number);
        if (!this.#pairs.has(pair) || passing.length === 0) return;
        this.passed[direction] += passing.length;
        to.write(passing);
      });
    });
    from.on("end", () => this.#later(() => to.end()));
    from.on("close", () => this.#later(() => this.#tear(pair)));
  }

  #tear(pair: Pair): void {
    if (!this.#pairs.delete(pair)) return;
    pair.near.resetAndDestroy();
    pair.far.resetAndDestroy();
  }

  #later(deliver: () => void): void {
    if (this.delayMs === 0 && !this.#isStalled && this.#waiting.length === 0) deliver();
    else {
      this.#waiting.push({ atMs: performance.now() + this.delayMs, deliver });
      this.#deliver();
    }
  }

  #deliver(): void {
    while (!this.#isStalled) {
      const [next] = this.#waiting;
      if (next === undefined) return;
      const waitMs = next.atMs - performance.now();
      if (waitMs > 0) {
        this.#timer ??= setTimeout(() => {
          this.#timer = null;
          this.#deliver();
        }, waitMs);
        return;
      }
      this.#waiting.shift();
      next.deliver();
    }
  }
}
