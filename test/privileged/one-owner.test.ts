/**
 * Redis is emptied, or thrown back by a fail-over (here: a key is copied and put back), while agents are down: there is never
 * a second owner for more than seconds, and never a workload that cannot be moved any more.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { rmSync } from "node:fs";
import type { Socket } from "node:net";
import { join } from "node:path";
import { describe, it, test } from "node:test";
import { createLab, nodeBinary, projectRoot } from "#test/lab/lab.ts";
import { type MoveStage, type NodeName, WORKLOAD } from "#test/support/move-stage.ts";
import { type MovedProgram, until, withProgram, workloadName } from "#test/support/moved-program.ts";
import { staged } from "#test/support/staged.ts";

const RECORD = `hf:{${WORKLOAD}}:owner`;

/** What a fail-over brings back: `keep` what Redis knows, `restore` it later. As lines of shell for faults too. */
const keep = `COPY '${RECORD}' 'hf:{${WORKLOAD}}:kept' REPLACE`;
const restore = `COPY 'hf:{${WORKLOAD}}:kept' '${RECORD}' REPLACE`;
const redis = (stage: MoveStage, ...commands: string[]): void => {
  for (const command of commands)
    stage.shell(`redis-cli -s ${stage.lab.redis.socketPath} ${command} >/dev/null`);
};
const fault = (stage: MoveStage, point: string, command: string): string =>
  `exec@${point}=redis-cli -s ${stage.lab.redis.socketPath} ${command} >/dev/null`;

interface Shown {
  workloads: { role: string; state: string; epoch: number; problem: { what: string; cure: string } | null }[];
}

async function shown(stage: MoveStage, node: NodeName): Promise<Shown["workloads"][0]> {
  const { json, stderr } = await stage.lab.cli(node, ["status", "--json"]);
  const [workload] = (json as Shown).workloads;
  assert.ok(workload !== undefined, stderr);
  return workload;
}

async function moved(stage: MoveStage): Promise<void> {
  const { end, reason } = await stage.migrate();
  assert.equal(end, "moved", `${reason}\n${stage.logs()}`);
}

