/** CRIU leaves memory in the frozen tree, and the agent reads it there: all of it arrives, and nothing of a tree that did not stand still. */
import assert from "node:assert/strict";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { decodeStats } from "#control/criu/protocol.ts";
import { lacking, type MovedProgram, until, workloadName } from "../support/moved-program.ts";
import { faultsFile, type Run, runOn, withPythonShell } from "../support/python-shell.ts";
import { modes } from "../support/thorough.ts";

const skip = lacking("python3");
const PAGES = 1024;
const CLOSED_PAGES = 256;
const HUGE_BYTES = 2 << 20;
const CHILDREN = 3;

/**
 * Memory of each kind that is treated otherwise, with something else in every page: private, and a third of it written anew by each child,
 * shared by all, huge (transparent ones where the machine has no others), and a reservation that nobody may read, of which pages are
 * used. SIGUSR1 has every process change pages of each kind that it may write. Each knows the digest of all that it has.
 */
const FAMILY = `
PAGES, CLOSED, CHILDREN, PRIVATE = ${PAGES}, ${CLOSED_PAGES}, ${CHILDREN}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def put(area, first, step, what):
    for page in range(first, len(area) // 4096, step): area[page * 4096 : page * 4096 + 8] = (what * 1000000 + page).to_bytes(8, "little")
private, cow = (mmap.mmap(-1, PAGES * 4096, flags=PRIVATE) for _ in range(2))
shared = mmap.mmap(-1, PAGES * 4096, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
try:
    huge, kind = mmap.mmap(-1, ${HUGE_BYTES}, flags=PRIVATE | 0x40000), "MAP_HUGETLB"
except OSError:
    huge, kind = mmap.mmap(-1, 2 * ${HUGE_BYTES}, flags=PRIVATE), "MADV_HUGEPAGE"
    huge.madvise(14)
for what, area in enumerate((private, cow, shared, huge)): put(area, 0, 1, what + 1)
closed = libc.mmap(None, 1 << 40, 0, 0x4022, -1, 0) + (5 << 30)
def closed_is(mode): return libc.mprotect(closed, CLOSED * 4096, mode)
closed_is(3)
for page in range(CLOSED): ctypes.memset(closed + page * 4096, page % 251 + 1, 4096)
closed_is(0)
me, turns, known = 0, 0, None
def digest():
    # a change in between would close what is being read
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    sha = hashlib.sha256()
    for area in (private, cow, huge): sha.update(area)
    closed_is(1)
    sha.update(ctypes.string_at(closed, CLOSED * 4096))
    closed_is(0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return sha.hexdigest()
def change(*_):
    global turns, known
    turns += 1
    for area in (private, cow): put(area, turns * 7 + me, 100, turns * 10 + me)
    put(huge, turns, 50, turns * 10 + me)
    known = digest()
    shared[(64 + me) * 4096] = turns
signal.signal(signal.SIGUSR1, change)
kids = []
for me in range(1, CHILDREN + 1):
    pid = os.fork()
    if pid == 0:
        put(cow, me, 3, 100 + me)
        change()
        while True:
            shared[me * 4096] = 1 if known == digest() else 2
            shared[(32 + me) * 4096] = (shared[(32 + me) * 4096] + 1) % 256
            time.sleep(0.01)
    kids.append(pid)
me = 0
change()
def all_change():
    for pid in kids: os.kill(pid, signal.SIGUSR1)
    change()
def all_turns(): return [shared[(64 + one) * 4096] for one in range(CHILDREN + 1)]
def sound(): return [known == digest()] + [shared[one * 4096] == 1 for one in range(1, CHILDREN + 1)]
def looks(): return [shared[(32 + one) * 4096] for one in range(1, CHILDREN + 1)]
def shared_rest(): return hashlib.sha256(shared[128 * 4096:]).hexdigest()
`;

async function start(run: Run): Promise<void> {
  // functions say "global": they are to find what they share where the lines do
  assert.equal(await run(`exec(${JSON.stringify(FAMILY)}, scope)`), "None");
  await untilAllHave(run, 1);
}

const list = async (run: Run, line: string): Promise<number[]> => JSON.parse(await run(line)) as number[];

async function untilAllHave(run: Run, turns: number): Promise<void> {
  await until(`everybody has changed its memory ${turns} times`, async () =>
    (await list(run, "all_turns()")).every((done) => done === turns),
  );
}

/** Each process has the memory that it knows, and has looked at all of it since. */
async function assertSound(run: Run): Promise<void> {
  const before = await list(run, "looks()");
  await until("every child looks twice", async () =>
    (await list(run, "looks()")).every((looks, index) => (looks - (before[index] ?? 0) + 256) % 256 >= 2),
  );
  assert.equal(await run("sound()"), "[True, True, True, True]");
}

/** Has the processes change memory when the layers are at the target and clients are held, right before CRIU freezes. */
function changeBeforeFreeze(program: MovedProgram, faults: string, turns: number, statsTo: string): string {
  const script = `${faults}.${turns}.py`;
  writeFileSync(
    script,
    `${FIND}
for pid in pids: os.kill(pid, 10)
time.sleep(1)
`.replace("NETWORK", String(networkOf(program))),
  );
  const images = join(program.lab.stateDir(program.at), "run", "*", "images");
  return [
    `exec@source:hold=/usr/bin/python3 ${script}`,
    `exec@source:transfer=cp ${images}/stats-dump ${statsTo}`,
  ].join(";");
}

