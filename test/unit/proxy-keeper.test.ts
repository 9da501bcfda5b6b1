/** A proxy that a move has begun and that is of no use any more: nothing of it stays, however far it had come. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, it, type TestContext } from "node:test";
import { pino } from "pino";
import { parseWorkload } from "#control/config/config.ts";
import { identify, type ProcessIdentity } from "#control/runtime/processes.ts";
import { EMPTY_JOURNAL, type Journal } from "#control/workload/journal.ts";
import { endProcess } from "#control/workload/proxy-client.ts";
import { ProxyKeeper } from "#control/workload/proxy-keeper.ts";
import { until } from "#test/support/moved-program.ts";

const EPOCH = 3;
const ports = [{ listen: 8080, upstream: "127.0.0.1:9000" }];

/** Of a pod whose proxy kubelet has not begun, or, without one, of a container. */
class Kept {
  journal: Journal = EMPTY_JOURNAL;
  looks = 0;
  readonly keeper: ProxyKeeper;

  constructor(pod: object = {}) {
    const own = {
      name: "chat",
      config: parseWorkload({ name: "chat", downstream: "gateway", ports, ...pod }, "192.0.2.1", "test"),
      context: {
        runtime: {
          sidecar: async () => {
            this.looks++;
            return null;
          },
        },
        log: pino({ level: "silent" }),
      },
      record: (patch: Partial<Journal>) => {
        this.journal = { ...this.journal, ...patch };
      },
    };
    const host = Object.defineProperties(own, { journal: { get: () => this.journal } });
    this.keeper = new ProxyKeeper(host as unknown as ConstructorParameters<typeof ProxyKeeper>[0]);
  }
}

async function begunProcess(t: TestContext): Promise<{ process: ProcessIdentity; ended: Promise<unknown> }> {
  const child = spawn("sleep", ["600"], { stdio: "ignore" });
  const ended = once(child, "exit");
  t.after(() => child.kill("SIGKILL"));
  const process = await identify(child.pid ?? -1);
  assert.ok(process !== null);
  return { process, ended };
}

describe("a proxy that is discarded", { timeout: 10_000 }, () => {
  it("is not waited for where kubelet has not begun it", async () => {
    const kept = new Kept({ pod: { name: "chat-0", container: "app", proxy: "sidecar" } });
    const standby = kept.keeper.standby(EPOCH);
    const refused = assert.rejects(standby, { code: "MIGRATION_ABORTED" });
    await until("it is looked for", () => kept.looks > 0);
    await kept.keeper.discard(EPOCH);
    await refused;
    assert.equal(kept.keeper.client, null);
  });

  for (const role of ["none", "anchor"] as const)
    it(`is ended where it is on record alone (${role})`, async (t) => {
      const kept = new Kept();
      const { process, ended } = await begunProcess(t);
      kept.journal = {
        ...kept.journal,
        role,
        proxy: { process, socketPath: "/nonexistent", isSidecar: false },
      };
      await kept.keeper.discard(EPOCH);
      assert.deepEqual([kept.journal.proxy, kept.journal.role], [null, "none"]);
      await ended;
    });

  it("leaves an anchor's as it is", async () => {
    const kept = new Kept();
    kept.journal = { ...kept.journal, role: "anchor" };
    await kept.keeper.discard(EPOCH);
    assert.deepEqual(kept.journal, { ...EMPTY_JOURNAL, role: "anchor" });
  });
});

it("a process that ends when it is about to be killed has ended", { timeout: 10_000 }, async (t) => {
  const { process: sleeping, ended } = await begunProcess(t);
  const kill = process.kill.bind(process);
  t.mock.method(process, "kill", (pid: number, signal: NodeJS.Signals) => {
    kill(pid, signal);
    throw Object.assign(new Error("kill ESRCH"), { code: "ESRCH" });
  });
  await endProcess(sleeping, -1);
  await ended;
});
