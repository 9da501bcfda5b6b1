/** What a sidecar's hook puts into its pod before the application's container is started: everything or an error, and nothing of what runs is changed. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  copyFileSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { inject } from "#control/kubernetes/inject/inject.ts";
import { INSIDE } from "#control/kubernetes/inject/names.ts";
import type { Container } from "#control/kubernetes/inject/pod.ts";

const IN_IMAGE = "/holdfast/inside/.";
const LIBRARY = "libc.so.6";

describe("what a pod's container starts with", () => {
  let hook: string[];
  let image: string;
  let pod: string;
  const started: ChildProcess[] = [];

  before(() => {
    const outcome = inject(
      {
        metadata: {
          name: "chat",
          annotations: { "holdfast.dev/ports": "80", "holdfast.dev/mode": "gateway" },
        },
        spec: { containers: [{ name: "app", image: "chat:1" }] },
      } as never,
      { image: "inside:1", imagePullPolicy: null, proxy: { image: "control:1", default: "sidecar" } },
    );
    assert.ok(outcome.kind === "injected", JSON.stringify(outcome));
    const [sidecar] = (outcome.pod.spec as { initContainers: Container[] }).initContainers;
    const { postStart } = (sidecar as { lifecycle: { postStart: { exec: { command: string[] } } } })
      .lifecycle;
    hook = postStart.exec.command;
    assert.ok(hook.includes(IN_IMAGE) && hook.includes(INSIDE), hook.join(" "));
  });
  beforeEach(() => {
    image = mkdtempSync(join(tmpdir(), "hf-bring-"));
    pod = join(image, "pod");
    for (const folder of ["pod", "inside"]) mkdirSync(join(image, folder));
    copyFileSync("/bin/sleep", join(image, "inside/init"));
    writeFileSync(join(image, "inside", LIBRARY), "a library", { mode: 0o755 });
  });
  afterEach(() => {
    rmSync(image, { recursive: true });
  });
  after(() => {
    for (const child of started) child.kill("SIGKILL");
  });

  /** The hook, with what the image has and where the pod has it elsewhere. */
  function bring(to = pod): { status: number | null; stderr: string } {
    const there = new Map([
      [IN_IMAGE, `${join(image, "inside")}/.`],
      [INSIDE, to],
    ]);
    const [program = "", ...args] = hook.map((word) => there.get(word) ?? word);
    const { status, stderr } = spawnSync(program, args, { encoding: "utf8" });
    return { status, stderr };
  }
  const isWhole = (): void => {
    assert.deepEqual(readdirSync(pod).sort(), ["init", LIBRARY]);
    for (const name of readdirSync(pod)) {
      assert.deepEqual(readFileSync(join(pod, name)), readFileSync(join(image, "inside", name)), name);
      assert.equal(statSync(join(pod, name)).mode & 0o777, 0o755, name);
    }
  };

  it("is all there, and may be run by any user", () => {
    assert.deepEqual(bring(), { status: 0, stderr: "" });
    isWhole();
  });

  it("is whole again where a hook that was killed left half of it", () => {
    writeFileSync(join(pod, LIBRARY), "a li");
    assert.deepEqual(bring(), { status: 0, stderr: "" });
    isWhole();
  });

  it("leaves what runs, and what it has mapped, as it is when the sidecar is started again", async () => {
    assert.equal(bring().status, 0);
    const child = spawn(join(pod, "init"), ["60"], { stdio: "ignore" });
    await once(child, "spawn");
    const { ino } = statSync(join(pod, "init"));
    const mapped = openSync(join(pod, LIBRARY), "r"); // as one that has it mapped
    started.push(child);
    assert.deepEqual(bring(), { status: 0, stderr: "" });
    isWhole();
    assert.equal(child.exitCode, null);
    // other files are in their place: theirs has no name any more
    assert.match(readlinkSync(`/proc/${child.pid}/exe`), / \(deleted\)$/);
    assert.equal(statSync(`/proc/${child.pid}/exe`).ino, ino);
    assert.equal(fstatSync(mapped).nlink, 0);
    assert.equal(readFileSync(mapped, "utf8"), "a library");
    closeSync(mapped);
  });

  it("says why it could not be brought", () => {
    const { status, stderr } = bring(join(image, "nowhere/at/all"));
    assert.equal(status, 1);
    assert.match(stderr, /cannot create directory.*nowhere/);
  });
});
