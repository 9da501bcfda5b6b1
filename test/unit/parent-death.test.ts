/** Images of a tree, by bytes written after images/core.proto and images/pstree.proto. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { encodeImage } from "#control/criu/image-file.ts";
import { leaveParentDeath } from "#control/criu/parent-death.ts";
import { encodeFields, type Field } from "#control/criu/protobuf.ts";

const core = (signal: Field[]): Buffer =>
  encodeImage("core", [
    encodeFields([
      [1, 1],
      [5, [[1, 0], [4, 9], ...signal, [9, 1]]],
    ]),
  ]);

/** what CRIU wrote as the thread of one */
const ZOMBIES = 2_181_780_960;

test("the root of a tree wants no signal at its parent's end in the images, others keep theirs", (t) => {
  const folder = mkdtempSync(join(tmpdir(), "hf-death-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const write = (name: string, image: Buffer): void => writeFileSync(join(folder, name), image);
  const process = (pid: number, parent: number, ...threads: number[]): Buffer =>
    encodeFields([[1, pid], [2, parent], [3, pid], [4, pid], ...threads.map((tid): Field => [5, tid])]);
  write(
    "pstree.img",
    encodeImage("pstree", [
      process(12, 0, 12, 13),
      process(20, 12, 20),
      process(21, 12, 21),
      process(22, 12, ZOMBIES),
    ]),
  );
  for (const tid of [13, 20]) write(`core-${tid}.img`, core([[8, 15]]));
  for (const tid of [12, 21]) write(`core-${tid}.img`, core([]));
  assert.deepEqual(leaveParentDeath(folder), { root: 12, others: [20] });
  const read = (tid: number): Buffer => readFileSync(join(folder, `core-${tid}.img`));
  assert.deepEqual(read(13), core([]));
  assert.deepEqual(read(20), core([[8, 15]]));
  assert.deepEqual(leaveParentDeath(folder), { root: null, others: [20] });
});
