/** Whole handovers between proxies, legs and links and all; the application is stopped and unplugged instead of dumped. */
import assert from "node:assert/strict";
import type { Socket } from "node:net";
import { after, afterEach, before, describe, it, type TestContext } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { decodeSessions, encodeSessions } from "#proxy/contract/snapshot-codec.ts";
import { CountedClient } from "#test/support/counted-client.ts";
import { until } from "#test/support/moved-program.ts";
import { headerOf } from "#test/support/proxy-headers.ts";
import { CLIENT_PORT, type NodeName, ProxyLab } from "#test/support/proxy-lab.ts";
import { RawEnd } from "#test/support/raw-ends.ts";

const GROWTH_MOVES = 20;
const GROWTH_MOVES_HELPED = 6;

for (const { downstream, helped } of [
  { downstream: "forward", helped: false },
  { downstream: "forward", helped: true },
  { downstream: "takeover", helped: false },
] as const) {
  const between = helped ? "proxies without capabilities, which an agent helps" : "proxies";
  describe(`a handover by ${downstream}, between ${between}`, { timeout: 600_000 }, () => {
    let lab: ProxyLab;
    let owner: NodeName = "a";
    let clients: CountedClient[] = [];
    let seed = 0;

    before(async () => {
      lab = await ProxyLab.start({ nodes: ["a", "b"], downstream, helped });
      await lab.serve("a");
    });
    afterEach(async () => {
      for (const client of clients) client.socket.destroy();
      clients = [];
      await lab.proxy(owner).untilSessions(0);
    });
    after(() => lab.stop());

    function connect(node: NodeName = owner): CountedClient {
      const client = new CountedClient(lab.client(downstream === "takeover" ? null : node), { seed: seed++ });
      clients.push(client);
      return client;
    }

    async function move(
      ...how: Parameters<ProxyLab["move"]> extends [unknown, unknown, ...infer R] ? R : never
    ): Promise<void> {
      const to = owner === "a" ? "b" : "a";
      await lab.move(owner, to, ...how);
      owner = to;
    }

    /** Nothing moves any more: every queue between the first client and the application is full, both ways. */
    async function untilStuck(): Promise<void> {
      for (let bytes = -1, now = 0; now !== bytes; await delay(150)) {
        bytes = now;
        now = (await lab.proxy(owner).sessions())[0]?.bytesIn ?? 0;
      }
    }

    async function counters(): Promise<Record<string, number>> {
      const sum: Record<string, number> = {};
      for (const proxy of lab.proxies.values()) {
        for (const [name, value] of Object.entries((await proxy.status()).counters)) {
          sum[name] = (sum[name] ?? 0) + value;
        }
      }
      return sum;
    }

    it("keeps every byte there and back under load", async () => {
      for (let i = 0; i < 10; i++) connect();
      await Promise.all(clients.map((client) => client.progress()));
      await move();
      await Promise.all(clients.map((client) => client.progress()));
      connect();
      if (downstream === "forward") connect("a");
      await Promise.all(clients.map((client) => client.progress()));
      await move();
      await Promise.all(clients.map((client) => client.progress()));
      await Promise.all(clients.map((client) => client.settled()));
      const { sessionsReset, linkMismatches, linkFailures, legFailures } = await counters();
      assert.deepEqual(
        { sessionsReset, linkMismatches, linkFailures, legFailures },
        { sessionsReset: 0, linkMismatches: 0, linkFailures: 0, legFailures: 0 },
      );
    });

    it("serves a client that connects in any step", async () => {
      await connect().progress();
      await move(() => {
        const client = connect("a");
        client.send(1000);
      });
      await Promise.all(clients.map((client) => client.progress()));
      await move(() => {
        connect("a").run();
      });
      await Promise.all(clients.map((client) => client.progress()));
      await Promise.all(clients.map((client) => client.settled()));
    });

    it("passes on what a client did in any step: the end of its side, or a reset", async () => {
      const steps = ["prepared", "held", "capturedUpstream", "adoptedUpstream", "released", "retired"];
      if (downstream === "takeover") steps.push("capturedDownstream", "adoptedDownstream");
      const ending = new Map<string, CountedClient>();
      const resetting = new Map<string, CountedClient>();
      for (const step of steps) {
        ending.set(step, connect());
        resetting.set(step, connect());
      }
      const bystander = connect();
      await Promise.all(clients.map((client) => client.progress(1000)));
      await Promise.all(clients.map((client) => client.settled()));
      await move((step) => {
        const ender = ending.get(step);
        ender?.send(5000);
        ender?.socket.end();
        resetting.get(step)?.socket.resetAndDestroy();
      });
      for (const client of ending.values()) {
        assert.equal(await client.untilOver(), "end");
        assert.equal(client.answeredBytes, client.sentBytes, "answered to the last byte, then ended");
        assert.equal(client.corruptAt, -1);
      }
      await bystander.progress();
      await lab.proxy(owner).untilSessions(1);
    });

    it("tells the application of a client that reset against full queues, in whatever step", async () => {
      for (const at of ["held", "capturedUpstream"]) {
        const gone = connect();
        await gone.progress();
        gone.socket.pause();
        gone.send(24 << 20);
        await untilStuck();
        const bystander = connect();
        await bystander.progress();
        await move(async (step) => {
          if (step !== at) return;
          gone.socket.resetAndDestroy();
          await delay(50);
        });
        await bystander.progress();
        await bystander.settled();
        await lab.proxy(owner).untilSessions(1);
        await lab.untilConnections(1);
        const { counters: own } = await lab.proxy(owner).status();
        // with takeover its proxy has only just begun to count
        if (downstream === "takeover") assert.equal(own.sessionsReset, 1);
        bystander.socket.destroy();
        await lab.proxy(owner).untilSessions(0);
      }
    });

    // what makes the application's end speak is injected by an agent only where that end is in the proxy's own network, as in a pod
    const provokes = { skip: helped && "the application is in another network than the proxy here" };
    it(
      "loses a session whose connection to the application could not be captured, at both ends, and no other",
      provokes,
      async () => {
        const bystander = connect("a");
        await bystander.progress();
        // There and back: in forward mode its client is at an anchor, and at the anchor that becomes the owner again.
        for (let round = 0; round < 2; round++) {
          const lost = connect("a");
          await lost.progress();
          await lab.untilConnections(2);
          await move(undefined, (captured) => {
            const sessions = decodeSessions(captured, { sessionsMax: 10, bytesMax: 1 << 28 });
            const last = sessions.reduce((one, other) =>
              one.acceptedAtMs > other.acceptedAtMs ? one : other,
            );
            assert.ok(last.upstream !== null && sessions.length === 2);
            last.upstream = { ...last.upstream, state: "CLOSE" };
            return encodeSessions(sessions);
          });
          assert.equal(await lost.untilOver(), "ECONNRESET");
          assert.equal((await counters()).linkFailures, 0, "told, not given up on");
          await bystander.progress();
          await bystander.settled();
          await lab.untilConnections(1);
          await lab.proxy(owner).untilSessions(1);
        }
      },
    );

    it("moves a client that sends without reading, queues and all", async () => {
      const client = connect();
      await client.progress();
      await client.settled();
      client.socket.pause();
      client.send(24 << 20);
      await untilStuck();
      await move();
      await move();
      client.socket.resume();
      await client.settled();
    });

    it("goes on after a rollback from any step, and the target forgets", async () => {
      const target = owner === "a" ? "b" : "a";
      for (let i = 0; i < 5; i++) connect();
      await Promise.all(clients.map((client) => client.progress()));
      const steps = ["prepared", "held", "capturedUpstream", "adoptedUpstream"];
      if (downstream === "takeover") steps.push("capturedDownstream", "adoptedDownstream");
      for (const step of steps) {
        for (const client of clients) client.run();
        const gone = connect();
        await gone.progress(1000);
        await gone.settled();
        await assert.rejects(
          move(async (at) => {
            if (at !== step) return;
            gone.socket.resetAndDestroy();
            connect().run();
            throw new Error("the move is given up");
          }),
          /given up/,
        );
        if (step.endsWith("Downstream")) {
          lab.moveVip(target, owner);
          lab.announceVip(owner);
        }
        if (!lab.proxies.has(target)) await lab.startProxy(target);
        await lab.proxy(target).call("discard", { epoch: lab.epoch + 1 });
        lab.epoch += 2;
        lab.plug(owner);
        lab.continueApp();
        if (step !== "prepared") await lab.proxy(owner).call("rollback", { epoch: lab.epoch });
        clients = clients.filter((client) => client !== gone);
        await Promise.all(clients.map((client) => client.progress()));
      }
      await lab.proxy(owner).untilSessions(clients.length);
      await move();
      await Promise.all(clients.map((client) => client.progress()));
      await Promise.all(clients.map((client) => client.settled()));
    });

    // Of memory it says nothing: what V8 keeps between collections is more than these moves could leak.
    const moves = helped ? GROWTH_MOVES_HELPED : GROWTH_MOVES;
    it(`leaves no descriptor and no session behind over ${moves} moves`, async () => {
      for (let i = 0; i < 20; i++) connect();
      await Promise.all(clients.map((client) => client.progress()));
      await move();
      await move();
      await Promise.all(clients.map((client) => client.progress()));
      const before = await lab.inUse();
      for (let i = 0; i < moves; i++) {
        await move();
        await Promise.all(clients.map((client) => client.progress(1000)));
      }
      await Promise.all(clients.map((client) => client.settled()));
      const after = await lab.inUse();
      assert.equal(after.sessions, before.sessions);
      assert.ok(after.descriptors <= before.descriptors + 2, JSON.stringify({ before, after }));
    });
  });
}

