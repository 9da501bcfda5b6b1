/** What an owner tells the store of itself: where links come, for gateways, and clients, for load balancers. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pino } from "pino";
import { parseWorkload } from "#control/config/config.ts";
import { LinkRecords } from "#control/workload/link-record.ts";
import type { Downstream } from "#proxy/contract/commands.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import { linkRecordSchema } from "#proxy/store/store.ts";

const LINK = { address: "10.244.1.7", port: 7500 };

async function told(downstream: Downstream, more: object) {
  const store = new MemoryStore();
  await store.claim({ workload: "chat", node: "a" });
  const file = {
    name: "chat",
    ports: [8080, 9000].map((port) => ({ listen: port, upstream: `127.0.0.1:${port}` })),
    ...more,
  };
  const config = parseWorkload(file, "10.99.0.2", "test");
  const host = {
    ...{ name: "chat", config, downstream, journal: { role: "owner", epoch: 1 } },
    context: { node: "a", store, log: pino({ level: "silent" }) },
    keeper: { linkStatus: async () => ({ link: LINK, epoch: 1 }) },
  };
  await new LinkRecords(host).tell();
  const record = await store.link("chat");
  await store.close();
  return record;
}

const container = { container: { command: ["node"], rootfs: "host" } };
const pod = (more: object) => ({ pod: { name: "chat-0", container: "app", command: ["node"], ...more } });

describe("the owner of a workload tells the store", () => {
  it("in forward mode where clients of each port come: to its node", async () => {
    assert.deepEqual(await told("forward", container), {
      ...{ node: "a", epoch: 1, link: LINK, ports: [8080, 9000] },
      clients: [
        { address: "10.99.0.2", port: 8080 },
        { address: "10.99.0.2", port: 9000 },
      ],
    });
  });

  it("… or to the pod that has the proxy; of another that listens itself the address is not known here", async () => {
    const sidecar = await told("forward", pod({ proxy: "sidecar" }));
    assert.deepEqual(sidecar?.clients?.[0], { address: LINK.address, port: 8080 });
    const listening = await told("forward", pod({ listen: "pod" }));
    assert.deepEqual([listening?.link, listening?.clients], [LINK, undefined]);
  });

  it("in gateway mode only where links come, and in takeover mode nothing", async () => {
    assert.equal((await told("gateway", { ...container, downstream: "gateway" }))?.clients, undefined);
    assert.equal(await told("takeover", container), null);
  });
});

describe("what a later version tells the store of itself", () => {
  it("is read by this one without what it does not know", () => {
    const record = { node: "a", epoch: 1, link: LINK, ports: [8080], clients: [LINK] };
    const later = { ...record, zone: "z1", link: { ...LINK, zone: "z1" } };
    assert.deepEqual(linkRecordSchema.parse(later), record);
  });
});
