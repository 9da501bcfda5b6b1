/**
 * Watches of inotify(7) across moves, there and back: on files of the image, of the writable layer, of tmpfs, of mounts; deleted,
 * renamed, linked ones; with events that were not read yet.
 */
import assert from "node:assert/strict";
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { lacking, type MovedProgram, until } from "../support/moved-program.ts";
import { type Run, withPythonShell } from "../support/python-shell.ts";

/** Python: what an instance has to read, without the cookies; and its watches. */
const helpers = `
def unread(fd):
    n = array.array("i", [0]); fcntl.ioctl(fd, 0x541B, n)
    return n[0]
def events(fd):
    out = []
    data = os.read(fd, 1 << 20) if unread(fd) else b""
    while data:
        wd, mask, cookie, n = struct.unpack("iIII", data[:16])
        out.append((wd, mask, cookie != 0, data[16:16 + n].rstrip(b"\\0").decode())); data = data[16 + n:]
    return out
def watches(fd):
    return sorted((int(l.split()[1][3:], 16), l.split()[4]) for l in open("/proc/self/fdinfo/%d" % fd) if l.startswith("inotify"))
def add(fd, path, mask):
    wd = libc.inotify_add_watch(fd, path.encode(), ctypes.c_uint32(mask))
    if wd < 0: raise OSError(ctypes.get_errno(), path)
    return wd
def touch(path, text=""):
    with open(path, "a") as f: f.write(text)
`;

async function define(run: Run): Promise<void> {
  assert.equal(await run(`exec(${JSON.stringify(helpers)}, scope)`), "None");
}

async function does(run: Run, ...lines: string[]): Promise<void> {
  for (const line of lines) assert.doesNotMatch(await run(line), /^ERROR/, line);
}

/** To the other node and back; `look` is asked on both. */
async function thereAndBack(program: MovedProgram, look: (node: string) => Promise<void>): Promise<void> {
  for (const node of ["b", "a"]) {
    await program.move(node);
    await look(node);
  }
}

