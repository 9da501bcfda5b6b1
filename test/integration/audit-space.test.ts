/** What an application has as often as it likes costs the audit no more than its bounds; real processes, looked at by this one. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { afterEach, describe, it } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { memoryFacts } from "#control/audit/memory-map.ts";
import { Space } from "#control/audit/space.ts";
import { type TakeOptions, takeFingerprint } from "#control/audit/take.ts";
import { treeFrom } from "#control/audit/tree.ts";
import { verifyRestored } from "#control/audit/verify.ts";
import { treeOf } from "#control/runtime/processes.ts";
import { checkDescriptors } from "#control/workload/preflight/descriptors.ts";

const skip = process.getuid?.() === 0 ? false : "needs root: pidfd_getfd(2), kcmp(2)";
const MiB = 1024 * 1024;
const READ_MAX = 128 * MiB;

let application: ChildProcess | null = null;
afterEach(async () => {
  if (application?.pid === undefined) return;
  const ended = once(application, "exit");
  process.kill(-application.pid, "SIGKILL");
  await ended;
  application = null;
});

/** Python that says when it has what it is to have, and waits. */
async function having(code: string, argv: string[] = []): Promise<TakeOptions> {
  const text = `import os, select, signal, sys\n${code}\nprint("ready", flush=True)\nsignal.pause()`;
  application = spawn("python3", ["-c", text, ...argv], {
    stdio: ["ignore", "pipe", "inherit"],
    detached: true,
  });
  assert.ok(application.stdout && application.pid);
  await once(application.stdout, "data");
  const initPid = application.pid;
  return { initPid, pids: await treeOf(initPid), addresses: [], volumes: [] };
}

/** An epoll instance with so many watches, and so many descriptors of it. */
const watching = (watches: number, descriptors: number): string => `
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
epoll = select.epoll()
for i in range(${watches}): epoll.register(os.eventfd(0), select.EPOLLIN)
for i in range(${descriptors}): os.dup(epoll.fileno())`;

/** Bytes that this process has read since it began (proc_pid_io(5)). */
function bytesRead(): number {
  return Number(/^rchar: (\d+)$/m.exec(readFileSync("/proc/self/io", "utf8"))?.[1]);
}

function heapBytes(): number {
  setFlagsFromString("--expose-gc");
  runInNewContext("gc")();
  return process.memoryUsage().heapUsed;
}