describe("a client that was told to go and goes on sending", { timeout: 60_000 }, () => {
  const lab = async (t: TestContext): Promise<ProxyLab> => {
    const port = { protocol: "http", continuity: "replay" } as const;
    const started = await ProxyLab.start({
      nodes: ["a", "b"],
      downstream: "takeover",
      port,
      limits: { lingerMsMax: 30_000, unavailableMsMax: 50 },
    });
    t.after(() => started.stop());
    await started.serve("a");
    return started;
  };
  /** The application has not answered its request, which is not to be repeated. */
  const toldToGo = async (of: ProxyLab): Promise<Socket> => {
    of.stopApp();
    const client = of.client(null);
    const told = new Promise<string>((resolve) => {
      let text = "";
      client.on("data", (chunk) => (text += chunk)).on("end", () => resolve(text));
    });
    const request = "POST / HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx";
    client.write(request);
    await until("it is read", async () => (await of.proxy("a").sessions())[0]?.bytesIn === request.length);
    await of.proxy("a").call("pause", { epoch: of.epoch, drainMs: 0 });
    of.continueApp();
    await of.proxy("a").call("resume", { epoch: of.epoch });
    assert.match(await told, /^HTTP\/1.1 503 /);
    await of.untilConnections(0);
    return client;
  };
  const goesOn = async (of: ProxyLab, at: NodeName, client: Socket): Promise<void> => {
    const read = async (): Promise<number> => (await of.proxy(at).sessions())[0]?.bytesIn ?? 0;
    const before = await read();
    client.write("x".repeat(10_000));
    await until("it is read", async () => (await read()) >= before + 10_000);
    await of.untilConnections(0);
    client.end();
    await of.proxy(at).untilSessions(0);
  };

  it("is none that was never led to the application: after a move", async (t) => {
    const moving = await lab(t);
    const client = await toldToGo(moving);
    await moving.move("a", "b");
    await goesOn(moving, "b", client);
  });

  it("is none that was never led to the application: after a rollback", async (t) => {
    const moving = await lab(t);
    const client = await toldToGo(moving);
    await assert.rejects(
      moving.move("a", "b", (step) => {
        if (step === "adoptedDownstream") throw new Error("the move is given up");
      }),
      /given up/,
    );
    moving.moveVip("b", "a");
    moving.announceVip("a");
    await moving.proxy("b").call("discard", { epoch: moving.epoch + 1 });
    moving.epoch += 2;
    moving.plug("a");
    moving.continueApp();
    await moving.proxy("a").call("rollback", { epoch: moving.epoch });
    await goesOn(moving, "a", client);
  });
});

