import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
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
    writeFileSync(
      join(dir, "pagemap-7.img"),
      encodePageMap({ pagesId: 3, runs: [{ vaddr: area, pages: 600, where: "here" }] }),
    );
    writeFileSync(join(dir, "pages-3.img"), memory);
    const reduced = precopy.reduce(dir);
    const changed = Buffer.concat(reduced.get("pages-3.img") ?? []);
    assert.equal(changed.length, PAGE_BYTES, "one page changed since the last round");
    assert.ok(changed.equals(memory.subarray(42 * PAGE_BYTES, 43 * PAGE_BYTES)));

    layers.files.set("3/pagemap-7.img", Buffer.concat(reduced.get("pagemap-7.img") ?? []));
    layers.files.set("3/pages-3.img", changed);
    for (let page = 0; page < 600; page++) {
      const found = layers.page(3, 7, area + page * PAGE_BYTES);
      assert.ok(found.equals(memory.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)), `page ${page}`);
    }
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
