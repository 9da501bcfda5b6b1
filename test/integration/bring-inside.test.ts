/** What a sidecar puts into its pod before the application's container is started: everything or an error, and never in the place of what runs. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, beforeEach, describe, it } from "node:test";
import { projectRoot } from "../lab/lab.ts";

describe("what a pod's container starts with", () => {
  let image: string;
  let pod: string;
  let server: Server | null = null;
  const started: ChildProcess[] = [];

  beforeEach(() => {
    image = mkdtempSync(join(tmpdir(), "hf-bring-"));
    pod = join(image, "pod");
    mkdirSync(pod);
    for (const folder of ["proxy", "inside"]) mkdirSync(join(image, folder));
    cpSync(join(projectRoot, "proxy/bring-inside.ts"), join(image, "proxy/bring-inside.ts"));
    cpSync(join(projectRoot, "package.json"), join(image, "package.json")); // type: module
    writeFileSync(join(image, "inside/init"), "the init", { mode: 0o755 });
    writeFileSync(join(image, "inside/libc.so.6"), "a library", { mode: 0o644 });
  });
  afterEach(() => {
    server?.close();
    server = null;
    rmSync(image, { recursive: true });
  });
  after(() => {
    for (const child of started) child.kill("SIGKILL");
  });

  function begin(...args: string[]): {
    child: ChildProcess;
    ended: Promise<{ status: number; said: string }>;
  } {
    const script = join(image, "proxy/bring-inside.ts");
    const child = spawn(process.execPath, [script, ...args], { stdio: ["ignore", "ignore", "pipe"] });
    started.push(child);
    let said = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    const ended = new Promise<{ status: number; said: string }>((resolve) =>
      child.once("close", (status) => resolve({ status: status ?? -1, said })),
    );
    return { child, ended };
  }
  const bring = (...args: string[]) => begin(...args).ended;
  const inPod = (): string[] => readdirSync(pod).sort();

  it("is all there, and may be run by any user", async () => {
    assert.deepEqual(await bring(pod), { status: 0, said: "" });
    assert.deepEqual(inPod(), ["init", "libc.so.6"]);
    assert.equal(readFileSync(join(pod, "init"), "utf8"), "the init");
    for (const name of inPod()) assert.equal(statSync(join(pod, name)).mode & 0o777, 0o755);
  });

  it("stays as it is where it is there, and what one that was killed has left goes", async () => {
    writeFileSync(join(pod, "init"), "one that runs");
    writeFileSync(join(pod, ".libc.so.6.7"), "half a li");
    const { ino } = statSync(join(pod, "init"));
    assert.equal((await bring(pod)).status, 0);
    assert.deepEqual(inPod(), ["init", "libc.so.6"]);
    assert.equal(readFileSync(join(pod, "init"), "utf8"), "one that runs");
    assert.equal(statSync(join(pod, "init")).ino, ino);
  });

  it("is followed by the next container when the proxy listens, not before", async () => {
    const { port } = await new Promise<{ port: number }>((resolve) => {
      const found = createServer().listen(0, "127.0.0.1", () => {
        const address = found.address() as { port: number };
        found.close(() => resolve(address));
      });
    });
    const { child, ended } = begin(pod, `${port}`);
    await new Promise<void>((resolve) => {
      const look = setInterval(() => {
        if (inPod().length < 2) return;
        clearInterval(look);
        resolve();
      }, 5);
    });
    assert.equal(child.exitCode, null);
    server = createServer((socket) => socket.destroy()).listen(port, "127.0.0.1");
    assert.deepEqual(await ended, { status: 0, said: "" });
  });

  it("says why it could not be brought", async () => {
    const { status, said } = await bring(join(image, "nowhere"));
    assert.equal(status, 1);
    assert.match(said, /ENOENT.*nowhere/);
    const none = await bring();
    assert.equal(none.status, 1);
    assert.match(none.said, /usage: node proxy\/bring-inside\.ts FOLDER \[PORT\]/);
  });
});
