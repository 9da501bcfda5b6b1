/**
 * Pieces of `npm run bench`, each in a short real run, and the command itself: the figures are there, and what generators count is what
 * the application saw. Nothing is said here of how large a figure is.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { Contenders, type Sample } from "#bench/contenders.ts";
import { median, showSpread, spreadOf } from "#bench/figures.ts";
import { measureIdle } from "#bench/idle.ts";
import { measureLatency } from "#bench/latency.ts";
import { Backend } from "#bench/load/backend.ts";
import type { Load, LoadReport } from "#bench/load/load.ts";
import { Program } from "#bench/load/program.ts";
import { parseWrk } from "#bench/load/wrk.ts";
import { measurePause, pauseProblems } from "#bench/pause.ts";
import { direct } from "#bench/peers/direct.ts";
import { holdfast } from "#bench/peers/holdfast.ts";
import { httpProxy } from "#bench/peers/http-proxy.ts";
import { httpxy } from "#bench/peers/httpxy.ts";
import { nginxHttp } from "#bench/peers/nginx.ts";
import { nodePipe } from "#bench/peers/node-pipe.ts";
import { MissingPeer, type Peer } from "#bench/peers/peer.ts";
import { type Figure, parseResults } from "#bench/results.ts";
import { Stage } from "#bench/stage.ts";

const root = resolve(import.meta.dirname, "../..");
const quiet = (): void => {};

describe("contenders beside each other", { timeout: 300_000 }, () => {
  const SECONDS = 0.5;
  const WARM_SECONDS = 0.05;
  const stage = new Stage();
  const absent: Peer = {
    name: "absent",
    start: async () => {
      throw new MissingPeer("nobody has it");
    },
  };
  const broken: Peer = {
    name: "broken",
    async start(stage) {
      const child = stage.spawn(["/bin/sh", "-c", "echo out of order >&2; exit 3"], {
        cpu: stage.cpus.server,
      });
      await stage.untilListening(1, child);
      throw new Error("unreachable");
    },
  };
  let contenders: Contenders;

  before(async () => {
    const all = [direct, holdfast("tcp"), holdfast("http"), holdfast("replay"), nodePipe, httpProxy, httpxy];
    contenders = await Contenders.start(stage, [...all, nginxHttp, absent, broken], undefined, WARM_SECONDS);
  });
  after(() => stage.close());

  it("are all started, and those that are not there are named", () => {
    assert.deepEqual(
      contenders.peers.map(({ name, note }) => [name, note]),
      [
        ["direct", null],
        ["holdfast-tcp", null],
        ["holdfast-http", null],
        ["holdfast-replay", null],
        ["node-pipe", null],
        ["http-proxy", null],
        ["httpxy", null],
        ["nginx-http", null],
      ],
    );
    assert.deepEqual(
      contenders.missing.map(({ where }) => where),
      ["absent", "broken"],
    );
    assert.match(contenders.missing[1]?.what ?? "", /out of order/);
    // Not to be installed is one thing, not to start another.
    assert.deepEqual(
      contenders.problems.map(({ where }) => where),
      ["broken"],
    );
    contenders.problems.length = 0;
  });

  it("carry what the generators count, closed loop", async () => {
    const samples: (Sample & { perSecond: number })[] = [];
    for (const peer of contenders.inTurn(1)) {
      const at = { round: 1, peer, connections: 32, load: "closed loop" };
      const measured = await contenders.measure(at, (port) =>
        contenders.generate({ port, connections: 32, perSecond: null, seconds: SECONDS }),
      );
      assert.ok(measured !== null, peer.name);
      samples.push({ ...measured.sample, perSecond: measured.report.perSecond });
    }
    assert.deepEqual(contenders.problems, []);
    assert.equal(samples.length, contenders.peers.length);
    for (const { peer, answered, seen, perSecond, cpuUsPerRequest } of samples) {
      assert.equal(seen, answered, peer);
      // Those that opened connections, and those that came after the time, are not in the rate.
      const counted = perSecond * SECONDS;
      assert.ok(
        counted > 0 && counted <= answered - 32 && counted >= answered - 64,
        `${counted} of ${answered}`,
      );
      if (peer !== "direct") assert.ok((cpuUsPerRequest ?? 0) > 0, `${peer} used no CPU`);
    }
  });

  it("answer everything that is due at a fixed rate, and each percentile is at least the one below", async () => {
    const samples = await measureLatency(
      contenders,
      { round: 1, connections: 4, rates: [200], seconds: SECONDS },
      quiet,
    );
    assert.deepEqual(contenders.problems, []);
    assert.equal(samples.length, contenders.peers.length);
    for (const { peer, seen, report } of samples) {
      assert.equal(report.unanswered, 0, peer);
      // One to open each connection, and all that were due.
      assert.equal(seen, 4 + 200 * SECONDS, peer);
      const { p50, p90, p99, p999, max } = report.latencyUs;
      assert.ok(0 < p50 && p50 <= p90 && p90 <= p99 && p99 <= p999 && p999 <= max, JSON.stringify(report));
    }
  });

  it("that end take no other's figures with them, and are not passed over", async () => {
    const pid = contenders.peers.find(({ name }) => name === "node-pipe")?.pid;
    assert.ok(pid);
    process.kill(pid, "SIGKILL");
    while (existsSync(`/proc/${pid}`)) await delay(5);
    const options = { round: 1, connections: 4, rates: [200], seconds: SECONDS };
    const samples = await measureLatency(contenders, options, quiet);
    assert.equal(samples.length, contenders.peers.length - 1);
    assert.equal(contenders.problems.length, 1);
    assert.match(contenders.problems[0]?.where ?? "", /^node-pipe, /);
    assert.match(contenders.problems[0]?.what ?? "", /^not measured: /);
  });
});

describe("the generator", { timeout: 300_000 }, () => {
  const STALL_MS = 400;
  const stage = new Stage();
  let generator: Program<Load, LoadReport>;
  let answer: RequestListener = () => {};
  let server: Server;
  let port: number;

  before(async () => {
    server = createServer((request, response) => answer(request, response)).listen(0, "127.0.0.1");
    await once(server, "listening");
    port = (server.address() as AddressInfo).port;
    generator = await Program.start(stage, join(root, "bench/load/generator.ts"), {
      cpu: stage.cpus.load,
    });
  });
  after(async () => {
    await stage.close();
    server.close();
  });

  it("lets every request that was due in a stall see it, not only those that were under way", async () => {
    const held: (() => void)[] = [];
    let requests = 0;
    const letGo = (): void => {
      for (const end of held.splice(0)) end();
    };
    answer = (_request, response) => {
      requests++;
      const opening = requests <= 4;
      if (requests === 5) setTimeout(letGo, STALL_MS);
      if (opening || (requests > 5 && held.length === 0)) response.end("x");
      else held.push(() => response.end("x"));
    };
    const open = await generator.ask({ protocol: "http", port, connections: 4, perSecond: 100, seconds: 1 });
    assert.equal(open.answered, 104);
    // 40 of 100 were due in it, the last ten at most 100 ms before its end: one in ten waited for three quarters of it.
    assert.ok(open.latencyUs.p90 >= STALL_MS * 1000 * 0.7, JSON.stringify(open.latencyUs));
    requests = 0;
    const closed = await generator.ask({
      protocol: "http",
      port,
      connections: 4,
      perSecond: null,
      seconds: 1,
    });
    assert.equal(requests, closed.answered);
    assert.ok(closed.latencyUs.max >= STALL_MS * 1000);
    assert.ok(closed.latencyUs.p90 < STALL_MS * 1000, "as many as there are connections saw it");
  });

  it("counts what was due and not answered, with the time it has waited", async () => {
    let requests = 0;
    answer = (_request, response) => {
      if (++requests <= 2) response.end("x");
    };
    const report = await generator.ask({ protocol: "http", port, connections: 2, perSecond: 50, seconds: 1 });
    assert.deepEqual([report.sent, report.answered, report.unanswered], [4, 2, 50]);
    assert.ok(report.latencyUs.p50 >= 1_000_000, "they wait for the drain too");
  });

  it("says what went wrong", async () => {
    const cases: [RequestListener, RegExp][] = [
      [(_request, response) => response.writeHead(500).end("x"), /not a 200 .*500/],
      [(request) => request.socket.destroy(), /closed/],
      [(_request, response) => response.write("without a length"), /not a 200 with a length/],
    ];
    for (const [listener, problem] of cases) {
      answer = listener;
      const report = await generator.ask({
        protocol: "http",
        port,
        connections: 3,
        perSecond: 100,
        seconds: 1,
      });
      assert.equal(report.errors, 3);
      assert.match(report.problem ?? "", problem);
    }
  });
});

describe("sessions", { timeout: 300_000 }, () => {
  const stage = new Stage();
  after(() => stage.close());

  it("that are idle stay, cost memory that is told, and leave room for active ones", async () => {
    const backend = await Backend.start(stage);
    const options = { round: 1, kind: "websocket" as const, steps: [5, 200], seconds: 1 };
    const samples = await measureIdle(stage, backend, options, quiet);
    assert.deepEqual(
      samples.map(({ sessions, lost, protocol }) => [sessions, lost, protocol]),
      [
        [5, 0, "websocket"],
        [200, 0, "websocket"],
      ],
    );
    for (const { bytes, collectedBytes, activePerSecond } of samples)
      assert.ok(bytes > 1 << 20 && collectedBytes > 1 << 20 && activePerSecond > 0);
  });

  it("behind a restart are answered by the new application, on the connection they had", async () => {
    const samples = await measurePause(stage, { restarts: 1 }, quiet);
    assert.deepEqual(
      samples.map(({ kind }) => kind),
      ["held", "replayed"],
    );
    assert.deepEqual(pauseProblems(samples), []);
    for (const { direct, directMs, proxiedMs, addedMs } of samples) {
      assert.ok(direct.dials >= 1, "the direct client has to connect again");
      assert.equal(addedMs, proxiedMs - directMs);
    }
    const [sample] = samples;
    assert.ok(sample !== undefined);
    const gone = { ...sample, proxied: { ...sample.proxied, pid: null, instead: "HTTP/1.1 503", dials: 1 } };
    assert.equal(pauseProblems([gone]).length, 2);
  });
});

describe("figures", () => {
  it("are medians, with the least and the greatest of all rounds", () => {
    assert.equal(median([5, 1, 3]), 3);
    assert.equal(median([4, 1]), 2.5);
    assert.deepEqual(spreadOf([4, 1, 2]), { median: 2, min: 1, max: 4 });
    assert.equal(showSpread(spreadOf([4, 1, 2]), String), "2 (1-4)");
    assert.equal(showSpread(spreadOf([]), String), "-");
  });

  it("of wrk are read with its errors, and never guessed", () => {
    const said = `Running 1s test @ http://127.0.0.1:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.16ms    0.90ms  19.36ms   96.96%
    Req/Sec    28.42k     4.12k   33.99k    72.73%
  31131 requests in 1.10s, 6.12MB read
  Socket errors: connect 0, read 3, write 1, timeout 2
  Non-2xx or 3xx responses: 10
Requests/sec:  28287.35
Transfer/sec:      5.56MB
`;
    assert.deepEqual(parseWrk(said, 32), { answered: 31131, sent: 31163, perSecond: 28287.35, errors: 16 });
    assert.throws(() => parseWrk("unable to connect", 32), /unable to connect/);
  });
});

describe("npm run bench", { timeout: 300_000 }, () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-bench-test-"));
  after(() => rmSync(directory, { recursive: true }));

  function bench(...args: string[]): { child: ChildProcess; output: { stdout: string; stderr: string } } {
    const child = spawn(process.execPath, [join(root, "bench/bench.ts"), ...args], {
      env: { ...process.env, TMPDIR: directory },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const output = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const)
      child[name]?.setEncoding("utf8").on("data", (text: string) => {
        output[name] += text;
      });
    return { child, output };
  }

  /** Processes that have their place in our folder, and what is left in it. */
  function left(): string[] {
    const processes = readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .filter((pid) => {
        try {
          return readFileSync(`/proc/${pid}/environ`, "utf8").includes(`TMPDIR=${directory}`);
        } catch {
          return false; // it ended meanwhile
        }
      });
    return [...processes, ...readdirSync(directory)];
  }

  it("measures, writes a report, and leaves nothing", async () => {
    const out = join(directory, "report");
    const { child, output } = bench(
      ..."--only tcp-echo,node-pipe,holdfast-tcp --rounds 2 --seconds 1 --out".split(" "),
      out,
    );
    const [status] = await once(child, "close");
    const results = parseResults(readFileSync(join(out, "results.json"), "utf8"));
    assert.deepEqual(results.problems, [], output.stderr);
    assert.equal(status, 0);
    assert.ok(results.endedAt !== null);
    assert.deepEqual(
      results.peers.map(({ name, missing }) => [name, missing]),
      [
        ["direct", null],
        ["holdfast-tcp", null],
        ["node-pipe", null],
      ],
    );
    const [piece, ...more] = results.pieces;
    assert.ok(piece !== undefined && more.length === 0);
    for (const peer of ["direct", "holdfast-tcp", "node-pipe"])
      for (const connections of [1, 32, 256]) {
        const figure: Figure | undefined = piece.figures.find(
          (each) =>
            each.peer === peer &&
            each.metric === "messagesPerSecond" &&
            each.parameters.connections === connections,
        );
        assert.equal(figure?.rounds.filter((value) => value !== null && value > 0).length, 2, peer);
      }
    assert.match(output.stderr, /^\[tcp-echo, round 2\/2, \d+ s left\] node-pipe, 32 connections/m);
    assert.ok(output.stdout.endsWith(`${join(out, "report.html")}\n`), output.stdout);
    assert.match(readFileSync(join(out, "report.html"), "utf8"), /<svg /);
    rmSync(out, { recursive: true });
    assert.deepEqual(left(), []);
  });

  it("keeps what it has when it is interrupted, and leaves nothing", async () => {
    const out = join(directory, "report");
    const { child, output } = bench(
      ..."--only tcp-echo,node-pipe --rounds 50 --seconds 1 --out".split(" "),
      out,
    );
    while (!/round 2\/50.* node-pipe/.test(output.stderr)) await once(child.stderr as never, "data");
    child.kill("SIGINT");
    const [status] = await once(child, "close");
    assert.equal(status, 130, output.stderr);
    const results = parseResults(readFileSync(join(out, "results.json"), "utf8"));
    assert.equal(results.endedAt, null);
    assert.deepEqual(results.problems, []);
    assert.deepEqual(
      results.pieces.map(({ figures }) => figures[0]?.rounds.length),
      [1],
    );
    assert.match(readFileSync(join(out, "report.md"), "utf8"), /cut off/);
    rmSync(out, { recursive: true });
    assert.deepEqual(left(), []);
  });

  it("refuses what it does not know", async () => {
    const { child, output } = bench("--only", "envoi");
    const [status] = await once(child, "close");
    assert.equal(status, 2);
    assert.match(output.stderr, /there is no envoi/);
  });
});
