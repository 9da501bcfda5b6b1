/** What CRIU would refuse, or leave behind without a word, is found by looking: nothing of it is stopped or traced. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { checkMemory } from "#control/workload/preflight/memory.ts";
import { lacking, until, workloadName } from "#test/support/moved-program.ts";
import { withPythonShell } from "#test/support/python-shell.ts";

const skip = lacking("python3", "runc");

/** Starts a process that runs `code` and then waits; its own process group, so that all of it can be ended. */
const helpers = `
SET_MEMPOLICY = 237 if os.uname().machine == "aarch64" else 238
def start(code):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0); os.close(r)
        def ready(what="ready"):
            os.write(w, what.encode())
        try:
            exec(code, dict(scope, ready=ready)); ready()
        except BaseException as e: ready(repr(e))
        while True: signal.pause()
    os.close(w)
    told = os.read(r, 1000).decode(); os.close(r)
    return pid if told == "ready" else (end(pid), told)[1]
def below(pid):
    found = [pid]
    for task in os.listdir("/proc/%d/task" % pid):
        for child in open("/proc/%d/task/%s/children" % (pid, task)).read().split(): found += below(int(child))
    return found
def end(pid):
    for one in below(pid): os.kill(one, 9)
    os.waitpid(pid, 0)
def unshare(flags):
    if libc.unshare(flags) != 0: raise OSError(ctypes.get_errno(), "unshare")
def endlessly(first=lambda: None):
    started = threading.Event()
    def work():
        first(); started.set()
        while True: time.sleep(1)
    threading.Thread(target=work, daemon=True).start(); started.wait()
`;
const pause = "while True: signal.pause()";
/** one in two of the hasty finds something */
const LOOKS = 15;

/** A Unix socket that waits for clients. */
function listening(name: string): string {
  return `bound = scope['opened'] = socket.socket(socket.AF_UNIX); bound.bind("${name}"); bound.listen()`;
}

/** `job` is a child that does something and waits. */
const jobs = `
def job(what):
    reading, writing = os.pipe(); pid = os.fork()
    if pid == 0:
        what(); os.write(writing, b"ready")
        ${pause}
    os.close(writing); assert os.read(reading, 5) == b"ready"; os.close(reading)`;

/** … `lead` a child that leads a session, with a terminal of which it has both ends. */
const ownTerminal = `${jobs}
mine = []
def lead(then):
    def begin():
        os.setsid(); mine.extend(os.openpty()); fcntl.ioctl(mine[1], 0x540e, 0); mine.append(os.open("/dev/tty", os.O_RDWR)); then()
    job(begin)`;

/** A thread may say so only where the processor has the means ("thread …" in proc(5)'s status; else "vulnerable", or "not vulnerable"). */
const controlsSpeculation = /^Speculation_Store_Bypass:\s*thread/m.test(
  readFileSync("/proc/self/status", "utf8"),
);

