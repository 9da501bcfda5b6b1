/** What of a stopped tree's memory is looked at: a byte that is another one is a difference, wherever it is mapped. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { type TestContext, test } from "node:test";
import { digestTree, ENTRY_BYTES } from "#control/criu/memory-digest.ts";
import { lacking } from "../support/moved-program.ts";

const skip = lacking("python3");

/** An object of which each process maps pieces. It changes a byte for each line it reads: the offset in the object. */
const PROGRAM = `
import mmap, os, signal, sys
fd = os.memfd_create("shared")
os.ftruncate(fd, 64 * 4096)
writes = mmap.mmap(fd, 64 * 4096)
for page in range(64): writes[page * 4096] = 1
ready = os.pipe()
child = os.fork()
if child == 0:
    del writes
    pieces = [mmap.mmap(fd, 8 * 4096, offset=6 * 4096)]
    os.write(ready[1], b"x")
    while True: signal.pause()
del writes
pieces = [mmap.mmap(fd, 4096), mmap.mmap(fd, 8 * 4096, offset=2 * 4096)]
os.read(ready[0], 1)
print(os.getpid(), child, flush=True)
for line in sys.stdin:
    os.pwrite(fd, bytes([2]), int(line))
    print("written", flush=True)
os.kill(child, signal.SIGKILL)
`;

async function started(t: TestContext) {
  const child = spawn("/usr/bin/python3", ["-u", "-c", PROGRAM], { stdio: ["pipe", "pipe", "inherit"] });
  t.after(() => child.stdin.end());
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  const lines = async (count: number): Promise<string[]> => {
    while (said.split("\n").length <= count) await once(child.stdout, "data");
    return said.trim().split("\n");
  };
  const pids = ((await lines(1))[0] ?? "").split(" ").map(Number);
  let written = 0;
  const write = async (page: number): Promise<void> => {
    child.stdin.write(`${page * 4096 + 100}\n`);
    await lines(1 + ++written);
  };
  /** "PROCESS: PAGE OF THE OBJECT" → digest; of what else the processes have nothing, as they go on */
  const look = async (): Promise<Map<string, number>> => {
    const tree = pids.map((pid, index) => ({ pid, innerPid: index + 1, innerParent: null }));
    const found = new Map<string, number>();
    for (const { innerPid, layout, pages } of await digestTree(tree, []))
      for (const area of layout) {
        const [, start = "", end = "", offset = ""] = /^(\S+)-(\S+) rw-s shared 0\+(\S+)$/.exec(area) ?? [];
        const [from, to, first] = [start, end, offset].map((text) => Number.parseInt(text, 16)) as [
          number,
          number,
          number,
        ];
        for (let at = 0; at < pages.length; at += ENTRY_BYTES) {
          const vaddr = Number(pages.readBigUInt64LE(at));
          if (vaddr >= from && vaddr < to)
            found.set(`${innerPid}: ${(vaddr - from + first) / 4096}`, pages.readUInt32LE(at + 8));
        }
      }
    return found;
  };
  return { write, look };
}

test("shared memory is looked at wherever a mapping of it is, and none of it twice", { skip }, async (t) => {
  const { write, look } = await started(t);
  const before = await look();
  assert.deepEqual(
    [...before.keys()].sort(),
    [0, 2, 3, 4, 5, 6, 7, 8, 9]
      .map((page) => `1: ${page}`)
      .concat([10, 11, 12, 13].map((page) => `2: ${page}`)),
  );
  for (const page of [0, 9, 13, 50]) await write(page);
  const after = await look();
  const changed = [...after].filter(([place, digest]) => before.get(place) !== digest);
  assert.deepEqual(
    changed.map(([place]) => place).sort(),
    ["1: 0", "1: 9", "2: 13"],
    "no process maps page 50",
  );
});
