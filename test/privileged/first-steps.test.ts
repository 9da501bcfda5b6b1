/** Whatever keeps a workload from starting: `status` and `check` say it in one line, with the cure and where the log is. */
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { type IncomingMessage, request } from "node:http";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { after, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Finding } from "#control/api/finding.ts";
import { type AgentConfig, createLab, type Lab } from "#test/lab/lab.ts";

const WAIT_MS_MAX = 40_000;
const POLL_MS = 50;
/** listens on its port, and is otherwise at rest */
const LISTENER = "import socket,time; s=socket.create_server(('127.0.0.1',PORT)); time.sleep(1e6)";

interface Shown {
  name: string;
  state: string;
  role: string;
  problem: { id?: string; what: string; cure: string } | null;
}

interface Refusal {
  error: { code: string; message: string };
}

interface Case {
  workload: AgentConfig;
  state: string;
  id: string;
  what: RegExp;
  cure: RegExp;
}

const listen = (port: number): string[] => ["python3", "-c", LISTENER.replace("PORT", `${port}`)];
const inside = (command: string[], more: object = {}) => ({ command, rootfs: "host", ...more });
const FIRST_PORT = 8100;

/** Each with ports of its own; what is in `dir` is made by the test. */
function cases(dir: string): Record<string, Case> {
  const port = (index: number) => ({ listen: FIRST_PORT + index, upstream: `127.0.0.1:${9_100 + index}` });
  const all: Record<string, (index: number) => Case> = {
    "no-bundle": (index) => ({
      workload: { bundle: join(dir, "nowhere"), ports: [port(index)] },
      state: "failed",
      id: "start.bundle-missing",
      what: /^the bundle \S+\/nowhere is not there, or has no config\.json$/,
      cure: /correct bundle:/,
    }),
    "bad-bundle": (index) => ({
      workload: { bundle: join(dir, "bad-bundle"), ports: [port(index)] },
      state: "failed",
      id: "start.bundle-invalid",
      what: /bad-bundle\/config\.json is not an OCI configuration/,
      cure: /correct that file/,
    }),
    "no-rootfs": (index) => ({
      workload: { container: { ...inside(listen(1)), rootfs: join(dir, "nowhere") }, ports: [port(index)] },
      state: "failed",
      id: "start.rootfs-missing",
      what: /^rootfs \S+\/nowhere is not a folder$/,
      cure: /correct rootfs:/,
    }),
    "no-mount": (index) => ({
      workload: {
        container: inside(listen(9_100 + index), {
          mounts: [{ source: join(dir, "nowhere"), target: "/data" }],
        }),
        ports: [port(index)],
      },
      state: "failed",
      id: "start.mount-missing",
      what: /^\S+\/nowhere, to be mounted at \/data, is not there$/,
      cure: /correct mounts:.*may not be mounted/,
    }),
    "no-command": (index) => ({
      workload: { container: inside(["no-such-server", "--port", "1"]), ports: [port(index)] },
      state: "failed",
      id: "start.command-not-found",
      what: /^the command no-such-server is in no folder of the container's PATH$/,
      cure: /correct container\.command or PATH/,
    }),
    "no-command-with-daemons": (index) => ({
      workload: { container: inside(["no-such-server"]), subreaper: true, ports: [port(index)] },
      state: "failed",
      id: "start.command-not-found",
      what: /^the command no-such-server is in no folder of the container's PATH$/,
      cure: /correct container\.command or PATH/,
    }),
    "no-program": (index) => ({
      workload: { container: inside(["/opt/no/such/server"]), ports: [port(index)] },
      state: "failed",
      id: "start.command-not-found",
      what: /^the command \/opt\/no\/such\/server is not in the container/,
      cure: /correct container\.command/,
    }),
    "not-executable": (index) => ({
      workload: { container: inside([join(dir, "plain.sh")]), ports: [port(index)] },
      state: "failed",
      id: "start.not-executable",
      what: /^the command \S+plain\.sh is not executable in the container$/,
      cure: /chmod \+x/,
    }),
    "ends-at-once": (index) => ({
      workload: {
        container: inside(["/bin/sh", "-c", "echo no database here; sleep 1; exit 7"]),
        ports: [port(index)],
      },
      state: "failed",
      id: "start.failed",
      what: /^ends-at-once ended with status 7 at once: no database here$/,
      cure: /see the log/,
    }),
    "port-taken": (index) => ({
      workload: {
        container: inside(listen(9_100 + index)),
        ports: [{ ...port(index), listen: 7_001 }],
      },
      state: "failed",
      id: "start.port-taken",
      what: /^[\d.]+:7001, where clients are to connect, is taken by process \d+ \(python3\)$/,
      cure: /stop that process, or give the workload another port/,
    }),
    "upstream-taken": (index) => ({
      workload: {
        container: inside(listen(7_002)),
        ports: [{ ...port(index), upstream: "127.0.0.1:7002" }],
      },
      state: "failed",
      id: "start.upstream-taken",
      what: /^127\.0\.0\.1:7002, where the application is to listen, is taken by process \d+ \(python3\)$/,
      cure: /stop that process/,
    }),
    "no-device": (index) => ({
      workload: {
        container: inside(listen(9_100 + index)),
        ports: [port(index)],
        vip: { address: "10.99.0.51/24", device: "eth77" },
      },
      state: "failed",
      id: "start.no-device",
      what: /^the device eth77 of the address 10\.99\.0\.51 is not there$/,
      cure: /vip\.device/,
    }),
    loops: (index) => ({
      // it listens, and ends: again and again
      workload: {
        container: inside([
          "python3",
          "-c",
          `import socket,time,sys; s=socket.create_server(('127.0.0.1',${9_100 + index})); print('out of luck', flush=True); time.sleep(0.2); sys.exit(3)`,
        ]),
        ports: [port(index)],
      },
      state: "",
      id: "application.crash-loop",
      what: /^the application ends again and again, \d+ times by now; the last time it ended with status 3: out of luck$/,
      cure: /tried again by itself/,
    }),
    "stays-down": (index) => ({
      workload: {
        container: inside([
          "python3",
          "-c",
          `import socket,time; s=socket.create_server(('127.0.0.1',${9_100 + index})); print('all done', flush=True); time.sleep(0.2)`,
        ]),
        ports: [port(index)],
      },
      state: "down",
      id: "application.left-down",
      what: /^the application ended with status 0: all done; with restart: on-failure it stays so$/,
      cure: /holdfast restart stays-down/,
    }),
    deaf: (index) => ({
      workload: { container: inside(listen(9_999)), ports: [port(index)] },
      state: "running",
      id: "application.not-listening",
      what: new RegExp(`127\\.0\\.0\\.1:${9_100 + index}, where`),
      cure: /correct upstream:/,
    }),
  };
  return Object.fromEntries(Object.entries(all).map(([name, make], index) => [name, make(index)]));
}

