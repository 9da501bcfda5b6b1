/** Other nodes' agents are found by their pods, and remembered while there is none or nobody to ask. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { pino } from "pino";
import { PodPeers } from "#control/agent/pod-peers.ts";
import { until } from "#test/support/moved-program.ts";

const log = pino({ level: "silent" });

function agent(node: string | undefined, hostIP: string | undefined): object {
  return { metadata: { name: `agent-${node}` }, spec: { nodeName: node }, status: { hostIP } };
}

describe("agents of other nodes", () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-peers-"));
  const file = join(folder, "peers.json");
  after(() => rmSync(folder, { recursive: true }));
  const begin = (goneMs = 60_000): PodPeers => new PodPeers({ node: "a", port: 7400, file, log, goneMs });

  it("are those of their pods, but for this node's and those that are nowhere yet", async () => {
    const pods = begin();
    pods.update([
      agent("a", "10.0.0.1"),
      agent("b.eu", "10.0.0.2"),
      agent("c", undefined),
      agent(undefined, undefined),
    ]);
    await pods.known;
    assert.deepEqual(pods.peers, { "b.eu": { address: "10.0.0.2", port: 7400 } });
    pods.close();
  });

  it("are known to the next agent before the API server has answered", async () => {
    const pods = begin();
    await pods.known;
    assert.deepEqual(Object.keys(pods.peers), ["b.eu"]);
    pods.update([agent("b.eu", "10.0.0.9")]);
    assert.equal(pods.peers["b.eu"]?.address, "10.0.0.9");
    pods.close();
  });

  it("stay for a while when they have no pod, as one that is replaced", async () => {
    const pods = begin(0);
    const { peers } = pods;
    pods.update([]);
    assert.deepEqual(Object.keys(peers), ["b.eu"]);
    await until("it is forgotten", () => Object.keys(peers).length === 0);
    pods.close();
    const next = begin();
    assert.deepEqual(next.peers, {});
    next.close();
  });
});
