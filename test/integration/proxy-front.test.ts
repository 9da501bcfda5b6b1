/** Ports behind a load balancer that speaks the PROXY protocol: what the header does, and that nothing behind it is different. */
import assert from "node:assert/strict";
import { connect } from "node:net";
import { after, afterEach, before, describe, it } from "node:test";
import { pino } from "pino";
import { Front } from "#proxy/workload/load-balancer.ts";
import { answersOf, get, ok, type PortShape, ReplayStage } from "#test/support/mortal-application.ts";
import { headerOf } from "#test/support/proxy-headers.ts";
import { RawEnd } from "#test/support/raw-ends.ts";

const LOOPBACK = [{ address: "127.0.0.0", prefix: 8 }];
const HEADER_MS = 400;
const fromHere = { from: LOOPBACK, headerMsMax: 30_000 };
const SHAPES = {
  http: { protocol: "http", proxyProtocol: fromHere, naming: { from: "cookie", name: "sid", issue: false } },
  tcp: { protocol: "tcp", continuity: "transplant", proxyProtocol: fromHere },
  elsewhere: { proxyProtocol: { ...fromHere, from: [{ address: "192.0.2.0", prefix: 24 }] } },
  hasty: { proxyProtocol: { from: LOOPBACK, headerMsMax: HEADER_MS } },
  bounded: { proxyProtocol: fromHere, sessionsPerClientMax: 2 },
  auto: { protocol: "auto", continuity: "transplant", proxyProtocol: fromHere },
} satisfies Record<string, PortShape>;
type PortName = keyof typeof SHAPES;

describe("a port behind a load balancer", { timeout: 60_000 }, () => {
  let stage: ReplayStage;
  before(async () => {
    stage = await ReplayStage.start(Object.values<PortShape>(SHAPES), { unavailableMsMax: 30_000 });
  });
  afterEach(() => stage.clear());
  after(() => stage.stop());

  function portOf(name: PortName): number {
    return stage.ports[Object.keys(SHAPES).indexOf(name)] as number;
  }

  function dial(port: PortName): Promise<RawEnd> {
    return stage.dial(portOf(port));
  }

  async function clients(): Promise<string[]> {
    return (await stage.proxy.sessions()).map(({ client }) => client);
  }

  it("passes on what follows the header, and nothing of the header, in whatever pieces they come", async () => {
    const header = headerOf("198.51.100.7", 4000);
    const bytes = Buffer.concat([header, Buffer.from("PROXY TCP4 is what the client says")]);
    for (const piece of [bytes.length, 1, 7, header.length, header.length + 1]) {
      const client = await dial("tcp");
      for (let at = 0; at < bytes.length; at += piece) {
        client.socket.write(bytes.subarray(at, at + piece));
        // Each answer is a turn in which the proxy has read the piece.
        await stage.status();
      }
      const server = await stage.application.accept();
      await server.has(bytes.length - header.length);
      assert.deepEqual(server.received, bytes.subarray(header.length));
      server.socket.write("answer");
      await client.has(6);
      assert.equal(String(client.received), "answer");
      const [session] = (await stage.proxy.sessions()).filter(({ state }) => state === "open");
      assert.equal(session?.client, "198.51.100.7:4000");
      assert.equal(session?.bytesIn, bytes.length - header.length);
      client.socket.resetAndDestroy();
      await stage.proxy.untilSessions(0);
    }
  });

  it("does not dial the application before the header is complete", async () => {
    const client = await dial("tcp");
    const header = headerOf("198.51.100.7", 4000);
    client.socket.write(header.subarray(0, -1));
    await stage.proxy.untilSessions(1);
    for (let turn = 0; turn < 20; turn++) await stage.status();
    assert.equal(stage.application.connections, 0);
    client.socket.write(header.subarray(-1));
    await stage.application.accept();
  });

  it("tells what the protocol is, and the session's name, from the bytes behind it", async () => {
    const client = await dial("http");
    client.socket.write("PROXY TCP6 2001:db8::7 ::1 4000 80\r\n");
    client.socket.write(get("/", "Cookie: sid=s-1\r\n"));
    const server = await stage.application.accept();
    await server.has(10);
    server.socket.write(ok("here"));
    await answersOf(client, 1);
    const other = await dial("auto");
    other.socket.write(`PROXY UNKNOWN\r\n${get("/two")}`);
    await (await stage.application.accept()).has(10);
    const sessions = await stage.proxy.sessions();
    const [named, unnamed] = [0, 5].map((port) => sessions.find((session) => session.port === port));
    assert.deepEqual([named?.protocol, named?.name, named?.client], ["http", "s-1", "[2001:db8::7]:4000"]);
    assert.equal(unnamed?.protocol, "http");
    assert.match(String(unnamed?.client), /^127\.0\.0\.1:/, "nobody is named: it is the peer");
  });

  it("replays a request to the next life of the application without the header", async () => {
    const client = await dial("http");
    client.socket.write(Buffer.concat([headerOf("198.51.100.7", 4000), Buffer.from(get("/again"))]));
    const first = await stage.application.accept();
    await first.has(get("/again").length);
    await stage.application.restart();
    const second = await stage.application.accept();
    await second.has(get("/again").length);
    assert.equal(String(second.received), get("/again"));
    second.socket.write(ok("second"));
    const [answer] = await answersOf(client, 1);
    assert.equal(answer?.body, "second");
    assert.deepEqual(await clients(), ["198.51.100.7:4000"]);
  });

  it("keeps a connection whose header is not complete through a restart of the application", async () => {
    const header = headerOf("198.51.100.7", 4000);
    const early = await dial("http");
    early.socket.write(header.subarray(0, 20));
    await stage.proxy.untilSessions(1);
    await stage.pause();
    early.socket.write(header.subarray(20));
    const late = await dial("http");
    late.socket.write(header.subarray(0, 5));
    await stage.proxy.untilSessions(2);
    await stage.application.restart();
    const resumed = stage.resume();
    early.socket.write(get("/early"));
    await (await stage.application.accept()).has(get("/early").length);
    await resumed;
    assert.equal(stage.application.connections, 1, "nobody is dialled for before it has said who it is");
    late.socket.write(Buffer.concat([header.subarray(5), Buffer.from(get("/late"))]));
    const server = await stage.application.accept();
    await server.has(get("/late").length);
    assert.equal(String(server.received), get("/late"));
  });

  it("bounds the sessions of each client that the header names", async () => {
    const open: RawEnd[] = [];
    for (const address of ["198.51.100.1", "198.51.100.1", "198.51.100.2", "198.51.100.2"]) {
      const client = await dial("bounded");
      client.socket.write(headerOf(address, 4000));
      open.push(client);
    }
    await stage.until(
      "all four are dialled",
      () => clients(),
      (all) => all.filter((each) => each.startsWith("198.")).length === 4,
    );
    const refusedBefore = await stage.count("sessionsRefused");
    const fifth = await dial("bounded");
    fifth.socket.write(headerOf("198.51.100.1", 4001));
    assert.equal(await fifth.ending(), "ECONNRESET");
    assert.equal((await stage.count("sessionsRefused")) - refusedBefore, 1);
    open[0]?.socket.resetAndDestroy();
    await stage.proxy.untilSessions(3);
    const sixth = await dial("bounded");
    sixth.socket.write(headerOf("198.51.100.1", 4002));
    await stage.until(
      "it may come",
      () => clients(),
      (all) => all.includes("198.51.100.1:4002"),
    );
  });

  it("resets those that come from anywhere else, without reading them", async () => {
    const before = await stage.count("peersRefused");
    for (let count = 0; count < 3; count++) {
      // It may know of the reset before it knows that it was connected.
      const client = new RawEnd(connect({ host: "127.0.0.1", port: portOf("elsewhere") }));
      client.socket.write(headerOf("198.51.100.7", 4000));
      assert.match(await client.ending(), /ECONNRESET|EPIPE/);
    }
    assert.equal((await stage.count("peersRefused")) - before, 3);
  });

  it("resets what does not begin with a header, ends within it, or takes too long for it", async () => {
    const before = await stage.count("headersRefused");
    const plain = await dial("http");
    plain.socket.write(get("/"));
    assert.equal(await plain.ending(), "ECONNRESET");
    const short = await dial("http");
    short.socket.write("PROXY TCP4 1.1.1.1");
    await stage.proxy.untilSessions(1);
    short.socket.end();
    assert.equal(await short.ending(), "ECONNRESET");
    const slow = await dial("hasty");
    slow.socket.write("PROXY TCP4 1.1.1.1");
    assert.equal(await slow.ending(), "ECONNRESET");
    assert.equal((await stage.count("headersRefused")) - before, 3);
    const silent = await dial("http");
    silent.socket.end();
    await silent.ending();
    assert.equal((await stage.count("headersRefused")) - before, 3, "a look at the port is not counted");
    assert.equal(stage.application.connections, 0);
  });
});

