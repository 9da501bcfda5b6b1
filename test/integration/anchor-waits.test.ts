/** A client that comes to an anchor while the workload moves: its session waits for an owner, and then is one like any other. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { acceptLink } from "#proxy/link/link-greeting.ts";
import { LIMITS, ProxyProcess } from "#test/support/proxy-lab.ts";

const key = Buffer.alloc(32, 1);
const lingerMsMax = 300;
const folder = mkdtempSync(join(tmpdir(), "holdfast-anchor-"));
const ends: (() => unknown)[] = [];
after(async () => {
  for (const end of ends) await end();
  rmSync(folder, { recursive: true, force: true });
});

async function proxyOf(node: string, upstreamPort: number): Promise<ProxyProcess> {
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
  const nothing = (): void => {};
  const hasLeft = createServer((socket) => {
    socket.once("close", () => told.resolve()); // the anchor has heard it
    acceptLink(socket, {
      keys: [key],
      onReady: (link) => link.close(RST_CODE.moved),
      onRefused: (reason) => told.reject(new Error(reason)),
      listener: {
        onActive: nothing,
        onHold: nothing,
        onResume: nothing,
        onHeld: nothing,
        onOver: nothing,
        onBroken: nothing,
      },
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
  while (performance.now() < servedAtMs + 2 * lingerMsMax) {
    client.write("x");
    await Promise.race([once(client, "data"), once(client, "close")]);
    assert.equal(failed, null);
  }
});