describe("watches on files", { skip: lacking("runc", "python3"), concurrency: false }, () => {
  test("keep their numbers and tell of changes after moves, wherever the file is", async () => {
    await withPythonShell({}, async (program, run) => {
      await define(run);
      const places: Record<string, { path: string; prepare?: string; change: (round: number) => string }> = {
        "a file of the image": {
          path: "/etc/hostname",
          change: () => `os.utime("/etc/hostname")`,
        },
        "a folder of the image": { path: "/etc", change: (round) => `touch("/etc/new${round}")` },
        "a file of the layer": {
          path: "/var/lib/x/f",
          prepare: `os.makedirs("/var/lib/x"); touch("/var/lib/x/f")`,
          change: () => `touch("/var/lib/x/f", "y")`,
        },
        "a folder of the layer": { path: "/var/lib/x", change: (round) => `touch("/var/lib/x/${round}")` },
        "a file of the image that was changed": {
          path: "/etc/issue",
          prepare: `touch("/etc/issue", "y")`,
          change: () => `touch("/etc/issue", "y")`,
        },
        "a file of the image that was renamed": {
          path: "/etc/issue.old",
          prepare: `os.rename("/etc/issue.net", "/etc/issue.old"); touch("/etc/issue.net")`,
          change: () => `touch("/etc/issue.old", "y")`,
        },
        "a file with two names in the image": {
          path: "/usr/bin/perl",
          change: () => `os.utime("/usr/bin/perl")`,
        },
        "a link to a file": {
          path: "/run/link",
          prepare: `touch("/run/file"); os.link("/run/file", "/run/link")`,
          change: () => `touch("/run/link", "y")`,
        },
        "a file of a tmpfs": {
          path: "/dev/shm/f",
          prepare: `touch("/dev/shm/f")`,
          change: () => `touch("/dev/shm/f", "y")`,
        },
        "the root of a tmpfs": { path: "/run", change: (round) => `touch("/run/${round}")` },
        "a file of a mount": { path: "/srv/shell.py", change: () => `open("/srv/shell.py").close()` },
        "the root": { path: "/", change: (round) => `touch("/new${round}")` },
        "a name with other bytes": {
          path: "/var/lib/ü \\n",
          prepare: `os.makedirs("/var/lib/ü \\n")`,
          change: (round) => `touch("/var/lib/ü \\n/${round}")`,
        },
      };
      await does(run, `fds = {}`, `numbers = {}`);
      for (const [name, { path, prepare }] of Object.entries(places)) {
        if (prepare !== undefined) await does(run, prepare);
        await does(
          run,
          `fds["${name}"] = libc.inotify_init1(0o4000)`,
          `numbers["${name}"] = add(fds["${name}"], "${path}", 0x126)`, // create, modify, attrib, open
        );
      }
      await does(run, `[events(fd) for fd in fds.values()]`);
      await thereAndBack(program, async (node) => {
        for (const [name, { change }] of Object.entries(places)) {
          assert.equal(await run(`events(fds["${name}"])`), "[]", `${name}: an event that nobody caused`);
          await does(run, change(node === "b" ? 1 : 2));
          assert.equal(
            await run(`{e[0] for e in events(fds["${name}"])} == {numbers["${name}"]}`),
            "True",
            `${name}: not told of a change on ${node}`,
          );
          await does(run, `[events(fd) for fd in fds.values()]`);
        }
      });
    });
  });

  test("keep flags, gaps between numbers, and the number that the next one gets", async () => {
    await withPythonShell({}, async (program, run) => {
      await define(run);
      await does(
        run,
        `os.makedirs("/var/lib/w")`,
        `[touch("/var/lib/w/%d" % i) for i in range(20)]`,
        `IN = libc.inotify_init1(0o4000)`,
        `[add(IN, "/var/lib/w/%d" % i, 0x2) for i in range(20)]`,
        `[libc.inotify_rm_watch(IN, wd) for wd in (1, 5, 6, 19, 20)]`,
        `add(IN, "/var/lib/w/1", 0x80000002)`, // IN_ONESHOT
        `add(IN, "/var/lib/w", 0x04000102)`, // IN_EXCL_UNLINK
        `len(events(IN))`,
        // inherited: one instance, two processes and two descriptors
        `DUP = os.dup(IN)`,
        `child = subprocess.Popen(["sleep", "1000"], pass_fds=[IN])`,
        `EMPTY = libc.inotify_init1(0)`,
        `signals = []`,
        `signal.signal(signal.SIGIO, lambda *_: signals.append(1))`,
        `fcntl.fcntl(EMPTY, fcntl.F_SETOWN, os.getpid())`,
        `fcntl.fcntl(EMPTY, fcntl.F_SETFL, 0o20000)`, // O_ASYNC
      );
      const before = await run(`watches(IN)`);
      let next = 22;
      await thereAndBack(program, async () => {
        assert.equal(await run(`watches(IN)`), before);
        assert.equal(await run(`watches(DUP)`), before);
        assert.equal(await run(`events(IN)`), "[]");
        assert.equal(await run(`add(IN, "/etc/hostname", 2)`), String(next++));
        await does(run, `libc.inotify_rm_watch(IN, ${next - 1})`, `events(IN)`);
        assert.equal(await run(`(unread(EMPTY), signals)`), "(0, [])");
      });
      await does(run, `add(EMPTY, "/var/lib/w", 0x2)`, `touch("/var/lib/w/1", "x")`);
      assert.equal(await run(`len(signals)`), "1");
      assert.equal(
        await run(`[e[:2] for e in events(IN) if e[0] == 2]`),
        `[(2, 2), (2, 32768)]`,
        "IN_ONESHOT is no longer that",
      );
    });
  });

  test("are never on another file: deleted, replaced and unlinked ones are told apart", async () => {
    await withPythonShell({}, async (program, run) => {
      await define(run);
      await does(
        run,
        `os.makedirs("/var/lib/d")`,
        `OPEN = open("/var/lib/d/gone", "w")`,
        `SHM = open("/dev/shm/gone", "w")`,
        `IN = libc.inotify_init1(0o4000)`,
        `wds = [add(IN, "/var/lib/d/gone", 2), add(IN, "/dev/shm/gone", 2)]`,
        `os.unlink("/var/lib/d/gone"); os.unlink("/dev/shm/gone")`,
        `touch("/var/lib/d/gone"); touch("/dev/shm/gone")`,
        `events(IN)`,
      );
      await thereAndBack(program, async () => {
        await does(run, `touch("/var/lib/d/gone", "x"); touch("/dev/shm/gone", "x")`);
        assert.equal(await run(`events(IN)`), "[]", "a file of the same name is watched");
        await does(run, `OPEN.write("x"); OPEN.flush()`, `SHM.write("x"); SHM.flush()`);
        assert.equal(await run(`[e[0] for e in events(IN)] == wds`), "True");
      });
    });
  });

  test("keep what was not read yet, in order and once", async () => {
    await withPythonShell({}, async (program, run) => {
      await define(run);
      await does(
        run,
        `os.makedirs("/var/lib/p/sub")`,
        `os.makedirs("/tmp/q")`,
        `IN = libc.inotify_init1(0o4000)`,
        `[add(IN, p, 0xfff) for p in ("/var/lib/p", "/var/lib/p/sub", "/tmp/q")]`,
        `touch("/var/lib/p/a", "text"); os.rename("/var/lib/p/a", "/var/lib/p/sub/b"); os.chmod("/var/lib/p/sub", 0o700)`,
        `os.rename("/var/lib/p/sub/b", "/tmp/q2"); os.rmdir("/tmp/q"); open("/var/lib/p/none", "w").close()`,
        // a reader that waits, and has to go on waiting
        `WAIT = libc.inotify_init1(0)`,
        `add(WAIT, "/var/lib/p", 0x100)`,
        `got = []`,
        `threading.Thread(target=lambda: [got.append(os.read(WAIT, 4096)) for _ in range(2)], daemon=True).start()`,
      );
      // a twin tells what there is to read
      await does(
        run,
        `bytes_before = unread(IN)`,
        `bytes_before > 200 or (_ for _ in ()).throw(Exception(bytes_before))`,
      );
      await program.move("b");
      assert.equal(await run(`unread(IN) == bytes_before`), "True");
      await program.move("a");
      assert.equal(await run(`got`), "[]");
      const told = await run(`events(IN)`);
      const isFolder = 0x40000000;
      assert.equal(
        told,
        [
          [1, 0x100, "False", "a"],
          [1, 0x20, "False", "a"],
          [1, 0x2, "False", "a"],
          [1, 0x8, "False", "a"],
          [1, 0x40, "True", "a"],
          [2, 0x80, "True", "b"],
          [1, 0x4 | isFolder, "False", "sub"],
          [2, 0x4 | isFolder, "False", ""],
          [2, 0x40, "True", "b"],
          [3, 0x400, "False", ""],
          [3, 0x8000, "False", ""],
          [1, 0x100, "False", "none"],
          [1, 0x20, "False", "none"],
          [1, 0x8, "False", "none"],
        ]
          .map(([wd, mask, cookie, name]) => `(${wd}, ${mask}, ${cookie}, '${name}')`)
          .join(", ")
          .replace(/^/, "[")
          .replace(/$/, "]"),
      );
      await does(run, `touch("/var/lib/p/later")`, `time.sleep(0.2)`);
      assert.equal(await run(`len(got)`), "1");
      assert.equal(await run(`len(events(IN)) > 0`), "True");
    });
  });

  test("are there in an image of its own, too", async () => {
    const rootfs = mkdtempSync(join(tmpdir(), "hf-image-"));
    try {
      for (const folder of ["usr", "lib", "lib64", "bin"])
        cpSync(`/${folder}`, join(rootfs, folder), {
          recursive: true,
          verbatimSymlinks: true,
          filter: isPython,
        });
      for (const folder of ["etc", "proc", "sys", "dev", "srv", "var", "app"])
        mkdirSync(join(rootfs, folder));
      writeFileSync(join(rootfs, "etc", "conf"), "1");
      await withPythonShell({ workload: { container: { rootfs } } }, async (program, run) => {
        await define(run);
        await does(
          run,
          `IN = libc.inotify_init1(0o4000)`,
          `add(IN, "/etc/conf", 2)`,
          `add(IN, "/app", 0x100)`,
          `add(IN, "/dev/shm", 0x100)`,
          `events(IN)`,
        );
        let round = 0;
        await thereAndBack(program, async () => {
          await does(run, `touch("/etc/conf", "2"); touch("/app/${++round}"); touch("/dev/shm/${round}")`);
          assert.equal(await run(`[e[0] for e in events(IN)]`), "[1, 2, 3]");
        });
      });
    } finally {
      rmSync(rootfs, { recursive: true });
    }
  });
});