const cases: Record<string, { code: string; ids: string[] }> = {
  "a user namespace": { code: "unshare(0x10000000)", ids: ["process.namespace"] },
  "a sandbox of mounts": { code: "unshare(0x10000000 | 0x20000)", ids: ["process.namespace"] },
  "a PID namespace for its next child": {
    code: "unshare(0x10000000 | 0x20000000)",
    ids: ["process.namespace"],
  },
  "being traced": {
    code: `
pid = os.fork()
if pid == 0:
    libc.ptrace(0, 0, 0, 0); os.kill(os.getpid(), 19)
    ${pause}
os.waitpid(pid, 2); libc.ptrace(7, pid, 0, 0)`,
    ids: ["process.traced"],
  },
  "a main thread that has ended": {
    code: "endlessly(); ready(); libc.syscall(60, 0)",
    ids: ["process.leader-ended"],
  },
  "a thread with descriptors of its own": {
    code: "endlessly(lambda: (libc.unshare(0x400), os.open('/etc/passwd', 0)))",
    ids: ["process.thread-descriptors"],
  },
  "a thread in a folder of its own": {
    code: "endlessly(lambda: (libc.unshare(0x200), os.chdir('/tmp')))",
    ids: ["process.thread-folder"],
  },
  "a child in the same folder for good": {
    code: `
if libc.syscall(56, 0x200 | 17, 0, 0, 0, 0) == 0:
    ${pause}`,
    ids: ["process.shared"],
  },
  "a session whose leader has ended": {
    code: `
libc.prctl(36, 1, 0, 0, 0)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        ${pause}
    os._exit(0)
os.wait()`,
    ids: ["process.session"],
  },
  "no descriptor left": {
    code: `
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
try:
    while True: os.dup(1)
except OSError: pass`,
    ids: ["process.no-descriptor"],
  },
  "a descriptor of the container's init": {
    code: "scope['opened'] = os.pidfd_open(1)",
    ids: ["descriptor.pidfd"],
  },
  "a listener to system calls": {
    code: `
libc.prctl(38, 1, 0, 0, 0)
class Program(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7fff0000))
program = Program(1, ctypes.cast(allow, ctypes.c_void_p).value)
assert libc.syscall(317, 1, 8, ctypes.byref(program)) >= 0`,
    ids: ["descriptor.seccomp-notify"],
  },
  "a lock on a file that is mapped, as SQLite's": {
    code: `
import fcntl, mmap
file = open("/tmp/mapped", "w+b"); file.truncate(4096)
scope['opened'] = (file, mmap.mmap(file.fileno(), 4096))
fcntl.lockf(file, fcntl.LOCK_SH, 1, 128)`,
    ids: ["file.mapped-lock"],
  },
  "an eventfd that counts and sends signals": {
    code: `
import fcntl
fd = os.eventfd(1, os.EFD_SEMAPHORE); scope['opened'] = fd
fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())`,
    ids: ["descriptor.eventfd-owner"],
  },
  userfaultfd: {
    code: "assert libc.syscall(323, 1) >= 0",
    ids: ["descriptor.userfaultfd"],
  },
  "a thread that chooses when it is told of memory that failed": {
    code: "endlessly(lambda: libc.prctl(33, 1, 1, 0, 0))",
    ids: ["process.machine-check"],
  },
  "memory to come that is locked": {
    code: "assert libc.mlockall(3) == 0",
    ids: ["memory.locked-to-come"],
  },
  "memory that is locked as it is used": {
    code: `memory = scope["opened"] = mmap.mmap(-1, 8192)
assert libc.syscall(325, ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory))), ctypes.c_long(8192), 1) == 0`,
    ids: ["memory.locked-on-fault"],
  },
  "a watch of a descriptor that was closed": {
    code: `
reading, writing = os.pipe(); copy = os.dup(reading)
epoll = scope['opened'] = select.epoll(); epoll.register(reading, select.EPOLLIN); os.close(reading)`,
    ids: ["descriptor.watch-of-closed"],
  },
  "urgent data that nobody reads": {
    code: `
server = socket.create_server(("127.0.0.1", 7071)); near = socket.create_connection(("127.0.0.1", 7071)); far = server.accept()[0]
near.send(b"a"); near.send(b"!", socket.MSG_OOB); scope['opened'] = (server, near, far)
select.select([], [], [far], 5)`,
    ids: ["socket.urgent-data"],
  },
  "urgent data of a Unix socket": {
    code: `
near, far = scope['opened'] = socket.socketpair(); near.send(b"!", socket.MSG_OOB)`,
    ids: ["socket.urgent-data"],
  },
  "a connection whose bytes are read without copying": {
    code: `
server = socket.create_server(("127.0.0.1", 7073)); near = socket.create_connection(("127.0.0.1", 7073)); far = server.accept()[0]
libc.mmap.restype = ctypes.c_void_p
assert libc.mmap(None, ctypes.c_size_t(65536), 1, 1, far.fileno(), ctypes.c_long(0)) != ctypes.c_void_p(-1).value
scope['opened'] = (server, near, far)`,
    ids: ["memory.kernel-mapped"],
  },
  "a connection that sends without copying": {
    code: `
server = socket.create_server(("127.0.0.1", 7072)); near = socket.create_connection(("127.0.0.1", 7072)); far = server.accept()[0]
near.setsockopt(1, 60, 1); near.send(b"a", 0x4000000); scope['opened'] = (server, near, far)`,
    ids: ["socket.numbered-notifications"],
  },
  "datagrams whose times of sending are numbered": {
    code: `
near = scope['opened'] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); near.setsockopt(1, 37, 1 << 1 | 1 << 4 | 1 << 7)`,
    ids: ["socket.numbered-notifications"],
  },
  "a message from a Unix socket with a name": {
    code: `
near, far = scope['opened'] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
near.bind("/tmp/near"); far.bind("/tmp/far"); near.sendto(b"!", "/tmp/far")`,
    ids: ["socket.unix-message"],
  },
  "a message of a Unix socket without bytes": {
    code: `
near, far = scope['opened'] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); near.send(b""); near.send(b"behind it")`,
    ids: ["socket.unix-message"],
  },
  "another execution domain": {
    code: "assert libc.personality(0x0020000) == 0",
    ids: ["process.personality"],
  },
  "a thread of another execution domain": {
    code: "endlessly(lambda: libc.personality(0x0020000))",
    ids: ["process.personality"],
  },
  "a program in memory only": {
    code: `
program = os.memfd_create("program"); os.write(program, open("/usr/bin/sleep", "rb").read())
if os.fork() == 0: os.execve(program, ["sleep", "1000"], {})
children = lambda: [open("/proc/%s/comm" % one).read() for one in open("/proc/self/task/%d/children" % os.getpid()).read().split()]
while any(name.startswith("python") for name in children()): time.sleep(0.01)
os.close(program)`,
    ids: ["process.program-in-memory"],
  },
  ...(controlsSpeculation
    ? {
        "a thread without speculation": {
          code: "endlessly(lambda: libc.prctl(53, 0, 4, 0, 0))",
          ids: ["process.speculation"],
        },
      }
    : {}),
  "a SQLite database with a rollback journal": {
    code: `
import sqlite3
db = scope['opened'] = sqlite3.connect("/var/tmp/journal.db"); db.execute("create table t(a)"); db.commit()`,
    ids: ["file.sqlite-journal"],
  },
  "a SQLite database with a rollback journal on a tmpfs": {
    code: `
import sqlite3
db = scope['opened'] = sqlite3.connect("/dev/shm/journal.db"); db.execute("create table t(a)"); db.commit()`,
    ids: ["file.sqlite-journal"],
  },
  "a Unix socket that was renamed": {
    code: `${listening("/tmp/renamed.new")}; os.rename("/tmp/renamed.new", "/tmp/renamed")`,
    ids: ["socket.unix-renamed"],
  },
  "a Unix socket of datagrams that was renamed": {
    code: `
receiving = scope['opened'] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); receiving.bind("/tmp/datagrams.new")
os.rename("/tmp/datagrams.new", "/tmp/datagrams")`,
    ids: ["socket.unix-renamed"],
  },
  "a Unix socket with two names": {
    code: `${listening("/tmp/first")}; os.link("/tmp/first", "/tmp/second")`,
    ids: ["socket.unix-renamed"],
  },
  "a Unix socket that was linked, and its first name deleted, as supervisord's": {
    code: `${listening("/tmp/linked.new")}; os.link("/tmp/linked.new", "/var/tmp/linked"); os.unlink("/tmp/linked.new")`,
    ids: ["socket.unix-renamed"],
  },
  "a Unix socket whose folder was renamed": {
    code: `os.mkdir("/tmp/folder.new"); ${listening("/tmp/folder.new/socket")}; os.rename("/tmp/folder.new", "/tmp/folder")`,
    ids: ["socket.unix-renamed"],
  },
  "a Unix socket bound to a name in its folder, and renamed": {
    code: `os.chdir("/tmp"); ${listening("relative.new")}; os.rename("relative.new", "relative")`,
    ids: ["socket.unix-renamed"],
  },
  "/dev/tty in a terminal whose other end another process has": {
    code: `
import pty
pid, terminal = pty.fork()
if pid == 0:
    os.open("/dev/tty", os.O_RDWR); os.write(1, b"ready")
    ${pause}
scope['opened'] = terminal; os.read(terminal, 5)`,
    ids: ["descriptor.controlling-terminal"],
  },
  "/dev/tty in a job that is in the foreground": {
    code: `
${ownTerminal}
lead(lambda: job(lambda: (signal.signal(signal.SIGTTOU, signal.SIG_IGN), os.setpgid(0, 0), os.tcsetpgrp(mine[2], os.getpid()))))`,
    ids: ["descriptor.controlling-terminal"],
  },
  "/dev/tty opened by a child of the session's leader": {
    code: `
${ownTerminal}
lead(lambda: job(lambda: os.open("/dev/tty", os.O_RDWR)))`,
    ids: ["descriptor.controlling-terminal"],
  },
  "/dev/tty of a terminal that has hung up": {
    code: `
${ownTerminal}
lead(lambda: (signal.signal(signal.SIGHUP, signal.SIG_IGN), os.close(mine[0]), os.close(mine[1])))`,
    ids: ["descriptor.controlling-terminal"],
  },
  "a Unix socket's name, opened": {
    code: `${listening("/tmp/named")}; scope['path'] = os.open("/tmp/named", os.O_PATH)`,
    ids: ["descriptor.path-only"],
  },
  "names of a terminal, /dev/tty and an eventfd, opened": {
    code: `
event = os.eventfd(0); scope['paths'] = [os.open(name, os.O_PATH) for name in ("/dev/ptmx", "/dev/tty", "/proc/self/fd/%d" % event)]`,
    ids: ["descriptor.path-only"],
  },
  "what is left of a socket, opened": {
    code: `
near, far = scope['opened'] = socket.socketpair(); scope['path'] = os.open("/proc/self/fd/%d" % near.fileno(), os.O_PATH); near.close()`,
    ids: ["descriptor.path-only"],
  },
  "a FIFO's name, opened": {
    code: `os.mkfifo("/tmp/fifo"); scope['path'] = os.open("/tmp/fifo", os.O_PATH)`,
    ids: ["descriptor.path-only"],
  },
};

