import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { coveredIn, mountedBelow, mountsIn, shownIn } from "#control/runtime/mounted.ts";

const VOLUMES = "/kubelet/pods/1/volumes/kubernetes.io~empty-dir";
/** An emptyDir at /data and at /read, and in it, at /data/a part, one of another that is whole at /whole. */
const POD = mountsIn(
  [
    "10 1 0:50 / / rw - overlay overlay rw",
    "11 10 0:51 / /proc rw - proc proc rw",
    `12 10 8:1 ${VOLUMES}/data /data rw - ext4 /dev/vda rw`,
    `13 10 8:1 ${VOLUMES}/data /read ro - ext4 /dev/vda rw`,
    `14 10 8:1 ${VOLUMES}/whole /whole rw - ext4 /dev/vda rw`,
    `15 12 8:1 ${VOLUMES}/whole/part /data/a\\040part rw - ext4 /dev/vda rw`,
    "",
  ].join("\n"),
);

describe("what is mounted in a container", () => {
  it("is found by where it is", () => {
    assert.deepEqual(mountedBelow(POD, "/"), ["proc", "data", "read", "whole", "data/a part"]);
    assert.deepEqual(mountedBelow(POD, "/data"), ["a part"]);
  });

  it("covers what the same volume shows elsewhere, too", () => {
    const covered = ["/data", "/read", "/whole", "/"].map((folder) => coveredIn(POD, folder));
    assert.deepEqual(covered, [["a part"], ["a part"], [], ["proc", "data", "read", "whole"]]);
    assert.deepEqual(coveredIn(POD, "/none"), []);
  });

  it("may be a part of what another shows", () => {
    assert.deepEqual(shownIn(POD, "/whole"), ["part"]);
    assert.deepEqual(shownIn(POD, "/data"), []);
  });
});