describe("programs that watch files", {
  skip: lacking("runc", "python3", "tail"),
  concurrency: false,
}, () => {
  /** Python: what a child wrote, once `text` is among it. */
  const reading = `
def until(child, text):
    got = b""
    end = time.monotonic() + 60
    while text not in got and time.monotonic() < end:
        if select.select([child.stdout], [], [], 0.1)[0]: got += os.read(child.stdout.fileno(), 65536)
    return got.decode() if text in got else "NOT THERE: " + got.decode()
`;

  test("tail -F, which polls on an overlay, goes on with a log that is written and rotated", async () => {
    await withPythonShell({}, async (program, run) => {
      await define(run);
      await does(
        run,
        `exec(${JSON.stringify(reading)}, scope)`,
        `touch("/var/lib/log", "first\\n")`,
        `tail = subprocess.Popen(["tail", "-F", "/var/lib/log"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)`,
      );
      assert.equal(await run(`until(tail, b"first\\n")`), `'first\\n'`, "tail has not begun");
      await thereAndBack(program, async (node) => {
        await does(run, `touch("/var/lib/log", "on ${node}\\n")`);
        assert.equal(await run(`until(tail, b"on ${node}\\n")`), `'on ${node}\\n'`);
        await does(
          run,
          `os.rename("/var/lib/log", "/var/lib/log.${node}"); touch("/var/lib/log", "new ${node}\\n")`,
        );
        assert.equal(await run(`until(tail, b"new ${node}\\n")`), `'new ${node}\\n'`);
      });
    });
  });

  test("fs.watch of Node, recursive and of single files, goes on", async () => {
    const script = `
      const fs = require("node:fs");
      const say = (what) => (kind, name) => console.log(what, kind, name);
      fs.watch("/var/lib/site", { recursive: true }, say("tree"));
      fs.watch("/var/lib/conf.json", say("file"));
      fs.watch("/etc/hostname", say("image"));
      setTimeout(() => console.log("ready"), 300);
    `;
    await withPythonShell({}, async (program, run) => {
      await define(run);
      await does(
        run,
        `exec(${JSON.stringify(reading)}, scope)`,
        `[os.makedirs("/var/lib/site/%d/below" % i) for i in range(50)]`,
        `[touch("/var/lib/site/%d/below/page" % i) for i in range(50)]`,
        `touch("/var/lib/conf.json", "{}")`,
        `node = subprocess.Popen([${JSON.stringify(process.execPath)}, "-e", ${JSON.stringify(script)}], stdout=subprocess.PIPE)`,
      );
      assert.match(await run(`until(node, b"ready")`), /ready/);
      await thereAndBack(program, async (at) => {
        await does(run, `touch("/var/lib/site/7/below/page", "x")`);
        assert.match(await run(`until(node, b"below/page")`), /tree change 7\/below\/page/);
        await does(run, `touch("/var/lib/conf.json", "x")`);
        assert.match(await run(`until(node, b"conf.json")`), /file change conf.json/);
        await does(run, `touch("/etc/hostname")`, `os.utime("/etc/hostname")`);
        assert.match(await run(`until(node, b"hostname")`), /image change hostname/);
        await does(run, `touch("/var/lib/site/9/${at}")`);
        assert.match(await run(`until(node, b"9/${at}")`), new RegExp(`tree rename 9/${at}`));
      });
    });
  });
});

