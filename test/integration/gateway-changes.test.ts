/** A gateway whose workloads and ports become others while it has clients. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { afterEach, describe, it } from "node:test";
import type { GatewayListener } from "#proxy/contract/gateway.ts";
import {
  answering,
  type GatewayHere,
  LISTENER,
  routeTo,
  startGatewayHere,
  startOwner,
  ToldStore,
} from "#test/support/gateway-stage.ts";
import { type InProcess, LINK_KEY } from "#test/support/in-process-proxy.ts";
import { until } from "#test/support/moved-program.ts";

const PORT = 8080;

describe("a gateway that is told to lead clients otherwise", () => {
  const ends: (() => void)[] = [];
  let store = new ToldStore();
  afterEach(() => {
    for (const end of ends.splice(0).reverse()) end();
    store = new ToldStore();
  });

  /** A workload whose application answers each byte with its name. */
  async function workload(name: string): Promise<InProcess> {
    const running = await startOwner({ node: "a", epoch: 1, port: PORT }, { serve: answering(name) });
    ends.push(() => running.stop());
    store.put(name, running.record);
    return running;
  }

  function leading(...workloads: string[]): GatewayListener {
    return { ...LISTENER, routes: [{ ...routeTo("", PORT), workloads }] };
  }

  function gatewayHere(...listeners: GatewayListener[]): GatewayHere {
    const here = startGatewayHere({ store, key: LINK_KEY, listeners });
    ends.push(() => here.gateway.stop());
    return here;
  }

  function client({ gateway }: GatewayHere, listener = 0): Socket {
    const socket = connect({ host: "127.0.0.1", port: gateway.ports[listener] ?? 0 });
    socket.on("error", () => {});
    ends.push(() => socket.destroy());
    return socket;
  }

  async function answer(socket: Socket): Promise<string> {
    socket.write("x");
    const [chunk] = await once(socket, "data");
    return String(chunk);
  }

  const gone = (socket: Socket): Promise<unknown> => new Promise((resolve) => socket.once("close", resolve));
  const served = ({ gateway }: GatewayHere): string[] => gateway.view().map(({ workload }) => workload);

  it("leads new clients to that of several workloads which has the fewest", async () => {
    for (const name of ["v", "w", "x"]) await workload(name);
    const here = gatewayHere(leading("v", "w", "x"));
    const answers: string[] = [];
    for (let count = 0; count < 9; count++) answers.push(await answer(client(here)));
    for (const name of ["v", "w", "x"]) assert.equal(answers.filter((one) => one === name).length, 3, name);
  });

  it("leads them to one that came, and lets one that went keep its clients until they go", async () => {
    for (const name of ["v", "w"]) await workload(name);
    const here = gatewayHere(leading("v"));
    const old = client(here);
    assert.equal(await answer(old), "v");
    const [port] = here.gateway.ports;
    assert.equal(here.gateway.isReady, true);
    here.gateway.use([leading("w")]);
    assert.equal(here.gateway.isReady, true);
    assert.deepEqual(here.gateway.ports, [port]);
    assert.equal(await answer(client(here)), "w");
    assert.equal(await answer(old), "v");
    assert.deepEqual(served(here), ["w", "v"]);
    old.destroy();
    await until("its last client has gone", () => here.gateway.view()[1]?.sessions === 0);
    here.gateway.use([leading("w")]);
    assert.deepEqual(served(here), ["w"]);
  });

  it("goes on with a workload whose listener changes otherwise, and with its clients", async () => {
    await workload("v");
    const here = gatewayHere(leading("v"));
    const old = client(here);
    assert.equal(await answer(old), "v");
    here.gateway.use([{ ...leading("v"), sessionsMax: 1 }]);
    const next = client(here);
    assert.equal(await answer(next), "v");
    assert.equal(await answer(old), "v");
    await gone(client(here));
  });

  it("listens at a port that is new, and no more at one that is no longer wanted", async () => {
    for (const name of ["v", "w"]) await workload(name);
    const here = gatewayHere(leading("v"));
    here.gateway.use([leading("v"), leading("w")]);
    const second = client(here, 1);
    assert.equal(await answer(second), "w");
    const [, closed = 0] = here.gateway.ports;
    here.gateway.use([leading("v")]);
    const [error] = await once(connect({ host: "127.0.0.1", port: closed }), "error");
    assert.equal((error as NodeJS.ErrnoException).code, "ECONNREFUSED");
    assert.equal(await answer(second), "w");
    assert.equal(await answer(client(here)), "v");
  });

  it("says so where it cannot listen, is not ready, and serves the others", async () => {
    await workload("v");
    const here = gatewayHere(leading("v"));
    const [taken = 0] = here.gateway.ports;
    const at = { ...LISTENER.at, port: taken };
    here.gateway.use([leading("v"), { ...leading("v"), at }]);
    assert.equal(here.gateway.isReady, false);
    assert.match(String(here.lines[0]?.reason), /address already in use|EADDRINUSE/i);
    assert.equal(await answer(client(here)), "v");
  });

  it("resets a client that was about to be led to a workload which went, and no other", async () => {
    for (const name of ["v", "w"]) await workload(name);
    const byPath = (name: string): GatewayListener => ({
      ...LISTENER,
      routes: [routeTo(name, PORT, { path: "/" })],
    });
    const here = gatewayHere(byPath("v"));
    const undecided = client(here);
    await once(undecided, "connect");
    undecided.write("GET");
    const later = client(here);
    later.write("GET / HTTP/1.1\r\n\r\n");
    await once(later, "data");
    here.gateway.use([byPath("w")]);
    undecided.write(" / HTTP/1.1\r\n\r\n");
    await gone(undecided);
    assert.equal(here.gateway.unrouted, 1);
  });
});
