/**
 * The loads of `npm run bench` on the data path, each in a short real run through peers of each kind: the figures are there,
 * what generators count is what applications saw, and a generator notices an application that is not what it should be.
 * Nothing is said here of how large a figure is.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer as createHttpServer } from "node:http";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { after, before, describe, it } from "node:test";
import { Contenders } from "#bench/contenders.ts";
import { latencyPieces } from "#bench/latency.ts";
import { converse, MESSAGE_BYTES } from "#bench/load/conversation.ts";
import { parseH2load } from "#bench/load/h2load.ts";
import type { Held, Hold, Load, LoadReport } from "#bench/load/load.ts";
import { Program } from "#bench/load/program.ts";
import { envoyTcp } from "#bench/peers/envoy.ts";
import { MissingPeer } from "#bench/peers/peer.ts";
import { peers } from "#bench/peers/peers.ts";
import type { BenchPiece } from "#bench/piece.ts";
import type { Figure } from "#bench/results.ts";
import { sessionPieces } from "#bench/sessions.ts";
import { Stage } from "#bench/stage.ts";
import { limitedByLoad, throughputPieces } from "#bench/throughput.ts";
import { disagreements, NOISE, type ToolRates } from "#bench/tools.ts";

const SECONDS = 0.3;
/** compiled or not: nothing is said of how large a figure is */
const WARM_SECONDS = 0.05;
const HOLDFAST = ["holdfast-tcp", "holdfast-http", "holdfast-websocket", "holdfast-replay"];
const WANTED = ["direct", ...HOLDFAST, "envoy-tcp", "envoy-http", "nginx-http", "httpxy", "http-proxy"];

