import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { decodePageMap, encodePageMap, PAGE_BYTES, type PageMap } from "#control/criu/page-map.ts";
import { anonymousMappings, privateMappings } from "#control/criu/process-memory.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

const run = fc.record(
  {
    vaddr: fc.integer({ min: 0, max: 2 ** 35 - 1 }).map((page) => page * PAGE_BYTES),
    pages: fc.integer({ min: 1, max: 2 ** 24 }),
    where: fc.constantFrom("here" as const, "parent" as const),
  },
  { noNullPrototype: true },
);
const pageMap: fc.Arbitrary<PageMap> = fc.record(
  {
    pagesId: fc.integer({ min: 1, max: 2 ** 20 }),
    runs: fc.array(run, { maxLength: 50 }),
  },
  { noNullPrototype: true },
);

test("a page map is read back as it was written", () => {
  fc.assert(fc.property(pageMap, (map) => assert.deepEqual(decodePageMap(encodePageMap(map)), map)));
});

test("a page map that is cut off or altered is refused or read as another, never anything else", () => {
  fc.assert(
    fc.property(pageMap, fc.nat(), fc.nat(255), fc.boolean(), (map, place, byte, cut) => {
      const image = encodePageMap(map);
      const at = place % image.length;
      const bad = cut ? image.subarray(0, at) : Buffer.from(image).fill(byte, at, at + 1);
      try {
        decodePageMap(bad);
      } catch (error) {
        assert.ok(error instanceof HoldfastError && error.code === "PAGEMAP_INVALID", String(error));
      }
    }),
  );
});

test("memory to copy is what is private and not the kernel's", () => {
  const maps = `00400000-00401000 r-xp 00000000 fe:00 12 /usr/bin/a b
00600000-00602000 rw-p 00000000 fe:00 12 /usr/bin/a b
10000000000-7f0000000000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 rw-s 00000000 00:05 7 /dev/shm/x
7f0000002000-7f0000004000 ---p 00000000 00:00 0
7f0000004000-7f0000006000 rw-p 00000000 00:00 0 [heap]
7ffff7fc1000-7ffff7fc5000 r--p 00000000 00:00 0 [vvar]
7ffff7fc5000-7ffff7fc7000 r-xp 00000000 00:00 0 [vdso]
`;
  assert.deepEqual(privateMappings(maps), [
    { start: 0x400000, end: 0x401000 },
    { start: 0x600000, end: 0x602000 },
    { start: 0x10000000000, end: 0x7f0000000000 },
    { start: 0x7f0000002000, end: 0x7f0000004000 },
    { start: 0x7f0000004000, end: 0x7f0000006000 },
  ]);
  assert.deepEqual(anonymousMappings(maps), privateMappings(maps).slice(2));
});

test("a mapping that the kernel shows again, as it was joined with the next meanwhile, is looked at once", () => {
  const maps = `7f0000000000-7f0000004000 rw-p 00000000 00:00 0
7f0000000000-7f0000006000 rw-p 00000000 00:00 0
7f0000006000-7f0000007000 rw-s 00000000 00:05 7 /dev/shm/x
7f0000002000-7f0000007000 rw-p 00000000 00:00 0
7f0000008000-7f0000009000 rw-p 00000000 00:00 0
`;
  const once = [
    { start: 0x7f0000000000, end: 0x7f0000004000 },
    { start: 0x7f0000004000, end: 0x7f0000006000 },
    { start: 0x7f0000008000, end: 0x7f0000009000 },
  ];
  assert.deepEqual(privateMappings(maps), once);
  assert.deepEqual(anonymousMappings(maps), once);
});
