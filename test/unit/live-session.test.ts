/** One session whose ends are the test's own: what it keeps of what its application was given, and how it is ended. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pino } from "pino";
import type { PortConfig } from "#proxy/contract/commands.ts";
import { defaultsOf, PROXY_LIMITS, type ProxyLimits } from "#proxy/contract/limits.ts";
import { HeldBudget } from "#proxy/replay/held-bytes.ts";
import { ProtocolFilter, type ProtocolFilterHost } from "#proxy/replay/protocol-filter.ts";
import type { Leg, LegListener } from "#proxy/stream/leg.ts";
import { READY, type SocketKernel, type Watcher } from "#proxy/stream/socket-kernel.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { ApplicationDialler } from "#proxy/workload/application-dialler.ts";
import { newCounters } from "#proxy/workload/counters.ts";
import { beginLinkWait, endLinkWait } from "#proxy/workload/link-wait.ts";
import { LiveSession } from "#proxy/workload/live-session.ts";

const LIMITS: ProxyLimits = defaultsOf(PROXY_LIMITS);
const PORT: PortConfig = {
  listen: 1,
  upstream: { address: "127.0.0.1", port: 2 },
  protocol: "http",
  continuity: "replay",
  moveBy: "transplant",
  replayUnsafe: false,
  delivery: "atMostOnce",
  setUp: "none",
  sessionsMax: 10,
  sessionsPerClientMax: 10,
  keepAliveMs: 0,
  userTimeoutMs: 0,
  idleMsMax: 0,
  naming: null,
  proxyProtocol: null,
  probes: [],
};
const HANDSHAKE =
  "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n";
const AGREED =
  "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: y\r\n\r\n";

/** Takes so many bytes, and not one more: what is left of a chunk stays outstanding. */
class End implements Leg {
  listener: LegListener | null = null;
  readonly reusesBuffer = false;
  readonly keepsChunk = false;
  outstandingBytes = 0;
  finished = false;
  #room: number;
  #taken: Buffer[] = [];

