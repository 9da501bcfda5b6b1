import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, closeSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { decodePageMap, encodePageMap, PAGE_BYTES } from "#control/criu/page-map.ts";
import { Precopy } from "#control/criu/precopy.ts";

/** A process that holds a known page pattern, changes one page a line of input, and says where its memory is. */
const PROGRAM = `
import ctypes, mmap, sys
pages = 600
area = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(pages): area[page * 4096 : page * 4096 + 8] = page.to_bytes(8, "little")
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
for line in sys.stdin:
    page = int(line)
    area[page * 4096 + 100] = (area[page * 4096 + 100] + 1) % 256
    print("changed", flush=True)
`;

class Layers {
  readonly files = new Map<string, Buffer>();

  put = async (layer: number, name: string, offset: number, bytes: Buffer): Promise<void> => {
    const key = `${layer}/${name}`;
    const before = this.files.get(key) ?? Buffer.alloc(0);
    assert.equal(offset, before.length, "pieces come in order");
    this.files.set(key, Buffer.concat([before, bytes]));
  };

  /** The page as CRIU would find it: in this layer or in one below. */
  page(layer: number, innerPid: number, vaddr: number): Buffer {
    const map = decodePageMap(this.files.get(`${layer}/pagemap-${innerPid}.img`) ?? Buffer.alloc(0));
    const pages = this.files.get(`${layer}/pages-${map.pagesId}.img`) ?? Buffer.alloc(0);
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
}

test("layers hold a live process's memory, and only what changed travels after", async () => {
  const child = spawn("python3", ["-u", "-c", PROGRAM], { stdio: ["pipe", "pipe", "inherit"] });
  const dir = mkdtempSync(join(tmpdir(), "holdfast-precopy-"));
  try {
    const [first] = (await once(child.stdout, "data")) as [Buffer];
    const area = Number(first.toString().trim());
    const pid = child.pid ?? -1;
    const layers = new Layers();
    const precopy = new Precopy([{ pid, innerPid: 7 }]);
    const firstBytes = await precopy.round(layers.put);
    assert.ok(firstBytes > 600 * PAGE_BYTES);
    child.stdin.write("41\n");
    await once(child.stdout, "data");
    const secondBytes = await precopy.round(layers.put);
    assert.ok(
      secondBytes >= PAGE_BYTES && secondBytes < firstBytes / 10,
      `${secondBytes} of ${firstBytes} again`,
    );
    child.stdin.write("42\n");
    await once(child.stdout, "data");
    process.kill(pid, "SIGSTOP");

    // what CRIU would dump of the area: all of it
    const memory = readMemory(pid, area, 600);
    precopy.follow(dir);
    for (let page = 0; page < 600; page += 50) {
      appendFileSync(join(dir, "pages-1.img"), memory.subarray(page * PAGE_BYTES, (page + 50) * PAGE_BYTES));
      await sleep(1); // the follower has a look in between, or not: the outcome is the same
    }
    writeFileSync(
      join(dir, "pagemap-7.img"),
      encodePageMap({ pagesId: 1, runs: [{ vaddr: area, pages: 600, where: "here" }] }),
    );
    const reduced = await precopy.reduce(dir);
    const changed = Buffer.concat(reduced.get("pages-1.img") ?? []);
    assert.equal(changed.length, PAGE_BYTES, "one page changed since the last round");
    assert.ok(changed.equals(memory.subarray(42 * PAGE_BYTES, 43 * PAGE_BYTES)));

    layers.files.set("3/pagemap-7.img", Buffer.concat(reduced.get("pagemap-7.img") ?? []));
    layers.files.set("3/pages-1.img", changed);
    for (let page = 0; page < 600; page++) {
      const found = layers.page(3, 7, area + page * PAGE_BYTES);
      assert.ok(found.equals(memory.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)), `page ${page}`);
    }
  } finally {
    child.kill("SIGKILL");
    rmSync(dir, { recursive: true, force: true });
  }
});

test("a dump in another order than the copy, and with pages of other processes, is reduced to the same", async () => {
  const child = spawn("python3", ["-u", "-c", PROGRAM], { stdio: ["pipe", "pipe", "inherit"] });
  const dir = mkdtempSync(join(tmpdir(), "holdfast-precopy-"));
  try {
    const [first] = (await once(child.stdout, "data")) as [Buffer];
    const area = Number(first.toString().trim());
    const pid = child.pid ?? -1;
    const precopy = new Precopy([{ pid, innerPid: 7 }]);
    await precopy.round(async () => {});
    process.kill(pid, "SIGSTOP");
    const memory = readMemory(pid, area, 600);
    const altered = Buffer.from(memory);
    for (const page of [0, 77, 78, 300, 599]) altered[page * PAGE_BYTES + 9] = 255;
    precopy.follow(dir);
    // not what the follower expects of pages-1.img: another process's pages
    writeFileSync(join(dir, "pages-1.img"), Buffer.concat([memory.subarray(400 * PAGE_BYTES), memory]));
    writeFileSync(join(dir, "pages-2.img"), altered);
    await sleep(20);
    writeFileSync(
      join(dir, "pagemap-7.img"),
      encodePageMap({ pagesId: 2, runs: [{ vaddr: area, pages: 600, where: "here" }] }),
    );
    const reduced = await precopy.reduce(dir);
    assert.equal(Buffer.concat(reduced.get("pages-2.img") ?? []).length, 5 * PAGE_BYTES);
    const { runs } = decodePageMap(Buffer.concat(reduced.get("pagemap-7.img") ?? []));
    const here = runs
      .filter((run) => run.where === "here")
      .map((run) => [(run.vaddr - area) / PAGE_BYTES, run.pages]);
    assert.deepEqual(here, [
      [0, 1],
      [77, 2],
      [300, 1],
      [599, 1],
    ]);
  } finally {
    child.kill("SIGKILL");
    rmSync(dir, { recursive: true, force: true });
  }
});

test("a process that has ended has no memory", async () => {
  const child = spawn("true");
  await once(child, "exit");
  const precopy = new Precopy([{ pid: child.pid ?? -1, innerPid: 1 }]);
  assert.equal(await precopy.round(async () => {}), 0);
});

function readMemory(pid: number, vaddr: number, pages: number): Buffer {
  const memory = openSync(`/proc/${pid}/mem`, "r");
  const bytes = Buffer.alloc(pages * PAGE_BYTES);
  readSync(memory, bytes, 0, bytes.length, vaddr);
  closeSync(memory);
  return bytes;
}