const sealing = `memory = scope["opened"] = mmap.mmap(-1, 8192)
if libc.syscall(462, ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory))), ctypes.c_long(8192), 0) != 0:
    raise OSError(ctypes.get_errno(), "mseal")`;

/** A server that many come to: what it waits for has changed whenever one looks again. */
const busy = `
def churn():
    epoll = select.epoll()
    while True:
        pipes = [os.pipe() for _ in range(20)]
        for reading, _ in pipes: epoll.register(reading, select.EPOLLIN)
        for pipe in pipes:
            for end in pipe: os.close(end)
threading.Thread(target=churn, daemon=True).start()`;

/** What its kernel makes for no process of a container can be handed to one. */
const giver = `
import socket
given = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); given.bind(("127.0.0.1", 7070)); given.listen()
door = socket.socket(socket.AF_UNIX); door.bind("\\0given"); door.listen(); print("ready", flush=True)
taker = door.accept()[0]; socket.send_fds(taker, [b"x"], [given.fileno()]); taker.recv(1)
`;
const taken = `
door = socket.socket(socket.AF_UNIX); door.connect("\\0given")
scope['opened'] = socket.recv_fds(door, 1, 1)[1]; door.close()`;

/** kernels since 6.14 or so */
const merging = "/proc/self/ksm_stat";
const tellsOfMerging = existsSync(merging) && readFileSync(merging, "utf8").includes("ksm_merge_any");