describe("an application with much of something", { skip, timeout: 120_000 }, () => {
  it("has its watches kept once, however many descriptors list them", async () => {
    const options = await having(watching(500, 500));
    takeFingerprint(options);
    const before = heapBytes();
    const taken = takeFingerprint(options);
    const { subjects } = taken.fingerprint;
    const epolls = Object.values(subjects).filter((facts) =>
      Object.keys(facts).some((name) => name.startsWith("watch of ")),
    );
    assert.equal(epolls.length, 1);
    assert.equal(Object.keys(epolls[0] ?? {}).filter((name) => name.startsWith("watch of ")).length, 500);
    const [head] = Object.entries(subjects).find(([, facts]) => facts === epolls[0]) ?? [];
    assert.equal(Object.values(subjects).filter((facts) => facts["same as"] === head).length, 500);
    const kept = heapBytes() - before;
    assert.ok(kept < 6 * MiB, `${kept} bytes are kept of ${Object.keys(subjects).length} subjects`);
    assert.equal(
      Object.keys(taken.again(new Set([head ?? ""])).subjects[head ?? ""] ?? {}).length > 300,
      true,
    );
  });

  for (const { what, code, argv = [] } of [
    { what: "watches, by many descriptors", code: watching(4_000, 1_000) },
    {
      what: "arguments, in many processes",
      code: "for i in range(150):\n  if os.fork() == 0: signal.pause()",
      argv: Array.from({ length: 12 }, () => "x".repeat(120_000)),
    },
  ])
    it(`is refused before all is read: ${what}`, async () => {
      const options = await having(code, argv);
      const before = bytesRead();
      assert.throws(() => takeFingerprint(options), { code: "AUDIT_SPACE", message: /134217728 bytes/ });
      const read = bytesRead() - before;
      assert.ok(read < READ_MAX + 16 * MiB, `${read} bytes read`);
    });

  it("is charged for what is kept of its mappings, and none is lost", async () => {
    const options = await having(`
import mmap
ways = (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)
keep = [mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, ways[i % 2]) for i in range(50000)]
for i in range(4):
  if os.fork() == 0: signal.pause()`);
    const before = bytesRead();
    const { subjects } = takeFingerprint(options).fingerprint;
    assert.ok(bytesRead() - before > READ_MAX, "as they are listed they are too many");
    const { initPid, pids } = options;
    assert.equal(pids.length, 5);
    assert.deepEqual(
      subjects[`memory ${initPid}`],
      memoryFacts(readFileSync(`/proc/${initPid}/smaps`, "utf8")),
    );
    for (const pid of pids) assert.ok(Object.keys(subjects[`memory ${pid}`] ?? {}).length > 50_000);
  });

  it("is compared when it is restored, though this kernel lists more of it than another may have", async () => {
    const options = await having(
      "for i in range(110):\n  if os.fork() == 0: signal.pause()",
      Array.from({ length: 12 }, () => "x".repeat(120_000)),
    );
    assert.throws(() => takeFingerprint(options), { code: "AUDIT_SPACE" });
    const { fingerprint } = takeFingerprint({ ...options, isRestored: true });
    const circumstances = { ownSockets: new Set<string>(), stopSignalOf: () => null };
    const { differences } = verifyRestored(fingerprint, options, circumstances);
    // it has the machine's mounts, of which other tests make and remove some meanwhile
    assert.deepEqual(
      differences.filter(({ subject }) => subject !== "mounts"),
      [],
    );
  });

  it("is refused at the first thread or descriptor that is too many", () => {
    let asked = 0;
    function* endless(): Generator<number> {
      for (; asked < 10_000; asked++) yield process.pid;
    }
    const threads = readFileSync("/proc/self/status", "utf8").match(/^Threads:\s*(\d+)$/m)?.[1];
    const space = new Space({ threads: 3 * Number(threads) });
    assert.throws(() => treeFrom(process.pid, endless(), space), {
      code: "AUDIT_SPACE",
      message: /more than \d+ threads/,
    });
    assert.ok(asked < 10, `${asked} processes were looked at`);
    assert.throws(() => treeFrom(process.pid, [process.pid], new Space({ descriptors: 3 })), {
      code: "AUDIT_SPACE",
      message: /more than 3 descriptors/,
    });
  });

  it("is checked for watches of what was closed once, however many descriptors list them", async () => {
    const { initPid, pids } = await having(`
import fcntl
reading, writing = os.pipe(); copy = os.dup(reading)
other = select.epoll(); other.register(copy, select.EPOLLIN)
epoll = select.epoll(); epoll.register(reading, select.EPOLLIN); os.close(reading)
for i in range(20): fcntl.fcntl(epoll.fileno(), fcntl.F_DUPFD, 100)`);
    const found: string[] = [];
    await checkDescriptors(initPid, pids, (id) => found.push(id));
    assert.deepEqual(found, ["descriptor.watch-of-closed"]);
  });

  it("is told from one with another command line, however long", async () => {
    const long = (last: string): string[] => [...Array.from({ length: 9 }, () => "x".repeat(100_000)), last];
    const commandOf = async (last: string): Promise<string> => {
      const { fingerprint } = takeFingerprint(await having("", long(last)));
      process.kill(-(application?.pid ?? 0), "SIGKILL");
      const [main] = Object.entries(fingerprint.subjects).find(([name]) => name.startsWith("process ")) ?? [];
      return fingerprint.subjects[main ?? ""]?.["command line"] ?? "";
    };
    const [one, other] = [await commandOf("a"), await commandOf("b")];
    assert.match(one, /python3 -c import os.*… \(900\d\d\d bytes, [0-9a-f]{16}\)$/s);
    assert.notEqual(one, other);
  });
});
