/** A proxy that is kubelet's ends, and comes again when kubelet has it: what its agent does meanwhile. Whole pods: `test/kube/sidecar.test.ts`. */
import assert from "node:assert/strict";
import { join, resolve } from "node:path";
import { after, before, describe, it } from "node:test";
import { pino } from "pino";
import { parseWorkload } from "#control/config/config.ts";
import type { ProcessIdentity } from "#control/runtime/processes.ts";
import { EMPTY_JOURNAL, type Journal } from "#control/workload/journal.ts";
import { ProxyKeeper } from "#control/workload/proxy-keeper.ts";
import { SIDECAR_HTTP_PORT, SIDECAR_LINK_PORT, SIDECAR_SOCKET } from "#proxy/contract/commands.ts";
import { until } from "#test/support/moved-program.ts";
import { KEY } from "#test/support/proxy-lab.ts";
import { endContained, startContained } from "./sidecar-stage.ts";
import { lacking } from "./tcp-stage.ts";

const root = resolve(import.meta.dirname, "../..");
const EPOCH = 3;

describe("a proxy in a pod", { skip: lacking(), timeout: 120_000 }, () => {
  let journal: Journal = { ...EMPTY_JOURNAL, role: "owner", epoch: EPOCH };
  let sidecar: ProcessIdentity | null = null;
  let isApplicationThere = true;
  let looked = 0;
  const ring = { keys: [KEY], first: KEY } as never;
  const file = {
    name: "default.chat",
    downstream: "gateway",
    pod: { name: "chat", container: "app", proxy: "sidecar" },
    ports: [{ listen: 8080, upstream: "127.0.0.1:9000" }],
  };
  const keeper = new ProxyKeeper({
    name: file.name,
    config: parseWorkload(file, "192.0.2.1", "test"),
    context: {
      ...{ node: "a", host: "192.0.2.1", links: "encrypted", ring, gatewayRing: ring, proxyGroups: [] },
      runtime: {
        sidecar: async () => {
          looked++;
          return sidecar === null ? null : { process: sidecar, address: "127.0.0.1" };
        },
      },
      log: pino({ level: "silent" }),
    },
    folder: "/nonexistent",
    get journal() {
      return journal;
    },
    record: (patch) => {
      journal = { ...journal, ...patch };
    },
    isProxyExpectedToEnd: false,
    isAtRest: true,
    hasContainer: async () => isApplicationThere,
  });

  before(() => kubeletStarts());
  after(() => {
    keeper.leave()?.disconnect();
    endContained();
  });

  async function kubeletStarts(): Promise<void> {
    const argv = [
      ...[process.execPath, join(root, "proxy/main.ts"), "--helped", "--log-level", "silent"],
      ...["--socket", SIDECAR_SOCKET, "--http", `127.0.0.1:${SIDECAR_HTTP_PORT}`],
    ];
    sidecar = await startContained("true", argv.join(" "));
  }

  function ends(): void {
    assert.ok(sidecar !== null, "it has ended already");
    process.kill(sidecar.pid, "SIGKILL");
    sidecar = null;
  }

  const status = async (): Promise<{ role: string; epoch: number; link: { port: number } }> =>
    (await keeper.client?.command("status", {}))?.result as never;

  it("is found when its workload is started, and takes links where rules can let them in", async () => {
    await keeper.start();
    await keeper.serve(EPOCH);
    const { role, epoch, link } = await status();
    assert.deepEqual([role, epoch, link.port], ["owner", EPOCH, SIDECAR_LINK_PORT]);
    assert.equal(keeper.problem, null);
  });

  it("serves again when kubelet has started it again, and until then it is said", async () => {
    ends();
    await until("it is missed", () => keeper.problem !== null);
    assert.equal(keeper.problem?.id, "proxy.ended");
    const before = looked;
    await until("it is looked for again and again", () => looked > before + 1);
    await kubeletStarts();
    await until("it is used", () => keeper.client?.isOpen === true && keeper.problem === null);
    assert.equal((await status()).role, "owner");
    assert.equal(journal.proxy?.process.pid, sidecar?.pid);
  });

  it("is looked for by the next look where an earlier one came to nothing", async () => {
    isApplicationThere = false;
    ends();
    await until("its connection has ended", () => keeper.client?.isOpen === false);
    keeper.lookAgain();
    await kubeletStarts();
    assert.equal(keeper.client?.isOpen, false, "there is nobody whom it would serve");
    isApplicationThere = true;
    keeper.lookAgain();
    await until("it is used", () => keeper.client?.isOpen === true && keeper.problem === null);
    assert.equal((await status()).role, "owner");
  });
});
