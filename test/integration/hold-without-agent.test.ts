/** A hold whose agent dies: clients are let go, unless something of them has been captured. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer, type Server } from "node:net";
import { after, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { pino } from "pino";
import { Commands } from "#proxy/cutover/commands.ts";
import { REAL_KERNEL, REAL_SURGEON } from "#test/support/in-process-proxy.ts";
import { LIMITS, PLAIN } from "#test/support/proxy-lab.ts";
import { RawEnd } from "#test/support/raw-ends.ts";

const WAIT_MS_MAX = 5_000;
const LET_GO = { agentGoneMs: 50, heldMs: 3_600_000 };

async function until(what: string, done: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + WAIT_MS_MAX;
  while (!done()) {
    if (performance.now() > deadlineMs) throw new Error(`not within ${WAIT_MS_MAX} ms: ${what}`);
    await delay(2);
  }
}

describe("a hold without an agent", { timeout: 30_000 }, () => {
  let application: Server;
  const proxies: Commands[] = [];
  before(async () => {
    application = createServer((socket) => socket.on("error", () => {}).pipe(socket));
    application.listen(0, "127.0.0.1");
    await once(application, "listening");
  });
  after(() => {
    for (const { proxy } of proxies) proxy?.stop();
    application.close();
  });

  async function serving(letGo = LET_GO) {
    const commands = new Commands({
      kernel: REAL_KERNEL,
      surgeon: REAL_SURGEON,
      log: pino({ level: "silent" }),
      onExit: () => {},
      letGo,
    });
    proxies.push(commands);
    const handlers = commands.handlers();
    const command = (name: string, params: object, body = Buffer.alloc(0)) =>
      (handlers[name] as (typeof handlers)[string])(params, body);
    const upstream = { address: "127.0.0.1", port: (application.address() as AddressInfo).port };
    await command(
      "configure",
      {
        workload: "w",
        node: "a",
        downstream: "forward",
        listenAddress: "127.0.0.1",
        ports: [{ ...PLAIN, listen: 0, upstream }],
        linkAddress: "127.0.0.1:0",
        limits: LIMITS,
      },
      Buffer.alloc(32, 1),
    );
    await command("serve", { epoch: 1 });
    const client = await RawEnd.dial(commands.proxy?.listeners[0]?.port as number);
    client.socket.write("hello");
    await client.has(5);
    return { commands, command, client };
  }

  it("ends by itself: clients go on, and a late capture is refused", async () => {
    const { commands, command, client } = await serving();
    const gone = commands.agentCame();
    await command("hold", { epoch: 1 });
    client.socket.write("again");
    gone();
    await client.has(10);
    assert.equal(commands.proxy?.role, "owner");
    assert.equal(commands.proxy?.counters.holdsLetGo, 1);
    await assert.rejects(async () => command("captureUpstream", { epoch: 1 }), { code: "PROXY_STATE" });
    client.destroy();
  });

  it("goes on for an agent that comes back in time, and for one that never left", async () => {
    const { commands, command, client } = await serving();
    const first = commands.agentCame();
    await command("hold", { epoch: 1 });
    const second = commands.agentCame();
    first();
    const other = await serving();
    await other.command("hold", { epoch: 1 });
    await until("another's hold, without an agent, has ended", () => other.commands.proxy?.role === "owner");
    assert.equal(commands.proxy?.role, "held");
    await command("rollback", { epoch: 2 });
    second();
    client.destroy();
    other.client.destroy();
  });

  it("ends after the longest time there is, whoever is there", async () => {
    const { commands, command, client } = await serving({ agentGoneMs: 3_600_000, heldMs: 50 });
    commands.agentCame();
    await command("hold", { epoch: 1 });
    await until("it is over", () => commands.proxy?.role === "owner");
    client.destroy();
  });

  it("is never ended once something has been captured", async () => {
    const { commands, command, client } = await serving();
    const gone = commands.agentCame();
    await command("hold", { epoch: 1 });
    // without one there is nothing that needs a capability to be captured
    for (const session of [...(commands.proxy?.sessions.values() ?? [])]) session.reset("test");
    await command("captureUpstream", { epoch: 1 });
    gone();
    const other = await serving();
    await other.command("hold", { epoch: 1 });
    await until("another's hold has ended", () => other.commands.proxy?.role === "owner");
    assert.equal(commands.proxy?.role, "captured");
    assert.equal(commands.proxy?.counters.holdsLetGo, 0);
    client.destroy();
    other.client.destroy();
  });
});
