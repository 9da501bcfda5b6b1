/** Who sends which signals to processes, as the kernel tells it: real processes, and names that look like what the kernel writes. */
import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdirSync, readdirSync, readlinkSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { PendingSignals } from "#control/runtime/pending-signals.ts";
import { FIRST_PID_NAMESPACE, SignalTrace } from "#control/runtime/signal-trace.ts";
import { close } from "#proxy/kernel/descriptors.ts";
import { newMount } from "#proxy/kernel/mounts.ts";

/** of its own name, which ignores SIGHUP, has signal 40 and SIGUSR1 blocked, and has a thread */
const PROGRAM = `
import ctypes, signal, sys, threading
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {40, signal.SIGUSR1})
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()`;
const NAMES = ["plain", " pid=1 grp=1 re", "a\n-1 [0] b: c:", "res=0\n"];

const skip =
  readlinkSync("/proc/self/ns/pid") === FIRST_PID_NAMESPACE
    ? false
    : "the kernel tells PIDs of its first PID namespace, which this is not";

describe("what the kernel tells of signals", { skip }, () => {
  const mountFd = newMount("tracefs");
  const instances = `/proc/self/fd/${mountFd}/instances`;
  let trace: SignalTrace;
  const children: ChildProcess[] = [];

  before(async () => {
    const opened = await SignalTrace.open();
    assert.ok(opened !== null, "this kernel tells nothing");
    trace = opened;
  });
  after(async () => {
    await trace?.close();
    for (const child of children) child.kill("SIGKILL");
    close(mountFd);
  });

  async function started(name: string): Promise<number> {
    const child = spawn("/usr/bin/python3", ["-c", PROGRAM, name], { stdio: ["ignore", "pipe", "inherit"] });
    children.push(child);
    await new Promise((resolve) => child.stdout.once("data", resolve));
    return child.pid as number;
  }
  /** By another process than this. */
  const send = (pid: number, ...signals: number[]): void => {
    for (const signal of signals) execFileSync("/bin/sh", ["-c", `kill -${signal} ${pid}`]);
  };

  for (const name of NAMES)
    it(`is each of them, of a process called ${JSON.stringify(name)}`, async () => {
      const pid = await started(name);
      const threads = readdirSync(`/proc/${pid}/task`).map(Number);
      const thread = Math.max(...threads);
      assert.equal(trace.watch(threads, [process.pid]), true);
      const before = (trace.sent() ?? []).length;
      send(pid, 40, 40, 10, 10, 1); // one that waits is not there twice, and one that is ignored not at all
      process.kill(pid, 40); // by a sender that is left out
      execFileSync("/usr/bin/python3", [
        "-c",
        `import ctypes, os; ctypes.CDLL(None).syscall(131 if os.uname().machine == "aarch64" else 234, ${pid}, ${thread}, 40)`,
      ]);
      assert.deepEqual((trace.sent() ?? []).slice(before), [
        ...[40, 40, 10].map((signal) => ({ tid: pid, isForThread: false, signal })),
        { tid: thread, isForThread: true, signal: 40 },
      ]);
    });

  it("is told of more threads than a filter has room for", async () => {
    const pid = await started("many");
    const many = Array.from({ length: 2_000 }, (_, index) => pid - index);
    assert.equal(trace.watch(many, []), true);
    const before = (trace.sent() ?? []).length;
    send(pid, 40);
    assert.deepEqual((trace.sent() ?? []).slice(before), [{ tid: pid, isForThread: false, signal: 40 }]);
  });

  it("is nothing, rather than a part, where there was more than there is room for", async () => {
    const own = await SignalTrace.open();
    assert.ok(own !== null);
    const pid = await started("flooded");
    const pending = PendingSignals.of([pid], own, []);
    assert.equal(pending.areMore, false);
    execFileSync("/usr/bin/python3", ["-c", `import os\nfor _ in range(20000): os.kill(${pid}, 10)`]);
    assert.equal(own.sent(), null);
    assert.equal(pending.areMore, true);
    // one that stands still has it once
    assert.deepEqual(pending.sent(), [{ process: pid, thread: null, signal: 10 }]);
    assert.throws(() => pending.throwIfMore(), { code: "SIGNALLED" });
    await own.close();
  });

  it("leaves no buffers of the kernel's behind, and removes those of agents that were killed", async () => {
    const abandoned = join(instances, "holdfast-1-1-0");
    mkdirSync(abandoned);
    const own = await SignalTrace.open();
    const mine = (): string[] =>
      readdirSync(instances).filter((name) => name.startsWith(`holdfast-${process.pid}-`));
    assert.equal(readdirSync(instances).includes("holdfast-1-1-0"), false);
    assert.equal(mine().length, 2);
    await own?.close();
    assert.equal(mine().length, 1);
    assert.throws(() => rmdirSync(abandoned), { code: "ENOENT" });
  });
});
