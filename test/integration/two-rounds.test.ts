import assert from "node:assert/strict";
import {
  closeSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { difference, packPaths, scan, unpackInto } from "#control/runtime/files.ts";

const FORGED = ["pstree.img", "deeper/mm-1.img"];

test("a folder that was a link only while the first round read it leads the second round nowhere outside", async () => {
  const base = mkdtempSync(join(tmpdir(), "holdfast-rounds-"));
  const [source, target, images] = ["source", "target", "images"].map((name) => join(base, name)) as [
    string,
    string,
    string,
  ];
  for (const folder of [source, target, join(source, "a"), join(source, "a/deeper")]) mkdirSync(folder);
  const [from, to] = [openSync(source, "r"), openSync(target, "r")];
  try {
    const before = await scan(from);
    renameSync(join(source, "a"), join(source, "b"));
    symlinkSync(images, join(source, "a"));
    await copy(from, to, before.keys(), true);
    assert.ok(lstatSync(join(target, "a")).isSymbolicLink());
    // the same path, which leads elsewhere at the other node
    mkdirSync(join(images, "deeper"), { recursive: true });
    for (const name of FORGED) writeFileSync(join(images, name), "received");
    unlinkSync(join(source, "a"));
    renameSync(join(source, "b"), join(source, "a"));
    for (const name of FORGED) writeFileSync(join(source, "a", name), "forged");
    const { gone, changed } = difference(before, await scan(from));
    assert.deepEqual(gone, []); // nor does a scan tell
    await copy(from, to, changed, false);
    assert.ok(lstatSync(join(target, "a")).isDirectory());
    for (const name of FORGED) {
      assert.equal(readFileSync(join(images, name), "utf8"), "received");
      assert.equal(readFileSync(join(target, "a", name), "utf8"), "forged");
    }
  } finally {
    closeSync(from);
    closeSync(to);
    rmSync(base, { recursive: true, force: true });
  }
});

async function copy(from: number, to: number, paths: Iterable<string>, live: boolean): Promise<void> {
  const packed = await packPaths({ fd: from, initPid: null }, paths, live);
  const unpacked = await unpackInto({ fd: to, initPid: null });
  packed.stream.pipe(unpacked.stream);
  await Promise.all([packed.done, unpacked.done]);
}
