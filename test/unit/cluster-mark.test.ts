/** Whether the store is the one an agent has known. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { ClusterMark } from "#control/workload/cluster-mark.ts";
import { MemoryStore } from "#proxy/store/memory.ts";

test("a store is known once it was remembered, to a later agent too, until it is emptied", async () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-mark-"));
  const path = join(folder, "store-mark");
  try {
    const store = new MemoryStore();
    const one = new ClusterMark(path, store);
    assert.equal(await one.isKnown(), false, "nobody has looked yet whether all is there");
    await one.remember();
    assert.equal(await one.isKnown(), true);
    assert.equal(await new ClusterMark(path, store).isKnown(), true);
    const other = new ClusterMark(join(folder, "other"), store);
    assert.equal(await other.isKnown(), false, "each agent looks for itself");
    await other.remember();
    assert.equal(await one.isKnown(), true, "they agree on one mark");

    const emptied = new MemoryStore();
    const next = new ClusterMark(path, emptied);
    assert.equal(await next.isKnown(), false);
    await new ClusterMark(join(folder, "third"), emptied).remember();
    assert.equal(await next.isKnown(), false, "another agent's mark is not this one's");
    await next.remember();
    assert.equal(await new ClusterMark(path, emptied).isKnown(), true);

    writeFileSync(path, "\n\n");
    assert.equal(await new ClusterMark(path, emptied).isKnown(), false, "a damaged file is none");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
