import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  appendFileSync,
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { encodeImage } from "#control/criu/image-file.ts";
import { ImageSender } from "#control/criu/images.ts";
import { decodePageMap, encodePageMap, PAGE_BYTES, type PageRun } from "#control/criu/page-map.ts";
import { byEntry, ownPages } from "#control/criu/page-scan.ts";
import { Precopy, type SendPages } from "#control/criu/precopy.ts";
import { PrecopyRounds } from "#control/criu/precopy-rounds.ts";
import { FrozenMemory, type TracedProcess } from "#control/criu/process-memory.ts";
import { encodeFields, type Field } from "#control/criu/protobuf.ts";

/** A process that holds a known page pattern, says where, and changes a page, maps or fills 600 pages, or forks at a line. */
const PROGRAM = `
import ctypes, mmap, os, signal, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
pages = 600
area = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(pages): area[page * 4096 : page * 4096 + 8] = page.to_bytes(8, "little")
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
for line in sys.stdin:
    word, *numbers = line.split()
    if word == "map":
        print(libc.mmap(int(numbers[0]), pages * 4096, 3, 0x32, -1, 0), flush=True)
    elif word == "fill":
        ctypes.memset(int(numbers[0]), int(numbers[1]), pages * 4096)
        print("filled", flush=True)
    elif word == "fork":
        pid = os.fork()
        if pid == 0:
            while True: signal.pause()
        print(pid, flush=True)
    else:
        page = int(word)
        area[page * 4096 + 100] = (area[page * 4096 + 100] + 1) % 256
        print("changed", flush=True)
`;

/** 8 TiB of which one page is used. */
const RESERVES = `
import ctypes, signal
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
area = libc.mmap(None, 8 << 40, 3, 0x4022, -1, 0)
ctypes.memset(area + (40 << 30), 1, 1)
print(area, flush=True)
signal.pause()
`;

/** 600 pages, most of which the kernel is asked to swap out. */
const SWAPPED = `
import ctypes, mmap, os, signal
area = mmap.mmap(-1, 600 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area[:] = os.urandom(len(area))
at = ctypes.addressof(ctypes.c_char.from_buffer(area))
MADV_PAGEOUT = 21
ctypes.CDLL(None).madvise(ctypes.c_void_p(at), ctypes.c_size_t(500 * 4096), MADV_PAGEOUT)
print(at, flush=True)
signal.pause()
`;

/** What the target has: images in layers, written as a move would write them. */
class Layers {
  readonly files = new Map<string, Buffer>();
  /** bytes that travelled */
  sentBytes = 0;

  put: SendPages = async (name, offset, bytes, from) => {
    const before = this.files.get(name) ?? Buffer.alloc(0);
    assert.equal(offset, before.length, "pieces come in order");
    if (from === null) this.sentBytes += bytes.length;
    else {
      const there = this.files.get(from.name)?.subarray(from.offset, from.offset + bytes.length);
      assert.ok(there?.equals(bytes), `${from.name} has at ${from.offset} what is said to be there`);
    }
    this.files.set(name, Buffer.concat([before, bytes]));
  };

  /** The page as CRIU would find it: in the dump or in a layer below. */
  page(layer: number, innerPid: number, vaddr: number): Buffer {
    const folder = layer === DUMP ? "" : `layer-${layer}/`;
    const map = decodePageMap(this.files.get(`${folder}pagemap-${innerPid}.img`) ?? Buffer.alloc(0));
    const pages = this.files.get(`${folder}pages-${map.pagesId}.img`) ?? Buffer.alloc(0);
    let offset = 0;
    for (const run of map.runs) {
      const inRun = (vaddr - run.vaddr) / PAGE_BYTES;
      if (inRun >= 0 && inRun < run.pages) {
        if (run.where === "parent") return this.page(layer - 1, innerPid, vaddr);
        return pages.subarray(offset + inRun * PAGE_BYTES, offset + (inRun + 1) * PAGE_BYTES);
      }
      if (run.where === "here") offset += run.pages * PAGE_BYTES;
    }
    throw new Error(`layer ${layer} does not know ${vaddr.toString(16)}`);
  }

