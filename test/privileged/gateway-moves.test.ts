/** Moves behind a gateway: everything of the source ends right after the release, and its clients notice a pause and nothing else. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import {
  type AgentConfig,
  createLab,
  type Lab,
  type LabProcess,
  nodeBinary,
  projectRoot,
} from "../lab/lab.ts";
import { type Load, startLoad } from "../load/load.ts";
import { until } from "../support/moved-program.ts";

const NODES = ["a", "b", "c"];
/** agents start in that time on a busy machine */
const LIMITS = { linkResumeMsMax: 60_000 };
const CHAT = { name: "chat", app: "chat", listen: 8080, upstream: 9000 };
const ECHO = { name: "echo", app: "echo", listen: 8081, upstream: 9001 };

function workload({ name, app, listen, upstream }: typeof CHAT, start: boolean): AgentConfig {
  return {
    name,
    start,
    downstream: "gateway",
    container: {
      command: [nodeBinary, "server.js"],
      cwd: join(projectRoot, `test/apps/${app}`),
      env: { PORT: String(upstream) },
      rootfs: "host",
    },
    ports: [{ listen, upstream: `127.0.0.1:${upstream}` }],
    restart: "never",
    limits: LIMITS,
  };
}

describe("moves behind a gateway, of two applications under load", () => {
  let lab: Lab;
  let gateway: LabProcess;
  const loads: Load[] = [];

  const faultFile = (node: string): string => join(lab.dir, `${node}.fault`);
  const startAgent = (node: string): Promise<unknown> =>
    lab.startAgent(
      node,
      { workloads: [workload(CHAT, node === "a"), workload(ECHO, node === "a")] },
      { env: { HOLDFAST_FAULT: `file:${faultFile(node)}` } },
    );

  before(async () => {
    lab = await createLab({ nodes: NODES, gateways: ["g"] });
    const { address } = lab.place("g");
    // before there is anything to lead clients to
    gateway = await lab.startGateway("g", {
      listen: [CHAT, ECHO].map(({ name, listen }) => ({ address: `${address}:${listen}`, workload: name })),
      admin: `${address}:9400`,
      limits: LIMITS,
    });
    await lab.startAgents(NODES, startAgent);
    const target = (port: number) => ({ address, port });
    loads.push(await startLoad(lab, "ws", { target: target(CHAT.listen), sessions: 20, intervalMs: 10 }));
    loads.push(await startLoad(lab, "tcp", { target: target(ECHO.listen), sessions: 10, intervalMs: 5 }));
  });
  after(async () => {
    for (const load of loads) await load.stop().catch(() => {});
    await lab.close();
  });

  async function assertNobodyNoticed(): Promise<void> {
    for (const [index, load] of loads.entries()) {
      const { alive, lost, repeated, corrupt, resets, problems } = await load.report();
      assert.deepEqual(
        { alive, lost, repeated, corrupt, resets },
        { alive: [20, 10][index], lost: 0, repeated: 0, corrupt: 0, resets: 0 },
        `${problems.join("; ")}\n${gateway.stderr.slice(-3_000)}`,
      );
      await load.mark();
    }
  }

  /** Stops the source's agent between the release and anything that it does afterwards. */
  function stopAfterRelease(node: string): Promise<void> {
    const here = join(mkdtempSync(join(lab.dir, "gate-")), "here");
    writeFileSync(
      faultFile(node),
      `exec@source:retire=touch ${here}; while true; do sleep 0.01; done`.replaceAll(";", "\n"),
    );
    return until("the source has released", () => existsSync(here), 30_000);
  }

  async function move(name: string, from: string, to: string): Promise<void> {
    const { status, json, stderr } = await lab.cli(from, ["migrate", name, "--to", to, "--json"]);
    assert.equal(status, 0, stderr || JSON.stringify(json));
  }

  async function owned(name: string, by: string): Promise<void> {
    await until(
      `${name} runs at ${by}`,
      async () => {
        const { json } = await lab.cli(by, ["status", "--json"]);
        const shown = (json as { workloads: { name: string; role: string; state: string }[] }).workloads.find(
          (one) => one.name === name,
        );
        return shown?.role === "owner" && shown.state === "running";
      },
      30_000,
    );
  }

  it("a rehearsal holds nobody, and leaves everything as it was", async () => {
    for (const load of loads) await load.mark();
    const { status, stderr } = await lab.cli("a", ["check", "chat", "--to", "b", "--dry-run"]);
    assert.equal(status, 0, stderr);
    await assertNobodyNoticed();
  });

  it("a gateway that does not answer fails the move, and costs no session", async () => {
    for (const load of loads) await load.mark();
    gateway.child.kill("SIGSTOP");
    const { status, stdout, stderr } = await lab.cli("a", ["migrate", "chat", "--to", "b"]);
    gateway.child.kill("SIGCONT");
    assert.equal(status, 1, stderr);
    assert.match(stdout, /anchor links have not answered within \d+ ms/);
    await owned("chat", "a");
    await assertNobodyNoticed();
  });

  it("agents that end, and are started again, while no link has a connection cost no session", async () => {
    for (const load of loads) await load.mark();
    const interrupted = async (): Promise<number> => {
      const url = `http://${lab.place("g").address}:9400/metrics`;
      const show = `process.stdout.write(await (await fetch("${url}")).text())`;
      const { stdout } = await lab.run("g", [nodeBinary, "--input-type=module", "--eval", show]);
      const found = /^holdfast_gateway_links_interrupted_total (\d+)$/m.exec(stdout);
      assert.ok(found !== null, stdout);
      return Number(found[1]);
    };
    const already = await interrupted();
    lab.cutOff("g", "a");
    try {
      await lab.run("g", ["ss", "-K", "--tcp", "dst", lab.place("a").address]);
      await until("links are interrupted", async () => (await interrupted()) > already, 30_000);
      await Promise.all(
        ["a", "b"].map(async (node) => {
          await lab.agents.get(node)?.stop("SIGKILL");
          await startAgent(node);
        }),
      );
    } finally {
      lab.heal("g");
    }
    await assertNobodyNoticed();
    await move("chat", "a", "b");
    await move("chat", "b", "a");
    await assertNobodyNoticed();
  });

  it("nothing is lost where the source's machine ends after the release, with connections torn", async () => {
    for (const load of loads) await load.mark();
    await move("chat", "a", "b");
    const reached = stopAfterRelease("a");
    const moving = lab.cli("a", ["migrate", "echo", "--to", "b"]);
    await reached;
    lab.killNode("a", false);
    await moving;
    await owned("echo", "b");
    await assertNobodyNoticed();
  });

  it("nothing is lost where it ends without a word, on the way to a third node", async () => {
    await move("echo", "b", "c");
    const reached = stopAfterRelease("b");
    const moving = lab.cli("b", ["migrate", "chat", "--to", "c"]);
    await reached;
    lab.killNode("b", true);
    await moving;
    await owned("chat", "c");
    await assertNobodyNoticed();
  });
});
