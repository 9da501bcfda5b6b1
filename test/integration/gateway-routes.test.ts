/** A gateway that leads clients by what they say first, which passes on unchanged. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { afterEach, describe, it } from "node:test";
import type { GatewayRoute } from "#proxy/contract/gateway.ts";
import { LOOKUPS_MAX } from "#proxy/gateway/session-places.ts";
import { readProxyHeader } from "#proxy/protocol/proxy-header.ts";
import { issueCookie } from "#proxy/protocol/session-name.ts";
import {
  type GatewayHere,
  type HereOptions,
  routeTo,
  startGatewayHere,
  startOwner,
  ToldStore,
} from "#test/support/gateway-stage.ts";
import { type InProcess, LINK_KEY } from "#test/support/in-process-proxy.ts";
import { until } from "#test/support/moved-program.ts";

const PORT = 8080;

describe("a gateway with routes", () => {
  const ends: (() => void)[] = [];
  let store = new ToldStore();
  afterEach(() => {
    for (const end of ends.splice(0).reverse()) end();
    store = new ToldStore();
  });

  /** A workload whose application sends back what it gets. */
  async function workload(name: string): Promise<InProcess> {
    const running = await startOwner({ node: "a", epoch: 1, port: PORT });
    ends.push(() => running.stop());
    store.put(name, running.record);
    return running;
  }

  function gatewayHere(routes: GatewayRoute[], options: Partial<HereOptions> = {}): GatewayHere {
    const [listener] = options.listeners ?? [{}];
    const here = startGatewayHere({ store, key: LINK_KEY, ...options, listeners: [{ ...listener, routes }] });
    ends.push(() => here.gateway.stop());
    return here;
  }

  function client({ gateway }: GatewayHere): Socket {
    const socket = connect({ host: "127.0.0.1", port: gateway.ports[0] ?? 0, allowHalfOpen: true });
    socket.on("error", () => {});
    ends.push(() => socket.destroy());
    return socket;
  }

  async function echoed(socket: Socket, bytes: string): Promise<void> {
    socket.write(bytes);
    let got = "";
    while (got.length < bytes.length) got += String((await once(socket, "data"))[0]);
    assert.equal(got, bytes);
  }

  function overOf(socket: Socket): Promise<string | undefined> {
    let code: string | undefined;
    socket.on("error", (error: NodeJS.ErrnoException) => {
      code = error.code;
    });
    return new Promise((resolve) => socket.once("close", () => resolve(code)));
  }

  const get = (host: string, ...fields: string[]): string =>
    `GET / HTTP/1.1\r\n${[`Host: ${host}`, ...fields].join("\r\n")}\r\n\r\n`;
  const sessions = (...of: InProcess[]): number[] => of.map(({ proxy }) => proxy.sessions.size);

  it("leads by the host of the first request, in pieces too, and what follows goes the same way", async () => {
    const [w, v] = [await workload("w"), await workload("v")];
    const here = gatewayHere([routeTo("v", PORT, { host: ["v.example"] }), routeTo("w", PORT)]);
    const socket = client(here);
    const request = get("v.example");
    socket.write(request.slice(0, 20));
    const rest = once(socket, "data");
    socket.write(request.slice(20));
    await rest;
    await echoed(socket, get("w.example"));
    assert.deepEqual(sessions(w, v), [0, 1]);
    await echoed(client(here), get("other"));
    assert.deepEqual(sessions(w, v), [1, 1]);
  });

  it("passes on the end of a client's side that came with its first bytes", async () => {
    await workload("w");
    const socket = client(gatewayHere([routeTo("w", PORT, { path: "/" })]));
    const ended = once(socket, "end");
    const request = get("w.example");
    socket.end(request);
    assert.equal(String((await once(socket, "data"))[0]), request);
    await ended;
  });

  it("resets whom no route is for, and says so", async () => {
    await workload("w");
    const here = gatewayHere([routeTo("w", PORT, { host: ["w.example"] })]);
    const socket = client(here);
    const over = overOf(socket);
    socket.write(get("other.example"));
    assert.equal(await over, "ECONNRESET");
    assert.match(String(here.lines[0]?.why), /its request is for other\.example\//);
    assert.equal(here.gateway.unrouted, 1);
    await echoed(client(here), get("w.example"));
  });

  it("leads a client that says nothing to a route that names nothing, after a while", async () => {
    const w = await workload("w");
    const routes = [routeTo("v", PORT, { host: ["v.example"] }), routeTo("w", PORT)];
    const here = gatewayHere(routes, { undecided: { msMax: 100 } });
    const socket = client(here);
    await until("it is led", () => sessions(w)[0] === 1);
    await echoed(socket, "hello");
  });

  it("resets a client alone whose own code fails when its time is over", { timeout: 20_000 }, async () => {
    const w = await workload("w");
    const routes = [routeTo("v", PORT, { host: ["v.example"] }), routeTo("w", PORT)];
    const here = gatewayHere(routes, { undecided: { msMax: 100 } });
    const [, proxy] = here.gateway.proxies;
    assert.ok(proxy !== undefined);
    const accept = proxy.entrance.acceptRead;
    proxy.entrance.acceptRead = () => {
      throw new Error("as a test wants it");
    };
    assert.equal(await overOf(client(here)), "ECONNRESET");
    proxy.entrance.acceptRead = accept;
    await echoed(client(here), "hello");
    assert.equal(sessions(w)[0], 1);
  });

  it("serves a client that had come before the end was asked for, and says then where it wants to go", async () => {
    await workload("w");
    const here = gatewayHere([routeTo("w", PORT, { path: "/" })]);
    const socket = client(here);
    const request = get("w.example");
    socket.write(request.slice(0, 5));
    await once(socket, "connect");
    // its first bytes are there when one that came later is served
    await echoed(client(here), request);
    const drained = here.gateway.drain();
    const answer = once(socket, "data");
    socket.write(request.slice(5));
    assert.equal(String((await answer)[0]), request);
    for (const end of ends.splice(2)) end();
    assert.deepEqual(await drained, { reset: 0 });
  });

  it("lets those that say nothing keep nobody out", async () => {
    await workload("w");
    const here = gatewayHere([routeTo("w", PORT, { path: "/" })], { undecided: { max: 2 } });
    const silent = [client(here), client(here), client(here)];
    assert.equal(await overOf(silent[0] as Socket), "ECONNRESET");
    await echoed(client(here), get("w.example"));
  });

  describe("whose store does not answer where a session is", { timeout: 20_000 }, () => {
    const session = { from: "cookie", name: "sid", issue: false } as const;
    const named = get("x", "Cookie: sid=42");

    async function start(max: number, limits: HereOptions["limits"] = {}): Promise<GatewayHere> {
      await Promise.all(["w", "v"].map(workload));
      store.isLookupSilent = true;
      return gatewayHere([routeTo("w", PORT, { session, workloads: ["w", "v"] })], {
        undecided: { max },
        ...(limits === undefined ? {} : { limits }),
      });
    }

    it("bounds the clients that wait for it: of too many the oldest is reset, and others are served", async () => {
      const here = await start(2);
      const waiting = [client(here), client(here)];
      for (const socket of waiting) socket.write(named);
      await until("both are looked up", () => store.lookups === 4);
      const over = overOf(waiting[0] as Socket);
      await echoed(client(here), get("x"));
      assert.equal(await over, "ECONNRESET");
    });

    it("asks for so many of them at a time, and serves who has no name meanwhile", async () => {
      const here = await start(1_000);
      for (let i = 0; i < LOOKUPS_MAX + 10; i++) client(here).write(named);
      await until("as many as may be are looked up", () => store.lookups >= 2 * LOOKUPS_MAX);
      await echoed(client(here), get("x"));
      assert.equal(store.lookups, 2 * LOOKUPS_MAX);
    });

    it("counts them among those that wait when it is to end", async () => {
      const here = await start(1_000, { drainMsMax: 100 });
      const socket = client(here);
      socket.write(named);
      await until("it is looked up", () => store.lookups === 2);
      const over = overOf(socket);
      assert.deepEqual(await here.gateway.drain(), { reset: 1 });
      assert.equal(await over, "ECONNRESET");
    });
  });

  it("keeps descriptors back from clients before it is known where they go", async () => {
    const here = gatewayHere([routeTo("w", PORT, { path: "/" })], { kernel: { descriptorsMax: () => 8 } });
    assert.equal(await overOf(client(here)), "ECONNRESET");
    assert.deepEqual(
      here.lines.map(({ reason }) => reason),
      ["descriptors"],
    );
  });

  it("leads a session to the workload that has it, through any gateway, and a new one alike", async () => {
    const [w, v] = [await workload("w"), await workload("v")];
    const session = { from: "cookie", name: "sid", issue: false } as const;
    const routes = [routeTo("w", PORT, { session, workloads: ["w", "v"] })];
    const [here, there] = [gatewayHere(routes), gatewayHere(routes)];
    store.names.add("v 42").add("w 43");
    for (const gateway of [here, there]) {
      await echoed(client(gateway), get("x", "Cookie: sid=42"));
      await echoed(client(gateway), get("x", "Cookie: sid=43"));
    }
    assert.deepEqual(sessions(w, v), [2, 2]);
    const before = sessions(w, v);
    store.isAway = true;
    for (let i = 0; i < 2; i++)
      for (const gateway of [here, there]) await echoed(client(gateway), get("x", "Cookie: sid=unknown"));
    const more = sessions(w, v).map((count, index) => count - (before[index] ?? 0));
    assert.deepEqual(more.sort(), [0, 4], "all to the same one");
    for (let i = 0; i < 2; i++) await echoed(client(here), get("x"));
    const [ofW = 0, ofV = 0] = sessions(w, v);
    assert.deepEqual([ofW + ofV, Math.min(ofW, ofV) > 2], [10, true], "without a name, in turn");
  });

  it("leads a session by the signature of the cookie that its workload has issued", async () => {
    const [w, v] = [await workload("w"), await workload("v")];
    const session = { from: "cookie", name: "sid", issue: true } as const;
    const here = gatewayHere([routeTo("w", PORT, { session, workloads: ["w", "v"] })]);
    const ofV = here.gateway.proxies[1]?.filters.cookieKeys[0];
    assert.ok(ofV !== undefined);
    const [, cookie] = /: (sid=[^;]+);/.exec(issueCookie(session, ofV).line) ?? [];
    for (let i = 0; i < 3; i++) await echoed(client(here), get("x", `Cookie: ${cookie}`));
    assert.deepEqual(sessions(w, v), [0, 3]);
  });

  it("reads a load balancer's header before, and tells the application whose the connection is", async () => {
    const w = await workload("w");
    const proxyProtocol = { from: [{ address: "127.0.0.0", prefix: 8 }], headerMsMax: 5_000 };
    const here = gatewayHere([routeTo("w", PORT, { host: ["w.example"] })], {
      listeners: [{ proxyProtocol, sendProxyProtocol: true }],
    });
    const socket = client(here);
    const request = get("w.example");
    socket.write(`PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n${request}`);
    let got = Buffer.alloc(0);
    while (got.length < request.length + 28) got = Buffer.concat([got, (await once(socket, "data"))[0]]);
    assert.deepEqual(readProxyHeader(got), { is: "complete", bytes: 28, client: "192.0.2.7:4711" });
    assert.equal(got.toString("latin1", 28), request);
    assert.equal([...w.proxy.sessions.values()][0]?.client, "192.0.2.7:4711");

    const without = client(here);
    const over = overOf(without);
    without.write(request);
    assert.equal(await over, "ECONNRESET");
  });
});