describe("a port behind a load balancer, the application away for too long", { timeout: 30_000 }, () => {
  it("tells a client so when its header is complete", async () => {
    const stage = await ReplayStage.start([SHAPES.http], { unavailableMsMax: 200 });
    try {
      stage.application.end();
      const header = headerOf("198.51.100.7", 4000);
      const [one, other] = [await stage.dial(), await stage.dial()];
      other.socket.write(header.subarray(0, 20));
      one.socket.write(Buffer.concat([header, Buffer.from(get("/one"))]));
      assert.equal((await answersOf(one, 1))[0]?.status, 503);
      other.socket.write(Buffer.concat([header.subarray(20), Buffer.from(get("/other"))]));
      assert.equal((await answersOf(other, 1))[0]?.status, 503);
    } finally {
      await stage.stop();
    }
  });
});

describe("the peers that may send a header", () => {
  it("are those of the networks that the port names; others are told of once, with the cure", () => {
    const lines: Record<string, unknown>[] = [];
    const from = [
      { address: "10.1.0.0", prefix: 16 },
      { address: "fd00::", prefix: 8 },
      { address: "192.0.2.9", prefix: 32 },
    ];
    const log = pino({ level: "warn" }, { write: (line) => lines.push(JSON.parse(line)) });
    const front = new Front({ from, headerMsMax: 1 }, 8080, log);
    for (const [peer, expected] of [
      ["10.1.255.255:1", true],
      ["10.2.0.0:1", false],
      ["[fd00::9]:1", true],
      ["[fe80::1%eth0]:1", false],
      ["[::ffff:10.1.0.1]:1", true],
      ["192.0.2.9:65535", true],
      ["192.0.2.10:1", false],
      ["", false],
    ] as const)
      assert.equal(front.trusts(peer), expected, peer);
    for (let count = 0; count < 20; count++) front.refusePeer("192.0.2.10:1");
    assert.equal(lines.length, 1);
    assert.match(String(lines[0]?.cure), /proxyProtocol\.from/);
  });
});