describe("a load on the data path", { timeout: 300_000 }, () => {
  const stage = new Stage();
  const problems: string[] = [];
  const missing = new Set<string>();
  let contenders: Promise<Contenders> | null = null;

  before(async () => {
    // Envoy is not among what tests install; where it is there, it has to fit too.
    const apart = new Stage();
    const envoys = await Contenders.start(
      apart,
      peers.filter(({ name }) => /^envoy/.test(name)),
      undefined,
      WARM_SECONDS,
    );
    await apart.close();
    for (const { where, what } of envoys.missing) {
      assert.match(what, /scripts\/setup\.sh bench installs it/);
      missing.add(where);
    }
    for (const { version } of envoys.peers) assert.match(version, /^1\.\d+\.\d+/);
  });
  after(() => stage.close());

  async function measure(piece: BenchPiece | undefined): Promise<Figure[]> {
    assert.ok(piece !== undefined);
    const plan = {
      peers: WANTED.filter((name) => !missing.has(name)),
      quick: true,
      seconds: SECONDS,
      warmSeconds: WARM_SECONDS,
    };
    assert.ok(piece.estimateSeconds(plan) > 0);
    const start = (): Promise<Contenders> =>
      Contenders.start(
        stage,
        peers.filter(({ name }) => plan.peers.includes(name)),
        undefined,
        plan.warmSeconds,
      );
    return piece.measure({
      ...plan,
      stage,
      round: 1,
      contenders: () => (contenders ??= start()),
      introduce: (contenders) => {
        for (const { name, note } of contenders.peers) if (note !== null) problems.push(`${name}: ${note}`);
        for (const { where, what } of contenders.missing) problems.push(`${where}: ${what}`);
      },
      say: () => {},
      problem: (where, what) => problems.push(`${where}: ${what}`),
    });
  }

  const there = (names: string[]): string[] => names.filter((name) => !missing.has(name)).sort();
  const everyHttp = ["direct", "holdfast-tcp", "holdfast-http", "holdfast-replay"];
  const otherHttp = ["envoy-tcp", "envoy-http", "nginx-http", "httpxy", "http-proxy"];
  const carriers: Record<string, string[]> = {
    "tcp-echo": ["direct", "holdfast-tcp", "envoy-tcp"],
    "ws-echo": ["direct", "holdfast-tcp", "holdfast-websocket", "holdfast-replay", ...otherHttp],
    "bulk-down": [...everyHttp, ...otherHttp],
    "bulk-up": [...everyHttp, ...otherHttp],
    churn: [...everyHttp, ...otherHttp],
  };
  for (const [name, expected] of Object.entries(carriers)) {
    it(`${name} is carried by every peer that can, and counted by the application too`, async () => {
      const figures = await measure(throughputPieces.find((piece) => piece.name === name));
      assert.deepEqual(problems, []);
      const main = figures.filter(({ metric }) => /PerSecond$/.test(metric));
      assert.deepEqual(main.map(({ peer }) => peer).sort(), there(expected));
      for (const { peer, rounds } of main) assert.ok((rounds[0] ?? 0) > 0, peer);
      // What a peer costs is told for each but the direct way.
      const costs = figures.filter(({ metric }) => /^cpuUsPer/.test(metric));
      assert.equal(costs.length, main.length - 1);
      for (const { peer, rounds } of costs) assert.ok((rounds[0] ?? 0) > 0, peer);
    });
  }

  it("at a fixed rate gives a curve that only rises, up to the slowest of all", async () => {
    const figures = await measure(latencyPieces.find(({ name }) => name === "latency-ws-echo"));
    assert.deepEqual(problems, []);
    const curves = figures.filter(({ metric }) => metric === "latencyUs");
    assert.deepEqual(curves.map(({ peer }) => peer).sort(), there(carriers["ws-echo"] as string[]));
    for (const { peer, rounds, percentiles } of curves) {
      const curve = percentiles?.[0] ?? [];
      assert.ok(curve.length > 20, peer);
      assert.equal(curve.at(-1)?.p, 100);
      assert.equal(curve.find(({ p }) => p === 50)?.valueUs, rounds[0]);
      for (const [index, point] of curve.entries()) {
        const before = curve[index - 1] ?? { p: 0, valueUs: 0 };
        assert.ok(point.p > before.p && point.valueUs >= before.valueUs, `${peer} at ${point.p} %`);
      }
    }
    const unanswered = figures.filter(({ metric }) => metric === "unanswered");
    assert.deepEqual(unanswered.map(({ peer }) => peer).sort(), there(carriers["ws-echo"] as string[]));
    for (const { peer, rounds } of unanswered) assert.deepEqual(rounds, [0], peer);
  });

  it("of idle sessions tells what each costs, and what is carried beside them", async () => {
    const piece = sessionPieces.find(({ name }) => name === "idle-tcp");
    const figures = await measure(piece);
    assert.deepEqual(problems, []);
    const beside = figures.filter(({ metric }) => metric === "messagesPerSecond");
    for (const peer of there(carriers["tcp-echo"] as string[]))
      assert.deepEqual(
        beside.filter((each) => each.peer === peer).map(({ parameters }) => parameters.sessions),
        [100, 1_000],
      );
    const costs = figures.filter(({ metric }) => metric === "memoryBytesPerSession");
    const relaying = there(carriers["tcp-echo"] as string[]).filter((name) => name !== "direct");
    assert.deepEqual(
      costs.map(({ peer }) => peer).sort(),
      relaying,
      "once each: fewer sessions are lost in the noise",
    );
    // Our own is, of so few: it fits into the heap there is.
    const dearest = Math.max(...costs.map(({ rounds }) => rounds[0] ?? 0));
    if (relaying.includes("envoy-tcp")) assert.ok(dearest > 500, "a session is at least a few objects");
  });
});

