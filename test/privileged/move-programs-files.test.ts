/** What the application writes, wherever it may write, is the same after a move: also what it writes while it is moved. */
import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import {
  lacking,
  type MovedProgram,
  type ProgramOptions,
  until,
  withProgram,
} from "../support/moved-program.ts";

const port = 8080;
const python = "/usr/bin/python3";
const skip = lacking("python3");
let folder = "";

/**
 * Runs the lines it is sent, one expression or statement each, and answers with their value. It keeps its variables, so
 * that open files and locks of one line are there in the next.
 */
const shell = `
import fcntl, hashlib, json, os, socket, stat, threading, time
def tree(root):
    found = {}
    for folder, folders, files in os.walk(root):
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            s = os.lstat(path)
            content = ""
            if stat.S_ISLNK(s.st_mode): content = os.readlink(path)
            elif stat.S_ISREG(s.st_mode): content = hashlib.sha256(open(path, "rb").read()).hexdigest()
            names = [n for n in os.listxattr(path, follow_symlinks=False) if n.startswith("user.")]
            attributes = [(n, os.getxattr(path, n, follow_symlinks=False).decode("latin1")) for n in names]
            when = str(s.st_mtime_ns)
            found[path] = [oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink if not stat.S_ISDIR(s.st_mode) else 0, when, content, attributes]
    return found
def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file: file.write(content if isinstance(content, bytes) else content.encode())
scope = globals()
def serve(client):
    file = client.makefile("rw", buffering=1)
    for line in file:
        try:
            try: answer = repr(eval(line.strip(), scope))
            except SyntaxError:
                exec(line.strip(), scope)
                answer = "None"
        except BaseException as error: answer = "ERROR " + repr(error)
        file.write(answer.replace("\\n", " ") + "\\n")
server = socket.create_server(("127.0.0.1", 9000))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
`;

before(() => {
  folder = mkdtempSync(join(tmpdir(), "hf-files-"));
  chmodSync(folder, 0o755);
  writeFileSync(join(folder, "shell.py"), shell);
  mkdirSync(join(folder, "volume"));
  mkdirSync(join(folder, "other"));
});
after(() => rmSync(folder, { recursive: true, force: true }));

type Mount = { source: string; target: string; shared?: boolean; readonly?: boolean };

function options(mounts: Mount[] = [], more: Partial<ProgramOptions> = {}): ProgramOptions {
  return {
    downstream: "takeover",
    workload: {
      container: {
        command: [python, "-u", "/srv/shell.py"],
        rootfs: "host",
        mounts: [{ source: join(folder, "shell.py"), target: "/srv/shell.py", readonly: true }, ...mounts],
      },
      ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
    },
    ...more,
  };
}

/** A connection to the application: one line to it, one line back. */
async function talk(program: MovedProgram): Promise<(line: string) => Promise<string>> {
  const socket = await program.connect(port);
  let text = "";
  let over: string | null = null;
  socket.setEncoding("utf8").on("data", (piece: string) => (text += piece));
  socket.on("error", (error) => (over = error.message)).on("end", () => (over = "end"));
  return async (line) => {
    socket.write(`${line}\n`);
    await until(`an answer to ${line}`, () => text.includes("\n") || over !== null);
    assert.equal(over, null, `${line}: the connection is over`);
    const [answer = ""] = text.split("\n");
    text = text.slice(answer.length + 1);
    assert.ok(!answer.startsWith("ERROR"), `${line}: ${answer}`);
    return answer;
  };
}