  /** Everything CRIU would restore of the area is what the process has there. */
  assertHas(innerPid: number, area: number, memory: Buffer): void {
    for (let page = 0; page * PAGE_BYTES < memory.length; page++) {
      const found = this.page(DUMP, innerPid, area + page * PAGE_BYTES);
      assert.ok(
        found.equals(memory.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)),
        `page ${page} of process ${innerPid}`,
      );
    }
  }
}

/** Number of the dump's own images: above all layers of these tests. */
const DUMP = 3;
const BYTES_MAX = 1 << 30;

interface Held {
  pid: number;
  area: number;
  say(line: string): Promise<string>;
  end(): void;
}

/** Starts PROGRAM, or another that says where its memory is and answers lines. */
async function start(program = PROGRAM): Promise<Held> {
  const child = spawn("python3", ["-u", "-c", program], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  const answer = async (): Promise<string> => String((await lines.next()).value);
  const area = Number(await answer());
  return {
    pid: child.pid ?? -1,
    area,
    say: async (line) => {
      child.stdin.write(`${line}\n`);
      return await answer();
    },
    end: () => child.kill("SIGKILL"),
  };
}

const folders: string[] = [];
const images = (): string => {
  const dir = mkdtempSync(join(tmpdir(), "holdfast-precopy-"));
  folders.push(dir);
  return dir;
};
after(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

const traced = (pid: number, innerPid: number, innerParent: number | null = null): TracedProcess => ({
  pid,
  innerPid,
  innerParent,
});

/** What CRIU writes of a process's mappings: by default, areas of huge pages. */
function writeMappings(
  dir: string,
  innerPid: number,
  ...areas: { start: number; end: number; flags?: number; status?: number }[]
): void {
  const vmas = areas.map(
    ({ start, end, flags = 0x40022, status = 0x201 }): Field => [
      14,
      [
        [1, start],
        [2, end],
        [6, flags],
        [7, status],
      ],
    ],
  );
  writeFileSync(join(dir, `mm-${innerPid}.img`), encodeImage("mm", [encodeFields([[1, 4096], ...vmas])]));
}

/** What CRIU writes of one process's area. */
function writeImage(dir: string, pagesId: number, innerPid: number, area: number, memory: Buffer): void {
  // CRIU makes both files before it writes pages, and tells whose they are when it has written them
  writeMappings(dir, innerPid);
  const map = join(dir, `pagemap-${innerPid}.img`);
  closeSync(openSync(map, "w"));
  writeFileSync(join(dir, `pages-${pagesId}.img`), memory);
  const pages = memory.length / PAGE_BYTES;
  writePageMap(dir, innerPid, pagesId, [{ vaddr: area, pages, where: "here" }]);
}

/** What CRIU tells of a process's pages. */
function writePageMap(dir: string, innerPid: number, pagesId: number, runs: PageRun[]): void {
  writeFileSync(join(dir, `pagemap-${innerPid}.img`), encodePageMap({ pagesId, runs }));
}

/** … of process 7, where it left them as they are. */
function writeLeft(dir: string, run: Omit<PageRun, "where">): void {
  writePageMap(dir, 7, 1, [{ ...run, where: "parent" }]);
  writeFileSync(join(dir, "pages-1.img"), "");
}

test("layers hold a live process's memory, and only what changed travels after", async () => {
  const program = await start();
  const { pid, area } = program;
  const dir = images();
  try {
    const layers = new Layers();
    const precopy = new Precopy(BYTES_MAX);
    const tree = [traced(pid, 7)];
    const firstBytes = await precopy.round(tree, layers.put);
    assert.ok(firstBytes > 600 * PAGE_BYTES);
    await program.say("41");
    const secondBytes = await precopy.round(tree, layers.put);
    assert.ok(
      secondBytes >= PAGE_BYTES && secondBytes < firstBytes / 10,
      `${secondBytes} of ${firstBytes} again`,
    );
    await program.say("42");
    process.kill(pid, "SIGSTOP");

    // what CRIU would dump of the area: all of it
    const memory = readMemory(pid, area, 600);
    precopy.follow(dir);
    writeMappings(dir, 7);
    closeSync(openSync(join(dir, "pagemap-7.img"), "w"));
    for (let page = 0; page < 600; page += 50) {
      appendFileSync(join(dir, "pages-1.img"), memory.subarray(page * PAGE_BYTES, (page + 50) * PAGE_BYTES));
      await sleep(1); // the follower has a look in between, or not: the outcome is the same
    }
    writePageMap(dir, 7, 1, [{ vaddr: area, pages: 600, where: "here" }]);
    assert.deepEqual([...(await precopy.reduce(dir, tree, layers.put))].sort(), [
      "pagemap-7.img",
      "pages-1.img",
    ]);
    const changed = layers.files.get("pages-1.img");
    assert.equal(changed?.length, PAGE_BYTES, "one page changed since the last round");
    layers.assertHas(7, area, memory);
  } finally {
    program.end();
  }
});

test("what a round sends stays as it was, though whoever takes it sends it later; and what was not sent is known next time", async () => {
  const program = await start();
  const { pid, area } = program;
  const dir = images();
  try {
    const layers = new Layers();
    const precopy = new Precopy(BYTES_MAX);
    const tree = [traced(pid, 7)];
    const later: Parameters<SendPages>[] = [];
    const round = async (): Promise<void> => {
      await precopy.round(tree, async (...sent) => void later.push(sent));
      for (const sent of later.splice(0)) await layers.put(...sent);
    };
    await round();
    // few of some pieces of memory, most of others
    for (let page = 0; page < 600; page += page < 300 ? 70 : 1) await program.say(String(page));
    await round();
    for (let page = 5; page < 600; page += 60) await program.say(String(page));
    process.kill(pid, "SIGSTOP");
    const memory = readMemory(pid, area, 600);
    precopy.follow(dir);
    writeImage(dir, 1, 7, area, memory);
    await precopy.reduce(dir, tree, layers.put);
    assert.equal(layers.files.get("pages-1.img")?.length, 10 * PAGE_BYTES, "all else is in the layers");
    layers.assertHas(7, area, memory);
  } finally {
    program.end();
  }
});

test("whatever number its pages have in the dump, a process gets its own and not a sibling's", async () => {
  const one = await start();
  const other = await start();
  const area = 0x2000_0000_0000; // far from stacks, libraries and heaps, wherever they are put
  const dir = images();
  try {
    const layers = new Layers();
    const precopy = new Precopy(BYTES_MAX);
    // two processes with different memory at the same addresses
    const pages = 600;
    const own = [Buffer.alloc(pages * PAGE_BYTES, 1), Buffer.alloc(pages * PAGE_BYTES, 2)] as const;
    const at = await Promise.all([one, other].map((program) => program.say(`map ${area}`)));
    assert.deepEqual(at, [String(area), String(area)]);
    await one.say(`fill ${area} 1`);
    await other.say(`fill ${area} 2`);
    const tree = [traced(one.pid, 7), traced(other.pid, 8)];
    await precopy.round(tree, layers.put);
    await precopy.round(tree, layers.put);
    // the second process now has what the first one had, page for page, and the other way round
    precopy.follow(dir);
    // shared memory takes the first number, and the processes come in another order than they were copied in
    writeFileSync(join(dir, "pagemap-shmem-99.img"), "");
    writeFileSync(join(dir, "pages-1.img"), own[0]);
    await sleep(10);
    writeImage(dir, 2, 8, area, own[0]);
    await sleep(10);
    writeImage(dir, 3, 7, area, own[1]);
    await sleep(10);
    await precopy.reduce(dir, tree, layers.put);
    layers.assertHas(8, area, own[0]);
    layers.assertHas(7, area, own[1]);
  } finally {
    one.end();
    other.end();
  }
});

test("a dump in another order than the copy, and with pages of other processes, is reduced to the same", async () => {
  const program = await start();
  const { pid, area } = program;
  const dir = images();
  try {
    const layers = new Layers();
    const precopy = new Precopy(BYTES_MAX);
    const tree = [traced(pid, 7)];
    await precopy.round(tree, layers.put);
    await precopy.round(tree, layers.put);
    process.kill(pid, "SIGSTOP");
    const memory = readMemory(pid, area, 600);
    const altered = Buffer.from(memory);
    for (const page of [0, 77, 78, 300, 599]) altered[page * PAGE_BYTES + 9] = 255;
    precopy.follow(dir);
    writeMappings(dir, 7);
    // taken for the process's pages, by the order of the files
    writeFileSync(join(dir, "pagemap-7.img"), "");
    writeFileSync(join(dir, "pages-1.img"), Buffer.concat([memory.subarray(400 * PAGE_BYTES), memory]));
    writeFileSync(join(dir, "pages-2.img"), altered);
    await sleep(20);
    writePageMap(dir, 7, 2, [{ vaddr: area, pages: 600, where: "here" }]);
    await precopy.reduce(dir, tree, layers.put);
    assert.equal(layers.files.get("pages-2.img")?.length, 5 * PAGE_BYTES);
    const { runs } = decodePageMap(layers.files.get("pagemap-7.img") ?? Buffer.alloc(0));
    const here = runs
      .filter((run) => run.where === "here")
      .map((run) => [(run.vaddr - area) / PAGE_BYTES, run.pages]);
    assert.deepEqual(here, [
      [0, 1],
      [77, 2],
      [300, 1],
      [599, 1],
    ]);
    layers.assertHas(7, area, altered);
  } finally {
    program.end();
  }
});

test("memory that a forked process shares with its parent travels once, before the hold and after it", async () => {
  const parent = await start();
  const dir = images();
  try {
    const child = Number(await parent.say("fork"));
    const layers = new Layers();
    const precopy = new Precopy(BYTES_MAX);
    const tree = [traced(parent.pid, 7), traced(child, 8, 7)];
    const bytes = await precopy.round(tree, layers.put);
    const alone = await new Precopy(BYTES_MAX).round([traced(parent.pid, 7)], async () => {});
    assert.ok(bytes < alone * 1.5, `${bytes} for both, ${alone} for the parent alone`);
    await precopy.round(tree, layers.put);
    // one that was forked after the last round
    const late = Number(await parent.say("fork"));
    for (const pid of [parent.pid, child, late]) process.kill(pid, "SIGSTOP");
    const memories = [parent.pid, child, late].map((pid) => readMemory(pid, parent.area, 600));
    precopy.follow(dir);
    for (const [index, memory] of memories.entries()) {
      writeImage(dir, index + 2, index + 7, parent.area, memory);
      await sleep(5);
    }
    const sentBefore = layers.sentBytes;
    await precopy.reduce(dir, [...tree, traced(late, 9, 7)], layers.put);
    assert.ok(
      layers.sentBytes - sentBefore < 20 * PAGE_BYTES,
      `${layers.sentBytes - sentBefore} after the hold`,
    );
    for (const [index, memory] of memories.entries()) layers.assertHas(index + 7, parent.area, memory);
    for (const pid of [child, late]) process.kill(pid, "SIGKILL");
  } finally {
    parent.end();
  }
});

test("huge pages are all in the dump, known or not: CRIU looks for them nowhere else", async () => {
  const program = await start();
  const { pid, area } = program;
  const dir = images();
  try {
    const layers = new Layers();
    const precopy = new Precopy(BYTES_MAX);
    const tree = [traced(pid, 7)];
    await precopy.round(tree, layers.put);
    await precopy.round(tree, layers.put);
    const memory = readMemory(pid, area, 600);
    precopy.follow(dir);
    writeImage(dir, 1, 7, area, memory);
    writeMappings(dir, 7, { start: area + 100 * PAGE_BYTES, end: area + 300 * PAGE_BYTES });
    await sleep(20);
    await precopy.reduce(dir, tree, layers.put);
    const { runs } = decodePageMap(layers.files.get("pagemap-7.img") ?? Buffer.alloc(0));
    assert.deepEqual(runs, [
      { vaddr: area, pages: 100, where: "parent" },
      { vaddr: area + 100 * PAGE_BYTES, pages: 200, where: "here" },
      { vaddr: area + 300 * PAGE_BYTES, pages: 300, where: "parent" },
    ]);
    layers.assertHas(7, area, memory);
  } finally {
    program.end();
  }
});

for (const looked of [false, true])
  test(`what CRIU leaves in a frozen process is read there, ${looked ? "most of it while CRIU works" : "also of one that nothing is known of"}`, async () => {
    const known = await start();
    const unknown = await start();
    const dir = images();
    try {
      const layers = new Layers();
      const precopy = new Precopy(BYTES_MAX);
      const tree = [traced(known.pid, 7)];
      await precopy.round(tree, layers.put);
      await precopy.round(tree, layers.put);
      await known.say("300");
      for (const { pid } of [known, unknown]) process.kill(pid, "SIGSTOP");
      precopy.follow(dir);
      if (looked) precopy.lookAt([...tree, traced(unknown.pid, 8)]);
      await sleep(looked ? 300 : 0); // whatever it has looked at by then: on most machines all
      // some pages CRIU has written: between those that it has not
      const memories = [known, unknown].map(({ pid, area }) => readMemory(pid, area, 600));
      for (const [index, { area }] of [known, unknown].entries()) {
        const innerPid = index + 7;
        writeMappings(dir, innerPid);
        writePageMap(dir, innerPid, index + 1, [
          { vaddr: area, pages: 10, where: "parent" },
          { vaddr: area + 10 * PAGE_BYTES, pages: 10, where: "here" },
          { vaddr: area + 20 * PAGE_BYTES, pages: 580, where: "parent" },
        ]);
        const written = memories[index]?.subarray(10 * PAGE_BYTES, 20 * PAGE_BYTES) as Buffer;
        writeFileSync(join(dir, `pages-${index + 1}.img`), written);
      }
      const done = await precopy.reduce(dir, [...tree, traced(unknown.pid, 8)], layers.put);
      assert.deepEqual([...done].sort(), ["pagemap-7.img", "pagemap-8.img", "pages-1.img", "pages-2.img"]);
      assert.deepEqual(
        [1, 2].map((id) => layers.files.get(`pages-${id}.img`)?.length),
        [PAGE_BYTES, 600 * PAGE_BYTES],
        "the one that changed, and all that nothing was known of",
      );
      for (const [index, { area }] of [known, unknown].entries())
        layers.assertHas(index + 7, area, memories[index] as Buffer);
    } finally {
      known.end();
      unknown.end();
    }
  });

test("a page that CRIU left and that cannot be read is an error, and never a page of zeroes", async () => {
  const program = await start();
  const dir = images();
  try {
    const leave = async (vaddr: number, tree: TracedProcess[]): Promise<unknown> => {
      writeMappings(dir, 7);
      writeLeft(dir, { vaddr, pages: 1 });
      return await new Precopy(BYTES_MAX).reduce(dir, tree, async () => {});
    };
    const tree = [traced(program.pid, 7)];
    await leave(program.area, tree);
    const nothing = 0x10000; // below where anything is mapped
    await assert.rejects(leave(nothing, tree), {
      code: "IMAGE_REFUSED",
      message: /no page can be read at 10000/,
    });
    const other = { ...traced(program.pid, 7), isAlive: async () => false };
    for (const gone of [[], [traced(4_194_304, 7)], [other]])
      await assert.rejects(leave(program.area, gone), {
        code: "IMAGE_REFUSED",
        message: /7 has ended since/,
      });
  } finally {
    program.end();
  }
});

test("a page that CRIU has to write, and left, is an error: of huge pages, and of rings of io_setup(2)", async () => {
  const program = await start();
  const dir = images();
  const [MAP_ANONYMOUS, MAP_HUGETLB, RING] = [0x22, 0x40000, 1 << 13];
  try {
    const leave = async (at: number, pages: number, flags: number, status: number): Promise<unknown> => {
      const { area } = program;
      const ring = { start: area + 10 * PAGE_BYTES, end: area + 12 * PAGE_BYTES, flags, status };
      writeMappings(dir, 7, ring);
      writeLeft(dir, { vaddr: area + at * PAGE_BYTES, pages });
      return await new Precopy(BYTES_MAX).reduce(dir, [traced(program.pid, 7)], async () => {});
    };
    for (const [flags, status] of [
      [MAP_ANONYMOUS | MAP_HUGETLB, 0x201],
      [MAP_ANONYMOUS, RING],
    ] as const) {
      for (const [at, pages] of [
        [10, 1],
        [11, 1],
        [5, 6],
        [11, 100],
        [0, 600],
      ] as const)
        await assert.rejects(leave(at, pages, flags, status), {
          code: "IMAGE_REFUSED",
          message: /pages-1\.img lacks pages that are looked for nowhere else/,
        });
      await leave(0, 10, flags, status);
      await leave(12, 100, flags, status);
    }
    await leave(0, 600, MAP_ANONYMOUS, 0x201);
  } finally {
    program.end();
  }
});

test("what looks at frozen processes is stopped at once, and has nothing open, though nobody takes what is sent", async () => {
  const program = await start();
  const dir = images();
  const opened = (): string[] =>
    readdirSync("/proc/self/fd").flatMap((fd) => {
      try {
        const path = readlinkSync(`/proc/self/fd/${fd}`);
        return path.startsWith(`/proc/${program.pid}/`) ? [path] : [];
      } catch {
        return [];
      }
    });
  try {
    await program.say(`map ${0x2000_0000_0000}`);
    let isSilent = false;
    const sender = new ImageSender(dir, () => (isSilent ? new Promise(() => {}) : Promise.resolve()));
    const tree = [traced(program.pid, 7)];
    const layersAtMs = performance.now();
    await sender.sendLayers(
      async () => tree,
      BYTES_MAX,
      new PrecopyRounds(BYTES_MAX),
      new AbortController().signal,
    );
    const layersMs = performance.now() - layersAtMs;
    isSilent = true;
    process.kill(program.pid, "SIGSTOP");
    sender.start(false);
    // many times the same process: it takes some hundred times as long
    sender.lookAt(Array(1_000).fill(tree[0]));
    while (opened().length === 0) await sleep(0);
    const startedMs = performance.now();
    await sender.abandon();
    assert.ok(performance.now() - startedMs < 10 * layersMs);
    assert.deepEqual(opened(), []);
    await sender.abandon();
  } finally {
    program.end();
  }
});

test("what was given up reads no more of a process, though nothing else ends it", async () => {
  const program = await start();
  const { pid, area } = program;
  const dir = images();
  try {
    const precopy = new Precopy(BYTES_MAX);
    const tree = [traced(pid, 7)];
    await precopy.round(tree, async () => {});
    process.kill(pid, "SIGSTOP");
    writeMappings(dir, 7);
    writeLeft(dir, { vaddr: area, pages: 600 });
    await precopy.giveUp();
    await assert.rejects(
      precopy.reduce(dir, tree, async () => {}),
      { code: "IMAGE_REFUSED" },
    );
  } finally {
    program.end();
  }
});

test("a process that has ended has no memory, and leaves its number to another", async () => {
  const gone = spawn("true");
  await once(gone, "exit");
  const one = await start();
  const other = await start();
  const dir = images();
  try {
    const layers = new Layers();
    const precopy = new Precopy(BYTES_MAX);
    assert.equal(await precopy.round([traced(gone.pid ?? -1, 9)], async () => {}), 0);
    // its number in this agent's view is another's by now
    const was = { ...traced(one.pid, 9), isAlive: async () => false };
    assert.equal(await precopy.round([was], async () => {}), 0);

    const again = new Precopy(BYTES_MAX);
    await again.round([traced(one.pid, 7)], layers.put);
    await again.round([traced(other.pid, 7)], layers.put);
    const memory = readMemory(other.pid, other.area, 600);
    again.follow(dir);
    writeImage(dir, 1, 7, other.area, memory);
    await again.reduce(dir, [traced(other.pid, 7)], layers.put);
    layers.assertHas(7, other.area, memory);
  } finally {
    one.end();
    other.end();
  }
});

test("no more is kept than was allowed; the rest is left to the dump", async () => {
  const program = await start();
  const dir = images();
  try {
    const layers = new Layers();
    const precopy = new Precopy(1 << 20);
    const tree = [traced(program.pid, 7)];
    assert.ok((await precopy.round(tree, layers.put)) <= 4 << 20);
    await precopy.round(tree, layers.put);
    const memory = readMemory(program.pid, program.area, 600);
    precopy.follow(dir);
    writeImage(dir, 1, 7, program.area, memory);
    await precopy.reduce(dir, tree, layers.put);
    layers.assertHas(7, program.area, memory);
  } finally {
    program.end();
  }
});

test("what is used of a reservation of terabytes is found, without looking at all of it", async () => {
  const program = await start(RESERVES);
  const used = program.area + 40 * 2 ** 30;
  try {
    const layers = new Layers();
    await new Precopy(BYTES_MAX).round([traced(program.pid, 7)], layers.put);
    const { runs } = decodePageMap(layers.files.get("layer-1/pagemap-7.img") ?? Buffer.alloc(0));
    assert.ok(runs.some((run) => used >= run.vaddr && used < run.vaddr + run.pages * PAGE_BYTES));
  } finally {
    program.end();
  }
});

test("own pages are the same, asked in one call or page by page", async () => {
  const program = await start();
  const pagemap = openSync(`/proc/${program.pid}/pagemap`, "r");
  try {
    const end = program.area + 600 * PAGE_BYTES;
    const ranges = [...ownPages(pagemap, program.area, end)];
    assert.deepEqual(ranges, [{ vaddr: program.area, pages: 600, isSwapped: false }]);
    assert.deepEqual([...byEntry(pagemap, program.area, end)], ranges);
  } finally {
    closeSync(pagemap);
    program.end();
  }
});

test("pages that are swapped out are a process's own, and are read as others are", {
  skip: swapKilobytes() > 32_768 ? false : "needs a machine with swap",
}, async () => {
  const program = await start(SWAPPED);
  const pagemap = openSync(`/proc/${program.pid}/pagemap`, "r");
  try {
    const end = program.area + 600 * PAGE_BYTES;
    const ranges = [...ownPages(pagemap, program.area, end)];
    assert.ok(ranges.some(({ isSwapped }) => isSwapped));
    assert.equal(
      ranges.reduce((pages, range) => pages + range.pages, 0),
      600,
    );
    assert.deepEqual([...byEntry(pagemap, program.area, end)], ranges);
    const memory = await FrozenMemory.open(7, traced(program.pid, 7));
    const read: Buffer[] = [];
    for await (const { bytes } of memory.read(program.area, 600)) read.push(Buffer.from(bytes));
    memory.close();
    assert.ok(Buffer.concat(read).equals(readMemory(program.pid, program.area, 600)));
  } finally {
    closeSync(pagemap);
    program.end();
  }
});

function swapKilobytes(): number {
  return Number(/^SwapFree:\s*(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "latin1"))?.[1] ?? 0);
}

function readMemory(pid: number, vaddr: number, pages: number): Buffer {
  const memory = openSync(`/proc/${pid}/mem`, "r");
  const bytes = Buffer.alloc(pages * PAGE_BYTES);
  readSync(memory, bytes, 0, bytes.length, vaddr);
  closeSync(memory);
  return bytes;
}
