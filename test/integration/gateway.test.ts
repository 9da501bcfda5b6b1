/** A gateway in front of proxies that own a workload, or say that they do not: how it finds owners, and whom it lets in. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { afterEach, describe, it } from "node:test";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import { getsockoptInt, IPPROTO_TCP, TCP_KEEPIDLE, TCP_USER_TIMEOUT } from "#proxy/kernel/socket.ts";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import type { LinkRecord } from "#proxy/store/store.ts";
import { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import {
  answering,
  type GatewayHere,
  type HereOptions,
  startGatewayHere,
  startOwner,
  ToldStore,
} from "#test/support/gateway-stage.ts";
import { type InProcess, type InProcessOptions, LINK_KEY } from "#test/support/in-process-proxy.ts";
import { until } from "#test/support/moved-program.ts";
import { PLAIN } from "#test/support/proxy-lab.ts";

const PORT = 8080;

describe("a gateway", () => {
  const ends: (() => void)[] = [];
  let store = new ToldStore();
  afterEach(() => {
    for (const end of ends.splice(0).reverse()) end();
    store = new ToldStore();
  });

  function gatewayHere(options: Partial<HereOptions> = {}): GatewayHere {
    const listeners = [{ workload: "w", port: PORT }];
    const here = startGatewayHere({ store, key: LINK_KEY, listeners, ...options });
    ends.push(() => here.gateway.stop());
    return here;
  }

  /** A proxy that owns the workload; its application answers each byte with `name`. */
  async function owner(
    name: string,
    epoch: number,
    options: InProcessOptions = {},
  ): Promise<InProcess & { record: LinkRecord }> {
    const running = await startOwner(
      { node: name, epoch, port: PORT },
      { ...options, serve: answering(name) },
    );
    ends.push(() => running.stop());
    return running;
  }

  function client({ gateway }: GatewayHere, listener = 0): Socket {
    const socket = connect({ host: "127.0.0.1", port: gateway.ports[listener] ?? 0, allowHalfOpen: true });
    socket.on("error", () => {});
    ends.push(() => socket.destroy());
    return socket;
  }

  async function answer(socket: Socket, bytes = "x"): Promise<string> {
    socket.write(bytes);
    const [chunk] = await once(socket, "data");
    return String(chunk);
  }

  /** undefined: with a FIN */
  function errorOf(socket: Socket): Promise<string | undefined> {
    let code: string | undefined;
    socket.on("error", (error: NodeJS.ErrnoException) => {
      code = error.code;
    });
    return new Promise((resolve) => socket.once("close", () => resolve(code)));
  }

  const waiting = ({ gateway }: GatewayHere): number => gateway.proxies[0]?.sessions.size ?? 0;

  it("lets a client wait for an owner, and serves it when the store tells of one", async () => {
    const here = gatewayHere();
    await until("it is ready", () => here.gateway.isReady);
    const socket = client(here);
    socket.write("x");
    await until("it waits", () => waiting(here) === 1);
    const looks = store.looks;
    store.put("w", (await owner("a", 1)).record);
    assert.equal(String((await once(socket, "data"))[0]), "a");
    assert.ok(store.looks > looks);
    assert.equal(await answer(client(here)), "a");
  });

  it("is ready where the record of one of its workloads cannot be read, and says so once", async () => {
    const record = { node: "a", epoch: 1, link: { address: "127.0.0.1", port: 1 }, ports: [PORT] };
    store.unreadable.add("v");
    const here = gatewayHere({ listeners: [{ port: PORT }, { workload: "v", port: PORT }] });
    await until("it is ready", () => here.gateway.isReady);
    const looks = store.looks;
    store.put("v", record);
    await until("it has looked again", () => store.looks > looks);
    assert.deepEqual(
      here.lines.map(({ workload, msg }) => [workload, msg]),
      [["v", "the store's record of the workload is not understood"]],
    );
  });

  it("is ready where the store says nothing of one of its workloads, when it has told of others for a while", async () => {
    const record = { node: "a", epoch: 1, link: { address: "127.0.0.1", port: 1 }, ports: [PORT] };
    store.unanswered.add("v");
    const here = gatewayHere({
      listeners: [{ port: PORT }, { workload: "v", port: PORT }],
      unansweredMsMax: 100,
    });
    await until("it is ready", () => {
      store.put("w", record);
      return here.gateway.isReady;
    });
  });

  it("leads those that wait to an owner that is found, but for one whose own code fails", async () => {
    const here = gatewayHere();
    const proxy = here.gateway.proxies[0] as WorkloadProxy;
    const broken = client(here);
    await until("it waits", () => waiting(here) === 1);
    const [session] = proxy.sessions.values();
    const other = client(here);
    other.write("x");
    await until("both wait", () => waiting(here) === 2);
    const { start } = WorkloadProxy.prototype;
    proxy.start = (one) => {
      if (one === session) throw new Error("as a test wants it");
      start.call(proxy, one);
    };
    const over = errorOf(broken);
    store.put("w", (await owner("a", 1)).record);
    assert.equal(await over, "ECONNRESET");
    assert.equal(String((await once(other, "data"))[0]), "a");
  });

  it("leads new clients to the owner with the highest epoch, and believes no lower one", async () => {
    const [first, second] = [await owner("a", 4), await owner("b", 6)];
    store.put("w", first.record);
    const here = gatewayHere();
    const old = client(here);
    assert.equal(await answer(old), "a");
    store.put("w", second.record);
    await until("it knows", () => here.gateway.view()[0]?.owner?.epoch === 6);
    assert.equal(await answer(client(here)), "b");
    store.put("w", first.record);
    await until("it has looked", () => store.looks >= 3);
    assert.equal(await answer(client(here)), "b");
    assert.equal(await answer(old), "a", "whose session it is goes on");
  });

  it("follows a proxy that is another one at the same epoch", async () => {
    const [first, second] = [await owner("a", 4), await owner("b", 4)];
    store.put("w", first.record);
    const here = gatewayHere();
    assert.equal(await answer(client(here)), "a");
    first.stop();
    store.put("w", second.record);
    assert.equal(await answer(client(here)), "b");
  });

  it("goes by the owner it knows while the store is away", async () => {
    const { record } = await owner("a", 1);
    store.put("w", record);
    const here = gatewayHere();
    assert.equal(await answer(client(here)), "a");
    store.isAway = true;
    assert.equal(await answer(client(here)), "a");
    assert.equal(here.gateway.isReady, true);
  });

  it("looks for itself where a message was lost and the owner says that it is none", async () => {
    const [first, second] = [await owner("a", 4), await owner("b", 6)];
    store.put("w", first.record);
    const here = gatewayHere();
    assert.equal(await answer(client(here)), "a");
    store.isMute = true;
    store.put("w", second.record);
    first.proxy.role = "idle";
    assert.equal(await answer(client(here)), "b");
  });

  it("asks again where the owner does not answer, until it does", async () => {
    const { record, proxy } = await owner("a", 4);
    store.put("w", record);
    const here = gatewayHere();
    proxy.role = "held"; // links wait there
    const parked = client(here);
    await until("its link waits", () => proxy.ownerLinks.parked.size === 1);
    proxy.ownerLinks.closeParked(RST_CODE.moved);
    await until("it is dialled again", () => proxy.ownerLinks.parked.size === 1);
    proxy.ownerLinks.closeParked(RST_CODE.broken);
    await until("and again", () => proxy.ownerLinks.parked.size === 1);
    proxy.role = "owner";
    proxy.ownerLinks.takeParked();
    assert.equal(await answer(parked), "a");
  });

  it("resets a client that waits for an owner too long, and refuses one too many", async () => {
    const here = gatewayHere({ limits: { heldSessionsMax: 2, ownerMsMax: 300 } });
    const two = [client(here), client(here)];
    await until("both wait", () => waiting(here) === 2);
    assert.equal(await errorOf(client(here)), "ECONNRESET");
    for (const code of await Promise.all(two.map(errorOf))) assert.equal(code, "ECONNRESET");
    assert.equal(waiting(here), 0);
  });

  it("refuses one too many also where it knows the owner, and that does not answer, until it does", async () => {
    const { record, proxy } = await owner("a", 4);
    store.put("w", record);
    const here = gatewayHere({ limits: { heldSessionsMax: 2, ownerMsMax: 20_000 } });
    assert.equal(await answer(client(here)), "a");
    proxy.role = "held"; // links wait there
    const first = client(here);
    first.write("x");
    const { counters } = here.gateway.proxies[0] as WorkloadProxy;
    await until("one is too many", () => {
      client(here);
      return counters.sessionsRefused > 0;
    });
    assert.equal(await errorOf(client(here)), "ECONNRESET");
    const served = once(first, "data");
    proxy.role = "owner";
    proxy.ownerLinks.takeParked();
    assert.equal(String((await served)[0]), "a");
    assert.equal(await answer(client(here)), "a");
  });

  for (const heldSessionsMax of [0, 2])
    it(`refuses nobody of more clients at once than may wait (${heldSessionsMax}), where their owner answers`, async () => {
      store.put("w", (await owner("a", 4)).record);
      const here = gatewayHere({ limits: { heldSessionsMax } });
      await until("it knows", () => here.gateway.view()[0]?.owner?.epoch === 4);
      const answers = await Promise.all(Array.from({ length: 300 }, () => answer(client(here))));
      assert.deepEqual(new Set(answers), new Set(["a"]));
      assert.equal(here.gateway.proxies[0]?.counters.sessionsRefused, 0);
    });

  it("has no more new clients wait at an owner that is held than may, and the others by itself", async () => {
    const { record, proxy } = await owner("a", 4, { limits: { heldSessionsMax: 2 } });
    store.put("w", record);
    const here = gatewayHere();
    await until("it knows", () => here.gateway.view()[0]?.owner?.epoch === 4);
    proxy.role = "held";
    const answers = Array.from({ length: 5 }, () => answer(client(here)));
    const { counters } = here.gateway.proxies[0] as WorkloadProxy;
    await until("three were refused there", () => counters.linkFailures >= 3);
    assert.deepEqual([proxy.ownerLinks.parked.size, waiting(here)], [2, 5]);
    proxy.role = "owner";
    proxy.ownerLinks.takeParked();
    assert.deepEqual(await Promise.all(answers), ["a", "a", "a", "a", "a"]);
  });

  it("resets a client of a port that the workload does not have, and says so", async () => {
    const { record } = await owner("a", 1);
    store.put("w", { ...record, ports: [PORT, 9090] });
    const here = gatewayHere({
      listeners: [
        { workload: "w", port: 7070 },
        { workload: "w", port: PORT },
      ],
    });
    assert.equal(await errorOf(client(here)), "ECONNRESET");
    assert.match(String(here.lines[0]?.msg), /no such port/);
    assert.equal(await answer(client(here, 1)), "a", "and others are served");
  });

  it("is one of several for a workload", async () => {
    const { record, proxy } = await owner("a", 1);
    store.put("w", record);
    const both = [gatewayHere(), gatewayHere()];
    for (const here of both) assert.equal(await answer(client(here)), "a");
    assert.equal(proxy.sessions.size, 2);
    both[0]?.gateway.stop();
    await until("the other's session goes on", () => proxy.sessions.size === 1);
    assert.equal(await answer(client(both[1] as GatewayHere)), "a");
  });

  it("tells the owner whose session it is, as a load balancer's header says", async () => {
    const { record, proxy } = await owner("a", 1);
    store.put("w", record);
    const from = [{ address: "127.0.0.0", prefix: 8 }];
    const proxyProtocol = { from, headerMsMax: 5_000 };
    const here = gatewayHere({ listeners: [{ workload: "w", port: PORT, proxyProtocol }] });
    assert.equal(await answer(client(here), "PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\nxx"), "aa");
    const [session] = proxy.sessions.values();
    assert.deepEqual([session?.client, session?.anchor], ["192.0.2.7:4711", "gateway:g"]);
  });

  it("does not wait for ever for an owner, nor an owner for it, that has vanished", async () => {
    const bounds = { keepAliveMs: 7_000, userTimeoutMs: 21_000 };
    const { record, proxy } = await owner("a", 1);
    store.put("w", record);
    const here = gatewayHere({ listeners: [{ workload: "w", port: PORT, ...bounds }] });
    const socket = client(here);
    assert.equal(await answer(socket), "a");
    const ofOwner = [...proxy.sessions.values()][0]?.downstream;
    const ofGateway = [...(here.gateway.proxies[0]?.sessions.values() ?? [])][0]?.upstream;
    const timeoutOf = (leg: { fd: number } | null | undefined): number =>
      getsockoptInt(leg?.fd ?? -1, IPPROTO_TCP, TCP_USER_TIMEOUT);
    assert.equal(timeoutOf(ofGateway), 21_000);
    assert.equal(timeoutOf(ofOwner), PLAIN.userTimeoutMs, "as its own port says");
  });

  for (const trunkSessionsMax of [65_536, 0])
    it(`keeps to the shortest of its ports' times where their links share a connection: ${trunkSessionsMax > 0 ? "they do" : "they do not"}`, async () => {
      const times = [
        { keepAliveMs: 9_000, userTimeoutMs: 11_000 },
        { keepAliveMs: 4_000, userTimeoutMs: 0 },
        { keepAliveMs: 0, userTimeoutMs: 1_000 },
      ] as const;
      const [port, ...morePorts] = times;
      const { record, proxy } = await owner("a", 1, { port, morePorts, limits: { trunkSessionsMax } });
      store.put("w", record);
      const listeners = times.map((own, index) => ({ workload: "w", port: PORT + index, ...own }));
      const here = gatewayHere({ listeners });
      const seconds = (ms: number): number => Math.ceil(ms / 1_000);
      const timesOf = (leg: { fd: number } | null | undefined): { idle: number; userTimeoutMs: number } => ({
        idle: getsockoptInt(leg?.fd ?? -1, IPPROTO_TCP, TCP_KEEPIDLE),
        userTimeoutMs: getsockoptInt(leg?.fd ?? -1, IPPROTO_TCP, TCP_USER_TIMEOUT),
      });
      // what Node's keep-alive has, where nobody says otherwise
      const untouched = { idle: 5, userTimeoutMs: 0 };
      for (const [index, own] of [...times.entries(), ...[...times.entries()].reverse()]) {
        const socket = client(here, index);
        assert.equal(await answer(socket), "a");
        const ofOwner = [...proxy.sessions.values()].at(-1)?.downstream;
        const ofGateway = [...(here.gateway.proxies[0]?.sessions.values() ?? [])].at(-1)?.upstream;
        const itsOwn =
          own.keepAliveMs === 0
            ? untouched
            : { idle: seconds(own.keepAliveMs), userTimeoutMs: own.userTimeoutMs };
        const expected = trunkSessionsMax > 0 ? { idle: 4, userTimeoutMs: 11_000 } : itsOwn;
        assert.deepEqual(timesOf(ofOwner), expected);
        assert.deepEqual(timesOf(ofGateway), expected);
      }
    });

  it("uses other keys from when it is told them", async () => {
    const { record, proxy } = await owner("a", 1);
    store.put("w", record);
    const here = gatewayHere();
    const old = client(here);
    assert.equal(await answer(old), "a");
    const other: SharedKeys = [Buffer.alloc(32, 9)];
    proxy.keys = other;
    const refused = client(here);
    refused.write("x");
    await until("it is refused", () => proxy.counters.linksRefused > 0);
    here.gateway.useKeys(() => other);
    assert.equal(String((await once(refused, "data"))[0]), "a", "and tries again");
    assert.equal(await answer(old), "a");
  });

  it("drains: accepts nobody, and ends when its clients have gone, or have had their time", async () => {
    const { record, proxy } = await owner("a", 1);
    store.put("w", record);
    const here = gatewayHere();
    const [leaves, stays] = [client(here), client(here)];
    for (const socket of [leaves, stays]) assert.equal(await answer(socket), "a");
    const [port = 0] = here.gateway.ports;
    const patient = here.gateway.drain();
    assert.equal(here.gateway.isReady, false);
    assert.equal(await errorOf(connect({ host: "127.0.0.1", port })), "ECONNREFUSED");
    assert.equal(await answer(stays), "a");
    leaves.end();
    stays.end();
    assert.deepEqual(await patient, { reset: 0 });
    await until("their trunk has ended too", () => proxy.trunks === 0);

    const hasty = gatewayHere({ limits: { drainMsMax: 50 } });
    const socket = client(hasty);
    assert.equal(await answer(socket), "a");
    const over = errorOf(socket);
    assert.deepEqual(await hasty.gateway.drain(), { reset: 1 });
    assert.equal(await over, "ECONNRESET");
    await until("its trunk has ended too", () => proxy.trunks === 0 && proxy.sessions.size === 0);
  });

  it("that cannot listen says on what, and leaves nothing open", async () => {
    const taken = gatewayHere().gateway.ports[0] ?? 0;
    const listeners = [0, taken].map((port) => ({
      workload: "w",
      port: PORT,
      at: { address: "127.0.0.1", port },
    }));
    assert.throws(() => gatewayHere({ listeners }), {
      code: "PROXY_LISTEN",
      message: new RegExp(`:${taken} `),
    });
  });
});
