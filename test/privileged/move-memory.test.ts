/** Every process has after a move the memory it had before, and no other's. */
import assert from "node:assert/strict";
import { statSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { lacking, until } from "../support/moved-program.ts";
import { faultsFile, type Run, withPythonShell } from "../support/python-shell.ts";
import { modes } from "../support/thorough.ts";

const skip = lacking("python3");

/**
 * One page and a ring of numbers shared by all; children that were forked, so that their memory lies at the same addresses. Each
 * has 512 pages of its own with a count in every page (so that what one has now another had before), changes some all the
 * time, and checks all of them.
 * What is wrong is written where all see it.
 */
const family = `
import random
shared = mmap.mmap(-1, 4096, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
own = mmap.mmap(-1, 512 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
kids = []
def live(n):
    counts = [0] * 512
    def put(page): struct.pack_into("<qq", own, page * 4096, page, counts[page])
    for page in range(512): put(page)
    turns = 0
    while True:
        for i in range(16):
            page = random.randrange(512)
            counts[page] += 1
            put(page)
        for page in range(512):
            if struct.unpack_from("<qq", own, page * 4096) != (page, counts[page]):
                shared[2048 + n] = 1
        turns += 1
        struct.pack_into("<q", shared, n * 8, turns)
        time.sleep(0.001)
for n in range(1, 7):
    pid = os.fork()
    if pid == 0:
        try: live(n)
        except BaseException: shared[2048 + n] = 2
        os._exit(1)
    kids.append(pid)
def turns(): return [struct.unpack_from("<q", shared, n * 8)[0] for n in range(1, 7)]
def ended(): return [pid for pid in kids if os.waitpid(pid, os.WNOHANG)[0] != 0]
def wrong(): return [shared[2048 + n] for n in range(1, 7)]
`;

const numbers = async (run: Run, line: string): Promise<number[]> => JSON.parse(await run(line)) as number[];

/** Waits until each child has checked all its memory again. */
async function assertSound(run: Run): Promise<void> {
  const before = await numbers(run, "turns()");
  await until("every child has looked at its memory", async () => {
    assert.deepEqual(await numbers(run, "ended()"), [], "children that ended");
    assert.deepEqual(
      await numbers(run, "wrong()"),
      [0, 0, 0, 0, 0, 0],
      "children with other memory than theirs",
    );
    const now = await numbers(run, "turns()");
    return now.every((turns, index) => turns > (before[index] as number) + 1);
  });
}

for (const downstream of modes("forward")) {
  test(`children that share a mapping and all change their memory keep their own, ${downstream}`, {
    skip,
  }, async () => {
    await withPythonShell({ downstream }, async (program, run) => {
      assert.equal(await run(`exec(${JSON.stringify(family)}, scope)`), "None");
      await assertSound(run);
      for (const to of ["b", "a", "b"]) {
        await program.move(to);
        await assertSound(run);
      }
    });
  });
}

/** Runs when the tree is restored and frozen: writes a byte into the shell on the node with that network namespace. */
const damage = (network: number, vaddr: number): string => `
import glob, os
def isIt(pid):
    try: return b"/srv/shell.py" in open("/proc/%s/cmdline" % pid, "rb").read() and os.stat("/proc/%s/ns/net" % pid).st_ino == ${network}
    except OSError: return False
[shell] = [pid for pid in (path.split("/")[2] for path in glob.glob("/proc/[0-9]*")) if isIt(pid)]
with open("/proc/%s/mem" % shell, "r+b", buffering=0) as memory:
    memory.seek(${vaddr})
    memory.write(b"!")
`;

for (const [what, flags] of [
  ["private", "mmap.MAP_PRIVATE"],
  ["shared", "mmap.MAP_SHARED"],
] as const) {
  test(`one wrong byte in restored ${what} memory is a rollback that says where`, { skip }, async (t) => {
    const faults = faultsFile(t);
    await withPythonShell({ faults: { b: `file:${faults}` } }, async (program, run) => {
      const lines = [
        `area = mmap.mmap(-1, 64 * 4096, flags=${flags} | mmap.MAP_ANONYMOUS)`,
        'area[:] = b"x" * len(area)',
        "at = ctypes.addressof(ctypes.c_char.from_buffer(area))",
      ];
      assert.equal(await run(`exec(${JSON.stringify(lines.join("\n"))}, scope)`), "None");
      const vaddr = Number(await run("at")) + 40 * 4096 + 5;
      const script = `${faults}.py`;
      const network = statSync(`/run/netns/${program.lab.place("b").netns}`).ino;
      writeFileSync(script, damage(network, vaddr));
      writeFileSync(faults, `exec@target:restored=/usr/bin/python3 ${script}`);
      const move = await program.tryMove("b");
      assert.ok(!("error" in move));
      assert.equal(move.outcome, "rolled-back");
      assert.match(move.reason ?? "", /^the restored memory is not what it was: process \d+: the page at /);
      assert.match(move.reason ?? "", new RegExp(`${(vaddr - (vaddr % 4096)).toString(16)} differs`));
      assert.equal(await run('bytes(area) == b"x" * len(area)'), "True", "the source goes on, and has it");
      await program.move("b");
      assert.equal(await run('bytes(area) == b"x" * len(area)'), "True");
    });
  });
}

/** Reserves as databases, Go, Java and sanitizers do; uses the first page, one in the middle and the last. */
const reservations = `
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
T = 1 << 40
def reserve(size, prot, flags): return libc.mmap(None, size, prot, 0x22 | flags, -1, 0)
places = []
def use(at):
    ctypes.memset(at, len(places) + 1, 4096)
    places.append(at)
kept = reserve(8 * T, 0, 0)
libc.mprotect(kept, 1 << 20, 3)
use(kept)
lazy = reserve(16 * T, 3, 0x4000)
for at in (lazy, lazy + 5 * T, lazy + 16 * T - 4096): use(at)
pid = os.fork()
if pid == 0:
    while True: signal.pause()
def used(): return [ctypes.string_at(at, 4096) == bytes([n + 1]) * 4096 for n, at in enumerate(places)]
def reserved():
    return [line.split()[0:2] for line in open("/proc/self/maps") if int(line.split("-")[0], 16) in (kept, kept + (1 << 20), lazy)]
`;

test("reservations of terabytes move, with what is used of them", { skip }, async () => {
  await withPythonShell({}, async (program, run) => {
    assert.equal(await run(`exec(${JSON.stringify(reservations)}, scope)`), "None");
    const before = await run("reserved()");
    for (const to of ["b", "a"]) {
      await program.move(to);
      assert.equal(await run("used()"), "[True, True, True, True]");
      assert.equal(await run("reserved()"), before);
    }
    // what was reserved can be used as before
    assert.equal(await run("libc.mprotect(kept + (1 << 30), 1 << 20, 3)"), "0");
    assert.equal(await run("ctypes.memset(kept + (1 << 30), 7, 4096) > 0"), "True");
  });
});

/** More of it than is copied before the hold, and a child with as much of its own. */
const large = `
area = mmap.mmap(-1, 24 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area[:] = os.urandom(len(area))
r, w = os.pipe()
back, answer = os.pipe()
if os.fork() == 0:
    area[8 << 20:16 << 20] = os.urandom(8 << 20)
    while os.read(r, 1): os.write(answer, hashlib.sha256(area).digest())
    os._exit(0)
def digests():
    os.write(w, b"?")
    return [hashlib.sha256(area).hexdigest(), os.read(back, 32).hex()]
`;
const COPIED_MIB = 16;

test("of memory beyond the limit a part is copied before the hold, and all of it arrives", {
  skip,
}, async () => {
  const workload = { limits: { precopyMbMax: COPIED_MIB } };
  await withPythonShell({ downstream: "takeover", workload }, async (program, run) => {
    assert.equal(await run(`exec(${JSON.stringify(large)}, scope)`), "None");
    const before = await run("digests()");
    for (const to of ["b", "a"]) {
      const { precopyBytes, imageBytes } = await program.move(to);
      const copied = precopyBytes / 2 ** 20;
      assert.ok(
        copied > COPIED_MIB / 2 && copied < COPIED_MIB + 8,
        `${copied} MiB were copied before the hold`,
      );
      assert.ok(
        imageBytes > (32 - COPIED_MIB) * 2 ** 20,
        `${imageBytes} bytes were sent while clients waited`,
      );
      assert.equal(await run("digests()"), before);
    }
  });
});
