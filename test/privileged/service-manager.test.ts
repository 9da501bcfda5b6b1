/** The agent as a service of a real systemd, by the unit that is shipped: what becomes of its workloads when it is started again. */
import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { stringify } from "yaml";
import { readJournal } from "#control/workload/journal.ts";
import { createLab, nodeBinary, projectRoot } from "#test/lab/lab.ts";
import { isClean } from "#test/lab/sweep.ts";
import { type Load, startLoad } from "#test/load/load.ts";
import { lacking, until } from "#test/support/moved-program.ts";
import { ServiceManager, SYSTEMD } from "#test/support/service-manager.ts";

const UNIT = "holdfast.service";
const skip =
  lacking("runc", "nsenter") || (existsSync(SYSTEMD) ? false : `needs ${SYSTEMD} (Debian's systemd)`);

const workload = {
  name: "chat",
  start: true,
  container: {
    command: [nodeBinary, "server.js"],
    cwd: `${projectRoot}/test/apps/chat`,
    env: { PORT: "9000" },
    rootfs: "host",
  },
  ports: [{ listen: 8080, upstream: "127.0.0.1:9000" }],
};

test("the agent under systemd", { skip, timeout: 300_000 }, async (t) => {
  const lab = await createLab({ nodes: ["a"] });
  let manager: ServiceManager | null = null;
  try {
    const config = join(lab.dir, "a.yaml");
    writeFileSync(config, stringify(lab.agentConfig("a", { workloads: [workload] })), { mode: 0o600 });
    const started = await ServiceManager.boot(lab, "a", { [UNIT]: unitFor(config) });
    manager = started;
    started.systemctl("start", UNIT);
    const runs = async (): Promise<boolean> => {
      const { json } = await lab.cli("a", ["status", "--json"]);
      return (json as { workloads?: { state: string }[] } | undefined)?.workloads?.[0]?.state === "running";
    };
    await until("the workload runs", runs, 30_000);
    const load = await startLoad(lab, "ws", {
      target: { address: lab.place("a").address, port: 8080 },
      sessions: 8,
    });
    await load.mark();
    const before = processes();
    let agent = started.mainPid(UNIT);

    await t.test("its proxies are in its control group, its containers are not", () => {
      assert.match(cgroups(before.proxy), new RegExp(`/${UNIT}$`, "m"));
      assert.ok(!cgroups(before.application).includes(UNIT));
    });

    const ways: Record<string, () => unknown> = {
      "systemctl restart": () => started.systemctl("restart", UNIT),
      "its end by a signal that nobody can handle": () => process.kill(agent ?? -1, "SIGKILL"),
      "systemctl stop and start": async () => {
        started.systemctl("stop", UNIT);
        await assertIntact(load); // without any agent
        started.systemctl("start", UNIT);
      },
    };
    for (const [way, again] of Object.entries(ways)) {
      await t.test(`${way}: another agent, the same application, proxy and sessions`, async () => {
        await again();
        await until("another agent", () => ![null, agent].includes(started.mainPid(UNIT)));
        agent = started.mainPid(UNIT);
        await until("it has found its workload", runs);
        assert.deepEqual(processes(), before);
        await assertIntact(load);
      });
    }

    await t.test("what it owns can be stopped by it", async () => {
      assert.equal((await lab.cli("a", ["stop", "chat"])).status, 0);
      await until(
        "all has ended",
        () => !existsSync(`/proc/${before.application}`) && !existsSync(`/proc/${before.proxy}`),
      );
    });
    await load.stop();
  } finally {
    await manager?.close();
    await lab.close();
  }
  assert.ok(isClean(lab.leftovers()), JSON.stringify(lab.leftovers()));

  /** As the machine numbers them: the journal has systemd's numbers. */
  function processes(): { proxy: number; application: number } {
    const { proxy, application } = readJournal(join(lab.stateDir("a"), "workloads", "chat", "journal.json"));
    return {
      proxy: outerPid(proxy?.process.pid),
      application: outerPid(application?.pid),
    };
  }
  function outerPid(inner: number | undefined): number {
    const found = (manager as ServiceManager).outerPid(inner ?? -1);
    assert.ok(found !== null, `process ${inner} is not there`);
    return found;
  }
});

function unitFor(config: string): string {
  const text = readFileSync(join(projectRoot, "scripts", UNIT), "utf8");
  const start = `ExecStart=${projectRoot}/bin/holdfast agent --config ${config}`;
  assert.match(text, /^ExecStart=.*$/m);
  return text.replace(/^ExecStart=.*$/m, start);
}

function cgroups(pid: number): string {
  return readFileSync(`/proc/${pid}/cgroup`, "utf8");
}

async function assertIntact(load: Load): Promise<void> {
  const { lost, repeated, corrupt, resets, alive, sessions, messages, problems } = await load.report();
  const found = { lost, repeated, corrupt, resets, alive };
  assert.deepEqual(
    found,
    { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: sessions },
    problems.join("; "),
  );
  assert.ok(messages > 0, "the clients were at work");
  await load.mark();
}
