/** Agents come and go; applications and their clients do not notice. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { afterEach, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import {
  type AgentConfig,
  createLab,
  type Lab,
  type LabAgent,
  nodeBinary,
  projectRoot,
} from "#test/lab/lab.ts";
import { isClean } from "#test/lab/sweep.ts";
import { type Load, startLoad } from "#test/load/load.ts";
import { until } from "#test/support/moved-program.ts";

const VIP = "10.99.0.50";
const SESSIONS = 16;
const SERVED_MS_MAX = 30_000;
let lab: Lab | undefined;

afterEach(async () => {
  const used = lab;
  lab = undefined;
  await used?.close();
  if (used !== undefined) assert.ok(isClean(used.leftovers()), JSON.stringify(used.leftovers()));
});

function config(node: string, downstream: "takeover" | "forward"): AgentConfig {
  return {
    workloads: [
      {
        name: "chat",
        start: node === "a",
        container: {
          command: [nodeBinary, "server.js"],
          cwd: `${projectRoot}/test/apps/chat`,
          env: { PORT: "9000" },
          rootfs: "host",
        },
        ports: [{ listen: 8080, upstream: "127.0.0.1:9000" }],
        ...(downstream === "takeover" ? { vip: { address: `${VIP}/24`, device: "eth0" } } : {}),
      },
    ],
  };
}

async function open(downstream: "takeover" | "forward"): Promise<{ lab: Lab; load: Load }> {
  const opened = await createLab();
  lab = opened;
  await opened.startAgents(["a", "b"], (node) => opened.startAgent(node, config(node, downstream)));
  const address = downstream === "takeover" ? VIP : opened.place("a").address;
  const load = await startLoad(opened, "ws", { target: { address, port: 8080 }, sessions: SESSIONS });
  await load.mark();
  return { lab: opened, load };
}

async function assertIntact(load: Load): Promise<void> {
  const report = await load.report();
  assert.deepEqual(
    {
      lost: report.lost,
      repeated: report.repeated,
      corrupt: report.corrupt,
      resets: report.resets,
      alive: report.alive,
    },
    { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: report.sessions },
    report.problems.join("; "),
  );
  assert.ok(report.messages > 0, "the clients were at work");
  await load.mark();
}

async function migrate(used: Lab, from: string, to: string): Promise<void> {
  const { json, stderr } = await used.cli(from, ["migrate", "chat", "--to", to, "--json"]);
  assert.equal((json as { outcome?: string } | undefined)?.outcome, "moved", stderr);
}

/** What the application remembers, asked by new clients until one is served and it has heard so many of the load's. */
async function chatSays(
  used: Lab,
  clientsMin = 0,
): Promise<{ pid: number; clients: number; messages: number }> {
  const untilMs = performance.now() + SERVED_MS_MAX;
  for (;;) {
    const asked = await used.run("client", ["curl", "-sS", "--max-time", "5", `http://${VIP}:8080/`]);
    const says = asked.json as Awaited<ReturnType<typeof chatSays>> | undefined;
    if (says !== undefined && says.clients >= clientsMin) return says;
    assert.ok(performance.now() < untilMs, `within ${SERVED_MS_MAX} ms: ${asked.stdout}${asked.stderr}`);
    await sleep(20);
  }
}

for (const [downstream, signal] of [
  ["takeover", "SIGTERM"],
  ["forward", "SIGKILL"],
] as const) {
  test(`${downstream}: an agent ended by ${signal} and started again finds everything as it was, and moves it`, async () => {
    const { lab: used, load } = await open(downstream);
    for (const node of ["a", "b"]) {
      await used.agents.get(node)?.stop(signal);
      await used.startAgent(node, config(node, downstream));
    }
    await assertIntact(load);
    await migrate(used, "a", "b");
    await assertIntact(load);
    for (const node of ["b", "a"]) {
      await used.agents.get(node)?.stop(signal);
      await used.startAgent(node, config(node, downstream));
    }
    await migrate(used, "b", "a");
    await assertIntact(load);
  });
}

