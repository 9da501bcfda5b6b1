/** CRIU itself, with memory that was copied before it dumps: what it writes, what it leaves, and what is there after the restore. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { withCriuReason } from "#control/criu/failure.ts";
import { type ImagePiece, ImageReceiver, ImageSender } from "#control/criu/images.ts";
import { PrecopyRounds } from "#control/criu/precopy-rounds.ts";
import { type CriuOptions, decodeStats } from "#control/criu/protocol.ts";
import { makeStandIn, standInFor } from "#control/criu/stand-in.ts";
import { findCriu } from "#control/criu/tool.ts";
import { CriuWorker, canLeavePages, kernelCacheOf } from "#control/criu/worker.ts";
import { tracedTree } from "#control/migration/traced-tree.ts";
import { memoryOf, restoredMemory, verifyMemory } from "#control/migration/verify-memory.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import { lacking, until } from "../support/moved-program.ts";

const skip = lacking("python3");
const BYTES_MAX = 2 ** 30;
const PAGES = 512;
const CACHE = process.env.HOLDFAST_CACHE ?? "/var/cache/holdfast";

/**
 * Memory of each kind that CRIU treats otherwise, with something else in every page: to be read and written, only read, without any
 * permission, of a file and changed, shared; and a child that has the same, half of it written anew. SIGUSR1 changes six pages.
 */
const PROGRAM = `
import ctypes, mmap, os, signal, sys
libc = ctypes.CDLL(None)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGES, PRIVATE, SHARED = ${PAGES}, mmap.MAP_PRIVATE, mmap.MAP_SHARED
def put(area, first, step, what):
    for page in range(first, PAGES, step): area[page * 4096 : page * 4096 + 8] = (what * PAGES + page).to_bytes(8, "little")
def address(area): return ctypes.addressof(ctypes.c_char.from_buffer(area))
program = open(sys.executable, "rb")
areas = [mmap.mmap(-1, PAGES * 4096, flags=PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(3)]
areas.append(mmap.mmap(program.fileno(), PAGES * 4096, flags=PRIVATE, prot=3))
areas.append(mmap.mmap(-1, PAGES * 4096, flags=SHARED | mmap.MAP_ANONYMOUS))
for what, area in enumerate(areas): put(area, 0, 1, what + 1)
plain, readable, closed = areas[:3]
libc.mprotect(address(readable), PAGES * 4096, 1)
libc.mprotect(address(closed), PAGES * 4096, 0)
def change(*_):
    put(plain, 0, 100, 7)
    print("changed", flush=True)
if os.fork() == 0:
    put(plain, 0, 2, 9)
    print("child", flush=True)
    while True: signal.pause()
signal.signal(signal.SIGUSR1, change)
print("parent", flush=True)
while True: signal.pause()
`;

interface Program {
  pid: number;
  /** folders: CRIU dumps into one, and restores from the other */
  source: string;
  target: string;
  /** resolves when it has said the word */
  said(word: string): Promise<void>;
  ended: Promise<unknown>;
}

async function start(t: TestContext): Promise<Program> {
  const dir = mkdtempSync(join(tmpdir(), "hf-criu-memory-"));
  mounts.mount("tmpfs", "holdfast", dir, 0);
  const [source, target, words] = [join(dir, "source"), join(dir, "target"), join(dir, "words")];
  for (const folder of [source, target]) mkdirSync(folder);
  const [input, output] = [openSync("/dev/null", "r"), openSync(words, "a")];
  // not a child of ours: Node would take what only who traces it is to hear
  const child = spawn("/bin/sh", ["-c", 'setsid /usr/bin/python3 -u -c "$0" & wait', PROGRAM], {
    stdio: [input, output, output],
    cwd: "/",
  });
  for (const fd of [input, output]) closeSync(fd);
  const pid = await childOf(child.pid ?? -1);
  t.after(async () => {
    await end(pid);
    mounts.unmount(dir);
    rmSync(dir, { recursive: true, force: true });
  });
  const said = async (word: string): Promise<void> => {
    for (let text = ""; !text.includes(`${word}\n`); await delay(5)) {
      text = readFileSync(words, "utf8");
      assert.equal(child.exitCode, null, text);
    }
  };
  return { pid, source, target, said, ended: once(child, "exit") };
}

async function childOf(pid: number): Promise<number> {
  let child = 0;
  await until("it has a child", async () => {
    child = Number(readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim());
    return child > 0;
  });
  return child;
}

/** Resolves when their numbers are free. */
async function end(root: number): Promise<void> {
  const tree = await tracedTree(root);
  for (const { pid } of tree.toReversed()) process.kill(pid, "SIGKILL");
  await until("the processes have gone", async () => tree.every(({ pid }) => !existsSync(`/proc/${pid}`)));
}

