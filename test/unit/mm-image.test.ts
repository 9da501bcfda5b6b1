import assert from "node:assert/strict";
import { test } from "node:test";
import { decodeImage, encodeImage, numbersInTree, rseqOf } from "#control/criu/image-file.ts";
import { fitReservations } from "#control/criu/mm-image.ts";
import { decodeFields, encodeFields, type Field } from "#control/criu/protobuf.ts";

const TIB = 2 ** 40;
const GIB = 2 ** 30;
const ANON_PRIVATE = 1 | (1 << 9);
const FILE_PRIVATE = 1 | (1 << 6);
const ANON_SHARED = 1 | (1 << 8);
const MAP_NORESERVE = 0x4000;
const MAP_PRIVATE_ANON = 0x22;
const MAP_HUGETLB = 0x40000;

interface Mapping {
  start: number;
  end: number;
  prot: number;
  flags: number;
  status: number;
}

const vma = ({ start, end, prot, flags, status }: Mapping): Field[] => [
  [1, start],
  [2, end],
  [3, 0],
  [4, 0],
  [5, prot],
  [6, flags],
  [7, status],
  [8, 1], // -1 as sint64
  [9, 1n << 63n],
];

function image(...mappings: Mapping[]): Buffer {
  const message = encodeFields([
    [1, 0x400000],
    [12, 5],
    [13, 33n],
    [13, 0xffff_ffff_ffff_ffffn],
    ...mappings.map((mapping): Field => [14, vma(mapping)]),
    [15, 1],
  ]);
  return encodeImage("mm", [message]);
}

function mappingsOf(mm: Buffer): Mapping[] {
  const [message] = decodeImage("mm", mm);
  return decodeFields(message ?? Buffer.alloc(0))
    .filter(({ number }) => number === 14)
    .map(({ bytes }) => {
      const fields = new Map(decodeFields(bytes).map(({ number, varint }) => [number, Number(varint)]));
      const field = (number: number): number => fields.get(number) ?? -1;
      return { start: field(1), end: field(2), prot: field(5), flags: field(6), status: field(7) };
    });
}

const ram = 24 * GIB;
const small: Mapping = {
  start: 0x1000,
  end: 0x5000,
  prot: 3,
  flags: MAP_PRIVATE_ANON,
  status: ANON_PRIVATE,
};
const reserved = (bytes: number, other: Partial<Mapping> = {}): Mapping => ({
  start: 0x7000_0000_0000,
  end: 0x7000_0000_0000 + bytes,
  prot: 0,
  flags: MAP_PRIVATE_ANON,
  status: ANON_PRIVATE,
  ...other,
});

test("images that fit are left as they are", () => {
  const fits = [
    small,
    reserved(ram),
    reserved(64 * GIB, { flags: MAP_PRIVATE_ANON | MAP_NORESERVE }),
    reserved(64 * GIB, { flags: MAP_PRIVATE_ANON | MAP_HUGETLB }),
    reserved(9 * TIB, { status: ANON_SHARED, flags: 0x21 }),
  ];
  assert.equal(fitReservations(image(...fits), ram), null);
  assert.equal(
    fitReservations(image(reserved(64 * GIB)), null),
    null,
    "heuristics that are off refuse nothing",
  );
});

test("a reservation larger than the kernel would count is not counted; nothing else changes", () => {
  const before = image(small, reserved(64 * GIB), reserved(64 * GIB, { status: FILE_PRIVATE, flags: 2 }));
  const after = fitReservations(before, ram);
  assert.ok(after !== null);
  assert.deepEqual(mappingsOf(after), [
    small,
    reserved(64 * GIB, { flags: MAP_PRIVATE_ANON | MAP_NORESERVE }),
    reserved(64 * GIB, { status: FILE_PRIVATE, flags: 2 | MAP_NORESERVE }),
  ]);
  const rest = (mm: Buffer) =>
    decodeFields(decodeImage("mm", mm)[0] ?? Buffer.alloc(0)).filter((field) => field.number !== 14);
  assert.deepEqual(rest(after), rest(before));
  assert.equal(fitReservations(after, ram), null, "done once it is done");
});

test("a mapping with more pages than CRIU can count is cut up without a gap", () => {
  const after = fitReservations(image(small, reserved(9 * TIB + 0x3000)), ram);
  assert.ok(after !== null);
  const [first, ...parts] = mappingsOf(after);
  assert.deepEqual(first, small);
  assert.equal(parts.length, 3);
  let at = 0x7000_0000_0000;
  for (const part of parts) {
    assert.equal(part.start, at);
    assert.ok((part.end - part.start) / 4096 < 2 ** 31);
    assert.equal(part.flags, MAP_PRIVATE_ANON | MAP_NORESERVE);
    at = part.end;
  }
  assert.equal(at, 0x7000_0000_0000 + 9 * TIB + 0x3000);
});

test("what is not such an image is refused", () => {
  for (const bytes of [
    Buffer.alloc(0),
    Buffer.alloc(20),
    encodeImage("core", []),
    image(small).subarray(0, -1),
  ])
    assert.throws(() => fitReservations(bytes, ram), { code: "CRIU_IMAGE" });
});

test("the numbers a tree needs are those of processes, threads, groups and sessions", () => {
  const entry = (pid: number, pgid: number, sid: number, ...threads: number[]): Buffer =>
    encodeFields([[1, pid], [2, 0], [3, pgid], [4, sid], ...threads.map((thread): Field => [5, thread])]);
  // the last is a zombie: CRIU writes any number as its thread
  const pstree = encodeImage("pstree", [entry(7, 7, 7, 7, 9), entry(12, 11, 5, 12), entry(13, 7, 7, 72)]);
  assert.deepEqual(
    [...numbersInTree(pstree)].sort((one, other) => one - other),
    [5, 7, 9, 11, 12, 13],
  );
});

test("the place of a thread's restartable sequences is in its image", () => {
  const core = (thread: Field[]): Buffer =>
    encodeImage("core", [
      encodeFields([
        [1, 1],
        [5, thread],
      ]),
    ]);
  const rseq: Field = [
    15,
    [
      [1, 0x7fff_1234_5000],
      [2, 32],
      [3, 0x53053053],
    ],
  ];
  assert.equal(rseqOf(core([[1, 5], rseq])), 0x7fff_1234_5000);
  assert.equal(rseqOf(core([[1, 5]])), null);
});
