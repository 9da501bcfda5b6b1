/** The freezer of a unified hierarchy (cgroup v2), in which signals wake: what is seen there of a tree that runs. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type Freezing, FrozenTree } from "#control/runtime/frozen-tree.ts";
import { lacking, until } from "../support/moved-program.ts";

const unified = /^(?:\S+ ){4}(\S+) .*- cgroup2 /m.exec(readFileSync("/proc/self/mountinfo", "latin1"))?.[1];
const skip = lacking("python3") || (unified === undefined ? "needs a cgroup2 that is mounted" : false);

/** Python that has eight threads, of which none rests for long. */
const THREADS = `
import signal, threading, time
def live():
    while True: time.sleep(0.003)
for _ in range(7): threading.Thread(target=live, daemon=True).start()
`;

interface Group extends Freezing {
  pid: number;
  freeze(frozen: boolean): Promise<void>;
}

async function start(t: TestContext, name: string, code: string): Promise<Group> {
  const folder = join(unified ?? "", `holdfast-test-${process.pid}-${name}`);
  const child = spawn("python3", ["-c", `${THREADS}${code}\nprint("on", flush=True)\nlive()`], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = once(child, "exit");
  mkdirSync(folder);
  const text = (file: string): string => readFileSync(join(folder, file), "latin1");
  t.after(async () => {
    child.kill("SIGKILL");
    writeFileSync(join(folder, "cgroup.freeze"), "0");
    await ended;
    await until("the group is empty", () => text("cgroup.events").includes("populated 0"));
    rmdirSync(folder);
  });
  await once(child.stdout, "data");
  writeFileSync(join(folder, "cgroup.procs"), String(child.pid));
  const group: Group = {
    pid: child.pid ?? -1,
    wakesForSignals: true,
    get isFrozen() {
      return text("cgroup.freeze").trim() === "1";
    },
    get isComplete() {
      return text("cgroup.events").includes("frozen 1");
    },
    async freeze(frozen) {
      writeFileSync(join(folder, "cgroup.freeze"), frozen ? "1" : "0");
      if (frozen) await until("it is frozen", () => group.isComplete);
    },
  };
  return group;
}

for (const [name, code] of Object.entries({
  threads: "",
  timer: "signal.signal(signal.SIGALRM, lambda *_: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)",
  ignored: "signal.signal(signal.SIGALRM, signal.SIG_IGN)\nsignal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)",
}))
  test(`a tree in a frozen group of cgroup v2 stands still, and is seen to run when it is thawed: ${name}`, {
    skip,
  }, async (t) => {
    const group = await start(t, name, code);
    for (let round = 0; round < 5; round++) {
      await group.freeze(true);
      const tree = await FrozenTree.at(group, [group.pid]);
      await sleep(50);
      tree.verify(); // a signal has come meanwhile
      await group.freeze(false);
      await sleep(100); // every thread runs once at least
      await group.freeze(true);
      assert.throws(() => tree.verify(), { code: "IMAGE_REFUSED", message: /thread \d+\/\d+ has run/ });
      await group.freeze(false);
      assert.throws(() => tree.verify(), { code: "IMAGE_REFUSED" });
    }
  });