/** `pids`: of the shell's processes in one network namespace, as the node sees them, the root first. */
const FIND = `
import glob, os, time
def is_one(pid):
    try: return b"/srv/shell.py" in open("/proc/%s/cmdline" % pid, "rb").read() and os.stat("/proc/%s/ns/net" % pid).st_ino == NETWORK
    except OSError: return False
pids = [int(pid) for pid in (path.split("/")[2] for path in glob.glob("/proc/[0-9]*")) if is_one(pid)]
def parent(pid): return int(open("/proc/%d/stat" % pid).read().rsplit(")", 1)[1].split()[1])
# numbers begin again at pid_max: the root is the one whose parent is none of them
pids = sorted(pids, key=lambda pid: parent(pid) in pids)
`;

const networkOf = (program: MovedProgram): number =>
  statSync(`/run/netns/${program.lab.place(program.at).netns}`).ino;

/** An agent reads what each node's faults are at each step. */
function faultsOf(t: TestContext): { a: string; b: string; of: Record<string, string> } {
  const [a, b] = [`${faultsFile(t)}-a`, `${faultsFile(t)}-b`];
  for (const file of [a, b]) writeFileSync(file, "");
  return { a, b, of: { a: `file:${a}`, b: `file:${b}` } };
}

for (const downstream of modes("forward")) {
  test(`what CRIU leaves in the frozen tree arrives, whatever kind of memory it is, ${downstream}`, {
    skip,
  }, async (t) => {
    const faults = faultsOf(t);
    await withPythonShell({ downstream, faults: faults.of }, async (program, run) => {
      await start(run);
      t.diagnostic(`huge pages by ${await run("kind")}`);
      const rest = await run("shared_rest()");
      for (const [turns, to] of [
        [2, "b"],
        [3, "a"],
      ] as const) {
        const file = program.at === "a" ? faults.a : faults.b;
        const stats = `${file}.stats`;
        writeFileSync(file, changeBeforeFreeze(program, file, turns, stats));
        await program.move(to);
        assert.deepEqual(await list(run, "all_turns()"), Array(CHILDREN + 1).fill(turns));
        await assertSound(run);
        assert.equal(await run("shared_rest()"), rest);
        const written = decodeStats(readFileSync(stats)).dump?.pagesWritten ?? -1;
        const huge = (await run("kind")) === "'MAP_HUGETLB'" ? HUGE_BYTES / 4096 : 0;
        // a child that looks at what is closed has it open meanwhile
        const needed = (CHILDREN + 1) * (CLOSED_PAGES + huge);
        assert.ok(
          written >= 0 && written <= needed,
          `CRIU has written ${written} pages, ${needed} are needed`,
        );
      }
      // all of it can be written as before
      await run("all_change()");
      await untilAllHave(run, 4);
      await assertSound(run);
    });
  });
}

/** Moves a process out of the frozen group, and into it again. */
const THAW = `
groups = [line.split(":", 2) for line in open("/proc/%d/cgroup" % pid).read().splitlines()]
v1 = [path for _, names, path in groups if "freezer" in names.split(",")]
path = v1[0] if v1 else [path for _, names, path in groups if names == ""][0]
root = "/sys/fs/cgroup/freezer" if v1 else "/sys/fs/cgroup"
def put(group):
    with open(root + group + "/cgroup.procs", "w") as file: file.write(str(pid))
    time.sleep(0.1)
`;

/** Thaws one process for a moment, and freezes it again: nothing is to be seen of that afterwards. */
const THAW_A_CHILD = `${FIND}
pid = pids[-1]
${THAW}
for group in ("", path): put(group)
`;

/** As the kernel does when memory is short: no process takes SIGKILL in a frozen group of cgroup v1. */
const KILL_THE_ROOT = `${FIND}
pid = pids[0]
${THAW}
os.kill(pid, 9)
try: put("")
except ProcessLookupError: pass
`;

for (const point of ["transfer", "restore"] as const)
  test(`a process that was thawed for a moment before the ${point}, and frozen again, is a rollback`, {
    skip,
  }, async (t) => {
    const faults = faultsOf(t);
    await withPythonShell({ faults: faults.of }, async (program, run) => {
      await start(run);
      const script = `${faults.a}.py`;
      writeFileSync(script, THAW_A_CHILD.replace("NETWORK", String(networkOf(program))));
      writeFileSync(faults.a, `exec@source:${point}=/usr/bin/python3 ${script}`);
      const move = await program.tryMove("b");
      assert.ok(!("error" in move));
      assert.deepEqual([move.outcome, program.at], ["rolled-back", "a"]);
      assert.match(move.reason ?? "", /did not stand still while it was read: thread \d+\/\d+ has run/);
      await assertSound(run);
      const { workloads } = await program.ask<{ workloads: { name: string; state: string }[] }>(
        "GET",
        "/v1/status",
      );
      assert.deepEqual(
        workloads.map(({ name, state }) => [name, state]),
        [[workloadName, "running"]],
      );
      await program.move("b");
      await assertSound(run);
    });
  });

test("an application that is killed while it stands still has ended, and nothing of it stands still for ever", {
  skip,
}, async (t) => {
  const faults = faultsOf(t);
  await withPythonShell({ faults: faults.of }, async (program, run) => {
    await start(run);
    const script = `${faults.a}.py`;
    writeFileSync(script, KILL_THE_ROOT.replace("NETWORK", String(networkOf(program))));
    writeFileSync(faults.a, `exec@source:restore=/usr/bin/python3 ${script}`);
    const move = await program.tryMove("b");
    assert.ok(!("error" in move));
    assert.deepEqual([move.outcome, program.at], ["rolled-back", "a"]);
    assert.match(move.reason ?? "", /has ended since it was dumped/);
    await until("it runs again, started anew", async () => {
      const socket = await program.connect(8080).catch(() => null);
      if (socket === null) return false;
      socket.setTimeout(1000, () => socket.destroy());
      const answer = await runOn(socket)("len(kids)").catch(() => "none yet");
      socket.destroy();
      return answer.startsWith("ERROR NameError");
    });
  });
});
