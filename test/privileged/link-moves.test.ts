/**
 * Links between a gateway and nodes that break in moves, in each step: by the kernel's hand (SOCK_DESTROY) or by a bridge that drops
 * everything. Under load, byte by byte; without CRIU.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { connect as dial } from "node:net";
import { after, afterEach, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Gateway } from "#proxy/gateway/gateway.ts";
import { CountedClient } from "#test/support/counted-client.ts";
import { startGatewayHere, ToldStore } from "#test/support/gateway-stage.ts";
import { CLIENT_PORT, KEY, type NodeName, ProxyLab } from "#test/support/proxy-lab.ts";

const CLIENTS = 5;
const TABLE = "netdev holdfast_test";

describe("links between a gateway and nodes", { timeout: 120_000 }, () => {
  const store = new ToldStore();
  let lab: ProxyLab;
  let gateway: Gateway;
  let owner: NodeName = "a";
  let clients: CountedClient[] = [];
  let seed = 0;

  before(async () => {
    lab = await ProxyLab.start({ nodes: ["a", "b"], downstream: "gateway" });
    await lab.serve("a");
    ({ gateway } = startGatewayHere({
      store,
      key: KEY,
      listeners: [{ workload: "echo", port: CLIENT_PORT }],
    }));
    await tell();
  });
  afterEach(async () => {
    heal();
    for (const client of clients) client.socket.destroy();
    clients = [];
    await lab.proxy(owner).untilSessions(0);
  });
  after(async () => {
    gateway.stop();
    await lab.stop();
  });

  async function tell(): Promise<void> {
    const link = await lab.linkOf(owner);
    store.put("echo", { node: owner, epoch: lab.epoch, link, ports: [CLIENT_PORT] });
  }

  function counters(): Record<string, number> {
    const [proxy] = gateway.proxies;
    return { ...proxy?.counters };
  }

  async function serve(): Promise<void> {
    for (let i = 0; i < CLIENTS; i++) {
      const [port = 0] = gateway.ports;
      const socket = dial({ host: "127.0.0.1", port, noDelay: true, allowHalfOpen: true });
      clients.push(new CountedClient(socket, { seed: seed++ }));
    }
    await allProgress();
  }
  const allProgress = (): Promise<unknown> => Promise.all(clients.map((client) => client.progress()));
  async function allSettled(): Promise<void> {
    await allProgress();
    await Promise.all(clients.map((client) => client.settled()));
  }

  const next = (): NodeName => (owner === "a" ? "b" : "a");
  async function move(during?: (step: string) => Promise<void> | void): Promise<void> {
    const to = next();
    await lab.move(owner, to, during);
    owner = to;
    await tell();
  }

  async function rollback(from: NodeName, to: NodeName): Promise<void> {
    lab.plug(from);
    lab.epoch += 2;
    await lab.proxy(from).call("rollback", { epoch: lab.epoch });
    await lab.kill(to);
    lab.continueApp();
    await tell();
  }

  /** Every link to that node, at both its ends. */
  async function destroyLinks(to: NodeName): Promise<void> {
    const { address, port } = await lab.linkOf(to);
    execFileSync("ss", ["-K", "-t", "dst", address, "dport", "=", `:${port}`], { stdio: "ignore" });
  }

  /** The bridge passes nothing to or from that node, and tells nobody. */
  function cutOff(name: NodeName): void {
    for (const command of [
      `add table ${TABLE}`,
      `add chain ${TABLE} from { type filter hook ingress device v${name} priority 0; policy drop; }`,
    ])
      execFileSync("nft", [command]);
  }
  function heal(): void {
    try {
      execFileSync("nft", [`delete table ${TABLE}`], { stdio: "ignore" });
    } catch {
      // nothing is cut off
    }
  }

  for (const step of ["held", "capturedUpstream", "settled", "released"])
    it(`that are torn when a move is ${step}: nobody notices`, async () => {
      const before = counters();
      await serve();
      let interrupted = 0;
      const from = owner;
      await move(async (at) => {
        if (at !== step) return;
        const already = counters().linksInterrupted ?? 0;
        // from the release on the target has them
        await destroyLinks(step === "released" ? next() : from);
        while (interrupted === 0) {
          await delay(1);
          interrupted = (counters().linksInterrupted ?? 0) - already;
        }
      });
      await allSettled();
      assert.equal(counters().sessionsReset, before.sessionsReset);
      assert.equal(counters().linkMismatches, before.linkMismatches);
    });

  it("that are cut off for 100 ms before a move and 2 s after it: nobody notices", async () => {
    const before = counters();
    await serve();
    cutOff(owner);
    await delay(100);
    heal();
    await allProgress();
    await move();
    cutOff(owner);
    await delay(2_000);
    heal();
    await allSettled();
    assert.equal(counters().sessionsReset, before.sessionsReset);
  });

  for (const [when, after] of [
    ["at the hold", "prepared"],
    ["before the gateway has confirmed", "held"],
  ] as const)
    it(`that are cut off ${when}: the move fails, and when they are back everything goes on, and moves`, async () => {
      const before = counters();
      await serve();
      const [from, to] = [owner, next()];
      await assert.rejects(
        lab.move(from, to, (step) => {
          if (step === after) cutOff(from);
        }),
        { code: "PROXY_QUIESCE" },
      );
      await rollback(from, to);
      heal();
      await allProgress();
      await move();
      await allSettled();
      assert.equal(counters().sessionsReset, before.sessionsReset);
    });
});
