/** What `check` and `migrate` say of nodes that a workload could go to, before anything is made or anybody is held. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import type { CheckReport, Finding } from "#control/api/finding.ts";
import { lacking, type MovedProgram, until, workloadName } from "#test/support/moved-program.ts";
import { faultsFile, withPythonShell } from "#test/support/python-shell.ts";

const skip = lacking("python3", "runc");
const ports = [
  { listen: 8080, upstream: "127.0.0.1:9000" },
  { listen: 8081, upstream: "127.0.0.1:9001" },
];

async function findings(program: MovedProgram, to: string): Promise<Finding[]> {
  const report = await program.ask<CheckReport>("GET", `/v1/check?workload=${workloadName}&to=${to}`);
  return report.findings.filter(({ node, workload }) => node === to && workload !== null);
}

function ids(all: Finding[]): string[] {
  return [...new Set(all.map(({ id, severity }) => `${severity} ${id}`))].sort();
}

describe("a node that a workload could go to", { skip, timeout: 600_000 }, () => {
  it("is asked what would go wrong there; migrate refuses for the same reasons and leaves nothing", async () => {
    const files = mkdtempSync(join(tmpdir(), "hf-check-"));
    try {
      for (const node of ["a", "b", "c"]) {
        mkdirSync(join(files, node));
        writeFileSync(join(files, node, "same"), "the same everywhere");
        writeFileSync(join(files, node, "data"), node === "b" ? "xyz" : "abc");
      }
      const container = (node: string, more: Record<string, unknown> = {}) => ({
        env: { PASSWORD: "of all nodes" },
        mounts: [{ source: join(files, node), target: "/files", readonly: true }],
        ...more,
      });
      await withPythonShell(
        {
          nodes: ["a", "b", "c", "d", "e"],
          workload: {
            ports,
            container: { mounts: [{ source: join(files, "a"), target: "/files", readonly: true }] },
          },
          elsewhere: {
            b: {
              ports: [...ports].reverse(),
              restart: "never",
              container: container("b", { env: { PASSWORD: "of this one" } }),
            },
            c: { ports, container: container("gone") },
            d: null,
            e: { vip: undefined, ports, container: container("a") },
          },
        },
        async (program, run) => {
          await run(`second = socket.create_server(("127.0.0.1", 9001))`);
          await run(`opened = [open("/files/same"), open("/files/data")]`);
          const taker = program.lab.spawn("b", [
            "python3",
            "-uc",
            "import socket,time; s=socket.create_server(('127.0.0.1',9000)); print('taken'); time.sleep(1000)",
          ]);
          await taker.waitFor(/taken/);

          const atB = await findings(program, "b");
          assert.deepEqual(ids(atB), [
            "error target.config-differs.ports",
            "error target.file-differs",
            "error target.port-taken",
            "warning target.config-differs.container.env.PASSWORD",
            "warning target.config-differs.restart.policy",
          ]);
          const what = (id: string) => atB.find((finding) => finding.id === id)?.what ?? "";
          assert.match(what("target.config-differs.ports"), /in another order/);
          assert.match(what("target.file-differs"), /^\/files\/data, .* has another content there$/);
          assert.doesNotMatch(JSON.stringify(atB), /of this one|of all nodes/, "no value leaves its node");

          assert.deepEqual(ids(await findings(program, "c")).slice(0, 2), [
            "error target.file-missing",
            "error target.mount-missing",
          ]);
          assert.deepEqual(ids(await findings(program, "d")), ["error target.workload-unknown"]);
          const atE = ids(await findings(program, "e"));
          assert.ok(atE.includes("error target.config-differs.downstream"), atE.join());

          for (const to of ["b", "c", "d", "e"]) {
            const move = await program.tryMove(to);
            assert.ok(!("error" in move));
            assert.equal(move.outcome, "rolled-back");
            assert.match(move.reason ?? "", /^cannot be moved: node . ?/);
            assert.deepEqual(Object.keys(move.phasesMs), ["rollback"], "nothing was begun");
            const blocking = (all: Finding[]) => ids(all).filter((one) => one.startsWith("error"));
            assert.deepEqual(
              blocking(move.check?.findings ?? []),
              blocking(await findings(program, to)),
              "check and migrate say the same",
            );
            await assertNothingLeft(program, to);
          }
          assert.equal(await run("1 + 1"), "2");
          await taker.stop();

          // without a node, those that are not meant for the workload are no obstacle
          const everywhere = await program.ask<CheckReport>("GET", "/v1/check");
          const nodes = new Set(everywhere.findings.map(({ node }) => node));
          assert.deepEqual(
            [nodes.has("b"), nodes.has("c"), nodes.has("d"), nodes.has("e")],
            [true, true, false, true],
          );

          const unknown = await program.lab.cli("a", ["check", workloadName, "--to", "nowhere"]);
          assert.equal(unknown.status, 4, unknown.stderr);
          program.lab.setLink("e", "down");
          const { findings: ofE } = await program.ask<CheckReport>("GET", "/v1/check?to=e");
          assert.ok(
            ofE.some(
              ({ id, node, severity }) => id === "target.unreachable" && node === "e" && severity === "error",
            ),
          );
          program.lab.setLink("e", "up");
        },
      );
    } finally {
      rmSync(files, { recursive: true, force: true });
    }
  });
});

for (const downstream of ["takeover", "forward"] as const) {
  describe(`a rehearsal, ${downstream}`, { skip, timeout: 600_000 }, () => {
    it("holds nobody, leaves nothing on either node, and says how long a move would take; the move goes then", async () => {
      await withPythonShell({ downstream, nodes: ["a", "b", "c"] }, async (program, run) => {
        if (downstream === "forward") await program.move("c"); // a is an anchor with a client now
        const from = program.at;
        await run(`memory = bytearray(os.urandom(8 << 20)); open("/tmp/written", "w").write("x")`);
        await run(`held = 0`);
        const shown = await program.lab.cli(from, ["check", workloadName, "--to", "b", "--dry-run"]);
        assert.equal(shown.status, 0, `${shown.stdout}${shown.stderr}`);
        assert.match(shown.stdout, /✔ prepare +[\d.]+ m?s {2}[\d.]+ MB of memory in \d rounds?.*\n✔ undo /);
        assert.match(shown.stdout, /\nclients would wait about \d+ ms \(\d+-\d+ ms\)\n {2}hold /);
        await assertNothingLeft(program, "b");
        assert.equal(await run("len(memory)"), String(8 << 20));

        const taker = program.lab.spawn("b", [
          "python3",
          "-uc",
          "import socket,time; s=socket.create_server(('0.0.0.0',8080)); print('taken'); time.sleep(1000)",
        ]);
        await taker.waitFor(/taken/);
        const refused = await program.lab.cli(from, [
          "check",
          workloadName,
          "--to",
          "b",
          "--dry-run",
          "--json",
        ]);
        assert.equal(refused.status, 1);
        const { findings } = JSON.parse(refused.stdout) as CheckReport;
        assert.deepEqual(ids(findings.filter(({ severity }) => severity === "error")), [
          "error target.listen-port-taken",
        ]);
        await taker.stop();

        await program.move("b");
        assert.equal(await run("len(memory)"), String(8 << 20));
      });
    });
  });
}

/** Leaves the command in the agent's socket, which finds it there when it goes on: the rehearsal is under way then. */
const sendCancel = (socketPath: string): string => `
import socket
agent = socket.socket(socket.AF_UNIX)
agent.connect(${JSON.stringify(socketPath)})
agent.sendall(b"POST /v1/workloads/${workloadName}/cancel HTTP/1.1\\r\\nHost: agent\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
`;

