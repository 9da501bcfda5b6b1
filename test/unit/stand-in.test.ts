import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { decodePageMap, PAGE_BYTES } from "#control/criu/page-map.ts";
import { makeStandIn, standInFor, withDirtyTracking } from "#control/criu/stand-in.ts";

describe("images of an earlier dump that there never was", () => {
  it("have every address that a process can use, of each process that they stand in for", () => {
    const dir = mkdtempSync(join(tmpdir(), "hf-stand-in-"));
    try {
      const folder = join(dir, makeStandIn(dir));
      standInFor(dir, [7, 4_194_303]);
      for (const pid of [7, 4_194_303]) {
        const { pagesId, runs } = decodePageMap(readFileSync(join(folder, `pagemap-${pid}.img`)));
        let at = PAGE_BYTES;
        for (const { vaddr, pages, where } of runs) {
          assert.deepEqual([vaddr, where], [at, "here"]);
          // CRIU's compat_nr_pages is a uint32
          assert.ok(pages > 0 && pages < 2 ** 32);
          at += pages * PAGE_BYTES;
        }
        assert.equal(at, 2 ** 53);
        assert.equal(readFileSync(join(folder, `pages-${pagesId}.img`)).length, 0);
      }
      assert.ok(!readdirSync(folder).includes("pagemap-8.img"), "another process is dumped as a whole");
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});

describe("CRIU's cache of what the kernel can", () => {
  it("is changed in one byte, or not at all where that is not what it is known to be", () => {
    const cache = Buffer.alloc(912, 7);
    cache[32] = 0;
    const changed = withDirtyTracking(cache, "4.2");
    assert.ok(changed !== null);
    const places = [...changed.keys()].filter((at) => changed[at] !== cache[at]);
    assert.deepEqual([places, changed[32]], [[32], 1]);
    assert.equal(withDirtyTracking(changed, "4.2"), null, "the kernel does");
    assert.equal(withDirtyTracking(Buffer.alloc(20), "4.2"), null, "too short");
  });

  it("is left alone of a CRIU that this was not tried with", () => {
    const cache = Buffer.alloc(912);
    const isChanged = (version: string): boolean => withDirtyTracking(cache, version) !== null;
    assert.deepEqual(["4.2", "4.2.1"].map(isChanged), [true, true]);
    const others = ["", "4", "4.1", "4.1.1", "4.2.2", "4.20", "4.3", "5.2", "14.2", "4.2-rc1"];
    assert.deepEqual(others.filter(isChanged), []);
  });
});