test("an agent that has ended leaves its clients served", async () => {
  const { lab: used, load } = await open("forward");
  await used.agents.get("a")?.stop("SIGTERM");
  await assertIntact(load);
  await used.startAgent("a", config("a", "forward"));
});

test("the agent works below `ip netns exec`, which hides cgroups and mounts", async () => {
  const { lab: used, load } = await open("forward");
  const agent = used.agents.get("a") as LabAgent;
  await agent.stop("SIGTERM");
  const argv = [
    "ip",
    "netns",
    "exec",
    used.place("a").netns,
    `${projectRoot}/bin/holdfast`,
    "agent",
    "--config",
    agent.configFile,
  ];
  const again = used.spawn("switch", argv, { name: "agent-in-netns", cwd: projectRoot });
  await again.waitFor(/agent ready/);
  await migrate(used, "a", "b");
  await migrate(used, "b", "a");
  await assertIntact(load);
  assert.equal((await used.cli("a", ["stop", "chat"])).status, 0);
  await again.stop("SIGTERM");
});

test("a proxy that is killed costs its sessions; the application and new clients go on", async () => {
  const { lab: used, load } = await open("takeover");
  // Connected is not heard: whose first message is still on its way, of that the application knows nothing yet.
  const before = await chatSays(used, SESSIONS);
  const journal = join(used.stateDir("a"), "workloads", "chat", "journal.json");
  process.kill(
    (JSON.parse(readFileSync(journal, "utf8")) as { proxy: { process: { pid: number } } }).proxy.process.pid,
    "SIGKILL",
  );
  const after = await chatSays(used);
  assert.deepEqual({ pid: after.pid, clients: after.clients }, { pid: before.pid, clients: SESSIONS });
  assert.ok(after.messages >= before.messages, "the application remembers");
  await load.untilAlive(0);
  await migrate(used, "a", "b");
  assert.equal((await chatSays(used)).pid, before.pid);
});

test("a proxy that cannot be started in its place is started when it can", async () => {
  const { lab: used } = await open("takeover");
  const before = await chatSays(used);
  const folder = join(used.stateDir("a"), "workloads", "chat");
  const { proxy } = JSON.parse(readFileSync(join(folder, "journal.json"), "utf8")) as {
    proxy: { process: { pid: number } };
  };
  const log = join(folder, "proxy.log");
  rmSync(log);
  mkdirSync(log); // where it would log to
  process.kill(proxy.process.pid, "SIGKILL");
  const problem = async (): Promise<string | undefined> => {
    const { json } = await used.cli("a", ["status", "--json"]);
    return (json as { workloads: { problem: { what: string } | null }[] }).workloads[0]?.problem?.what;
  };
  await until("it is said why", async () => /does not start.*EISDIR/.test((await problem()) ?? ""));
  rmdirSync(log);
  const after = await chatSays(used);
  assert.equal(after.pid, before.pid);
  await until("nothing is wrong any more", async () => (await problem()) === undefined);
});

test("a workload that its home node lost is started where the store says it belongs", async () => {
  const { lab: used } = await open("takeover");
  await migrate(used, "a", "b");
  await used.agents.get("b")?.stop("SIGKILL");
  const journal = JSON.parse(
    readFileSync(join(used.stateDir("b"), "workloads", "chat", "journal.json"), "utf8"),
  ) as {
    proxy: { process: { pid: number } };
    container: { init: { pid: number } };
  };
  for (const pid of [journal.proxy.process.pid, journal.container.init.pid]) process.kill(pid, "SIGKILL");
  await used.startAgent("b", config("b", "takeover"));
  // what was killed may still be ending when the agent looks
  await until("it runs there", async () => {
    const status = (await used.cli("b", ["status", "--json"])).json as {
      workloads: { state: string; role: string }[];
    };
    return isDeepStrictEqual(
      status.workloads.map(({ state, role }) => ({ state, role })),
      [{ state: "running", role: "owner" }],
    );
  });
});

