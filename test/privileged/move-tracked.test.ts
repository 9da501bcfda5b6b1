/** Memory of which the kernel says what was written: nothing is out of date, and nobody notices who looked. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { lacking, until } from "../support/moved-program.ts";
import { type Run, withPythonShell } from "../support/python-shell.ts";

const skip = lacking("python3");
/** each move compares every page, too (`withProgram`) */
const workload = { limits: { trackedMbMin: 0 } };

const define = async (run: Run, text: string): Promise<void> =>
  assert.equal(await run(`exec(${JSON.stringify(text)}, scope)`), "None");

/**
 * Threads and a child that do all the time what moves memory about: write, map anew at the same place, grow and shrink (mremap), give
 * back (MADV_DONTNEED), change what is allowed, fork, and wait in calls that the kernel begins again.
 */
const restless = `
import random
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGES = 400
wrong, turns = [], [0, 0, 0]
kept = mmap.mmap(-1, PAGES * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(PAGES): struct.pack_into("<q", kept, page * 4096, page)
def some(at, fixed):
    at = libc.mmap(at, 64 * 4096, 3, 0x22 | fixed, -1, 0)
    return at
def put(at, page, what): ctypes.c_long.from_address(at + page * 4096).value = what
def get(at, page): return ctypes.c_long.from_address(at + page * 4096).value
def remap():
    at, n, size = some(None, 0), 0, 64
    while True:
        n += 1
        for page in range(0, size, 3): put(at, page, n + page)
        if n % 3 == 0: libc.munmap(at, size * 4096); at, size = some(at, 0x10), 64
        elif n % 3 == 1:
            grown = 64 + n % 50
            at = libc.mremap(at, size * 4096, grown * 4096, 1)
            for page in range(0, min(size, grown), 3):
                if get(at, page) != n + page: wrong.append(("remap", n, page))
            size = grown
        else:
            libc.madvise(at, 8 * 4096, 4)
            if [get(at, page) for page in range(8)] != [0] * 8: wrong.append(("madvise", n))
            libc.mprotect(at, 4 * 4096, 0); libc.mprotect(at, 4 * 4096, 3)
        turns[0] += 1
        time.sleep(0.002)
def write():
    counts = [0] * PAGES
    while True:
        for _ in range(10):
            page = random.randrange(PAGES)
            if struct.unpack_from("<qq", kept, page * 4096) != (page, counts[page]): wrong.append(("write", page))
            counts[page] += 1
            struct.pack_into("<qq", kept, page * 4096, page, counts[page])
        turns[1] += 1
        time.sleep(0.001)
def fork():
    while True:
        pid = os.fork()
        if pid == 0:
            time.sleep(0.02)
            os._exit(0 if all(struct.unpack_from("<q", kept, page * 4096)[0] == page for page in range(PAGES)) else 1)
        if os.waitpid(pid, 0)[1] != 0: wrong.append(("fork", pid))
        turns[2] += 1
for work in (remap, write, fork): threading.Thread(target=work, daemon=True).start()
`;

for (const downstream of ["takeover", "forward"] as const)
  test(`a program that writes, remaps and forks all the time has its memory after each move, ${downstream}`, {
    skip,
  }, async () => {
    await withPythonShell({ downstream, workload }, async (program, run) => {
      await define(run, restless);
      let before = [0, 0, 0];
      for (const to of ["b", "a", "b"]) {
        const { trackedProcesses } = await program.move(to);
        assert.ok(trackedProcesses >= 1, `${trackedProcesses} processes were tracked`);
        let turns = before;
        await until("each has gone on", async () => {
          turns = JSON.parse(await run("turns")) as number[];
          return turns.every((count, index) => count > (before[index] as number) + 1);
        });
        assert.equal(await run("wrong"), "[]");
        before = turns;
      }
    });
  });

test("what is read with O_DIRECT meanwhile is not taken for what was there before", { skip }, async (t) => {
  const folder = mkdtempSync("/var/tmp/hf-direct-");
  t.after(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, "data"), Buffer.alloc(8 << 20, "x"));
  const container = { mounts: [{ source: folder, target: "/data", shared: true }] };
  await withPythonShell({ workload: { ...workload, container } }, async (program, run) => {
    await define(
      run,
      `
fd = os.open("/data/data", os.O_RDWR | os.O_DIRECT)
area = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page = mmap.mmap(-1, 1 << 20)
turns = 0
def read():
    global turns
    while True:
        turns += 1
        page[:] = bytes([turns % 256]) * len(page)
        for at in range(0, 8 << 20, len(page)): os.pwrite(fd, page, at)
        os.preadv(fd, [area], 0)
        if area[:] != bytes([turns % 256]) * len(area): turns = -1; return
threading.Thread(target=read, daemon=True).start()
`,
    );
    for (const to of ["b", "a"]) {
      const { trackedProcesses } = await program.move(to);
      assert.equal(trackedProcesses, 0);
      assert.ok(Number(await run("time.sleep(0.2) or turns")) > 0);
    }
  });
});