describe("descriptors that cannot move", { skip: lacking("runc", "python3"), concurrency: false }, () => {
  test("are found by check, and refused before a client is held", async () => {
    await withPythonShell({}, async (program, run) => {
      const refusal = async (id: string): Promise<void> => {
        const { findings } = await program.ask<{ findings: { id: string }[] }>("GET", "/v1/check");
        assert.deepEqual(
          findings.filter((finding) => finding.id === id).map((finding) => finding.id),
          [id],
          JSON.stringify(findings),
        );
        const move = await program.tryMove("b");
        assert.ok(!("error" in move) && !("hold" in move.phasesMs), JSON.stringify(move));
      };
      await does(run, `FOLDER = os.open("/var/lib", os.O_RDONLY)`, `fcntl.fcntl(FOLDER, 1026, 0x80000004)`);
      await refusal("descriptor.folder-notification");
      await does(run, `os.close(FOLDER)`, `SECRET = libc.syscall(447, 0)`);
      if ((await run(`SECRET`)) !== "-1") await refusal("descriptor.memfd-secret");
    });
  });
});

/** Python: a folder of which about a fortieth is read at a time; `wander` is at another place of it each moment, never at its beginning or end. */
const manyNames = `
import threading
os.makedirs("/var/lib/many")
for n in range(2000): touch("/var/lib/many/name-%d" % n)
MANY = os.open("/var/lib/many", os.O_RDONLY); BATCH = ctypes.create_string_buffer(2048)
def batch(): return libc.getdents64(MANY, BATCH, len(BATCH))
def wander(places):
    while not settled.is_set():
        for place in places: os.lseek(MANY, place, 0)
settled = threading.Event()
`;