/** what moves, and loses something or may not move after all: with the findings' ids */
const warned: Record<string, { code: string; ids: string[] }> = {
  ...(tellsOfMerging
    ? {
        "memory whose pages are merged": {
          code: "assert libc.prctl(67, 1, 0, 0, 0) == 0",
          ids: ["process.memory-merge"],
        },
      }
    : {}),
  "memory that is to be on some nodes of a machine (set_mempolicy)": {
    code: "assert libc.syscall(SET_MEMPOLICY, 3, ctypes.byref(ctypes.c_ulong(1)), 64) == 0",
    ids: ["memory.numa-policy"],
  },
  "a job in front, and one that is stopped": {
    code: `
import pty
pid, terminal = pty.fork()
if pid == 0: os.execve("/bin/bash", ["bash", "--norc", "-i"], {"PATH": "/bin:/usr/bin"})
scope['opened'] = terminal
os.write(terminal, b"cat > /dev/null &\\n")
import time
def states(): return {open("/proc/%s/stat" % child).read().rsplit(")", 1)[1].split()[0] for child in open("/proc/%d/task/%d/children" % (pid, pid)).read().split()}
while "T" not in states(): time.sleep(0.01)`,
    ids: ["process.controlling-terminal", "process.stopped-by-terminal"],
  },
};

