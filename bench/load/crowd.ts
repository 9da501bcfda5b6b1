/**
 * Connections of a load generator: opened, some at a time, and used once each, so that the way through the peer to the
 * application stands; then one request at a time. A connection that fails is not opened again: it is an error.
 *
 * Everything is synchronous: {@link Crowd.turn} waits for the kernel and handles what it says.
 */
import { type Conversation, converse, greet } from "./conversation.ts";
import type { Load, Protocol } from "./load.ts";
import { close, connectTo, EPOLLIN, EPOLLOUT, Poller, read, write } from "./raw-sockets.ts";

const CLOSED = "a connection closed";
const READ_BYTES = 256 * 1024;
/** under way at a time: all of a listener's backlog is not taken */
const OPENING_MAX = 64;
/** 127.0.0.2 and on: connections come from several addresses, so that ports do not run out */
const ADDRESS_FIRST = 2;
const ADDRESSES = 32;

export class Connection {
  readonly conversation: Conversation;
  fd = -1;
  /** what comes before the first request, and is not answered yet */
  greeting: Conversation | null = null;
  /** what the kernel has not taken: it is not connected yet, or its send buffer is full */
  unsent: Buffer | null = null;
  /** when its request was due; NaN: it has none */
  dueMs = Number.NaN;

  constructor(protocol: Protocol, bulk: Load["bulk"]) {
    this.conversation = converse(protocol, bulk);
  }
}

export abstract class Crowd {
  readonly #protocol: Protocol;
  readonly #port: number;
  readonly #bulk: Load["bulk"];
  readonly #poller = new Poller();
  readonly #into = Buffer.allocUnsafeSlow(READ_BYTES);
  readonly #byFd: (Connection | undefined)[] = [];
  readonly connections: Connection[] = [];
  #opened = 0;
  sent = 0;
  errors = 0;
  problem: string | null = null;

  constructor(at: Pick<Load, "protocol" | "port" | "bulk">) {
    this.#protocol = at.protocol;
    this.#port = at.port;
    this.#bulk = at.bulk;
  }

  /** Its request has its answer, at `nowMs`. */
  protected abstract onAnswer(connection: Connection, nowMs: number): void;

  /** It is gone: it must not be used again. `dueMs` says whether it had a request. */
  protected abstract onFailure(connection: Connection): void;

  /** Opens connections until there are `count`; those before are to be ready. @param msMax after that it gives up */
  protected open(count: number, msMax: number, ready: () => number): void {
    const first = this.connections.length;
    while (this.connections.length < count) this.connections.push(new Connection(this.#protocol, this.#bulk));
    const deadlineMs = performance.now() + msMax;
    for (let next = first; ready() + this.errors < count && performance.now() < deadlineMs; ) {
      while (next < count && next - ready() - this.errors < OPENING_MAX)
        this.send(this.connections[next++] as Connection, performance.now());
      this.turn(deadlineMs);
    }
  }

  /** Sends the next request; on a connection of its own where there is none. */
  protected send(connection: Connection, dueMs: number): void {
    connection.dueMs = dueMs;
    if (connection.fd < 0) this.#connect(connection);
    else this.#request(connection);
  }

  /** Ends the connection in order; it can be used again. */
  protected end(connection: Connection): void {
    this.#byFd[connection.fd] = undefined;
    close(connection.fd);
    connection.fd = -1;
  }

  /** Handles what has happened, or happens until then. */
  protected turn(untilMs: number): void {
    const poller = this.#poller;
    const count = poller.wait(untilMs);
    for (let index = 0; index < count; index++) {
      const connection = this.#byFd[poller.fdAt(index)];
      if (connection === undefined) continue;
      try {
        this.#handle(connection);
      } catch (error) {
        this.#fail(connection, (error as Error).message);
      }
    }
  }

  /** Takes all descriptors back. */
  protected leave(): void {
    for (const connection of this.connections) if (connection.fd >= 0) this.end(connection);
    this.#poller.close();
  }

  #connect(connection: Connection): void {
    try {
      connection.fd = connectTo(this.#port, ADDRESS_FIRST + (this.#opened++ % ADDRESSES));
    } catch (error) {
      this.#fail(connection, (error as Error).message);
      return;
    }
    this.#byFd[connection.fd] = connection;
    connection.greeting = greet(this.#protocol);
    if (connection.greeting === null) this.sent++;
    const bytes = (connection.greeting ?? connection.conversation).next();
    // By loopback it is mostly connected by now.
    const taken = write(connection.fd, bytes);
    connection.unsent = taken === bytes.length ? null : bytes.subarray(taken ?? 0);
    this.#poller.watch(connection.fd, connection.unsent === null ? EPOLLIN : EPOLLOUT);
    if (taken === 0) this.#fail(connection, CLOSED);
  }

  #request(connection: Connection): void {
    this.sent++;
    const bytes = connection.conversation.next();
    const taken = write(connection.fd, bytes);
    if (taken === bytes.length) return;
    if (taken === 0) {
      this.#fail(connection, CLOSED);
      return;
    }
    connection.unsent = bytes.subarray(taken ?? 0);
    this.#poller.change(connection.fd, EPOLLOUT);
  }

  #handle(connection: Connection): void {
    if (connection.unsent !== null) {
      const taken = write(connection.fd, connection.unsent);
      if (taken === null) return;
      if (taken === 0) throw new Error(CLOSED);
      if (taken < connection.unsent.length) {
        connection.unsent = connection.unsent.subarray(taken);
        return;
      }
      connection.unsent = null;
      this.#poller.change(connection.fd, EPOLLIN);
      return;
    }
    const bytes = read(connection.fd, this.#into);
    if (bytes === null) return;
    if (bytes === 0) throw new Error(CLOSED);
    if (connection.greeting !== null) {
      if (!connection.greeting.take(this.#into, bytes)) return;
      connection.greeting = null;
      this.#request(connection);
    } else if (Number.isNaN(connection.dueMs)) {
      throw new Error("more bytes than were asked for");
    } else if (connection.conversation.take(this.#into, bytes)) {
      this.onAnswer(connection, performance.now());
    }
  }

  #fail(connection: Connection, why: string): void {
    if (connection.fd >= 0) this.end(connection);
    this.errors++;
    this.problem ??= why;
    this.onFailure(connection);
    connection.dueMs = Number.NaN;
  }
}