describe("a port that is taken at the target", { timeout: 30_000 }, () => {
  for (const downstream of ["forward", "takeover"] as const) {
    it(`fails the standby and nothing else, by ${downstream}`, async () => {
      const lab = await ProxyLab.start({ nodes: ["a", "b"], downstream });
      try {
        await lab.serve("a");
        const client = new CountedClient(lab.client(downstream === "takeover" ? null : "a"), { seed: 1 });
        await client.progress();
        const squatter = lab.occupy("b");
        await assert.rejects(
          lab.move("a", "b", () => assert.fail("nobody is held")),
          (error: HoldfastError) =>
            error.code === "PROXY_LISTEN" &&
            error.message.includes(`${lab.listenAddress("b")}:${CLIENT_PORT}`) &&
            error.message.includes("EADDRINUSE") &&
            error.message.includes("ss -ltnp"),
        );
        squatter();
        await client.progress();
        await lab.move("a", "b");
        await client.progress();
        await client.settled();
        client.socket.destroy();
      } finally {
        await lab.stop();
      }
    });
  }

  it("is kept silent until the release, and free again after a discard", async () => {
    const lab = await ProxyLab.start({ nodes: ["a", "b"], downstream: "forward" });
    try {
      await lab.serve("a");
      await lab.proxy("b").call("standby", { epoch: 2 });
      const early = lab.client("b");
      early.on("error", () => {});
      await delay(100);
      assert.equal(early.connecting, true, "neither accepted nor refused");
      await lab.proxy("b").call("discard", { epoch: 2 });
      lab.occupy("b")();
      early.destroy();
    } finally {
      await lab.stop();
    }
  });
});