/** what looks alike, moves, and works after that: an expression that is true */
const working: Record<string, { code: string; works: string }> = {
  "SQLite databases with a log, to be read only, with a journal on a shared mount, empty, in memory and deleted":
    {
      code: `
import sqlite3
databases = {}
for name in ("/var/tmp/log.db", "/var/tmp/read.db", "/shared/journal.db", "/var/tmp/empty.db", ":memory:", "/var/tmp/deleted.db"):
    db = databases[name] = sqlite3.connect(name, isolation_level=None)
    if name == "/var/tmp/log.db": db.execute("pragma locking_mode=exclusive"); db.execute("pragma journal_mode=wal")
    if name == "/var/tmp/empty.db": assert db.execute("select count(*) from sqlite_master").fetchone()[0] == 0; continue
    db.execute("create table t(a)"); db.execute("insert into t values(1)")
databases["/var/tmp/read.db"].close(); databases["/var/tmp/read.db"] = sqlite3.connect("file:/var/tmp/read.db?mode=ro", uri=True)
os.unlink("/var/tmp/deleted.db")
def rows(db): return db.execute("select count(*) from t").fetchone()[0]
rows(databases["/var/tmp/read.db"])
def grows(db): before = rows(db); db.execute("insert into t values(2)"); return rows(db) == before + 1`,
      works: `all(grows(databases[name]) for name in ("/var/tmp/log.db", "/shared/journal.db", ":memory:")) and rows(databases["/var/tmp/read.db"]) == 1`,
    },
  "Unix sockets with the names they were bound to, in their folder, through a link, and one without any name left":
    {
      code: `
os.makedirs("/var/tmp/real", exist_ok=True); os.symlink("/var/tmp/real", "/var/tmp/link"); bound = {}
def bind(name, kind=socket.SOCK_STREAM):
    one = bound[name] = socket.socket(socket.AF_UNIX, kind); one.bind(name)
    if kind != socket.SOCK_DGRAM: one.listen()
bind("/var/tmp/absolute"); bind("/var/tmp/datagrams", socket.SOCK_DGRAM); bind("/var/tmp/link/linked"); bind("\\0abstract")
os.chdir("/var/tmp/real"); bind("relative"); os.chdir("/")
bind("/var/tmp/deleted"); os.unlink("/var/tmp/deleted"); again = bound["/var/tmp/deleted"]; bind("/var/tmp/deleted"); bound["first"] = again
def answers(name, path=None):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path or name); bound[name].accept()[0].close(); return True
def receives(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client: client.sendto(b"x", name)
    return bound[name].recv(1) == b"x"`,
      works: `all(map(answers, ("/var/tmp/absolute", "/var/tmp/link/linked", "\\0abstract", "/var/tmp/deleted"))) and answers("relative", "/var/tmp/real/relative") and receives("/var/tmp/datagrams")`,
    },
  "a Unix socket whose process has another root since it was bound": {
    code: `
${jobs}
def jail():
    bound = socket.socket(socket.AF_UNIX); bound.bind("/var/tmp/before"); bound.listen()
    os.makedirs("/var/tmp/jail", exist_ok=True); os.chroot("/var/tmp/jail")
    def serve():
        while True: bound.accept()[0].close()
    threading.Thread(target=serve, daemon=True).start()
job(jail)
def greets():
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5); client.connect("/var/tmp/before"); return client.recv(1) == b""`,
    works: "greets()",
  },
  "names of a file, a folder, a link and a device, opened": {
    code: `
os.symlink("nowhere", "/var/tmp/nowhere"); open("/var/tmp/file", "w").close()
names = [os.open(name, os.O_PATH | os.O_NOFOLLOW) for name in ("/var/tmp/file", "/var/tmp", "/var/tmp/nowhere", "/dev/null")]`,
    works:
      "[os.readlink('/proc/self/fd/%d' % name) for name in names] == ['/var/tmp/file', '/var/tmp', '/var/tmp/nowhere', '/dev/null']",
  },
  "/dev/tty in leaders that have their terminals' other ends, and a child that has it from one": {
    code: `
${ownTerminal}
lead(lambda: job(lambda: None)); lead(lambda: None)`,
    works: "True",
  },
};

