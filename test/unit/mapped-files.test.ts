/** Files written to through a shared mapping: what /proc says of them, and that a difference has them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { difference } from "#control/runtime/files.ts";
import { pathsIn, takeForChanged } from "#control/runtime/mapped-files.ts";

const maps = `7f877ba26000-7f877bb26000 rw-s 00000000 00:3a 5                          /dev/shm/PostgreSQL.42
7f877bc00000-7f877bd00000 rw-p 00000000 00:3a 6                          /srv/private
7f877be00000-7f877bf00000 r--s 00000000 00:3a 7                          /srv/read
7f877c000000-7f877c100000 rw-s 00000000 00:01 1027                       /dev/zero (deleted)
7f877c200000-7f877c300000 rw-s 00000000 00:3a 8                          /tmp/with blank\\012and line
7f877c400000-7f877c500000 -w-s 00000000 00:3a 9                          /tmp/written
7ffc2a000000-7ffc2a021000 rw-p 00000000 00:00 0                          [stack]
7ffc2a100000-7ffc2a121000 rw-s 00000000 00:00 0 
`;

test("only shared mappings of files that are written to count, with names as they are", () => {
  assert.deepEqual(pathsIn(maps), [
    "/dev/shm/PostgreSQL.42",
    "/dev/zero",
    "/tmp/with blank\nand line",
    "/tmp/written",
  ]);
});

test("a mapped file differs although its time stamps do not, below its mount only", () => {
  const now = (): Map<string, string> =>
    new Map([
      ["PostgreSQL.42", "5 1 2"],
      ["other", "6 1 2"],
    ]);
  const before = now();
  takeForChanged(before, "/dev/shm", pathsIn(maps));
  assert.deepEqual(difference(before, now()), { gone: [], changed: ["PostgreSQL.42"] });
  const elsewhere = now();
  takeForChanged(elsewhere, "/dev", pathsIn(maps));
  assert.deepEqual(difference(elsewhere, now()), { gone: [], changed: [] });
  const layer = new Map([["tmp/written", "9 1"]]);
  takeForChanged(layer, "/", pathsIn(maps));
  assert.deepEqual(difference(layer, new Map([["tmp/written", "9 1"]])).changed, ["tmp/written"]);
});

test("all names of a mapped file differ: they are one file at the target, too", () => {
  const now = (): Map<string, string> =>
    new Map([
      ["other", "6 1 2"],
      ["another name", "5 1 2"],
      ["PostgreSQL.42", "5 1 2"],
      ["folder", "directory 5 1 2"],
    ]);
  const before = now();
  takeForChanged(before, "/dev/shm", pathsIn(maps));
  assert.deepEqual(difference(before, now()).changed, ["another name", "PostgreSQL.42"]);
});
