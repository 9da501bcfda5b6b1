/** A client that comes to an anchor while the workload moves: its session waits for an owner, and then is one like any other. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { acceptLink } from "#proxy/link/link-greeting.ts";
import { LIMITS, ProxyProcess } from "#test/support/proxy-lab.ts";

const key = Buffer.alloc(32, 1);
const LINGER_MS = 300;
const folder = mkdtempSync(join(tmpdir(), "holdfast-anchor-"));
const ends: (() => unknown)[] = [];
after(async () => {
  for (const end of ends) await end();
  rmSync(folder, { recursive: true, force: true });
});

const nothing = (): void => {};
const LISTENER = {
  onActive: nothing,
  onHold: nothing,
  onResume: nothing,
  onHeld: nothing,
  onOver: nothing,
  onBroken: nothing,
};

async function proxyOf(node: string, upstreamPort: number, lingerMsMax = LINGER_MS): Promise<ProxyProcess> {
  const proxy = await ProxyProcess.start({ socket: join(folder, node) });
  ends.push(() => proxy.kill());
  const upstream = { address: "127.0.0.1", port: upstreamPort };
  await proxy.call(
    "configure",
    {
      workload: "test",
      node,
      downstream: "forward",
      listenAddress: "127.0.0.1",
      ports: [{ listen: 0, upstream }],
      linkAddress: "127.0.0.1:0",
      limits: { ...LIMITS, lingerMsMax },
    },
    key,
  );
  return proxy;
}

test("it is not reset later for the time that it waited", async () => {
  const application = createServer((socket) => socket.on("error", () => {}).pipe(socket));
  application.listen(0, "127.0.0.1");
  await once(application, "listening");
  ends.push(() => application.close());
  const { port } = application.address() as AddressInfo;

  const told = Promise.withResolvers<void>();
  const hasLeft = createServer((socket) => {
    socket.once("close", () => told.resolve()); // the anchor has heard it
    acceptLink(socket, {
      keys: [key],
      onReady: (link) => link.close(RST_CODE.moved),
      onRefused: (reason) => told.reject(new Error(reason)),
      listener: LISTENER,
    });
  });
  hasLeft.listen(0, "127.0.0.1");
  await once(hasLeft, "listening");
  ends.push(() => hasLeft.close());

  const owner = await proxyOf("c", port);
  const { result } = await owner.call<{ link: { address: string; port: number } }>("serve", { epoch: 3 });
  const anchor = await proxyOf("a", port);
  const served = await anchor.call<{ ports: number[] }>("serve", { epoch: 1 });
  await anchor.call("hold", { epoch: 1 });
  await anchor.call("captureUpstream", { epoch: 1 });
  const left = { address: "127.0.0.1", port: (hasLeft.address() as AddressInfo).port };
  await anchor.call("retire", { epoch: 2, owner: { node: "b", link: left } });

  const client = connect(served.result.ports[0] as number, "127.0.0.1");
  let failed: Error | null = null;
  client.on("error", (error) => (failed = error));
  ends.push(() => client.destroy());
  await told.promise;
  await anchor.call("switchOwner", { epoch: 3, owner: { node: "c", link: result.link } });
  const servedAtMs = performance.now();
  while (performance.now() < servedAtMs + 2 * LINGER_MS) {
    client.write("x");
    await Promise.race([once(client, "data"), once(client, "close")]);
    assert.equal(failed, null);
  }
});

test("one whose next owner does not take its link at once is led there again", async () => {
  const application = createServer((socket) => socket.on("error", () => {}).pipe(socket));
  application.listen(0, "127.0.0.1");
  await once(application, "listening");
  ends.push(() => application.close());

  const sockets: Socket[] = [];
  const owner = createServer((socket) => {
    // as one without a CPU or a descriptor, then as one that has not heard of its release
    if (sockets.push(socket) === 1) socket.resetAndDestroy();
    else
      acceptLink(socket, {
        keys: [key],
        onReady: (link) => {
          if (sockets.length === 2) {
            link.close(RST_CODE.moved);
            return;
          }
          link.listener = {
            onData: (chunk) => void link.write(Buffer.from(chunk)),
            onFin: nothing,
            onDrain: nothing,
            onReset: nothing,
            onBroken: nothing,
          };
          link.sendActive({ epoch: 2, bytesIn: 5, bytesOut: 5 });
          link.startDelivering();
        },
        onRefused: nothing,
        listener: LISTENER,
      });
  });
  owner.listen(0, "127.0.0.1");
  await once(owner, "listening");
  ends.push(() => {
    for (const socket of sockets) socket.destroy();
    owner.close();
  });

  const anchor = await proxyOf("b", (application.address() as AddressInfo).port, 30_000);
  const served = await anchor.call<{ ports: number[] }>("serve", { epoch: 1 });
  const client = connect(served.result.ports[0] as number, "127.0.0.1");
  client.on("error", nothing); // its proxy is ended before it
  ends.push(() => client.destroy());
  client.write("first");
  assert.equal(String((await once(client, "data"))[0]), "first");
  await anchor.call("hold", { epoch: 1 });
  await anchor.call("captureUpstream", { epoch: 1 });
  const link = { address: "127.0.0.1", port: (owner.address() as AddressInfo).port };
  await anchor.call("retire", { epoch: 2, owner: { node: "d", link } });
  client.write("again");
  assert.equal(String((await once(client, "data"))[0]), "again");
  assert.equal(sockets.length, 3);
});