/** what looks alike and moves */
const harmless: Record<string, string> = {
  "a chroot": "os.makedirs('/tmp/root', exist_ok=True); os.chroot('/tmp/root')",
  "threads, an epoll, a pidfd of a child, a session of its own": `
endlessly(); os.setpgid(0, 0)
child = os.fork()
if child == 0:
    os.setsid()
    ${pause}
scope['opened'] = [select.epoll(), os.pidfd_open(child), os.eventfd(0)]`,
  "a lock on a file, and another file that is mapped": `
import fcntl, mmap
file = open("/tmp/mapped", "w+b"); file.truncate(4096)
other = open("/tmp/locked", "w+b"); fcntl.lockf(other, fcntl.LOCK_EX)
scope['opened'] = (other, mmap.mmap(file.fileno(), 4096))`,
  "memory that was locked, and more that came": `
assert libc.mlockall(1) == 0; scope['opened'] = mmap.mmap(-1, 1 << 20)`,
  "a child that nobody has waited for": `
if os.fork() == 0: os._exit(0)`,
  "datagrams whose times of arrival are told": `
near = scope['opened'] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); near.setsockopt(1, 37, 1 << 3 | 1 << 4)`,
  "a connection of messages whose other end was closed": `
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); near.close(); scope['opened'] = far`,
};