describe("one owner, whatever the store has lost", { timeout: 600_000 }, () => {
  const on = staged({ downstream: "takeover", load: "none" });

  it(
    "a commit that a fail-over forgets is told again by the owner, and a reservation that it brings back is cancelled",
    on(async (stage) => {
      const { owner, other } = stage;
      redis(stage, keep);
      await moved(stage);
      redis(stage, restore);
      await stage.until(() => stage.record().owner === other);
      redis(stage, `HSET '${RECORD}' mid m9 mtarget ${owner} mepoch 90 top 90`);
      await stage.until(() => stage.record().mid === "");
      await stage.assertWell(other);
    }),
  );

  it(
    "a reservation that is forgotten in the move: rolled back, and the next move goes",
    on(async (stage) => {
      const { owner } = stage;
      redis(stage, keep);
      stage.fault(fault(stage, "source:capture", restore));
      assert.equal((await stage.migrate()).end, "rolled-back");
      await stage.assertWell(owner);
    }),
  );

  it(
    "a release that is forgotten, with the target's agent: its next agent hears that the source has gone on, and lets go",
    on(async (stage) => {
      const { owner, other } = stage;
      stage.fault(
        fault(stage, "target:release", keep),
        fault(stage, "target:released", restore),
        "crash@target:released",
      );
      const { end, reason } = await stage.migrate();
      assert.equal(end, "rolled-back");
      assert.match(reason, /^connection to agent \w is closed$/, stage.logs());
      await stage.restart(other);
      await stage.until(() => /another node has gone on/.test(stage.agent(other).stderr));
      await stage.assertStays(owner);
    }),
  );

  it(
    "silent while both agents have asked it, and heard nothing: they settle it between them, and it is told when it is back",
    on(async (stage) => {
      const { owner, other } = stage;
      const before = Number(stage.record().epoch);
      stage.fault("crash@source:committed", `exec@target:release=kill -STOP ${stage.lab.redis.pid}`);
      assert.equal((await stage.migrate()).end, "cut");
      await stage.restart(owner);
      await stage.until(async () => (await shown(stage, other)).role === "owner");
      await stage.until(async () => (await shown(stage, owner)).role === "none");
      const { epoch } = await shown(stage, other);
      assert.ok(epoch > before + 2, "above what the store may still give to the source");
      stage.lab.redis.resume(); // and it carries out what both have asked
      await stage.until(() => Number(stage.record().epoch) === epoch);
      await stage.assertStays(other);
    }),
  );

  it(
    "gone in a move, with the target: its source waits, says for what, and goes on when a person says that it is to",
    on(async (stage) => {
      const { owner, other } = stage;
      stage.fault(`exec@source:committed=kill -KILL ${stage.lab.redis.pid}`, "crash@target:release");
      const move = stage.migrate();
      await stage.died(other);
      const problem = async (): Promise<string> => (await shown(stage, owner)).problem?.what ?? "";
      await stage.until(async () => (await problem()).includes(`whether node ${other} has it is not known`));
      const { status, stderr } = await stage.lab.cli(owner, ["start", WORKLOAD, "--force"]);
      assert.equal(status, 0, stderr);
      assert.equal((await move).end, "rolled-back");
      await stage.lab.redis.start();
      await stage.startAgent(other);
      await stage.assertStays(owner);
    }),
  );

  it(
    "emptied while the owner's agent is down: another waits and says why, and the owner is told to the store again",
    on(async (stage) => {
      const { owner, other } = stage;
      await stage.agent(owner).stop();
      await stage.lab.redis.stop();
      await stage.lab.redis.start();
      await stage.restartWith(other, { start: true });
      const waits = await shown(stage, other);
      assert.equal(waits.state, "waiting");
      assert.match(
        waits.problem?.what ?? "",
        new RegExp(`no record of it, and node ${owner} cannot be asked`),
      );
      assert.match(waits.problem?.cure ?? "", /holdfast start chat --force/);
      const start = await stage.lab.cli(other, ["start", WORKLOAD]);
      assert.deepEqual([start.status, /OWNER|cannot be asked/.test(start.stderr)], [4, true], start.stderr);
      assert.equal(stage.record().owner, undefined);
      await stage.startAgent(owner);
      await stage.until(() => stage.record().owner === owner);
      await stage.until(async () => (await shown(stage, other)).state === "elsewhere");
      await stage.assertStays(owner);
    }),
  );

  it(
    "started by force while the owner's agent is down: when that is back it takes the address off and ends what it had",
    on(async (stage) => {
      const { owner, other } = stage;
      await stage.agent(owner).stop();
      const start = await stage.lab.cli(other, ["start", WORKLOAD, "--force"]);
      assert.equal(start.status, 0, start.stderr);
      stage.lab.redis.pause(); // they find each other without
      await stage.startAgent(owner);
      await stage.until(async () => (await shown(stage, owner)).role === "none");
      stage.lab.redis.resume();
      assert.match(stage.agent(owner).stderr, /"level":50.*another node owns the workload at a higher epoch/);
      assert.match((await shown(stage, owner)).problem?.what ?? "", new RegExp(`node ${other} owns it`));
      const { socketPath } = stage.agent(owner);
      const ask = ["curl", "-s", "--unix-socket", socketPath, "http://agent/metrics"];
      const { stdout } = await stage.lab.run(owner, ask);
      assert.match(stdout, /holdfast_agent_stepped_down_total\{workload="chat"\} 1/);
      await stage.assertStays(other);
    }),
  );

  it(
    "stopped: its epoch stays, and what is started next is above it, also where a journal is lost",
    on(async (stage) => {
      const { owner, other } = stage;
      const before = Number(stage.record().epoch);
      assert.equal((await stage.lab.cli(owner, ["stop", WORKLOAD])).status, 0);
      assert.deepEqual([stage.record().state, Number(stage.record().epoch)], ["stopped", before]);
      await stage.restartWith(owner, { start: true });
      assert.equal((await shown(stage, owner)).state, "stopped");
      const start = await stage.lab.cli(owner, ["start", WORKLOAD]);
      assert.deepEqual([start.status, start.stdout.trim()], [0, "started chat"], start.stderr);
      assert.equal(Number(stage.record().epoch), before + 1);
      const again = await stage.lab.cli(owner, ["start", WORKLOAD]);
      assert.deepEqual([again.status, /already/.test(again.stderr)], [4, true], again.stderr);
      await stage.assertWell(owner); // the other node does not say that the epoch has passed

      assert.equal((await stage.lab.cli(other, ["stop", WORKLOAD])).status, 0);
      await stage.agent(other).stop();
      rmSync(join(stage.lab.stateDir(other), "workloads", WORKLOAD, "journal.json"));
      await stage.startAgent(other, { start: true });
      await stage.until(() => stage.record().state === "released");
      assert.ok(Number(stage.record().epoch) > before + 2, JSON.stringify(stage.record()));
      await stage.assertStays(other);
    }),
  );
});