test("files of the layer, /tmp and /dev/shm are the same on the other node, whatever was done to them", {
  skip,
}, async () => {
  await withProgram(options(), async (program) => {
    const run = await talk(program);
    const places = ["/var/lib/hf-test", "/tmp/hf-test", "/dev/shm/hf-test", "/run/hf-test"];
    const lines = (dir: string, n: number): string[] => [
      `write("${dir}/plain${n}", "first " * 1000)`,
      `write("${dir}/deep/er/file${n}", os.urandom(300000))`,
      `os.chown("${dir}/plain${n}", 1234, 4321)`,
      `os.chmod("${dir}/plain${n}", 0o4751)`,
      `os.symlink("/nowhere/${n}", "${dir}/link${n}")`,
      `os.link("${dir}/plain${n}", "${dir}/hard${n}")`,
      `os.mkfifo("${dir}/fifo${n}")`,
      `os.utime("${dir}/plain${n}", ns=(1, 1234567890123456789))`,
      `write("${dir}/name ${n} with ü and \\\\n in it", "x")`,
      `os.truncate("${dir}/deep/er/file${n}", 5000000)`,
      `write("${dir}/gone${n}/inner/file", "x")`,
      `write("${dir}/moved${n}/inner/file", "y")`,
    ];
    const changes = (dir: string, n: number): string[] => [
      `write("${dir}/plain${n}", "second")`,
      `os.rename("${dir}/moved${n}", "${dir}/renamed${n}")`,
      `__import__("shutil").rmtree("${dir}/gone${n}")`,
      `os.unlink("${dir}/link${n}") or os.mkdir("${dir}/link${n}")`,
      `os.unlink("${dir}/hard${n}")`,
      `write("${dir}/deep/er/file${n}", "short")`,
    ];
    for (const dir of places) for (const line of lines(dir, 1)) await run(line);
    for (const dir of places.slice(0, 2)) await run(`os.setxattr("${dir}/plain1", "user.colour", b"blue")`);
    // a folder of the lower file system emptied and made anew is opaque in the layer; a file of it deleted, a whiteout
    await run(`__import__("shutil").rmtree("/etc/default") or write("/etc/default/mine", "only this")`);
    await run(`os.unlink("/etc/motd") if os.path.exists("/etc/motd") else None`);
    const roots = [...places, "/etc/default"];
    const everything = async (): Promise<Record<string, unknown>> => {
      const all: Record<string, unknown> = { motd: await run(`os.path.exists("/etc/motd")`) };
      for (const root of roots) {
        const text = await run(`json.dumps(tree("${root}"))`);
        Object.assign(all, JSON.parse(text.slice(1, -1).replaceAll("\\\\", "\\")) as object);
      }
      return all;
    };
    const atFirst = await everything();
    assert.deepEqual((atFirst["/tmp/hf-test/plain1"] as unknown[]).slice(0, 4), ["0o104751", 1234, 4321, 2]);
    await program.move("b");
    assert.deepEqual(await everything(), atFirst);
    for (const dir of places) for (const line of [...changes(dir, 1), ...lines(dir, 2)]) await run(line);
    const changed = await everything();
    await program.move("a");
    assert.deepEqual(await everything(), changed);
  });
});