describe("processes that cannot move", { skip, timeout: 600_000 }, () => {
  it("are found beforehand, by name; when they have ended nothing stands in the way", async () => {
    // a container by default lets its processes make no namespace and no userfaultfd, choose no nodes and lock little memory
    const workload = {
      container: { capabilities: { add: ["SYS_ADMIN", "SYS_PTRACE", "SYS_NICE", "IPC_LOCK"] } },
    };
    await withPythonShell({ downstream: "takeover", workload }, async (program, run) => {
      const found = async (wanted = "error"): Promise<string[]> => {
        const all = await program.findings();
        return [...new Set(all.filter(({ severity }) => severity === wanted).map(({ id }) => id))].sort();
      };
      await run(`exec(${JSON.stringify(helpers)}, scope)`);
      // confinement that would be lost in a move without a trace is not to be had
      assert.equal(await run("(libc.syscall(444, 0, 0, 1), ctypes.get_errno())"), "(-1, 38)");
      for (const what of ["65, 1, 0, 0, 0", "26, 1, 0, 0, 0", "59, 0, 0, 0, 0"])
        assert.equal(await run(`(libc.prctl(${what}), ctypes.get_errno())`), "(-1, 22)");
      assert.equal(await run("(libc.syscall(330, 0, 0), ctypes.get_errno())"), "(-1, 28)");
      assert.equal(await run("(libc.syscall(206, 8, 0), ctypes.get_errno())"), "(-1, 38)");
      // older libseccomp does not know it, so it is either not to be had or found
      await run(`pid = start(${JSON.stringify(sealing)})`);
      if ((await run("pid")).includes("38")) assert.deepEqual(await found(), []);
      else assert.deepEqual(await found(), ["memory.sealed"]);
      await run("isinstance(pid, int) and end(pid)");
      for (const [what, code] of Object.entries(harmless)) {
        await run(`pid = start(${JSON.stringify(code)})`);
        assert.match(await run("pid"), /^\d+$/, what);
        assert.deepEqual(await found(), [], what);
        await run("end(pid)");
      }
      await run(`pid = start(${JSON.stringify(busy)})`);
      for (let look = 0; look < LOOKS; look++) assert.deepEqual(await found(), [], "a busy server");
      await run("end(pid)");
      // one has turned to another, of which the other is told by an error: the application, and not whoever looks
      const turned = `
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
other.bind("/tmp/other"); near.send(b"x"); far.send(b"x"); near.connect("/tmp/other")`;
      await run(`exec(${JSON.stringify(turned)}, scope)`);
      assert.deepEqual(await found(), ["socket.unix-error", "socket.unix-one-way"]);
      assert.equal(await run("far.recv(1)"), "ERROR ConnectionResetError(104, 'Connection reset by peer')");
      assert.equal(await run("far.recv(1)"), "b'x'");
      await run("[one.close() for one in (near, far, other)]");
      for (const [what, { code, ids }] of Object.entries(cases)) {
        await run(`pid = start(${JSON.stringify(code)})`);
        assert.match(await run("pid"), /^\d+$/, `${what}: cannot be made: ${await run("pid")}`);
        assert.deepEqual(await found(), ids, what);
        await run("end(pid)");
        // what it had forked is a zombie until the container's init has waited for it
        await until(`nothing is found of ${what}, which has ended`, async () => (await found()).length === 0);
      }
      assert.equal(await run("socket.socket(2, 1, 262)"), "ERROR OSError(93, 'Protocol not supported')");
      const giving = program.lab.spawn("a", ["/usr/bin/python3", "-c", giver]);
      await giving.waitFor(/ready/);
      await run(`pid = start(${JSON.stringify(taken)})`);
      assert.match(await run("pid"), /^\d+$/);
      const [mptcp] = await program.findings();
      assert.equal(mptcp?.id, "socket.mptcp");
      assert.match(mptcp?.what ?? "", /is MPTCP/);
      await run("end(pid)");
      for (const [what, { code, ids }] of Object.entries(warned)) {
        await run(`pid = start(${JSON.stringify(code)})`);
        assert.match(await run("pid"), /^\d+$/, `${what}: cannot be made: ${await run("pid")}`);
        assert.deepEqual(await found(), [], what);
        assert.deepEqual(await found("warning"), ids, what);
        await run("end(pid)");
      }
      // one of them is enough, and the name is what a script can go by
      await run(`pid = start("unshare(0x10000000)")`);
      const move = await program.tryMove("b");
      assert.ok(!("error" in move));
      assert.match(move.reason ?? "", /^cannot be moved: process \d+ has namespaces of its own .*\(user\)/);
      const shown = await program.lab.cli("a", ["check", workloadName]);
      assert.equal(shown.status, 1);
      assert.match(shown.stdout, /✖ process .*\[process\.namespace\]/);
      const allowed = await program.lab.cli("a", ["check", workloadName, "--allow", "process.namespace"]);
      assert.equal(allowed.status, 0, allowed.stdout);
      await run("end(pid)");
      await program.move("b");
    });
  });

  it("are not found in what looks alike, which moves there and back and works", async () => {
    const shared = mkdtempSync(join(tmpdir(), "hf-shared-"));
    const workload = { container: { mounts: [{ source: shared, target: "/shared", shared: true }] } };
    try {
      await withPythonShell({ downstream: "takeover", workload }, async (program, run) => {
        for (const [what, { code, works }] of Object.entries(working)) {
          await run(`exec(${JSON.stringify(code)}, scope)`);
          for (const to of ["b", "a"]) {
            assert.equal(await run(works), "True", what);
            assert.deepEqual(
              (await program.findings()).filter(({ severity }) => severity === "error"),
              [],
              what,
            );
            await program.move(to);
          }
          assert.equal(await run(works), "True", what);
        }
      });
    } finally {
      rmSync(shared, { recursive: true });
    }
  });

  it("are found where they have requests of Linux AIO from before their container's profile refused it", async () => {
    const code = `import ctypes; libc = ctypes.CDLL(None); context = ctypes.c_ulong(0)
print(libc.syscall(206, 8, ctypes.byref(context)), flush=True); input()`;
    const owner = spawn("python3", ["-c", code], { stdio: ["pipe", "pipe", "inherit"] });
    const ended = once(owner, "exit");
    const [said] = await once(owner.stdout, "data");
    assert.equal(String(said).trim(), "0");
    const ids: string[] = [];
    await checkMemory([owner.pid ?? 0], (id) => ids.push(id));
    owner.stdin.end("\n");
    await ended;
    assert.deepEqual(ids, ["memory.asynchronous-io"]);
  });
});