describe("a workload that does not come up", { timeout: 120_000 }, () => {
  let lab: Lab;
  let all: Record<string, Case>;
  before(async () => {
    lab = await createLab();
    all = cases(lab.dir);
    mkdirSync(join(lab.dir, "bad-bundle"));
    writeFileSync(join(lab.dir, "bad-bundle", "config.json"), "{}");
    writeFileSync(join(lab.dir, "plain.sh"), "#!/bin/sh\n", { mode: 0o644 });
    const { address } = lab.place("a");
    const taker = lab.spawn("a", [
      "python3",
      "-uc",
      `import socket,time; s=[socket.create_server(at) for at in (('${address}',7001),('127.0.0.1',7002))]; print('taken'); time.sleep(1e6)`,
    ]);
    await taker.waitFor(/taken/);
    const workloads = Object.entries(all).map(([name, { workload }]) => ({ name, start: true, ...workload }));
    await Promise.all([
      lab.startAgent("a", { workloads }),
      lab.startAgent("b", {
        store: "redis://127.0.0.1:1",
        workloads: [
          {
            name: "waits",
            start: true,
            container: inside(listen(1)),
            ports: [{ listen: 1, upstream: "127.0.0.1:1" }],
          },
        ],
      }),
    ]);
  });
  after(() => lab.close());

  /** @param body POST */
  async function ask<T>(node: string, path: string, body?: object): Promise<T> {
    const socketPath = lab.agents.get(node)?.socketPath ?? "";
    const answer = await new Promise<IncomingMessage>((resolve, reject) =>
      request({ socketPath, path, method: body === undefined ? "GET" : "POST" }, resolve)
        .once("error", reject)
        .end(JSON.stringify(body)),
    );
    return JSON.parse(await text(answer)) as T;
  }

  async function shown(node: string, name: string): Promise<Shown> {
    const { workloads } = await ask<{ workloads: Shown[] }>(node, "/v1/status");
    const found = workloads.find((each) => each.name === name);
    assert.ok(found !== undefined);
    return found;
  }

  async function findingsOf(node: string, name: string): Promise<Finding[]> {
    return (await ask<{ findings: Finding[] }>(node, `/v1/check?workload=${name}`)).findings;
  }

  async function until<T>(ask: () => Promise<T>, done: (answer: T) => boolean): Promise<T> {
    const lateMs = performance.now() + WAIT_MS_MAX;
    for (;;) {
      const answer = await ask();
      if (done(answer)) return answer;
      assert.ok(performance.now() < lateMs, JSON.stringify(answer));
      await delay(POLL_MS);
    }
  }

  for (const [name, { id }] of Object.entries(cases("/"))) {
    it(`says so: ${id} (${name})`, async () => {
      const { state, what, cure } = all[name] as Case;
      const { problem, ...rest } = await until(
        () => shown("a", name),
        (each) => each.problem?.id === id && (state === "" || each.state === state),
      );
      assert.match(problem?.what ?? "", what);
      assert.match(problem?.cure ?? "", cure);
      const log = join(lab.stateDir("a"), "workloads", name, "app.log");
      assert.ok(`${problem?.cure}`.includes(`the log: ${log}`), `${problem?.cure}`);
      assert.ok(!/\n/.test(`${problem?.what}${problem?.cure}`), "one line");
      assert.notEqual(rest.state, "elsewhere");

      // A loop is up for moments, too.
      const findings = await until(
        () => findingsOf("a", name),
        (found) => found.some((finding) => finding.id === id),
      );
      const told = findings.find((finding) => finding.id === id)?.what ?? "";
      assert.match(told, id === "application.not-listening" ? /does not listen/ : what);
      if (state !== "failed") return;
      const refused = await ask<Refusal>("a", `/v1/workloads/${name}/migrate`, { to: "b" });
      assert.equal(refused.error.code, "WORKLOAD_DOWN");
      assert.ok(refused.error.message.includes(problem?.what ?? "?"), refused.error.message);
    });
  }

  it("says so: the store is not reachable", async () => {
    const { state, problem } = await until(
      () => shown("b", "waits"),
      ({ problem }) => problem !== null,
    );
    assert.equal(state, "waiting");
    assert.match(problem?.cure ?? "", /^start the store; then it is started by itself$/);
    const { stdout } = await lab.cli("b", ["status"]);
    assert.match(stdout, /^store redis:\/\/127\.0\.0\.1:1 {2}NOT REACHABLE: /m);
    const ids = (await findingsOf("b", "waits")).map(({ id }) => id);
    assert.ok(ids.includes("node.store-silent") && ids.includes("start.waits"), ids.join(" "));
  });

  it("starts when it is told to after the cure", async () => {
    const move = await lab.cli("a", ["migrate", "no-mount", "--to", "b"]);
    assert.equal(move.status, 4, move.stderr);
    assert.match(move.stderr, /no-mount does not run: \S+ to be mounted at \/data, is not there/);
    assert.equal((await lab.cli("a", ["start", "no-mount"])).status, 1);
    mkdirSync(join(lab.dir, "nowhere"));
    const again = await lab.cli("a", ["start", "no-mount"]);
    assert.equal(again.status, 0, again.stderr);
    assert.deepEqual(await shown("a", "no-mount").then(({ state, problem }) => ({ state, problem })), {
      state: "running",
      problem: null,
    });
    assert.equal((await lab.cli("a", ["stop", "no-mount"])).status, 0);
    assert.deepEqual(await shown("a", "no-mount").then(({ state, problem }) => ({ state, problem })), {
      state: "stopped",
      problem: null,
    });
  });
});