const echo = {
  container: {
    command: [nodeBinary, "server.js"],
    cwd: `${projectRoot}/test/apps/echo`,
    env: { PORT: "9000", ECHO: "plain" },
    rootfs: "host",
  },
  ports: [{ listen: 8080, upstream: "127.0.0.1:9000" }],
};

/** What comes back is what was sent. */
async function assertEchoes(client: Socket, text: string): Promise<void> {
  client.write(text);
  const [bytes] = (await once(client, "data")) as [Buffer];
  assert.equal(bytes.toString(), text);
}

async function stateOf(program: MovedProgram, node: string): Promise<string> {
  const { workloads } = await program.ask<Shown>("GET", "/v1/status", undefined, node);
  return workloads[0]?.state ?? "";
}

test("two agents of a new cluster that may both start it, at the same time: one does", async () => {
  const lab = await createLab();
  try {
    const workloads = [{ name: workloadName, start: true, ...echo }];
    await Promise.all(["a", "b"].map((node) => lab.startAgent(node, { workloads })));
    const states = async (): Promise<string[]> => {
      const answers = await Promise.all(["a", "b"].map((node) => lab.cli(node, ["status", "--json"])));
      return answers.map(({ json }) => (json as Shown).workloads[0]?.state ?? "").sort();
    };
    await until("one runs", async () => (await states()).join() === "elsewhere,running");
    const logs = [...lab.agents.values()].map(({ stderr }) => stderr).join("");
    assert.equal(logs.match(/"msg":"started"/g)?.length, 1, logs);
    assert.doesNotMatch(logs, /another node owns the workload at a higher epoch/);
    for (const [node, { socketPath }] of lab.agents) {
      const ask = ["curl", "-s", "--unix-socket", socketPath, "http://agent/metrics"];
      const { stdout } = await lab.run(node, ask);
      assert.match(stdout, /^# HELP holdfast_agent_stepped_down_total /m);
      assert.doesNotMatch(stdout, /^holdfast_agent_stepped_down_total\{.*\} [1-9]/m);
    }
  } finally {
    await lab.close();
  }
});

test("started by force where the owner's machine seems gone: when it is back it ends its own, and clients are reset", async () => {
  await withProgram({ downstream: "forward", workload: echo }, async (program) => {
    const client = await program.connect(8080, program.lab.place("a").address);
    await assertEchoes(client, "before");
    await program.agent("a").stop("SIGKILL");
    const path = `/v1/workloads/${workloadName}/start`;
    const refused = await program.ask<{ error: { code: string } }>("POST", path, {}, "b");
    assert.equal(refused.error.code, "NOT_OWNER");
    assert.deepEqual(await program.ask("POST", path, { force: true }, "b"), {});
    assert.equal(await stateOf(program, "b"), "running");
    await assertEchoes(client, "nobody has told its node yet");
    const reset = new Promise<string>((resolve) =>
      client.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? "")),
    );
    await program.nextAgent("a");
    assert.equal(await reset, "ECONNRESET");
    await until("a has let go", async () => (await stateOf(program, "a")) === "elsewhere");
    const left = await program.ask<{ error: { code: string } }>("POST", path, { force: true }, "a");
    assert.equal(left.error.code, "NOT_OWNER", "b answers that it has it");
    program.at = "b";
    await program.move("a");
    const next = await program.connect(8080, program.lab.place("a").address);
    await assertEchoes(next, "after");
    next.destroy();
  });
});

test("an anchor whose agent was down in a move learns of the owner when it is back: old and new clients are served", async () => {
  await withProgram({ downstream: "forward", nodes: ["a", "b", "c"], workload: echo }, async (program) => {
    const anchor = program.lab.place("a").address;
    const client = await program.connect(8080, anchor);
    await assertEchoes(client, "at a");
    await program.move("b");
    await assertEchoes(client, "at b");
    await program.agent("a").stop("SIGTERM");
    await program.move("c");
    client.write("said while nobody could tell the anchor");
    const answer = once(client, "data") as Promise<[Buffer]>;
    await program.nextAgent("a");
    assert.equal((await answer)[0].toString(), "said while nobody could tell the anchor");
    const next = await program.connect(8080, anchor);
    await assertEchoes(next, "a new client");
    for (const socket of [client, next]) socket.destroy();
  });
});
