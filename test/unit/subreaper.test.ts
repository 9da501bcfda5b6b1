import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { encodeImage, isSubreaper } from "#control/criu/image-file.ts";
import { encodeFields, type Field } from "#control/criu/protobuf.ts";
import { hasOrphans } from "#control/criu/subreaper.ts";
import { launchArgs } from "#control/runtime/launchers.ts";
import { subreaperProgram } from "#control/runtime/subreaper-program.ts";

const member = (pid: number, parent: number, sid: number) => ({ pid, parent, sid });

describe("orphans of an application", () => {
  it("are children of its first process in a session of somebody else's", () => {
    const root = member(2, 0, 2);
    assert.equal(hasOrphans([]), false);
    assert.equal(hasOrphans([root, member(3, 2, 2), member(4, 2, 4), member(5, 4, 4)]), false);
    assert.equal(hasOrphans([root, member(9, 2, 8)]), true);
    assert.equal(hasOrphans([root, member(8, 2, 8), member(9, 2, 8)]), true);
    // of another parent: born below it, or found by `check`
    assert.equal(hasOrphans([root, member(4, 2, 4), member(9, 4, 8)]), false);
  });

  it("stay its own where its image says that it takes them", () => {
    const core = (...own: Field[]) => encodeImage("core", [encodeFields([[3, [[1, 1], ...own]]])]);
    assert.equal(isSubreaper(core([18, true])), true);
    assert.equal(isSubreaper(core()), false);
  });
});

describe("the program that starts one", { skip: process.arch !== "x64" && "x64 is what runs here" }, () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-subreaper-"));
  const program = join(folder, "subreaper");
  writeFileSync(program, subreaperProgram("x64"), { mode: 0o755 });
  after(() => rmSync(folder, { recursive: true }));
  const run = (...args: string[]) => spawnSync(program, args, { encoding: "utf8", env: { MARK: "kept" } });

  it("becomes what it is told, with its arguments and environment", () => {
    const { stdout, status } = run("/bin/sh", "-c", 'echo "$MARK $0 $1 $#"; exit 5', "name", "a b", "");
    assert.deepEqual([stdout, status], ["kept name a b 2\n", 5]);
  });

  it("takes orphans then", () => {
    const orphan = "import os, time; time.sleep(0.2); print(os.getppid(), flush=True)";
    const script = `python3 -c '${orphan}' & exit`;
    const lines = run("/bin/sh", "-c", `echo $$; sh -c "${script}"; wait; sleep 1`).stdout.split("\n");
    assert.equal(lines[1], lines[0]);
  });

  it("ends with 127 where that cannot be executed", () => {
    assert.equal(run("/nonexistent").status, 127);
    assert.equal(run().status, 127);
  });

  it("is the same for another processor, but for its instructions", () => {
    const [x64, arm64] = [subreaperProgram("x64"), subreaperProgram("arm64")];
    assert.equal(arm64.readUInt16LE(18), 183);
    assert.equal(arm64.length, 64 + 56 + 16 * 4);
    assert.deepEqual(arm64.subarray(20, 96), x64.subarray(20, 96));
    assert.throws(() => subreaperProgram("mips"), { code: "RUNTIME_MISSING" });
  });
});

describe("what starts an application", () => {
  const own = { folder: "/f", loader: "/l", libraryPath: "/p" };
  it("is setsid, and for one that takes its daemons a subreaper behind it", () => {
    const setsid = ["/l", "--library-path", "/p", "/f/setsid", "--fork", "--"];
    assert.deepEqual(launchArgs(["app", "1"], { ...own, subreaper: false }), [...setsid, "app", "1"]);
    const nice = ["/f/subreaper", "/l", "--library-path", "/p", "/f/nice", "-n", "0", "--"];
    assert.deepEqual(launchArgs(["app", "1"], { ...own, subreaper: true }), [...setsid, ...nice, "app", "1"]);
  });
});
