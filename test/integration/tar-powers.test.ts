import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { packPaths, unpackInto } from "#control/runtime/files.ts";

test("a link by way of another process of root's leads tar to none of its files", async () => {
  const base = mkdtempSync(join(tmpdir(), "holdfast-powers-"));
  const [source, target, images] = ["source", "target", "images"].map((name) => join(base, name)) as [
    string,
    string,
    string,
  ];
  for (const folder of [source, target, images, join(source, "a")]) mkdirSync(folder);
  writeFileSync(join(images, "pstree.img"), "received");
  writeFileSync(join(source, "a/pstree.img"), "forged");
  // as CRIU it has every capability
  const criu = spawn("sleep", ["60"], { cwd: images, stdio: "ignore" });
  await once(criu, "spawn");
  symlinkSync(`/proc/${criu.pid}/cwd`, join(target, "a"));
  const [from, to] = [openSync(source, "r"), openSync(target, "r")];
  try {
    const packed = await packPaths({ fd: from, initPid: null }, ["a/pstree.img"], false);
    const unpacked = await unpackInto({ fd: to, initPid: process.pid });
    packed.stream.pipe(unpacked.stream);
    const results = await Promise.allSettled([unpacked.done, packed.done]);
    assert.deepEqual(
      results.map(({ status }) => status),
      ["rejected", "fulfilled"],
    );
    assert.equal(readFileSync(join(images, "pstree.img"), "utf8"), "received");
  } finally {
    criu.kill("SIGKILL");
    closeSync(from);
    closeSync(to);
    rmSync(base, { recursive: true, force: true });
  }
});