test("stop ends the application, its sessions and everything made for it", async () => {
  const { lab: used } = await open("takeover");
  assert.equal((await used.cli("a", ["stop", "chat"])).status, 0);
  const left = used.leftovers();
  assert.deepEqual(
    { containers: left.containers, mounts: left.mounts, nftTables: left.nftTables },
    { containers: [], mounts: [], nftTables: [] },
  );
  const shown = await used.run("a", ["ip", "-o", "address", "show", "dev", "eth0"]);
  assert.ok(!shown.stdout.includes(VIP), "the address is gone");
  const status = (await used.cli("a", ["status", "--json"])).json as { workloads: { state: string }[] };
  assert.equal(status.workloads[0]?.state, "stopped");
});

test("metrics and health are served, and nothing else, on the metrics address, or nothing is begun", async () => {
  const opened = await createLab({ nodes: ["a"] });
  lab = opened;
  const metrics = `${opened.place("a").address}:7411`;
  const other = opened.spawn("a", [nodeBinary, "-e", "require('node:net').createServer().listen(7411)"]);
  await until("somebody else has the port", async () =>
    (await opened.run("a", ["ss", "-ltn"])).stdout.includes(":7411"),
  );
  const taken = opened.startAgent("a", { ...config("a", "forward"), metrics });
  await assert.rejects(taken, /cannot listen on .*:7411/);
  assert.deepEqual(readdirSync(join(opened.stateDir("a"), "workloads", "chat")), [], "nothing was begun");
  other.child.kill();
  await once(other.child, "exit");
  await opened.startAgent("a", { ...config("a", "forward"), metrics });
  for (const [path, status, text] of [
    ["/metrics", 200, /holdfast_agent_workloads\{role="owner"\} 1/],
    ["/healthz", 200, /ok/],
    ["/v1/status", 404, /no such resource/],
  ] as const) {
    const { stdout } = await opened.run("a", [
      "curl",
      "-s",
      "-w",
      "\n%{http_code}",
      `http://${metrics}${path}`,
    ]);
    assert.match(stdout, text);
    assert.ok(stdout.endsWith(`\n${status}`), stdout);
  }
});

test("the admin socket answers nonsense with one clear line", async () => {
  const opened = await createLab({ nodes: ["a"] });
  lab = opened;
  await opened.startAgents(["a"], (node) => opened.startAgent(node, config(node, "forward")));
  const agent = opened.agents.get("a") as LabAgent;
  const ask = (path: string, body: string): Promise<{ status: number; text: string }> =>
    new Promise((resolve, reject) => {
      const asked = request({ socketPath: agent.socketPath, path, method: "POST" }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
        response.on("end", () => resolve({ status: response.statusCode ?? 0, text }));
      });
      asked.on("error", reject);
      asked.end(body);
    });
  for (const [path, body, status, code] of [
    ["/v1/workloads/chat/migrate", "{", 400, "REQUEST_INVALID"],
    ["/v1/workloads/chat/migrate", "{}", 400, "REQUEST_INVALID"],
    ["/v1/workloads/chat/migrate", `{"to":"b","deadlineMs":-1}`, 400, "REQUEST_INVALID"],
    ["/v1/workloads/chat/migrate", `{"to":"a"}`, 409, "ALREADY_THERE"],
    ["/v1/workloads/chat/migrate", `{"to":"${"x".repeat(100_000)}"}`, 400, "REQUEST_INVALID"],
    ["/v1/workloads/none/migrate", `{"to":"b"}`, 404, "WORKLOAD_UNKNOWN"],
    ["/v1/workloads/%ff/migrate", `{"to":"b"}`, 404, "WORKLOAD_UNKNOWN"],
    ["/v2", "", 404, "NOT_FOUND"],
  ] as const) {
    const answer = await ask(path, body);
    assert.equal(answer.status, status, `${path} ${body.slice(0, 40)}: ${answer.text}`);
    assert.equal((JSON.parse(answer.text) as { error: { code: string } }).error.code, code);
  }
});
