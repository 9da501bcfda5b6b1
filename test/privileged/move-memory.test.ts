/** Every process has after a move the memory it had before, and no other's. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type Downstream, lacking, until } from "../support/moved-program.ts";
import { type Run, withPythonShell } from "../support/python-shell.ts";

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

for (const downstream of ["takeover", "relay"] satisfies Downstream[]) {
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
