/** `npm run demo:kube`, with fewer clients: what it shows is so, it leaves nothing, and the commands of README.md are those that it runs. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import { findLeftovers, isClean, sweep } from "../lab/sweep.ts";

const SESSIONS: Record<string, number> = { chat: 10, echo: 3 };
const DEMO = join(projectRoot, "scripts/demo-kube.ts");

interface Shown {
  moves: Record<string, unknown>[];
  drains: { node: string; status: number | null; printed: string[] }[];
  off: Record<string, unknown>[];
  commands: string[];
}

interface Run {
  child: ChildProcess;
  /** of its laboratory */
  id: string;
  stdout(): string;
  stderr(): string;
}

const started: Run[] = [];
after(() => {
  for (const { child, id } of started) {
    child.kill("SIGKILL");
    if (!isClean(findLeftovers(id))) sweep(id);
  }
});

function start(args: string[]): Run {
  const child = spawn(nodeBinary, [DEMO, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const text = { stdout: "", stderr: "" };
  for (const stream of ["stdout", "stderr"] as const)
    child[stream]?.setEncoding("utf8").on("data", (chunk: string) => {
      text[stream] += chunk;
    });
  const run = {
    child,
    id: `hfkdemo${child.pid}-1`,
    stdout: () => text.stdout,
    stderr: () => text.stderr,
  };
  started.push(run);
  return run;
}

/** Those of the first block of code below "On Kubernetes", without comments. */
function commandsOfReadme(): string[] {
  const readme = readFileSync(join(projectRoot, "README.md"), "utf8");
  const [, section = ""] = readme.split("\n## On Kubernetes\n");
  const [block = ""] = /^( {4}.*\n)+/m.exec(section) ?? [];
  return block
    .trimEnd()
    .split("\n")
    .map((line) => (line.split(" #")[0] ?? "").trim());
}

/** NODE, NAME and REGISTRY are anything; a command that was run may go on. */
function patternOf(command: string): RegExp {
  const words = command
    .split(/\s+/)
    .map((word) => word.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&").replaceAll(/[A-Z]{4,}/g, "[^\\s/]+"));
  return new RegExp(`^${words.join(" ")}( |$)`);
}

describe("npm run demo:kube", () => {
  it("drains nodes there and back, moves a pod by a command, and switches a node off: no client loses anything", async () => {
    const args = ["--json", "--websockets", String(SESSIONS.chat), "--tcp", String(SESSIONS.echo)];
    const run = start(args);
    const [status] = await once(run.child, "close");
    assert.equal(status, 0, `${run.stderr().slice(-8_000)}\n${run.stdout()}`);
    const { moves, drains, off, commands } = JSON.parse(run.stdout()) as Shown;
    assert.deepEqual(
      moves.map(({ workload, from, via, to, by }) => [workload, from, via, to, by]),
      [
        ["chat", "a", null, "b", "kubectl drain a"],
        ["echo", "a", "c", "b", "kubectl drain a"],
        ["chat", "b", null, "a", "holdfast migrate"],
        ["echo", "b", "c", "a", "kubectl drain b"],
      ],
    );
    for (const move of moves) {
      const { lost, repeated, resets, outcome, downstream, sessions, workload } = move;
      assert.deepEqual(
        { lost, repeated, resets, outcome, downstream, sessions },
        {
          ...{ lost: 0, repeated: 0, resets: 0, outcome: "Succeeded", downstream: "gateway" },
          sessions: SESSIONS[workload as string],
        },
      );
      if (workload === "echo") assert.deepEqual([move.fromPod, move.toPod], ["echo-0", "echo-0"]);
      else assert.notEqual(move.fromPod, move.toPod);
      assert.ok((move.messages as number) > 0);
      assert.ok((move.pauseMs as number) > 0);
      for (const phase of ["Preparing", "Moving", "Adopting"])
        assert.ok((move.phasesMs as Record<string, number>)[phase] !== undefined, phase);
    }
    for (const [index, { node, status: drained, printed }] of drains.entries()) {
      assert.deepEqual([node, drained], [["a", "b"][index], 0]);
      assert.match(
        printed.join("\n"),
        /will retry after 5s.*holdfast: its application is (going to be|being) moved/,
      );
      assert.match(printed.join("\n"), new RegExp(`node/${node} drained`));
    }
    assert.equal(drains.length, 2);
    for (const [index, { messages, blackoutMs: _, ...seen }] of off.entries()) {
      const workload = ["chat", "echo"][index];
      assert.deepEqual(seen, { node: "b", workload, lost: 0, repeated: 0, resets: 0 });
      assert.ok((messages as number) > 0);
    }
    assert.equal(off.length, 2);
    assert.ok(isClean(findLeftovers(run.id)), JSON.stringify(findLeftovers(run.id)));
    const [own, ...others] = commandsOfReadme().reverse();
    assert.equal(own, "npm run demo:kube");
    assert.ok(others.length >= 8);
    for (const command of others)
      assert.ok(
        commands.some((one) => patternOf(command).test(one)),
        `${command}: not one of\n${commands.join("\n")}`,
      );
  });
});