test("what is written while the move runs is not lost, and an unlinked open file lives on", {
  skip,
}, async () => {
  await withProgram(options(), async (program) => {
    const run = await talk(program);
    // appends to files, replaces some by rename, deletes others, all the time; and remembers what must be there
    await run(
      'exec(\'def work(dir):\\n  n=0\\n  while not stop:\\n    n+=1\\n    open(dir+"/log","a").write(str(n)+"\\\\n")\\n    write(dir+"/new",str(n)); os.rename(dir+"/new",dir+"/current")\\n    write(dir+"/f%d"%(n%50),str(n)*(n%999))\\n    if n%3==0: os.unlink(dir+"/f%d"%(n%50))\\n    counts[dir]=n\\n    time.sleep(0.0005)\\n\', globals())',
    );
    await run("stop, counts, workers = False, {}, []");
    const places = ["/var/lib/hf-work", "/tmp/hf-work", "/dev/shm/hf-work"];
    for (const dir of places) {
      await run(`os.makedirs("${dir}")`);
      await run(`workers.append(threading.Thread(target=work, args=("${dir}",), daemon=True))`);
      await run("workers[-1].start()");
      await run(`u${places.indexOf(dir)} = open("${dir}/unlinked", "w+b")`);
      await run(`u${places.indexOf(dir)}.write(b"kept" * 100000) and u${places.indexOf(dir)}.flush()`);
      await run(`os.unlink("${dir}/unlinked")`);
    }
    await until("every thread writes", async () => (await run("len(counts)")) === "3");
    await program.move("b");
    await program.move("a");
    await run("stop = True");
    await run("[worker.join() for worker in workers]");
    for (const [index, dir] of places.entries()) {
      const n = Number(await run(`counts["${dir}"]`));
      assert.ok(n > 100, `${n} rounds`);
      assert.equal(
        await run(`open("${dir}/log").read() == "".join(str(i)+"\\n" for i in range(1, ${n}+1))`),
        "True",
        dir,
      );
      assert.equal(await run(`open("${dir}/current").read()`), `'${n}'`);
      const files = `{k: str(i)*(i%999) for k in range(50) for i in [max(j for j in range(1,${n}+1) if j%50==k)] if i%3}`;
      assert.equal(
        await run(
          `{int(f[1:]): open("${dir}/"+f).read() for f in os.listdir("${dir}") if f[0]=="f"} == ${files}`,
        ),
        "True",
      );
      assert.equal(await run(`u${index}.seek(0) or u${index}.read() == b"kept" * 100000`), "True");
      assert.equal(await run(`os.path.exists("${dir}/unlinked")`), "False");
    }
  });
});

test("a file that is open by a name it no longer has stays the file of its other names", {
  skip,
}, async () => {
  await withProgram(options(), async (program) => {
    const run = await talk(program);
    const places = ["/var/lib/hf-names", "/tmp/hf-names", "/dev/shm/hf-names"];
    for (const [index, dir] of places.entries()) {
      await run(`write("${dir}/first", "kept") or os.makedirs("${dir}/below")`);
      await run(`f${index} = open("${dir}/first", "r+")`);
      for (const name of ["second", "below/third"]) await run(`os.link("${dir}/first", "${dir}/${name}")`);
      await run(`os.unlink("${dir}/first")`);
    }
    const facts = (index: number, dir: string): string =>
      `f${index}.seek(0) or [f${index}.read(), os.fstat(f${index}.fileno()).st_nlink, sorted(os.listdir("${dir}")), [os.path.samestat(os.fstat(f${index}.fileno()), os.stat("${dir}/"+n)) for n in ("second", "below/third")]]`;
    for (const to of ["b", "a"]) {
      await program.move(to);
      for (const [index, dir] of places.entries())
        assert.equal(
          await run(facts(index, dir)),
          "['kept', 2, ['below', 'second'], [True, True]]",
          `${dir}, ${to}`,
        );
    }
  });
});

test("a path that no program can open is told before anybody is held", { skip }, async () => {
  await withProgram(options(), async (program) => {
    const run = await talk(program);
    await run(`os.makedirs("/tmp/hf-deep")`);
    await run(
      `exec("at = os.open('/tmp/hf-deep', os.O_RDONLY)\\nfor _ in range(20): os.mkdir('d'*250, dir_fd=at); below = os.open('d'*250, os.O_RDONLY, dir_fd=at); os.close(at); at = below", globals())`,
    );
    await run("os.close(at)");
    const move = await program.tryMove("b");
    assert.ok(!("error" in move));
    assert.equal(move.outcome, "rolled-back");
    assert.match(move.reason ?? "", /^a path of the container is longer than 4093 bytes/);
    assert.equal(move.holdMs, 0);
    await run("__import__('shutil').rmtree('/tmp/hf-deep')");
    await program.move("b");
  });
});

