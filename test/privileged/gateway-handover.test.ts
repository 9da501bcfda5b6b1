/** Handovers behind a gateway, without CRIU: each step that can fail, fails. */
import assert from "node:assert/strict";
import { connect as dial } from "node:net";
import { after, afterEach, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Gateway } from "#proxy/gateway/gateway.ts";
import { FRAME, RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import { CountedClient } from "#test/support/counted-client.ts";
import { startGatewayHere, ToldStore } from "#test/support/gateway-stage.ts";
import { until } from "#test/support/moved-program.ts";
import { CLIENT_PORT, KEY, type NodeName, ProxyLab } from "#test/support/proxy-lab.ts";

const CLIENTS = 6;
const STEPS = ["prepared", "held", "capturedUpstream", "adoptedUpstream", "settled", "released", "retired"];

describe("a handover behind a gateway", { timeout: 600_000 }, () => {
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
    for (const client of clients) client.socket.destroy();
    clients = [];
    store.isAway = false;
    await tell();
    await lab.proxy(owner).untilSessions(0);
  });
  after(async () => {
    gateway.stop();
    await lab.stop();
  });

  /** As the owner's agent does. */
  async function tell(): Promise<void> {
    const link = await lab.linkOf(owner);
    store.put("echo", { node: owner, epoch: lab.epoch, link, ports: [CLIENT_PORT] });
  }

  function connect(to = gateway): CountedClient {
    const [port = 0] = to.ports;
    const socket = dial({ host: "127.0.0.1", port, noDelay: true, allowHalfOpen: true });
    const client = new CountedClient(socket, { seed: seed++ });
    clients.push(client);
    return client;
  }

  function counters(): Record<string, number> {
    const [proxy] = gateway.proxies;
    return { ...proxy?.counters };
  }

  const next = (): NodeName => (owner === "a" ? "b" : "a");

  async function move(during?: (step: string) => Promise<void> | void): Promise<void> {
    const to = next();
    await lab.move(owner, to, during);
    owner = to;
  }

  async function serve(count = CLIENTS): Promise<void> {
    for (let i = 0; i < count; i++) connect();
    await allProgress();
  }

  const allProgress = (): Promise<unknown> => Promise.all(clients.map((client) => client.progress()));

  async function allSettled(): Promise<void> {
    await allProgress();
    await Promise.all(clients.map((client) => client.settled()));
  }

  it("keeps every byte there and back under load, and leaves nothing at the source", async () => {
    const before = counters();
    await serve();
    await move();
    assert.equal(lab.proxies.size, 1, "the source's proxy has ended");
    await tell();
    await allProgress();
    connect();
    await move();
    await tell();
    await allSettled();
    const { sessionsReset, linkMismatches, linkFailures } = counters();
    assert.deepEqual([sessionsReset, linkMismatches, linkFailures], [before.sessionsReset, 0, 0]);
  });

  it("goes on where the source is killed right after the release", async () => {
    await serve();
    await move(async (step) => {
      if (step === "released") await lab.kill(owner);
    });
    await allSettled();
  });

  // as kubelet ends a container: of a pod that is deleted in the middle of a move
  for (const [how, signal] of [
    ["killed", "SIGKILL"],
    ["told to end", "SIGTERM"],
  ] as const)
    it(`goes on where the source is ${how} before the release, when all is settled`, async () => {
      await serve();
      await move(async (step) => {
        if (step === "settled") await lab.kill(owner, signal);
      });
      await allSettled();
    });

  it("goes on without the store: links say who owns it, to new clients too", async () => {
    await serve();
    store.isAway = true;
    await move(async (step) => {
      if (step === "released") await lab.kill(owner);
    });
    await allProgress();
    assert.equal(gateway.view()[0]?.owner?.epoch, lab.epoch);
    connect();
    await allSettled();
  });

  it("serves a client that connects in any step", async () => {
    await serve(1);
    await move((step) => {
      assert.ok(STEPS.includes(step));
      connect().send(1000);
    });
    await tell();
    await allSettled();
    assert.equal(clients.length, 1 + STEPS.length);
  });

  it("moves the clients of several gateways, also when one of them ends in the middle", async () => {
    for (const at of ["prepared", "held", "settled"]) {
      const other = startGatewayHere({
        store,
        key: KEY,
        listeners: [{ workload: "echo", port: CLIENT_PORT }],
      }).gateway;
      await serve(2);
      const ofOther = [connect(other), connect(other)];
      await allProgress();
      await move((step) => {
        if (step === at) other.stop();
      });
      await tell();
      for (const client of ofOther) assert.equal(await client.untilOver(), "ECONNRESET");
      clients = clients.filter((client) => !ofOther.includes(client));
      await allSettled();
      await lab.proxy(owner).untilSessions(clients.length);
    }
  });

  it("moves a client that sends without reading, queues and all", async () => {
    await serve(1);
    const [client] = clients as [CountedClient];
    await client.settled();
    client.socket.pause();
    client.send(24 << 20);
    for (let bytes = -1, now = 0; now !== bytes; await delay(150)) {
      bytes = now;
      now = (await lab.proxy(owner).sessions())[0]?.bytesIn ?? 0;
    }
    await move();
    await tell();
    await move(async (step) => {
      if (step === "released") await lab.kill(owner);
    });
    client.socket.resume();
    await client.settled();
  });

  it("finds the owner by itself where it could not be told of the move", async () => {
    await serve();
    const [proxy] = gateway.proxies;
    let broken = 0;
    await move((step) => {
      // as if each link to the target had broken; before ACTIVE is on its way, or as it is
      if (step === "settled")
        for (const session of proxy?.sessions.values() ?? []) {
          if (session.nextLink === null) continue;
          session.nextLink.close(RST_CODE.broken);
          session.nextLink = null;
          broken++;
        }
    });
    assert.equal(broken, CLIENTS);
    await tell();
    await allSettled();
  });

  it("does not keep a workload where it is by not reaching its next node", async () => {
    await serve();
    const [proxy] = gateway.proxies;
    assert.ok(proxy !== undefined);
    const { anchorLinks } = proxy;
    const { dial } = anchorLinks;
    let dials = 0;
    anchorLinks.dial = async () => {
      dials++;
      return false;
    };
    await move((step) => {
      if (step === "released") anchorLinks.dial = dial;
    });
    assert.ok(dials > 0, "it has tried to reach the next node");
    await tell();
    await allSettled();
  });

  /** Taken back when it has come to `step`, as the source's agent does. */
  async function rolledBack(step: string, before: (to: NodeName) => Promise<void> = async () => {}) {
    const to = next();
    const from = owner;
    await assert.rejects(
      lab.move(from, to, async (at) => {
        if (at !== step) return;
        await before(to);
        throw new Error("as a test wants it");
      }),
      /as a test wants it/,
    );
    lab.plug(from);
    lab.epoch += 2; // what was given out is passed over
    // before anybody is held there is nothing to take back
    if (step !== "prepared") await lab.proxy(from).call("rollback", { epoch: lab.epoch });
    if (lab.proxies.has(to)) {
      await lab.proxy(to).call("discard", { epoch: lab.epoch });
      await lab.kill(to);
    }
    lab.continueApp();
    await tell();
    await allProgress();
  }

  it("goes on at the source after a rollback from any step", async () => {
    await serve();
    for (const step of ["held", "capturedUpstream", "adoptedUpstream", "settled"]) await rolledBack(step);
    await allSettled();
  });

  it("goes on at the source where the target is told to end before the commit", async () => {
    await serve();
    for (const step of ["prepared", "held", "adoptedUpstream", "settled"])
      await rolledBack(step, (to) => lab.kill(to, "SIGTERM"));
    await allSettled();
  });

  it("does not settle while a gateway has not said that it has everything", async () => {
    await serve();
    const [proxy] = gateway.proxies;
    const sessions = [...(proxy?.sessions.values() ?? [])];
    const from = owner;
    const to = next();
    await assert.rejects(
      lab.move(from, to, (step) => {
        if (step !== "prepared") return;
        for (const { upstream } of sessions)
          if (upstream !== null && "sendCounted" in upstream) upstream.sendCounted = () => {};
      }),
      { code: "PROXY_QUIESCE", retryable: true, message: /6 sessions/ },
    );
    lab.plug(from);
    lab.epoch += 2;
    await lab.proxy(from).call("rollback", { epoch: lab.epoch });
    await lab.kill(to);
    lab.continueApp();
    await tell();
    await allSettled();
  });

  it("does not settle while a gateway has not the end of a session that is over", async () => {
    await serve(1);
    const [proxy] = gateway.proxies;
    const [session] = proxy?.sessions.values() ?? [];
    const link = session?.upstream;
    assert.ok(link instanceof LinkLeg);
    const onFrame = link.onFrame.bind(link);
    const late: Buffer[] = [];
    link.onFrame = (type, payload) => {
      if (type === FRAME.fin) late.push(payload);
      else onFrame(type, payload);
    };
    const [client] = clients as [CountedClient];
    client.stop();
    await client.until(() => client.answeredBytes === client.sentBytes);
    client.socket.end();
    await until("the application has ended it", () => late.length > 0);
    await lab.proxy(owner).untilSessions(0);
    const from = owner;
    const to = next();
    await assert.rejects(lab.move(from, to), {
      code: "PROXY_QUIESCE",
      retryable: true,
      message: /1 sessions/,
    });
    lab.plug(from);
    lab.epoch += 2;
    await lab.proxy(from).call("rollback", { epoch: lab.epoch });
    await lab.kill(to);
    lab.continueApp();
    await tell();
    for (const payload of late) onFrame(FRAME.fin, payload);
    await until("the client has its end", () => client.over !== null);
    assert.equal(client.over, "end");
    // … and nothing of it stands in the way of the next
    clients = [];
    await serve();
    await move();
    await allSettled();
  });

  it("resets its clients in time where the source dies with their legs, and serves new ones", async () => {
    await serve();
    const from = owner;
    const to = next();
    await assert.rejects(
      lab.move(from, to, async (step) => {
        if (step !== "capturedUpstream") return;
        await lab.kill(from);
        throw new Error("as a test wants it");
      }),
      /as a test wants it/,
    );
    await lab.kill(to);
    for (const client of clients) assert.match(await client.untilOver(), /ECONNRESET/);
    lab.continueApp();
    owner = from;
    lab.epoch += 2;
    await lab.startProxy(from);
    await lab.serve(from);
    await tell();
    clients = [];
    await serve();
    await allSettled();
  });
});