for (const way of ["compared", "tracked"] as const)
  test(`CRIU copies nothing that a process can read, knows the kernel already, and all memory is there again, ${way}`, {
    skip,
  }, async (t) => {
    const criu = (await findCriu(CACHE)).sealed();
    const { tracksMemory } = await kernelCacheOf(criu);
    if (tracksMemory) return t.skip("this kernel tells which pages were written");
    assert.ok(await canLeavePages(criu), "CRIU can be had to leave pages where they are");
    const { pid, source, target, said, ended } = await start(t);
    await said("parent");
    await said("child");
    const tree = () => tracedTree(pid);
    const receiver = new ImageReceiver(target, BYTES_MAX);
    const receive = (pieces: ImagePiece[]): void => {
      for (const { name, offset, bytes, from } of pieces)
        if (from === undefined) receiver.write(name, offset, bytes);
        else receiver.copy(name, offset, bytes.length, from);
    };
    /** null: nothing is late */
    let late: ImagePiece[] | null = null;
    const sender = new ImageSender(source, async (pieces) => {
      if (late === null) receive(pieces);
      else late.push(...pieces.map((piece) => ({ ...piece, bytes: Buffer.from(piece.bytes) })));
    });
    t.after(() => sender.close());
    const { signal } = new AbortController();
    const rounds = new PrecopyRounds(BYTES_MAX);
    await sender.sendLayers(tree, BYTES_MAX, rounds, signal, way === "tracked" ? 0 : undefined);
    process.kill(pid, "SIGUSR1");
    await said("changed");

    const options = { criu, initPid: process.pid, cgroupProcs: [], inherit: [], outlivesAgent: false };
    const request: Omit<CriuOptions, "imagesDir" | "logFile"> = {
      logLevel: 4,
      ghostLimitBytes: 1 << 20,
      leave: "stopped",
    };
    let trackedProcesses = -1;
    const dumping = await CriuWorker.start({ ...options, imagesDir: source, leavesPages: true });
    const parentDir = makeStandIn(source);
    sender.start(true);
    await dumping.request("DUMP", { ...request, pid, parentDir, logFile: "dump.log" }, async (hook) => {
      if (hook !== "query-ext-files") return;
      const frozen = await tree();
      standInFor(
        source,
        frozen.map(({ innerPid }) => innerPid),
      );
      await sender.lookAt(frozen);
      trackedProcesses = sender.trackedProcesses;
    });
    await dumping.close();
    const stopped = await memoryOf(pid, source);
    const layersBytes = sender.sentBytes;
    const others = await sender.sendOthers();
    receiver.verifySome(others);
    assert.throws(() => receiver.write("inventory.img", others["inventory.img"] ?? 0, Buffer.alloc(1)), {
      code: "IMAGE_REFUSED",
    });
    late = [];
    const memory = await sender.finish(tree);
    const manifest = { ...others, ...memory };
    assert.ok(Object.keys(others).every((name) => !/pages|pagemap/.test(name)));
    assert.ok(Object.keys(memory).every((name) => /pages|pagemap/.test(name)));

    assert.equal(trackedProcesses, way === "tracked" ? 2 : 0);
    const written = decodeStats(readFileSync(join(source, "stats-dump"))).dump?.pagesWritten ?? -1;
    assert.equal(written, 2 * PAGES, "what nobody may read, of both processes");
    assert.ok(Object.keys(manifest).every((name) => !/earlier|parent|kdat/.test(name)));
    const pages = stopped.body.length / 12;
    assert.ok(pages > 7 * PAGES, `${pages} in all`);
    // the shared area is not copied ahead
    assert.ok(sender.sentBytes - layersBytes < 2 * PAGES * 4096, `${sender.sentBytes - layersBytes} bytes`);

    await end(pid);
    await ended;
    const restoring = await CriuWorker.start({ ...options, imagesDir: target });
    const giveMemory = async (hook: string): Promise<void> => {
      if (hook !== "pre-restore" || late === null) return;
      receive(late);
      late = null;
      receiver.verify(memory);
      receiver.close();
      receiver.linkLayers();
    };
    await restoring
      .request("RESTORE", { ...request, logFile: "restore.log" }, giveMemory)
      .catch(async (error) =>
        Promise.reject(await withCriuReason(error, "CRIU_RESTORE", `${target}/restore.log`)),
      );
    await restoring.close();
    assert.equal(late, null, "CRIU has asked for memory");
    await verifyMemory(pid, await restoredMemory(pid, target), stopped.call, stopped.body);

    for (const log of [join(source, "dump.log"), join(target, "restore.log")])
      assert.match(readFileSync(log, "utf8"), /Loaded kdat cache from criu\.kdat/);
  });
