import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { after, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  assertTraced,
  type Freezing,
  FrozenTree,
  livingOf,
  timesSwitched,
  wakesAtMost,
} from "#control/runtime/frozen-tree.ts";

const MOVED = { code: "IMAGE_REFUSED" };
const frozen: Freezing = { isFrozen: true, isComplete: true, wakesForSignals: false };

const started: ChildProcess[] = [];
after(() => {
  for (const child of started) child.kill("SIGKILL");
});

/** What stops it here instead of a freezer: it runs nothing either. */
async function stopped(...argv: [string, ...string[]]): Promise<{ pid: number; goOn(): void; stop(): void }> {
  const child = spawn(argv[0], argv.slice(1), { stdio: "ignore" });
  started.push(child);
  const pid = child.pid ?? -1;
  await sleep(20);
  process.kill(pid, "SIGSTOP");
  return { pid, goOn: () => process.kill(pid, "SIGCONT"), stop: () => process.kill(pid, "SIGSTOP") };
}

describe("a frozen tree", () => {
  it("stands still as long as none of its threads has run", async () => {
    const [one, other] = [await stopped("sleep", "100"), await stopped("sleep", "100")];
    const tree = await FrozenTree.at(frozen, [one.pid, other.pid]);
    tree.verify();
    await sleep(20);
    tree.verify();
    other.goOn();
    await sleep(20);
    other.stop();
    await sleep(20);
    assert.throws(() => tree.verify(), {
      ...MOVED,
      message: new RegExp(`thread ${other.pid}/${other.pid} has run`),
    });
  });

  it("has not stood still when one of its threads has ended", async () => {
    const { pid } = await stopped("sleep", "100");
    const tree = await FrozenTree.at(frozen, [pid]);
    process.kill(pid, "SIGKILL");
    while (true)
      try {
        process.kill(pid, 0);
        await sleep(5);
      } catch {
        break;
      }
    assert.throws(() => tree.verify(), { ...MOVED, message: /has ended/ });
  });

  it("is looked at when all of it has come to rest, and not before", async () => {
    const { pid, goOn } = await stopped("/bin/sh", "-c", "while :; do :; done");
    goOn();
    setTimeout(() => process.kill(pid, "SIGSTOP"), 60);
    const startedMs = performance.now();
    const tree = await FrozenTree.at(frozen, [pid]);
    assert.ok(performance.now() - startedMs > 50);
    tree.verify();
    await assert.rejects(FrozenTree.at({ ...frozen, isComplete: false }, [pid]), MOVED);
  });

  it("held by CRIU has lost nobody that lived when it was taken", async () => {
    const { pid } = await stopped("sleep", "100");
    const living = livingOf([pid, 2 ** 22 + 1]);
    assert.deepEqual(living, [pid]);
    const end = await tracer(pid);
    assertTraced([pid], living);
    process.kill(pid, "SIGKILL");
    while (livingOf([pid]).length > 0) await sleep(5);
    assert.throws(() => assertTraced([], living), { ...MOVED, message: /has ended/ });
    await end();
  });

  it("is taken for at rest where signals wake when two looks agree, or at last when they do not", async () => {
    const { pid } = await stopped("sleep", "100");
    const wakeful = { ...frozen, wakesForSignals: true };
    (await FrozenTree.at(wakeful, [pid])).verify();
    await assert.rejects(
      FrozenTree.at(wakeful, [pid], () => {
        throw new Error("stopped");
      }),
      /stopped/,
    );
  });

  it("has not stood still when it is frozen no more", async () => {
    const { pid } = await stopped("sleep", "100");
    let isFrozen = true;
    const tree = await FrozenTree.at(
      {
        ...frozen,
        get isFrozen() {
          return isFrozen;
        },
      },
      [pid],
    );
    tree.verify();
    isFrozen = false;
    assert.throws(() => tree.verify(), { ...MOVED, message: /thawed/ });
  });

  it("held by CRIU has every thread stopped by it, and by nobody else", async () => {
    const children = [await stopped("sleep", "100"), await stopped("sleep", "100")].map(({ pid }) => pid);
    const [one, other] = children as [number, number];
    const stands = (pids: number[]): string => {
      try {
        assertTraced(pids);
        return "stopped";
      } catch (error) {
        assert.equal((error as { code?: string }).code, "IMAGE_REFUSED");
        return String((error as Error).message.match(/thread (\d+)\/\d+ is not stopped by CRIU/)?.[1]);
      }
    };
    assert.deepEqual([stands([]), stands([one])], ["stopped", String(one)]);
    const first = await tracer(one);
    assert.deepEqual([stands([one]), stands([one, other])], ["stopped", String(other)]);
    const second = await tracer(other);
    assert.equal(stands([one, other]), String(other), "by two");
    for (const end of [first, second]) await end();
    const both = await tracer(one, other);
    assert.equal(stands([one, other]), "stopped");
    await both();
    assert.equal(stands([one, other]), String(one));
  });
});

/** Stops processes as CRIU does, until what it returns is called. */
async function tracer(...pids: number[]): Promise<() => Promise<unknown>> {
  const code = `import ctypes, os, sys
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
for pid in map(int, sys.argv[1:]):
    if ptrace(0x4206, pid, None, None) or ptrace(0x4207, pid, None, None): sys.exit("ptrace")
    os.waitpid(pid, 0x40000000)
print("stopped", flush=True)
input()`;
  const child = spawn("python3", ["-c", code, ...pids.map(String)], { stdio: ["pipe", "pipe", "inherit"] });
  started.push(child);
  const ended = once(child, "exit");
  await once(child.stdout, "data");
  return () => {
    child.stdin.end("\n");
    return ended;
  };
}

describe("a thread's status", () => {
  const status = (lines: Record<string, string>): string =>
    Object.entries(lines)
      .map(([name, value]) => `${name}:\t${value}\n`)
      .join("");

  it("tells how often it was switched away from", () => {
    const some = { State: "S (sleeping)", voluntary_ctxt_switches: "7", nonvoluntary_ctxt_switches: "3" };
    assert.equal(timesSwitched(status(some)), 10);
    assert.equal(timesSwitched(""), null);
  });

  it("tells how often signals may have woken it: its own and its process's, if it does not block them", () => {
    const wakes = (...threads: [SigPnd: string, ShdPnd: string, SigBlk: string][]): number =>
      wakesAtMost(threads.map(([SigPnd, ShdPnd, SigBlk]) => status({ SigPnd, ShdPnd, SigBlk })));
    const all = "ffffffffffffffff";
    assert.equal(wakes(["0", "0", "0"]), 0);
    assert.equal(wakes(["2000", "0", "0"]), 2);
    assert.equal(wakes(["3000", "0", "2000"]), 2);
    assert.equal(wakes(["2000", "2000", all]), 0);
    assert.equal(wakes(["0", "40002000", "0"], ["0", "40002000", "0"]), 4, "a process's signal wakes one");
    assert.equal(wakes(["2000", "1", all], ["2000", "1", "0"]), 4);
    assert.equal(wakes(["0", "80000000", "0"]), Number.POSITIVE_INFINITY, "the first real-time signal");
    assert.equal(wakes(["8000000000000000", "0", "0"]), Number.POSITIVE_INFINITY);
    assert.equal(wakesAtMost([""]), 0);
  });
});