describe("a rehearsal that is stopped", { skip, timeout: 600_000 }, () => {
  it("by Ctrl-C is undone all the same, and says so", async (t) => {
    const faults = faultsFile(t);
    await withPythonShell({ faults: { a: `file:${faults}` } }, async (program, run) => {
      const script = `${faults}.py`;
      writeFileSync(script, sendCancel(program.lab.agents.get("a")?.socketPath ?? ""));
      writeFileSync(faults, `exec@source:prepare=/usr/bin/python3 ${script}`);
      const { check } = await program.ask<{ check: CheckReport & { rehearsed: boolean } }>(
        "POST",
        `/v1/workloads/${workloadName}/check`,
        { to: "b" },
      );
      assert.equal(check.rehearsed, false);
      assert.deepEqual(ids(check.findings.filter(({ severity }) => severity === "error")), [
        "error rehearsal.cancelled",
      ]);
      await assertNothingLeft(program, "b");
      assert.equal(await run("1 + 1"), "2");
      await program.move("b");
    });
  });
});

/** The target has given up for certain when the rehearsal answers; what was made there goes in its own time. */
async function assertNothingLeft(program: MovedProgram, to: string): Promise<void> {
  let found: unknown;
  const isGone = async (): Promise<boolean> => {
    found = await lookForRemains(program, to).then(
      () => null,
      (error: unknown) => error,
    );
    return found === null;
  };
  await until("nothing is left of it", isGone).catch(() => {
    throw found;
  });
}

/** Of a move that did not take place: no reservation, no journal entry, no standby, no proxy, no images. */
async function lookForRemains(program: MovedProgram, to: string): Promise<void> {
  const status = await program.ask<{ workloads: { moving: unknown; state: string }[] }>("GET", "/v1/status");
  assert.deepEqual([status.workloads[0]?.moving, status.workloads[0]?.state], [null, "running"]);
  const there = await program.ask<{
    workloads: { role: string; moving: unknown; container: unknown; owner: string }[];
  }>("GET", "/v1/status", undefined, to);
  for (const { moving, container, owner } of there.workloads)
    assert.deepEqual([moving, container, owner], [null, null, program.at]);
  assert.deepEqual(list(join(program.lab.stateDir(to), "run")), []);
  const file = join(program.lab.stateDir(program.at), "workloads", workloadName, "journal.json");
  const { container } = JSON.parse(readFileSync(file, "utf8")) as { container: { init: { pid: number } } };
  assert.deepEqual(list(`/proc/${container.init.pid}/root/.holdfast/run/images`), []);
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