  constructor(room = Number.POSITIVE_INFINITY) {
    this.#room = room;
  }
  /** It is one of the kernel's for the session: that asks nothing of it which is not here. */
  get leg(): TcpLeg {
    return this as unknown as TcpLeg;
  }
  get text(): string {
    return Buffer.concat(this.#taken).toString("latin1");
  }
  write(chunk: Buffer): boolean {
    const taken = Math.min(chunk.length, this.#room);
    this.#room -= taken;
    this.#taken.push(Buffer.from(chunk.subarray(0, taken)));
    this.outstandingBytes = chunk.length - taken;
    return this.outstandingBytes === 0;
  }
  /** The rest of the chunk has gone. */
  drain(): void {
    this.outstandingBytes = 0;
    this.listener?.onDrain();
  }
  finish(): void {
    this.finished = true;
  }
  reset(): void {}
  pauseReading(): void {}
  resumeReading(): void {}
  consumed(): void {}
}

interface Stage {
  session: LiveSession;
  client: End;
  filterHost: ProtocolFilterHost;
  /** reasons */
  over: (string | null)[];
}

function stageOf(client = new End()): Stage {
  const over: (string | null)[] = [];
  const session = new LiveSession({
    id: "a",
    number: 1,
    port: 0,
    anchor: "n",
    client: "c",
    acceptedAtMs: 0,
    state: "waiting",
    events: {
      lingerMsMax: LIMITS.lingerMsMax,
      isMoving: false,
      onOver: (_, reason) => over.push(reason),
      onLingering: () => {},
      onWaits: () => {},
      onBroken: (_, error) => {
        throw error;
      },
    },
  });
  const budget = new HeldBudget(
    { sessionBytesMax: 1 << 20, workloadBytesMax: 1 << 20, spillBytesMax: 0, spillDir: "/nowhere" },
    () => false,
  );
  const filterHost: ProtocolFilterHost = {
    limits: LIMITS,
    budget,
    counters: newCounters(),
    isPaused: false,
    cookieKeys: [Buffer.alloc(32)],
    onSpillFailed: assert.ifError,
    onOpaque: (reason) => assert.fail(reason),
    onProbeAnswer: () => {},
    instanceFor: () => -1,
    want: () => {},
  };
  session.filter = new ProtocolFilter({ carrier: session, host: filterHost, port: PORT, saved: null });
  session.setDownstream(client.leg);
  return { session, client, filterHost, over };
}

describe("a session whose application has not taken all of a chunk", () => {
  const messages = Array.from({ length: 300 }, (_, index) => `.${String(index + 1).padStart(99, "0")}`);
  /** masked with zeros */
  const frames = messages.map((text) =>
    Buffer.concat([Buffer.of(0x82, 0x80 | 100, 0, 0, 0, 0), Buffer.from(text)]),
  );

  function attach(session: LiveSession, end: End): void {
    session.filter?.replay?.beforeAttach();
    session.step("dialled");
    session.setUpstream(end.leg);
    session.filter?.replay?.attached();
  }

  function nextInstance(session: LiveSession, room?: number): End {
    const end = new End(room);
    session.step("dial");
    const handshaken = new End();
    session.filter?.replay?.shakeHands(handshaken, (why) => assert.equal(why, null));
    handshaken.listener?.onData(Buffer.from(AGREED));
    attach(session, end);
    return end;
  }

  function messagesAt(end: End): string[] {
    return messages.filter((text) => end.text.includes(text));
  }

  it("gives none of the messages to the next instance that this one may have read", () => {
    const { session } = stageOf();
    session.step("dial");
    const first = new End(HANDSHAKE.length + 10);
    attach(session, first);
    session.fromClient(Buffer.from(HANDSHAKE));
    first.listener?.onData(Buffer.from(AGREED));
    session.fromClient(Buffer.concat(frames));
    assert.deepEqual(messagesAt(first), [], "the first of them in part");
    first.listener?.onReset("ECONNRESET");
    // In one chunk, of which this one takes 188 messages and a part of another.
    const second = nextInstance(session, 20_000);
    const read = messagesAt(second);
    assert.ok(read.length > 100 && read.length < 300, `${read.length} messages`);
    second.listener?.onReset("ECONNRESET");
    const third = nextInstance(session);
    assert.deepEqual(messagesAt(third), messages.slice(read.length));
    session.reset("end of the test");
  });
});

describe("a session whose application does not come back", () => {
  it("is not connected to it any more when it was being dialled: its request is refused, and nobody has it", () => {
    const stage = stageOf();
    const { session, client } = stage;
    const watched = new Map<number, Watcher>();
    const gone: number[] = [];
    const sent: string[] = [];
    const kernel = {
      dial: () => 7,
      setNoDelay: () => {},
      watch: (fd, watcher) => watched.set(fd, watcher),
      unwatch: (fd) => watched.delete(fd),
      reset: (fd) => gone.push(fd),
      socketError: () => 0,
      send: (_, bytes) => {
        sent.push(String(bytes));
        return bytes.length;
      },
    } as Partial<SocketKernel> as SocketKernel;
    const dialler = new ApplicationDialler({
      config: { ports: [PORT], limits: LIMITS },
      kernel,
      log: pino({ level: "silent" }),
      counters: { dialFailures: 0, dialShortages: 0 },
      role: "owner",
      admission: { hasRoom: () => true },
      availabilities: [{ isAbsent: false, isGivenUp: false, lost: () => {} }],
      filters: { attach: () => {} },
      start: () => {},
    });
    dialler.connect(session);
    assert.equal(session.state, "dialling");
    // A full accept queue has dropped the SYN, and nobody has listened for too long.
    dialler.giveUp(session);
    // The SYN sent again meets the next instance, for whoever still waits for that.
    for (const watcher of watched.values()) watcher.onReady(4);
    session.fromClient(Buffer.from("POST /pay HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"));
    assert.match(client.text, /^HTTP\/1\.1 503 /);
    assert.deepEqual(sent, []);
    assert.deepEqual([session.state, gone, watched.size], ["waiting", [7], 0]);
    session.reset("end of the test");
  });
});

describe("a session that is told to go", () => {
  it("is reset when it has not gone in time, though it has another way to its client by then", (t) => {
    t.mock.timers.enable({ apis: ["setTimeout"] });
    const { session, over } = stageOf();
    const counters = { linkFailures: 0 };
    beginLinkWait({ config: { limits: LIMITS }, counters }, session);
    session.endAfter(Buffer.from("bye"));
    // its client's next link has come
    endLinkWait(session);
    t.mock.timers.tick(LIMITS.lingerMsMax - 1);
    assert.deepEqual(over, []);
    t.mock.timers.tick(1);
    assert.deepEqual([over, counters.linkFailures], [["told to go"], 0]);
  });

  it("leaves no timer behind when it has gone", (t) => {
    t.mock.timers.enable({ apis: ["setTimeout"] });
    const { session, over } = stageOf();
    session.endAfter(Buffer.from("bye"));
    session.forget();
    t.mock.timers.tick(LIMITS.lingerMsMax);
    assert.deepEqual(over, [null]);
  });
});

describe("a session whose client resets its connection behind its FIN", () => {
  it("ends where its application has acknowledged all, and not before", () => {
    const [client, application] = [5, 6];
    let unacked = 2;
    const sent: string[] = [];
    const gone: number[] = [];
    const kernel = {
      setNoDelay: () => {},
      watch: () => {},
      unwatch: () => {},
      soon: () => {},
      close: () => {},
      reset: (fd) => gone.push(fd),
      shutdownWrite: () => true,
      isClosed: (fd) => fd === client,
      socketError: () => 32,
      errnoName: () => "EPIPE",
      unackedBytes: () => unacked,
      recv: () => 0,
      send: (_, bytes) => {
        sent.push(String(bytes));
        return bytes.length;
      },
    } as Partial<SocketKernel> as SocketKernel;
    const { session, over } = stageOf();
    session.filter = null;
    session.step("dial");
    session.step("dialled");
    session.setUpstream(TcpLeg.attach(kernel, application));
    const leg = TcpLeg.attach(kernel, client);
    session.setDownstream(leg);
    session.fromClient(Buffer.from("all it says"));
    leg.resumeReading();
    leg.onReady(READY.in | READY.fin);
    assert.equal(session.inbound.finSent, true);
    leg.onReady(READY.error | READY.hangUp);
    assert.deepEqual([over, gone], [[], []], "the application may not have read it");
    unacked = 1; // the FIN
    leg.onReady(READY.error | READY.hangUp);
    assert.deepEqual([sent, over.length, gone.includes(application)], [["all it says"], 1, true]);
  });
});
