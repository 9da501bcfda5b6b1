/** Who pays for the memory of files that tar unpacks in a container. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { test } from "node:test";
import { FilesIntake } from "#control/migration/arrival/files-intake.ts";
import { cgroupFoldersOf } from "#control/runtime/cgroups.ts";
import { packPaths } from "#control/runtime/files.ts";

const BYTES = 32 << 20;

/** A process in a memory group of its own, in the place of a container, and a folder of a tmpfs. */
async function withGroup(
  use: (group: string, init: ChildProcess, folder: string) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync("/dev/shm/holdfast-memory-");
  const folders = await cgroupFoldersOf(process.pid, { withRoots: true });
  const own =
    folders.find(({ controllers }) => controllers.split(",").includes("memory")) ??
    folders.find(({ controllers }) => controllers === "");
  assert.ok(own);
  const group = join(own.folder, basename(folder));
  mkdirSync(group);
  const init = spawn("sleep", ["300"], { stdio: "ignore" });
  const ended = once(init, "close");
  try {
    await once(init, "spawn");
    writeFileSync(join(group, "cgroup.procs"), String(init.pid));
    await use(group, init, folder);
  } finally {
    init.kill("SIGKILL");
    await ended;
    rmSync(folder, { recursive: true, force: true });
    rmdirSync(group);
  }
}

function fileOf(group: string, v1: string, v2: string): string {
  const path = join(group, v1);
  return existsSync(path) ? path : join(group, v2);
}

/** As a move sends it. */
async function send(init: ChildProcess, folder: string): Promise<void> {
  const source = mkdtempSync(join(tmpdir(), "holdfast-memory-"));
  const intake = new FilesIntake();
  try {
    writeFileSync(join(source, "x"), Buffer.alloc(BYTES, "x"));
    const from = openSync(source, "r");
    const packed = await packPaths({ fd: from, initPid: null }, ["x"], false).finally(() => closeSync(from));
    const open = async (): Promise<{ fd: number; initPid: number }> => ({
      fd: openSync(folder, "r"),
      initPid: init.pid as number,
    });
    packed.done.catch(() => {}); // where the intake fails, nobody reads on
    for await (const piece of packed.stream) await intake.take("x", piece as Buffer, open);
    await packed.done;
    await intake.take("x", Buffer.alloc(0), open);
  } finally {
    intake.close();
    rmSync(source, { recursive: true, force: true });
  }
}

test("the container that files are unpacked in pays for the memory of its tmpfs", async () => {
  await withGroup(async (group, init, folder) => {
    await send(init, folder);
    const used = Number(readFileSync(fileOf(group, "memory.usage_in_bytes", "memory.current"), "utf8"));
    assert.ok(used >= BYTES, `${used} bytes`);
  });
});

test("where the container's memory limit has no room for the files tar is ended, and the reason says so", async () => {
  await withGroup(async (group, init, folder) => {
    writeFileSync(fileOf(group, "memory.limit_in_bytes", "memory.max"), String(BYTES / 2));
    await assert.rejects(send(init, folder), {
      code: "FILES_TAR",
      message: "tar was killed (SIGKILL): the container's memory limit has no room for its files",
    });
    assert.equal(init.exitCode ?? init.signalCode, null);
  });
});