describe("the generator", { timeout: 300_000 }, () => {
  const stage = new Stage();
  const servers: Server[] = [];
  let generator: Program<Load | Hold, LoadReport | Held>;

  before(async () => {
    generator = await Program.start(stage, `${import.meta.dirname}/../../bench/load/generator.ts`, {
      cpu: stage.cpus.load,
    });
  });
  after(async () => {
    await stage.close();
    for (const server of servers) server.close();
  });

  async function serve(server: Server): Promise<number> {
    servers.push(server.listen(0, "127.0.0.1"));
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  }

  /** A TCP server that answers a chunk as it is told, its number (from 1) in hand. */
  function answering(answer: (chunk: Buffer, count: number, socket: Socket) => void): Promise<number> {
    let count = 0;
    const onClient = (socket: Socket): void => {
      socket.on("error", () => {}); // "close" follows
      socket.on("data", (chunk: Buffer) => answer(chunk, ++count, socket));
    };
    return serve(createServer({ noDelay: true }, onClient));
  }

  async function run(load: Partial<Load> & Pick<Load, "port">): Promise<LoadReport> {
    const common = { protocol: "tcp" as const, connections: 1, perSecond: 50, seconds: SECONDS };
    return (await generator.ask({ ...common, ...load })) as LoadReport;
  }

  it("notices an echo with one wrong bit, one that is too long, and another message's", async () => {
    const wrong: [RegExp, (chunk: Buffer) => Buffer][] = [
      [/not the echo/, (chunk) => Buffer.from(chunk.map((byte, index) => (index === 40 ? byte ^ 1 : byte)))],
      [/more bytes than were asked for/, (chunk) => Buffer.concat([chunk, Buffer.from("x")])],
      [/not the echo/, () => converse("tcp").next()],
    ];
    for (const [problem, change] of wrong) {
      const port = await answering((chunk, count, socket) => {
        socket.write(count < 3 ? chunk : change(chunk));
      });
      const report = await run({ port });
      assert.deepEqual([report.answered, report.errors], [2, 1]);
      assert.match(report.problem ?? "", problem);
    }
  });

  it("takes an answer in pieces", async () => {
    const port = await answering((chunk, _count, socket) => {
      socket.write(chunk.subarray(0, 10));
      setImmediate(() => socket.write(chunk.subarray(10)));
    });
    const report = await run({ port });
    assert.deepEqual([report.errors, report.unanswered], [0, 0]);
    assert.equal(report.answered, 1 + 50 * SECONDS);
  });

  it("does not take for a WebSocket what was not upgraded", async () => {
    const refuse = createHttpServer();
    refuse.on("upgrade", (_request, socket) =>
      socket.end("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
    );
    const report = await run({ port: await serve(refuse), protocol: "websocket" });
    assert.deepEqual([report.answered, report.errors], [0, 1]);
    assert.match(report.problem ?? "", /not upgraded/);
  });

  it("sends a masked frame, as a client must", () => {
    const frame = converse("websocket").next();
    assert.deepEqual([frame[0], frame[1]], [0x82, 0x80 | MESSAGE_BYTES]);
    const key = frame.subarray(2, 6);
    const payload = frame.subarray(6).map((byte, index) => byte ^ (key[index % 4] as number));
    assert.equal(payload.length, MESSAGE_BYTES);
    // The number of the message, and then letters.
    assert.deepEqual([...payload.subarray(0, 4)], [1, 0, 0, 0]);
    assert.match(Buffer.from(payload.subarray(4)).toString(), /^[@A-Z]{60}$/);
  });

  it("has a connection for each request when it churns", async () => {
    let connections = 0;
    const server = createHttpServer((_request, response) => response.end("x"));
    server.on("connection", () => connections++);
    const report = await run({ port: await serve(server), protocol: "http", churn: true, connections: 4 });
    assert.deepEqual([report.errors, report.unanswered], [0, 0]);
    assert.equal(report.answered, 4 + 50 * SECONDS);
    assert.equal(connections, report.answered);
  });

  it("uploads every byte it says", async () => {
    const bulk = { direction: "up" as const, bytes: 5_000_000 };
    let bytes = 0;
    const server = createHttpServer((request, response) => {
      request.on("data", (chunk: Buffer) => {
        bytes += chunk.length;
      });
      request.on("end", () => response.end());
    });
    const report = await run({ port: await serve(server), protocol: "http", bulk, perSecond: null });
    assert.deepEqual([report.errors, report.unanswered], [0, 0]);
    assert.ok(report.answered >= 2);
    assert.equal(bytes, report.answered * bulk.bytes);
  });

  it("tells which of the sessions it holds are lost", async () => {
    const sockets: Socket[] = [];
    const port = await answering((chunk, _count, socket) => {
      sockets.push(socket);
      socket.write(chunk);
    });
    const hold = (count: number): Promise<LoadReport | Held> =>
      generator.ask({ protocol: "tcp", port, hold: count });
    assert.deepEqual(await hold(5), { open: 5, lost: 0 });
    const [lost] = sockets;
    lost?.destroy();
    await once(lost as Socket, "close");
    assert.deepEqual(await hold(7), { open: 6, lost: 1 });
    assert.equal(sockets.length, 7);
  });
});

describe("what tools say", () => {
  const rates = (tool: ToolRates["tool"], perSecond: number[], busy: number | null = 1): ToolRates => ({
    tool,
    perSecond,
    busy,
  });

  it("is a problem where they disagree beyond noise, and the peer was the limit", () => {
    assert.deepEqual(disagreements([rates("wrk", [100]), rates("ours", [100 * (1 + NOISE / 2)])]), []);
    assert.match(
      disagreements([rates("wrk", [100_000]), rates("h2load", [130_000]), rates("ours", [101_000])]).join(),
      /^DISAGREEMENT: wrk says 100.0k\/s, h2load 130.0k\/s, 30 % apart with 10 % noise,DISAGREEMENT: h2load/,
    );
    // One that is 40 % apart from itself cannot disagree by 30 %.
    assert.deepEqual(disagreements([rates("wrk", [80, 120]), rates("ours", [130])]), []);
    assert.deepEqual(disagreements([rates("wrk", [100], 0.5), rates("ours", [200])]), []);
    assert.deepEqual(disagreements([rates("wrk", [100], null), rates("ours", [200], null)]), []);
  });

  it("is read from h2load with its errors, and never guessed", () => {
    const said = (counts: string): string => `finished in 1.00s, 100109.00 req/s, 14.51MB/s\n${counts}\n`;
    const good = "requests: 109 total, 113 started, 109 done, 109 succeeded, 0 failed, 0 errored, 0 timeout";
    const expected = { answered: 109, sent: 113, perSecond: 100109, errors: 0 };
    assert.deepEqual(parseH2load(said(good), 4), expected);
    const bad = "requests: 109 total, 113 started, 109 done, 100 succeeded, 9 failed, 2 errored, 0 timeout";
    assert.equal(parseH2load(said(bad), 4).errors, 9);
    const none = "requests: 0 total, 0 started, 0 done, 0 succeeded, 0 failed, 0 errored, 0 timeout";
    assert.throws(() => parseH2load(said(none), 4), /no answer/);
    assert.throws(() => parseH2load("unable to connect", 4), /unable to connect/);
  });

  it("names the load where it was the limit", () => {
    assert.match(limitedByLoad({ busy: 0.6, loadBusy: 1 }), /load's CPU was full, the peer's 60 %/);
    assert.equal(limitedByLoad({ busy: 1, loadBusy: 1 }), "");
    assert.equal(limitedByLoad({ busy: 0.6, loadBusy: 0.6 }), "");
    assert.equal(limitedByLoad({ busy: null, loadBusy: 1 }), "");
  });
});

describe("a peer that is not installed", () => {
  it("is named with its cure", async () => {
    const stage = new Stage();
    try {
      const running = envoyTcp.start(stage, { port: 1 });
      const outcome = await running.then(
        ({ version }) => version,
        (error: unknown) => error,
      );
      if (outcome instanceof MissingPeer) assert.match(outcome.message, /scripts\/setup\.sh bench/);
      else assert.match(String(outcome), /^1\.\d+/);
    } finally {
      await stage.close();
    }
  });
});