describe("folders that a program is in the middle of reading", {
  skip: lacking("runc", "python3"),
  concurrency: false,
}, () => {
  test("are refused before a client is held where it stays there, rolled back where it goes on, and move when it has read them", async () => {
    await withPythonShell({}, async (program, run) => {
      await define(run);
      assert.equal(await run(`exec(${JSON.stringify(manyNames)}, scope)`), "None");
      const half = async (): Promise<string[]> =>
        (await program.findings()).map(({ id }) => id).filter((id) => id === "descriptor.folder-half-read");
      await does(run, "batch()", "batch()");
      assert.deepEqual(await half(), ["descriptor.folder-half-read"]);
      const stays = await program.tryMove("b");
      assert.ok(!("error" in stays) && stays.outcome === "rolled-back" && stays.holdMs === 0);
      await does(run, "PLACES = [batch() and os.lseek(MANY, 0, 1) for n in range(20)]");
      assert.equal(await run("len(set(PLACES))"), "20");
      await does(run, "MOVING = threading.Thread(target=wander, args=(PLACES,))", "MOVING.start()");
      assert.deepEqual(await half(), []);
      const goesOn = await program.tryMove("b");
      assert.ok(!("error" in goesOn) && goesOn.outcome === "rolled-back", JSON.stringify(goesOn));
      assert.match(goesOn.reason ?? "", /in the middle of reading the folder \/var\/lib\/many /);
      await does(run, "settled.set()", "MOVING.join()", "[n for n in iter(batch, 0)]");
      assert.deepEqual(await half(), []);
      await program.move("b");
      assert.equal(await run("batch()"), "0", "it is at its end there");
    });
  });
});

describe("watches where a move fails", { skip: lacking("runc", "python3"), concurrency: false }, () => {
  const prepare = [
    `os.makedirs("/var/lib/r")`,
    `IN = libc.inotify_init1(0o4000)`,
    `add(IN, "/etc/hostname", 0x4)`,
    `add(IN, "/var/lib/r", 0x80000100)`,
    `libc.inotify_rm_watch(IN, 2)`,
    `add(IN, "/var/lib/r", 0x100)`,
    `events(IN)`,
    `touch("/var/lib/r/unread")`,
  ];

  for (const point of [
    "source:watches",
    "source:transfer",
    "target:restore",
    "target:watches",
    "target:restored",
  ])
    test(`are as before after a failure at ${point}`, async () => {
      const [node = ""] = point.startsWith("source") ? ["a"] : ["b"];
      await withPythonShell({ faults: { [node]: `fail@${point}` } }, async (program, run) => {
        await define(run);
        await does(run, ...prepare);
        const before = await run(`(watches(IN), unread(IN))`);
        const move = await program.tryMove("b");
        assert.ok("outcome" in move && move.outcome === "rolled-back", JSON.stringify(move));
        assert.equal(await run(`watches(IN)`), before.replace(/^\((.*), \d+\)$/, "$1"));
        // CRIU lets go of a tree that it has not dumped: it is told that it may have missed something
        const told = point === "source:watches" ? "[(-1, 16384, False, '')]" : "[(3, 256, False, 'unread')]";
        assert.equal(await run(`events(IN)`), told);
        assert.equal(await run(`add(IN, "/etc", 2)`), "4");
        await program.move("b");
        await does(run, `touch("/var/lib/r/x"); os.utime("/etc/hostname")`);
        assert.equal(await run(`[e[0] for e in events(IN) if e[0] in (1, 3)]`), "[3, 1]");
      });
    });

  test("are there again after an agent that died over them, with a note that something may be missing", async () => {
    await withPythonShell({ faults: { a: "crash@source:watches" } }, async (program, run) => {
      await define(run);
      await does(run, ...prepare);
      const before = await run(`watches(IN)`);
      const asked = program.tryMove("b").catch(() => null);
      await program.nextAgent("a");
      await asked;
      await until("the workload runs again", async () => {
        const { workloads } = await program.ask<{ workloads: { state: string }[] }>("GET", "/v1/status");
        return workloads[0]?.state === "running";
      });
      assert.equal(await run(`watches(IN)`), before);
      assert.equal(await run(`events(IN)`), "[(-1, 16384, False, '')]");
      await program.move("b");
      assert.equal(await run(`watches(IN)`), before);
    });
  });
});

/** What Python needs of this machine. */
function isPython(path: string): boolean {
  return !/^\/usr\/(share|src|games|local|include|lib\/(llvm|gcc|jvm|go|modules|git|node))/.test(path);
}
