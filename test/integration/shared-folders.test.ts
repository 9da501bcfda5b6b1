import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { emptyBut, removePaths } from "#control/runtime/remove-files.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as files from "#proxy/kernel/files.ts";
import { whileExchanging } from "../support/exchanging.ts";

const ROUNDS = 1_500;
const NAMES = Array.from({ length: 8 }, (_, at) => `f${at}`);
/** what comes in between may keep a folder from being empty, or a link from being opened */
const GETS_IN_THE_WAY = ["ENOTEMPTY", "ENOTDIR", "FILES_PATH"];

test("a folder that another container exchanges for a link while it is deleted leads to no file outside", async () => {
  const base = mkdtempSync(join(tmpdir(), "holdfast-exchange-"));
  const [root, leads] = [join(base, "root"), join(base, "outside")];
  mkdirSync(root);
  mkdirSync(leads);
  for (const name of NAMES) writeFileSync(join(leads, name), "keep");
  const fd = openSync(root, "r");
  try {
    await whileExchanging({ folder: join(root, "d/sub"), link: join(base, "link"), leads }, async () => {
      let deleted = 0;
      let met = 0;
      for (let round = 0; round < ROUNDS; round++) {
        const deleting = round % 2 === 0 ? removePaths(fd, ["d"]) : emptyBut(fd, []);
        await deleting.then(
          () => deleted++,
          (error: NodeJS.ErrnoException) => {
            if (!GETS_IN_THE_WAY.includes(error.code ?? "")) throw error;
            met++;
          },
        );
        assert.deepEqual(readdirSync(leads), NAMES, `after ${round} rounds`);
      }
      assert.ok(deleted > 0 && met > 0, `${deleted} times deleted, ${met} times an exchange came in between`);
    });
    await emptyBut(fd, []);
    assert.deepEqual(readdirSync(root), []);
  } finally {
    closeSync(fd);
    rmSync(base, { recursive: true, force: true });
  }
});

test("folders in folders are deleted with few descriptors, and those deeper than any path with an error that says so", async () => {
  const base = mkdtempSync(join(tmpdir(), "holdfast-deep-"));
  const root = openSync(base, "r");
  try {
    deepen(root, 600);
    const open = readdirSync("/proc/self/fd").length;
    let most = 0;
    const looking = setInterval(() => {
      most = Math.max(most, readdirSync("/proc/self/fd").length);
    }, 1);
    await removePaths(root, ["d"]).finally(() => clearInterval(looking));
    assert.ok(!existsSync(join(base, "d")));
    assert.ok(most > 0 && most <= open + 3, `${open} were open, then ${most}`);
    deepen(root, 2_100);
    await assert.rejects(
      removePaths(root, ["d"]),
      (error) =>
        error instanceof HoldfastError && error.code === "FILES_PATH" && error.message.includes("too deep"),
    );
  } finally {
    closeSync(root);
    execFileSync("rm", ["-rf", base]); // Node's ends at PATH_MAX
  }
});

function deepen(root: number, levels: number): void {
  let at = files.openInside(root, ".", { flags: constants.O_RDONLY });
  for (let level = 0; level < levels; level++) {
    mkdirSync(`/proc/self/fd/${at}/d`);
    const next = files.openInside(at, "d", { flags: constants.O_RDONLY });
    closeSync(at);
    at = next;
  }
  closeSync(at);
}
