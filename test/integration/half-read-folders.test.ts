/** Folders that a program is in the middle of reading: a real program, and a folder in /tmp. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, it } from "node:test";
import { halfReadFolders, refuseHalfReadFolders } from "#control/migration/half-read-folders.ts";
import { checkFolders } from "#control/workload/preflight/folders.ts";

const skip = process.getuid?.() === 0 ? false : "needs root: pidfd_getfd(2)";
const NAMES = 2_000;
/** Reads a batch of names for each line that it is sent, and says how many it has read by now, each once, or deletes those; `loop`: over and over, and ends with its input; `others`: begins, and leaves it for a file. */
const READER = `
import ctypes, os, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
folder = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
buffer = ctypes.create_string_buffer(4096)
seen = []
def batch():
    size = libc.getdents64(folder, buffer, len(buffer))
    assert size >= 0
    at = 0
    while at < size:
        length, = struct.unpack_from("H", buffer.raw, at + 16)
        seen.append(buffer.raw[at + 19:at + length].split(b"\\0")[0])
        at += length
    return size
def loop():
    while True:
        if batch() == 0: os.lseek(folder, 0, 0)
def others():
    while True:
        fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
        libc.getdents64(fd, buffer, len(buffer))
        os.close(fd)
        os.close(os.open("/etc/passwd", os.O_RDONLY))
if sys.argv[2] != "asked": threading.Thread(target={"loop": loop, "others": others}[sys.argv[2]], daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "delete":
        for name in seen:
            if name not in (b".", b".."): os.unlink(name, dir_fd=folder)
        print(len(seen), flush=True)
        continue
    while batch() > 0 and line.strip() == "all": pass
    assert len(seen) == len(set(seen))
    print(len(seen), flush=True)
os._exit(0)
`;

describe("a folder in the middle of which a program is", { skip }, () => {
  let folder: string;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), "hf-half-"));
    for (let at = 0; at < NAMES; at++) writeFileSync(join(folder, `name-${at}`), "");
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  /** What is in /proc/PID/mountinfo travels, whatever it is. */
  const container = (pid: number): { init: { pid: number }; travels: string[] } => ({
    init: { pid },
    travels: readFileSync(`/proc/${pid}/mountinfo`, "utf8")
      .trim()
      .split("\n")
      .map((line) => line.split(" ")[4] as string),
  });

  async function withReader(
    how: "asked" | "loop" | "others",
    use: (reader: {
      pid: number;
      read(what: "batch" | "all" | "delete"): Promise<number>;
      isRunning(): boolean;
    }) => Promise<void>,
    [command, ...args]: [string, ...string[]] = ["python3"],
  ): Promise<void> {
    const program = spawn(command, [...args, "-c", READER, folder, how], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    const ended = once(program, "exit");
    const lines = createInterface(program.stdout);
    try {
      await once(lines, "line");
      const read = async (what: string): Promise<number> => {
        const said = once(lines, "line");
        program.stdin.write(`${what}\n`);
        return Number((await said)[0]);
      };
      const isRunning = (): boolean => program.exitCode === null && program.signalCode === null;
      await use({ pid: program.pid as number, read, isRunning });
    } finally {
      program.kill("SIGCONT");
      program.stdin.end();
      await ended;
    }
  }

  async function found(pid: number): Promise<string[]> {
    const ids: string[] = [];
    await checkFolders(container(pid), [pid], (id, severity, what, _cure, subject) => {
      ids.push(`${id} ${severity}`);
      assert.equal(subject?.path, folder);
      assert.match(what, /is in the middle of reading the folder/);
    });
    return ids;
  }

  it("is told of where it stays there, and neither at its beginning nor at its end; the program reads on as if nobody had looked", () =>
    withReader("asked", async ({ pid, read }) => {
      assert.deepEqual(await found(pid), []);
      assert.ok((await read("batch")) < NAMES);
      assert.deepEqual(await found(pid), ["descriptor.folder-half-read error"]);
      assert.equal(await read("all"), NAMES + 2, "with . and ..");
      assert.deepEqual(await found(pid), []);
    }));

  it("is not told of where it reads on", () =>
    withReader("loop", async ({ pid }) => assert.deepEqual(await found(pid), [])));

  it("is none where the descriptor has become another file's", () =>
    withReader("others", async ({ pid, isRunning }) => {
      for (let looks = 0; looks < 2_000; looks++)
        for (const { path } of await halfReadFolders(container(pid), [pid])) assert.equal(path, folder);
      assert.ok(isRunning(), "it goes on, whatever was looked at");
    }));

  it("is not told of on a mount whose files stay", () =>
    withReader("asked", async ({ pid, read }) => {
      await read("batch");
      const ids: string[] = [];
      // a container without mounts
      await checkFolders({ init: { pid: 0 }, travels: [] }, [pid], (id) => ids.push(id));
      assert.deepEqual(ids, []);
    }));

  const stopped = async <T>(pid: number, use: () => Promise<T>): Promise<T> => {
    process.kill(pid, "SIGSTOP");
    try {
      return await use();
    } finally {
      process.kill(pid, "SIGCONT");
    }
  };

  it("is refused in a frozen tree, and stays where it was; at its end it is not", () =>
    withReader("asked", async ({ pid, read }) => {
      await read("batch");
      const fdinfo = (): string => readFileSync(`/proc/${pid}/fdinfo/3`, "utf8");
      const was = fdinfo();
      await stopped(pid, () =>
        assert.rejects(refuseHalfReadFolders(container(pid), [pid]), {
          code: "FILE_UNMOVABLE",
          retryable: true,
        }),
      );
      assert.equal(fdinfo(), was);
      assert.equal(await read("all"), NAMES + 2, "with . and ..");
      const atEnd = fdinfo();
      assert.match(atEnd, /^pos:\s*[1-9]/m);
      await stopped(pid, () => refuseHalfReadFolders(container(pid), [pid]));
      assert.equal(fdinfo(), atEnd);
    }));

  // ramfs has what tmpfs had before Linux 6.6: positions that count the names which are left (dcache_readdir() in fs/libfs.c)
  it("keeps its place where the names before it were deleted, on a file system that counts names", () => {
    const make = `mount -t ramfs none "$2" && cd "$2" && seq -f name-%g ${NAMES} | xargs touch && exec python3 -c "$1" "$2" "$3"`;
    return withReader(
      "asked",
      async ({ pid, read }) => {
        assert.ok((await read("batch")) < NAMES / 2);
        await read("delete");
        await stopped(pid, () =>
          assert.rejects(refuseHalfReadFolders(container(pid), [pid]), { code: "FILE_UNMOVABLE" }),
        );
        assert.equal(await read("all"), NAMES + 2, "with . and ..");
        await stopped(pid, () => refuseHalfReadFolders(container(pid), [pid]));
      },
      ["unshare", "--mount", "sh", "-c", make],
    );
  });
});
