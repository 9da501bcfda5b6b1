/** `check --dry-run`: all of a move that holds nobody, and nothing of it is left. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import type { CheckReport, Finding } from "#control/agent/finding.ts";
import { lacking, type MovedProgram, until, workloadName } from "#test/support/moved-program.ts";
import { withPythonShell } from "#test/support/python-shell.ts";

const skip = lacking("python3", "runc");
function ids(all: Finding[]): string[] {
  return [...new Set(all.map(({ id, severity }) => `${severity} ${id}`))].sort();
}

for (const downstream of ["takeover", "relay"] as const) {
  describe(`a rehearsal, ${downstream}`, { skip, timeout: 300_000 }, () => {
    it("holds nobody, leaves nothing on either node, and says how long a move would take; the move goes then", async () => {
      await withPythonShell({ downstream, nodes: ["a", "b", "c"] }, async (program, run) => {
        if (downstream === "relay") await program.move("c"); // a is an edge with a client now
        const from = program.at;
        await run(`memory = bytearray(os.urandom(8 << 20)); open("/tmp/written", "w").write("x")`);
        await run(`held = 0`);
        const shown = await program.lab.cli(from, ["check", workloadName, "--to", "b", "--dry-run"]);
        assert.equal(shown.status, 0, `${shown.stdout}${shown.stderr}`);
        assert.match(shown.stdout, /✔ prepare +[\d.]+ m?s\n✔ undo /);
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

describe("a rehearsal that is stopped", { skip, timeout: 300_000 }, () => {
  it("by Ctrl-C is undone all the same, and says so", async () => {
    await withPythonShell({}, async (program, run) => {
      const ask = program.ask<{ check: CheckReport & { rehearsed: boolean } }>(
        "POST",
        `/v1/workloads/${workloadName}/check`,
        { to: "b" },
      );
      await until("the rehearsal is under way", async () => {
        const { workloads } = await program.ask<{ workloads: { state: string }[] }>("GET", "/v1/status");
        return workloads[0]?.state === "moving";
      });
      await program.ask("POST", `/v1/workloads/${workloadName}/cancel`, {});
      const { check } = await ask;
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

/** Of a move that did not take place: no reservation, no journal entry, no standby, no proxy, no images. */
async function assertNothingLeft(program: MovedProgram, to: string): Promise<void> {
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