test("a lock on a file of the layer is held after the move", { skip }, async () => {
  await withProgram(options(), async (program) => {
    const run = await talk(program);
    await run(`write("/var/lib/hf-lock", "x")`);
    await run(`one = open("/var/lib/hf-lock", "r+")`);
    await run("fcntl.flock(one, fcntl.LOCK_EX)");
    // a script's: exec 9>/var/lib/hf-asked; flock 9
    await run(`asked = open("/var/lib/hf-asked", "w+")`);
    await run(`__import__("subprocess").run(["flock", str(asked.fileno())], pass_fds=[asked.fileno()])`);
    await run(`range_ = open("/tmp/hf-range", "w+")`);
    await run("fcntl.lockf(range_, fcntl.LOCK_EX, 10, 5)");
    const attempt = `os.system("flock -n /var/lib/hf-lock true") >> 8`;
    const attemptRange = `os.system("${python} -c 'import fcntl; fcntl.lockf(open(\\"/tmp/hf-range\\", \\"r+\\"), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 7)' 2>/dev/null") >> 8`;
    for (const to of ["b", "a"]) {
      await program.move(to);
      for (const lock of [attempt, attempt.replace("hf-lock", "hf-asked")])
        assert.equal(await run(lock), "1", `on ${to} somebody else got the lock: ${lock}`);
      assert.equal(await run(attemptRange), "1", `on ${to} somebody else got the range`);
    }
    await run("fcntl.flock(one, fcntl.LOCK_UN)");
    assert.equal(await run(attempt), "0");
  });
});

test("a shared mount is the same folder on every node, with its open files", { skip }, async () => {
  const mount = { source: join(folder, "volume"), target: "/data", shared: true };
  await withProgram(options([mount]), async (program) => {
    const run = await talk(program);
    await run(`log = open("/data/log", "a")`);
    await run(`log.write("on a\\n") and log.flush()`);
    await program.move("b");
    await run(`log.write("on b\\n") and log.flush()`);
    await program.move("a");
    await run(`log.write("on a again\\n") and log.flush()`);
    assert.equal(readFileSync(join(folder, "volume/log"), "utf8"), "on a\non b\non a again\n");
  });
});

test("a mount that is not shared is refused before anybody is held, with the cure", { skip }, async () => {
  const mount = { source: join(folder, "other"), target: "/data" };
  await withProgram(options([mount]), async (program) => {
    const run = await talk(program);
    const [finding] = await program.findings();
    assert.equal(finding?.severity, "error");
    assert.match(finding?.what ?? "", /mount at \/data is not shared/);
    assert.match(finding?.cure ?? "", /shared: true.*readonly: true/);
    const move = await program.tryMove("b");
    assert.match("error" in move ? move.error.message : (move.reason ?? ""), /mount at \/data is not shared/);
    assert.equal(await run("1 + 1"), "2");
  });
});

test("a lock on a shared mount is refused with the cure, and moves once it is released", {
  skip,
}, async () => {
  const mount = { source: join(folder, "volume"), target: "/data", shared: true };
  await withProgram(options([mount]), async (program) => {
    const run = await talk(program);
    for (const [take, release] of [
      ["fcntl.flock(lock, fcntl.LOCK_SH)", "fcntl.flock(lock, fcntl.LOCK_UN)"],
      ["fcntl.lockf(lock, fcntl.LOCK_EX, 1, 1)", "fcntl.lockf(lock, fcntl.LOCK_UN, 1, 1)"],
    ] as const) {
      await run(`lock = open("/data/lock", "w+")`);
      await run(take);
      const from = program.at;
      const to = from === "a" ? "b" : "a";
      const [finding] = await program.findings();
      assert.equal(finding?.severity, "error");
      assert.match(finding?.what ?? "", /holds a lock on \/data\/lock/);
      assert.match(finding?.cure ?? "", /release it before the move/);
      const refused = await program.tryMove(to);
      assert.match("error" in refused ? refused.error.message : (refused.reason ?? ""), /holds a lock on/);
      assert.equal(program.at, from);
      await run(release);
      await program.move(to);
    }
  });
});