describe("forwarding over three nodes", { timeout: 600_000 }, () => {
  let lab: ProxyLab;
  let clients: CountedClient[] = [];

  before(async () => {
    lab = await ProxyLab.start({ nodes: ["a", "b", "c"], downstream: "forward" });
    await lab.serve("a");
  });
  after(async () => {
    for (const client of clients) client.socket.destroy();
    await lab.stop();
  });

  it("links every anchor straight to the newest owner, under load and with new clients everywhere", async () => {
    let seed = 0;
    const connect = (node: NodeName): void => {
      clients.push(new CountedClient(lab.client(node), { seed: seed++ }));
    };
    for (let i = 0; i < 5; i++) connect("a");
    await Promise.all(clients.map((client) => client.progress()));
    await lab.move("a", "b", () => connect("a"));
    await Promise.all(clients.map((client) => client.progress()));
    connect("b");
    connect("a");
    await Promise.all(clients.map((client) => client.progress()));
    await lab.move("b", "c", (step) => {
      connect("a");
      if (step !== "prepared") connect("b");
    });
    connect("c");
    await Promise.all(clients.map((client) => client.progress()));
    // Never a chain: b serves its own clients only.
    for (const session of await lab.proxy("b").sessions()) assert.equal(session.anchor, "b");
    await lab.move("c", "a", () => connect("b"));
    await Promise.all(clients.map((client) => client.progress()));
    await Promise.all(clients.map((client) => client.settled()));
    for (const name of ["a", "b", "c"] as const) {
      const { counters } = await lab.proxy(name).status();
      assert.equal(counters.sessionsReset, 0, name);
    }
    const places = (await lab.proxy("a").sessions()).map(({ place }) => place);
    assert.ok(places.includes("here") && places.includes("owner"));
  });

  it("outlives the source's proxy dying after its sessions were captured", async () => {
    const onC = clients.filter((client) => client.socket.remoteAddress === "10.66.0.4");
    assert.ok(onC.length > 0);
    // a owns; its own clients go down with it, those connected to b and c do not.
    for (const client of clients) client.run();
    await assert.rejects(
      lab.move("a", "b", async (step) => {
        if (step === "capturedUpstream") await lab.proxy("a").kill();
      }),
      { code: "CHANNEL_CLOSED" },
    );
    lab.proxies.delete("a");
    const owner = { node: "b", link: await lab.linkOf("b") };
    await lab.proxy("c").call("switchOwner", { epoch: lab.epoch, owner });
    clients = clients.filter((client) => client.socket.remoteAddress !== "10.66.0.2");
    await Promise.all(clients.map((client) => client.progress()));
    await Promise.all(clients.map((client) => client.settled()));
  });

  it("resets every client of an anchor whose owner died", async () => {
    const onC = clients.filter((client) => client.socket.remoteAddress === "10.66.0.4");
    assert.ok(onC.length > 0);
    const over = Promise.all(onC.map((client) => client.until(() => false).catch(() => {})));
    await lab.proxy("b").kill();
    await over;
    for (const client of onC) assert.equal(client.over, "ECONNRESET");
    assert.ok(((await lab.proxy("c").status()).counters.linkFailures ?? 0) >= onC.length);
    clients = [];
  });
});

describe("a forwarding proxy behind a load balancer", { timeout: 600_000 }, () => {
  it("keeps an anchor's connection whose header was not complete when the workload moved, and names its client to the owner", async () => {
    const proxyProtocol = { from: [{ address: "10.66.0.1", prefix: 32 }], headerMsMax: 600_000 };
    const lab = await ProxyLab.start({
      nodes: ["a", "b"],
      downstream: "forward",
      echo: "plain",
      port: { proxyProtocol },
    });
    try {
      await lab.serve("a");
      const header = headerOf("198.51.100.7", 4000);
      const [whole, half] = [new RawEnd(lab.client("a")), new RawEnd(lab.client("a"))];
      whole.socket.write(Buffer.concat([header, Buffer.from("one")]));
      half.socket.write(header.subarray(0, 20));
      await whole.has(3);
      await lab.proxy("a").untilSessions(2);
      await lab.move("a", "b");
      whole.socket.write("two");
      half.socket.write(Buffer.concat([header.subarray(20), Buffer.from("half")]));
      await Promise.all([whole.has(6), half.has(4)]);
      assert.deepEqual([String(whole.received), String(half.received)], ["onetwo", "half"]);
      for (const node of ["a", "b"] as const)
        assert.deepEqual(
          (await lab.proxy(node).sessions()).map(({ client }) => client),
          ["198.51.100.7:4000", "198.51.100.7:4000"],
        );
    } finally {
      await lab.stop();
    }
  });
});
