import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { encodeImage, isSubreaper } from "#control/criu/image-file.ts";
import { encodeFields, type Field } from "#control/criu/protobuf.ts";
import { hasOrphans } from "#control/criu/subreaper.ts";

const process = (pid: number, parent: number, sid: number) => ({ pid, parent, sid });

describe("orphans of an application", () => {
  it("are children of its first process in a session of somebody else's", () => {
    const root = process(2, 0, 2);
    assert.equal(hasOrphans([]), false);
    assert.equal(hasOrphans([root, process(3, 2, 2), process(4, 2, 4), process(5, 4, 4)]), false);
    assert.equal(hasOrphans([root, process(9, 2, 8)]), true);
    assert.equal(hasOrphans([root, process(8, 2, 8), process(9, 2, 8)]), true);
    // of another parent: born below it, or found by `check`
    assert.equal(hasOrphans([root, process(4, 2, 4), process(9, 4, 8)]), false);
  });

  it("stay its own where its image says that it takes them", () => {
    const core = (...own: Field[]) => encodeImage("core", [encodeFields([[3, [[1, 1], ...own]]])]);
    assert.equal(isSubreaper(core([18, true])), true);
    assert.equal(isSubreaper(core()), false);
  });
});
