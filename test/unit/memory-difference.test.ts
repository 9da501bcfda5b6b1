import assert from "node:assert/strict";
import { test } from "node:test";
import { type AskRestored, memoryDifference } from "#control/criu/memory-difference.ts";
import { areasOf, ENTRY_BYTES, type ProcessDigest } from "#control/criu/memory-digest.ts";

const layout = ["1000-5000 rw-p anonymous", "7000-9000 r-xp file"];

/** Digests by page address; the letter stands for what is in the page. */
function memory(innerPid: number, pages: Record<number, string>, areas = layout): ProcessDigest {
  const entries = Object.entries(pages).map(([vaddr, letter]) => {
    const entry = Buffer.alloc(ENTRY_BYTES, letter);
    entry.writeBigUInt64LE(BigInt(vaddr));
    return entry;
  });
  return { innerPid, layout: areas, pages: Buffer.concat(entries) };
}

const nothing: AskRestored = { digestAt: async () => null, isAsInFile: async () => false };
const digest = (letter: string): number => Buffer.alloc(4, letter).readUInt32LE();

test("memory that is the same has no difference", async () => {
  const tree = [memory(7, { 4096: "a", 28672: "b" }), memory(9, {})];
  assert.equal(
    await memoryDifference(tree, [memory(9, {}), memory(7, { 4096: "a", 28672: "b" })], nothing),
    null,
  );
});

test("a page that differs is told with process, address and mapping", async () => {
  const said = await memoryDifference(
    [memory(7, { 4096: "a", 8192: "b" })],
    [memory(7, { 4096: "a", 8192: "c" })],
    nothing,
  );
  assert.equal(said, "process 7: the page at 2000 differs, in mapping 1000-5000 rw-p anonymous");
});

test("a page that is not there any more is lost, unless the mapped file has the same bytes", async () => {
  const [source, restored] = [[memory(7, { 4096: "a", 28672: "b" })], [memory(7, { 4096: "a" })]];
  assert.match(
    (await memoryDifference(source, restored, nothing)) ?? "",
    /process 7: the page at 7000 is lost/,
  );
  const file = async (_: number, vaddr: number): Promise<number> => digest(vaddr === 0x7000 ? "b" : "?");
  assert.equal(await memoryDifference(source, restored, { ...nothing, digestAt: file }), null);
  const other = async (): Promise<number> => digest("x");
  assert.match(
    (await memoryDifference(source, restored, { ...nothing, digestAt: other })) ?? "",
    /7000 is lost/,
  );
});

test("a page that was not there is a difference, unless it is as in the mapped file", async () => {
  const [source, restored] = [[memory(7, { 28672: "b" })], [memory(7, { 12288: "z", 28672: "b" })]];
  assert.match(
    (await memoryDifference(source, restored, nothing)) ?? "",
    /3000 has bytes where there were none/,
  );
  assert.equal(await memoryDifference(source, restored, { ...nothing, isAsInFile: async () => true }), null);
});

test("processes and mappings that came or went are differences", async () => {
  const one = memory(7, {});
  assert.equal(await memoryDifference([one, memory(8, {})], [one], nothing), "process 8 is not there");
  assert.equal(await memoryDifference([one], [one, memory(8, {})], nothing), "process 8 was not there");
  assert.equal(
    await memoryDifference(
      [one],
      [memory(7, {}, ["1000-5000 r--p anonymous", layout[1] as string])],
      nothing,
    ),
    "process 7: mapping 1000-5000 rw-p anonymous is not there, but 1000-5000 r--p anonymous",
  );
});

test("as many mappings as a process may have take ten times what a tenth of them takes, not a hundred times", async () => {
  const many = (length: number): string[] =>
    Array.from({ length }, (_, index) => `${(index * 8192).toString(16)}-x rw-p anonymous`);
  /** of CPU, in microseconds */
  const took = async (length: number, times: number): Promise<number> => {
    let sum = 0;
    for (let time = 0; time < times; time++) {
      const [source, restored] = [memory(7, {}, many(length)), memory(7, {}, many(length))];
      const before = process.cpuUsage();
      assert.equal(await memoryDifference([source], [restored], nothing), null);
      sum += process.cpuUsage(before).user;
    }
    return sum / times;
  };
  const [few, all] = [await took(3_000, 20), await took(30_000, 2)];
  assert.ok(all < 50 * few, `3,000: ${few} µs, 30,000: ${all} µs`);
});

test("mappings are read from smaps, with their flags", () => {
  const smaps = `7f10-7f20 rw-s 00001000 00:01 42                         /memfd:x y (deleted)
Size:                  4 kB
VmFlags: rd wr sh mr mw me ms sd
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex
`;
  assert.deepEqual(areasOf(smaps), [
    {
      start: 0x7f10,
      end: 0x7f20,
      permissions: "rw-s",
      offset: 0x1000,
      object: "00:01 42",
      name: "/memfd:x y (deleted)",
      flags: ["rd", "wr", "sh", "mr", "mw", "me", "ms", "sd"],
    },
    {
      start: 0xffffffffff600000,
      end: 0xffffffffff601000,
      permissions: "--xp",
      offset: 0,
      object: "00:00 0",
      name: "[vsyscall]",
      flags: ["ex"],
    },
  ]);
});
