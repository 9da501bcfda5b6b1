/**
 * What CRIU restores otherwise than it was, and what the audit makes of it: set again, or the move rolls back in one line.
 * Each value is asked of the application itself, before and after a move there and one back.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync, mkdtempSync, readlinkSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { FIRST_PID_NAMESPACE } from "#control/runtime/signal-trace.ts";
import { lacking, until } from "#test/support/moved-program.ts";
import { faultsFile, type Run, withPythonShell } from "#test/support/python-shell.ts";

const skip = lacking("runc", "python3");

interface Kept {
  what: string;
  /** made before the moves */
  setup: string[];
  /** expressions whose values stay as they were */
  same?: string[];
  /** expressions that are true, before and after */
  holds?: string[];
}

/** read(2) of a descriptor, without blocking */
const ready = (fd: string): string => `bool(select.select([${fd}],[],[],5)[0])`;
const settime = (fd: string, valueMs: number, intervalMs: number): string => {
  const part = (ms: number): string => `${Math.floor(ms / 1000)},${(ms % 1000) * 1_000_000}`;
  return `libc.timerfd_settime(${fd},0,struct.pack("qqqq",${part(intervalMs)},${part(valueMs)}),None)`;
};
const fdinfo = (fd: string, name: string): string =>
  `open("/proc/self/fdinfo/%d"%${fd}).read().split("${name}:")[1].split("\\n")[0].strip()`;

const kept: Kept[] = [
  {
    what: "timers that repeat, read at once or late",
    setup: [
      "FAST=libc.timerfd_create(1,0o4000)",
      settime("FAST", 2, 2),
      "LATE=libc.timerfd_create(1,0o4000)",
      settime("LATE", 1, 1),
      "SLOW=[libc.timerfd_create(1,0o4000) for i in range(8)]",
      `[${settime("t", 200, 200)} for t in SLOW]`,
    ],
    holds: [
      // twice: the first may be an expiration from before
      `all([(${ready("FAST")}, os.read(FAST,8))[0] for i in range(3)])`,
      `all([(${ready("LATE")}, os.read(LATE,8))[0] for i in range(3)])`,
      `all([(${ready("t")}, os.read(t,8))[0] for t in SLOW for i in range(3)])`,
    ],
  },
  {
    what: "timers that run out once, at a time, or are off",
    setup: [
      "ONCE=libc.timerfd_create(1,0o4000)",
      settime("ONCE", 1, 0),
      "TIME=libc.timerfd_create(0,0o4000)",
      `libc.timerfd_settime(TIME,3,struct.pack("qqqq",0,0,int(time.time())+3600,0),None)`,
      "OFF=libc.timerfd_create(1,0o4000)",
    ],
    same: [fdinfo("TIME", "settime flags"), fdinfo("OFF", "it_value")],
    holds: [`${ready("ONCE")} and ${fdinfo("ONCE", "ticks")}=="1"`],
  },
  {
    what: "eventfds that count as semaphores, in whoever has them",
    setup: [
      "SEM=os.eventfd(5, os.EFD_NONBLOCK|os.EFD_SEMAPHORE)",
      "SEM2=os.dup(SEM); os.set_inheritable(SEM2, True)",
      "SEM3=os.eventfd(0, os.EFD_SEMAPHORE)",
      "PLAIN=os.eventfd(7, os.EFD_NONBLOCK)",
      "FULL=os.eventfd(0); os.eventfd_write(FULL, 2**64 - 2)",
      "EP=select.epoll(); EP.register(SEM3, select.EPOLLIN)",
      `CHILD=subprocess.Popen(["sleep","1000"], pass_fds=[SEM2])`,
    ],
    same: [
      fdinfo("SEM", "eventfd-semaphore"),
      fdinfo("PLAIN", "eventfd-semaphore"),
      fdinfo("SEM", "eventfd-count"),
      fdinfo("PLAIN", "eventfd-count"),
      fdinfo("FULL", "eventfd-count"),
      "(os.eventfd_read(SEM), os.eventfd_write(SEM, 1))[0]",
      "fcntl.fcntl(SEM, fcntl.F_GETFL)==fcntl.fcntl(SEM2, fcntl.F_GETFL)",
      `open("/proc/%d/fdinfo/%d"%(CHILD.pid,SEM2)).read().split("eventfd-semaphore:")[1].strip()`,
    ],
    holds: [
      // both names are of one thing, and epoll still watches the other
      "(os.eventfd_write(SEM2, 1), os.eventfd_read(SEM))[1]==1",
      "(os.eventfd_write(SEM3, 1), EP.poll(5), os.eventfd_read(SEM3))[1]==[(SEM3, select.EPOLLIN)]",
    ],
  },
  {
    what: "scheduling of each thread",
    setup: [
      "os.sched_setaffinity(0,{0})",
      "os.nice(5)",
      "libc.syscall(251,1,0,(2<<13)|3)",
      "libc.prctl(29,123456,0,0,0)",
      `exec("import queue\\nASK=queue.Queue(); ANSWER=queue.Queue()\\ndef other():\\n  os.sched_setaffinity(0,{1 % os.cpu_count()})\\n  libc.syscall(251,1,0,3<<13)\\n  libc.prctl(29,77777,0,0,0)\\n  while True: ANSWER.put(ASK.get()())\\nthreading.Thread(target=other,daemon=True).start()",scope)`,
    ],
    same: [
      "os.sched_getaffinity(0)",
      "os.getpriority(0,0)",
      "libc.syscall(252,1,0)",
      "libc.prctl(30,0,0,0,0)",
      "(ASK.put(lambda: (os.sched_getaffinity(0), libc.syscall(252,1,0), libc.prctl(30,0,0,0,0))), ANSWER.get())[1]",
    ],
  },
  {
    what: "a terminal that nobody else may open",
    setup: ["import pty", "MASTER, SLAVE = pty.openpty()", "fcntl.ioctl(SLAVE, 0x540C)"],
    same: ["fcntl.ioctl(SLAVE, 0x80045440, b'0000')", "fcntl.ioctl(MASTER, 0x80045440, b'0000')"],
  },
  {
    what: "guard pages, and pages that were never touched",
    setup: [
      "libc.madvise.argtypes=[ctypes.c_void_p,ctypes.c_size_t,ctypes.c_int]",
      "PAGES=mmap.mmap(-1, 6*4096); PAGES[0:8192]=b'p'*8192",
      "AT=ctypes.addressof(ctypes.c_char.from_buffer(PAGES))",
      // MADV_GUARD_INSTALL, Linux 6.13
      "[libc.madvise(AT + page*4096, 4096, 102) for page in (1, 3)]",
      "OUT=os.open('/dev/shm/pages', os.O_RDWR|os.O_CREAT)",
    ],
    same: ["[libc.write(OUT, ctypes.c_void_p(AT + page*4096), 1) for page in range(6)]"],
  },
  {
    what: "watches that tell once, and have",
    setup: [
      "R1,W1=os.pipe(); ONCE_ONLY=select.epoll(); ONCE_ONLY.register(R1, select.EPOLLIN|select.EPOLLONESHOT); os.write(W1,b'x')",
      "FIRST=ONCE_ONLY.poll(0)==[(R1, select.EPOLLIN)]",
    ],
    same: ["ONCE_ONLY.poll(0)", "FIRST"],
    holds: [
      "(ONCE_ONLY.modify(R1, select.EPOLLIN|select.EPOLLONESHOT), ONCE_ONLY.poll(0), ONCE_ONLY.poll(0))==(None, [(R1, select.EPOLLIN)], [])",
    ],
  },
  {
    what: "files whose names are no text, and files with holes",
    setup: [
      "ODD=b'/var/tmp/odd \\xff\\n'; os.makedirs(ODD+b'/\\xe9'); open(ODD+b'/\\xe9/\\x80','w').write('x')",
      "HOLES=open('/var/tmp/holes','wb'); HOLES.truncate(1<<30); HOLES.seek(1<<29); HOLES.write(b'in the middle'); HOLES.flush()",
    ],
    same: [
      "[(path, sorted(names), sorted(files)) for path, names, files in os.walk(ODD)]",
      "open(ODD+b'/\\xe9/\\x80').read()",
      "(os.path.getsize('/var/tmp/holes'), os.pread(os.open('/var/tmp/holes', os.O_RDONLY), 13, 1<<29))",
    ],
    holds: ["os.stat('/var/tmp/holes').st_blocks < 1000"],
  },
  {
    what: "how long what is written to a file is to live, as RocksDB says it",
    setup: [
      "HINTED=[open('/var/tmp/hinted%d'%i,'wb') for i in (2,5)]",
      "[fcntl.fcntl(one,1036,struct.pack('Q',hint)) for one,hint in zip(HINTED,(2,5))]",
    ],
    same: ["[fcntl.fcntl(one,1035,bytes(8)) for one in HINTED]"],
  },
  {
    what: "options of listeners",
    setup: [
      `L=socket.socket(); L.bind(("127.0.0.1",9556))`,
      "[L.setsockopt(l,o,v) for l,o,v in ((6,9,5),(6,23,16),(1,9,1),(6,4,33),(6,5,7),(6,6,3),(6,1,1),(6,18,5000),(6,25,16384),(0,1,16),(1,2,1),(6,13,b'reno'),(1,13,struct.pack('ii',1,9)),(1,20,struct.pack('qq',3,0)),(1,21,struct.pack('qq',4,0)),(1,8,100000))]",
      "L.listen(77)",
    ],
    same: [
      "[L.getsockopt(l,o) for l,o in ((6,9),(6,23),(1,9),(6,4),(6,5),(6,6),(6,1),(6,18),(6,25),(0,1),(1,2),(1,15),(1,8))]",
      "[L.getsockopt(l,o,16) for l,o in ((6,13),(1,13),(1,20),(1,21))]",
    ],
  },
  {
    what: "options of connections",
    setup: [
      `C=socket.create_server(("127.0.0.1",9557)); C1=socket.create_connection(("127.0.0.1",9557)); C2=C.accept()[0]`,
      "[C2.setsockopt(l,o,v) for l,o,v in ((1,9,1),(6,4,33),(6,18,5000),(6,25,16384),(0,1,16),(6,13,b'reno'),(1,12,3),(1,18,50),(6,8,9),(6,7,4),(6,10,50000))]",
    ],
    same: [
      "[C2.getsockopt(l,o) for l,o in ((1,9),(6,4),(6,18),(6,25),(0,1),(1,12),(1,18),(6,8),(6,7),(6,10),(1,2),(1,15))]",
      "[C1.getsockopt(l,o) for l,o in ((1,2),(1,15),(6,18),(6,10))]",
      "C2.getsockopt(6,13,16)",
    ],
    holds: ["(C1.sendall(b'x'), C2.recv(1))[1]==b'x'"],
  },
  {
    what: "options for peers of IPv4, of sockets of IPv6",
    setup: [
      "BOTH=[socket.create_server(('::',9558),family=socket.AF_INET6,dualstack_ipv6=True), socket.socket(socket.AF_INET6,socket.SOCK_DGRAM)]",
      "BOTH+=[socket.create_connection(('127.0.0.1',9558)), BOTH[0].accept()[0]]; BOTH[1].bind(('::',9559))",
      "[one.setsockopt(l,o,v) for one in (BOTH[0],BOTH[1],BOTH[3]) for l,o,v in ((0,1,16),(0,2,70),(0,8,1),(0,10,3),(0,11,1),(0,13,1),(41,67,32),(41,16,9))]",
      "[BOTH[1].setsockopt(0,o,0) for o in (10,33,34,49)]",
      "BOTH[1].setsockopt(0,35,socket.inet_aton('239.1.1.7')+socket.inet_aton('127.0.0.1')); BOTH[1].settimeout(20)",
      "GROUP=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); GROUP.setsockopt(0,32,socket.inet_aton('127.0.0.1'))",
    ],
    same: [
      "[one.getsockopt(l,o) for one in (BOTH[0],BOTH[1],BOTH[3]) for l,o in ((0,1),(0,2),(0,8),(0,10),(0,11),(0,13),(41,67),(41,16))]",
      "[BOTH[1].getsockopt(0,o) for o in (10,33,34,49)]",
    ],
    holds: ["(GROUP.sendto(b'to all',('239.1.1.7',9559)), BOTH[1].recv(9))[1]==b'to all'"],
  },
  {
    what: "a connection of IPv6 that the application has to itself",
    setup: [
      "SIX=socket.create_server(('::1',9560),family=socket.AF_INET6)",
      "SIX1=socket.create_connection(('::1',9560)); SIX2=SIX.accept()[0]",
    ],
    same: ["[one.getsockname() for one in (SIX,SIX1,SIX2)]"],
    holds: ["(SIX1.sendall(b'six'), SIX2.recv(9))[1]==b'six'"],
  },
  {
    what: "children whose threads have ended",
    setup: [
      "READY=os.pipe()",
      "THREADED=os.fork() or [T:=threading.Thread(target=int), T.start(), T.join(), os.write(READY[1],b'r'), signal.pause(), os._exit(0)]",
      "os.read(READY[0],1)",
    ],
    holds: ["os.waitpid(THREADED,os.WNOHANG)==(0,0)"],
  },
  {
    what: "in a child one of a pair of sockets that its parent made, whose other one nobody has",
    setup: [
      "ONE,OTHER=socket.socketpair(); OTHER.sendall(b'last')",
      "HALF=os.fork() or [OTHER.close(), os.read(READY[0],1), os.write(READY[1],ONE.recv(9)), signal.pause(), os._exit(0)]",
      "ONE.close(); OTHER.close()",
    ],
    holds: ["os.waitpid(HALF,os.WNOHANG)==(0,0)"],
  },
  {
    what: "a listener that was shut, and a folder that was opened as a place only",
    setup: [
      "SHUT=socket.create_server(('127.0.0.1',9560)); SHUT.shutdown(2)",
      "PLACE=os.open('/usr',os.O_PATH)",
    ],
    same: ["os.readlink('/proc/self/fd/%d'%PLACE)", "SHUT.getsockopt(1,30)"],
  },
];

async function values(run: Run, lines: string[]): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const line of lines) {
    const answer = await run(line);
    assert.ok(!answer.startsWith("ERROR"), `${line}: ${answer}`);
    found[line] = answer;
  }
  return found;
}

describe("a move", { skip }, () => {
  it("keeps what CRIU restores otherwise: timers, semaphores, scheduling, options of sockets", async () => {
    await withPythonShell({ downstream: "forward" }, async (program, run) => {
      const before = new Map<Kept, Record<string, string>>();
      for (const thing of kept) {
        await values(run, thing.setup);
        before.set(thing, await values(run, thing.same ?? []));
        for (const line of thing.holds ?? []) assert.equal(await run(line), "True", `${thing.what}: ${line}`);
      }
      for (const to of ["b", "a"]) {
        await program.move(to);
        for (const thing of kept) {
          assert.deepEqual(await values(run, thing.same ?? []), before.get(thing), `${thing.what}, on ${to}`);
          for (const line of thing.holds ?? [])
            assert.equal(await run(line), "True", `${thing.what}, on ${to}: ${line}`);
        }
      }
    });
  });

  it("rolls back in one line when the restored application is not what it was", async () => {
    // a signal that nobody from outside can take back reaches the restored application, the newer one, while it waits
    const token = `audit-${randomUUID()}`;
    const signal = `exec@target:audit=kill -USR1 $(pgrep -n -f '[a]${token.slice(1)}')`;
    const workload = { container: { command: ["/usr/bin/python3", "-u", "/srv/shell.py", token] } };
    await withPythonShell(
      { downstream: "forward", workload, faults: { b: signal } },
      async (program, run) => {
        await run("signal.pthread_sigmask(signal.SIG_BLOCK,{signal.SIGUSR1})");
        const move = await program.tryMove("b");
        assert.ok(!("error" in move));
        assert.equal(move.outcome, "rolled-back");
        assert.match(
          move.reason ?? "",
          /^the restored application is not what it was: process \d+ \(python3\): status ShdPnd was 0000000000000000 and is 0000000000000200$/,
        );
        assert.equal(
          await run("signal.sigpending()"),
          "set()",
          "the application at the source has no signal",
        );
        await program.move("b");
      },
    );
  });

  it("rolls back where messages that wait would be lost behind one without bytes", async () => {
    await withPythonShell({ downstream: "forward" }, async (program, run) => {
      await run("near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); far.settimeout(5)");
      for (const message of ["first", "", "behind it"]) await run(`near.send(b"${message}")`);
      // of the first one, which is all that `check` looks at in a program that runs, nothing is lost
      assert.deepEqual(await program.findings(), []);
      const move = await program.tryMove("b");
      assert.ok(!("error" in move));
      assert.equal(move.outcome, "rolled-back");
      assert.match(
        move.reason ?? "",
        /^the restored application is not what it was: .* messages waiting was 5, /,
      );
      assert.equal(await run("[far.recv(99) for _ in range(3)]"), "[b'first', b'', b'behind it']");
      for (const message of ["one", "two"]) await run(`near.send(b"${message}")`);
      await program.move("b");
      assert.equal(await run("[far.recv(99) for _ in range(2)]"), "[b'one', b'two']");
    });
  });

  it("rolls back where a signal was sent to it while it was frozen: it has that where it goes on", async (t) => {
    const faults = faultsFile(t);
    const token = `signalled-${randomUUID()}`;
    const workload = { container: { command: ["/usr/bin/python3", "-u", "/srv/shell.py", token] } };
    await withPythonShell(
      { downstream: "forward", workload, faults: { a: `file:${faults}` } },
      async (program, run) => {
        await run("HEARD=[]");
        await run("signal.signal(signal.SIGUSR1, lambda *_: HEARD.append(1))");
        await run("signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01) and None");
        await run("signal.signal(signal.SIGALRM, lambda *_: None)");
        writeFileSync(
          faults,
          `exec@source:commit=kill -USR1 $(pgrep -o -f '^/usr/bin/python3.*[s]${token.slice(1)}')`,
        );
        const move = await program.tryMove("b");
        assert.ok(!("error" in move));
        assert.equal(move.outcome, "rolled-back");
        assert.match(move.reason ?? "", /^process \d+ was sent SIGUSR1 while it was frozen, /);
        await until("it has the signal", async () => (await run("len(HEARD)")) === "1");
        writeFileSync(faults, "");
        await program.move("b");
        assert.equal(await run("len(HEARD)"), "1");
      },
    );
  });

  it("does not lose the limits of a thread: found beforehand, or when it is compared", {
    skip: existsSync("/sys/fs/cgroup/cpu/tasks")
      ? false
      : "threads have cgroups of their own with cgroup v1 only",
  }, async (t) => {
    const faults = faultsFile(t);
    const token = `limited-${randomUUID()}`;
    const workload = { container: { command: ["/usr/bin/python3", "-u", "/srv/shell.py", token] } };
    await withPythonShell(
      { downstream: "forward", workload, faults: { a: `file:${faults}` } },
      async (program, run) => {
        const wait = "threading.Thread(target=threading.Event().wait, daemon=True).start()";
        await run(wait);
        const shell = (command: string): string =>
          execFileSync("/bin/sh", ["-c", command], { encoding: "utf8" }).trim();
        const pid = shell(`pgrep -o -f '^/usr/bin/python3.*[l]${token.slice(1)}'`);
        const group = `/sys/fs/cgroup/cpu${shell(`grep ':cpu:' /proc/${pid}/cgroup | cut -d: -f3`)}`;
        const limit = `mkdir -p ${group}/limited && ls /proc/${pid}/task | sort -n | tail -1 > ${group}/limited/tasks`;
        writeFileSync(faults, `exec@source:hold=${limit}`);
        const compared = await program.tryMove("b");
        assert.ok(!("error" in compared));
        assert.match(
          compared.reason ?? "",
          /^the restored application is not what it was: .* thread \d+: cgroup cpu was container\/limited and is container$/,
        );
        const found = await program.findings();
        assert.deepEqual(
          found.map(({ id }) => id),
          ["process.thread-cgroup"],
        );
        shell(`echo ${pid} > ${group}/cgroup.procs && rmdir ${group}/limited`);
        await program.move("b");
      },
    );
  });

  it("passes on what it was sent after the commit, to its process and to a thread", async (t) => {
    const faults = faultsFile(t);
    const token = `late-${randomUUID()}`;
    const workload = { container: { command: ["/usr/bin/python3", "-u", "/srv/shell.py", token] } };
    await withPythonShell(
      { downstream: "forward", workload, faults: { a: `file:${faults}` } },
      async (program, run) => {
        const listen = `
HEARD = []
for each in (signal.SIGHUP, 41): signal.signal(each, lambda number, _: HEARD.append(int(number)))
def wait():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2}); BLOCKED.set()
    while True: THREAD.append(int(signal.sigwait({signal.SIGUSR2})))
THREAD = []; BLOCKED = threading.Event()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
threading.Thread(target=wait, daemon=True).start(); BLOCKED.wait()`;
        await run(`exec(${JSON.stringify(listen)}, scope)`);
        const pid = `$(pgrep -o -f '^/usr/bin/python3.*[l]${token.slice(1)}')`;
        // tgkill(2) to the newest thread; a semicolon would be another fault
        const toThread = `import ctypes, os\npid = ${pid}\nctypes.CDLL(None).syscall(131 if os.uname().machine == 'aarch64' else 234, pid, max(map(int, os.listdir('/proc/%d/task' % pid))), 12)`;
        writeFileSync(
          faults,
          `exec@source:committed=kill -HUP ${pid} && kill -41 ${pid} && python3 -c "${toThread}"`,
        );
        const move = await program.move("b");
        assert.deepEqual(move.notKept, []);
        await until(
          "all have arrived",
          async () => (await run("(sorted(HEARD), THREAD)")) === "([1, 41], [12])",
        );
        writeFileSync(faults, "");
        await program.move("a");
        assert.equal(await run("(sorted(HEARD), THREAD)"), "([1, 41], [12])");
      },
    );
  });

  it("has each signal that is sent to it until its processes here have ended, whoever else sends that one", {
    skip:
      readlinkSync("/proc/self/ns/pid") === FIRST_PID_NAMESPACE
        ? false
        : "the kernel tells PIDs of its first PID namespace, which this is not",
  }, async (t) => {
    const faults = faultsFile(t);
    const token = `counted-${randomUUID()}`;
    const workload = { container: { command: ["/usr/bin/python3", "-u", "/srv/shell.py", token] } };
    await withPythonShell(
      { downstream: "forward", workload, faults: { a: `file:${faults}` } },
      async (program, run) => {
        // a timer sends one of them, too, and one waits already, of which there may be many
        const listen = `
import collections
HEARD = collections.Counter()
libc.sigqueue.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
for each in (1, 14, 17, 18): signal.signal(each, lambda number, _: HEARD.update([int(number)]))
signal.setitimer(signal.ITIMER_REAL, 3600)
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
os.kill(os.getpid(), 40)
def waiting():
    found = 0
    while signal.sigtimedwait({40}, 0): found += 1
    return found`;
        await run(`exec(${JSON.stringify(listen)}, scope)`);
        const pid = `$(pgrep -o -f '^/usr/bin/python3.*[c]${token.slice(1)}')`;
        const kill = (...signals: number[]): string =>
          signals.map((signal) => `kill -${signal} ${pid}`).join(" && ");
        writeFileSync(faults, `exec@source:commit=${kill(40)}`);
        const back = await program.tryMove("b");
        assert.ok(!("error" in back));
        assert.equal(back.outcome, "rolled-back");
        assert.match(back.reason ?? "", /^process \d+ was sent signal 40 while it was frozen, /);

        writeFileSync(
          faults,
          `exec@source:committed=${kill(40, 40, 14, 17, 18)};exec@source:retire=${kill(40, 1, 14)}`,
        );
        const move = await program.move("b");
        assert.deepEqual(move.notKept, []);
        await until(
          "all have arrived",
          async () => (await run("sorted(HEARD.items())")) === "[(1, 1), (14, 1), (17, 1), (18, 1)]",
        );
        // the first, that of the move that went back, and those of this one
        assert.equal(await run("waiting()"), "5");
      },
    );
  });

  it("goes where a folder of the node's is kept on another file system", {
    skip: statfsSync(tmpdir()).type === statfsSync("/dev/shm").type ? "needs two file systems" : false,
  }, async () => {
    const [disk, memory] = [tmpdir(), "/dev/shm"].map((at) => mkdtempSync(join(at, "hf-kept-")));
    const on = (source?: string): Record<string, unknown> => ({
      container: { mounts: [{ source, target: "/kept", readonly: true }] },
    });
    try {
      await withPythonShell(
        { downstream: "forward", workload: on(disk), elsewhere: { b: on(memory) } },
        async (program, run) => {
          const type = `[line.split(" - ")[1].split()[0] for line in open("/proc/self/mountinfo") if " /kept " in line]`;
          const before = await run(type);
          await program.move("b");
          assert.notEqual(await run(type), before);
          await program.move("a");
          assert.equal(await run(type), before);
        },
      );
    } finally {
      for (const folder of [disk, memory]) rmSync(folder ?? "", { recursive: true });
    }
  });

  it("keeps signals that processes want when their parents end, and says where another end counts now", async () => {
    await withPythonShell({ downstream: "forward" }, async (program, run) => {
      const code = `
ENDED = []
signal.signal(signal.SIGUSR1, lambda *_: ENDED.append(1))
libc.prctl(1, signal.SIGUSR1, 0, 0, 0)
def wanted():
    signal_ = ctypes.c_int(); libc.prctl(2, ctypes.byref(signal_), 0, 0, 0); return signal_.value
TELL = os.pipe()
def child(then):
    pid = os.fork()
    if pid: return pid
    libc.prctl(1, 12, 0, 0, 0); signal.signal(12, lambda *_: (os.write(TELL[1], b"x"), os._exit(0)))
    then(); os.write(TELL[1], b"r")
    while True: signal.pause()
def parent():
    # its child is told of its end
    pid = os.fork()
    if pid == 0: child(lambda: None); signal.pause()
    return pid
PARENT = parent(); os.read(TELL[0], 1)
GO = threading.Event()
def thread(): CHILDREN.append(child(lambda: None)); GO.wait()
CHILDREN = []; threading.Thread(target=thread, daemon=True).start(); os.read(TELL[0], 1)`;
      assert.equal(await run(`exec(${JSON.stringify(code)}, scope)`), "None");
      const first = await program.move("b");
      assert.equal(first.notKept.length, 2, JSON.stringify(first.notKept));
      assert.match(first.notKept[0] ?? "", /^process \d+: the signal that it wants when its parent ends /);
      assert.match(first.notKept[1] ?? "", /^process \d+: which thread has made it, /);
      const second = await program.move("a");
      assert.deepEqual(second.notKept, []);
      assert.equal(await run("(wanted(), ENDED)"), "(0, [])");
      assert.equal(await run("GO.set()"), "None");
      assert.equal(await run("(os.kill(PARENT, 9), os.read(TELL[0], 1))[1]"), "b'x'");
      assert.equal(await run("os.waitpid(CHILDREN[0], os.WNOHANG)"), "(0, 0)");
    });
  });

  it("keeps real-time signals that wait, in their order and with what they say", async () => {
    await withPythonShell({ downstream: "forward" }, async (program, run) => {
      const code = `
libc.sigqueue.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
WAITING = {40, 41, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, WAITING)
def drain():
    # what sigqueue(3) says is where waitpid(2) has a status
    found = []
    while one := signal.sigtimedwait(WAITING, 0): found.append((one.si_signo, one.si_code, one.si_status, one.si_pid == os.getpid()))
    return found
def to_thread(tid, number, value):
    text = struct.pack("iii4xiiQ96x", number, 0, -1, os.getpid(), os.getuid(), value)
    assert libc.syscall(240 if os.uname().machine == "aarch64" else 297, os.getpid(), tid, number, text) == 0
def other():
    OTHER.append(threading.get_native_id()); GO.wait(); OTHER.append(drain())
OTHER = []; GO = threading.Event(); THREAD = threading.Thread(target=other, daemon=True); THREAD.start()
while not OTHER: time.sleep(0.01)
for value in range(100):
    for number in (40, 41): assert libc.sigqueue(os.getpid(), number, value * 2 + number) == 0
for value in range(3): to_thread(OTHER[0], 41, 500 + value); to_thread(os.getpid(), 40, 600 + value)
libc.sigqueue(os.getpid(), signal.SIGUSR2, 7); os.kill(os.getpid(), 40)`;
      assert.equal(await run(`exec(${JSON.stringify(code)}, scope)`), "None");
      for (const to of ["b", "a"]) assert.deepEqual((await program.move(to)).notKept, []);
      const expected = `
EXPECTED = [(40, -1, 600 + value, True) for value in range(3)] + [(12, -1, 7, True)]
EXPECTED += [(40, -1, value * 2 + 40, True) for value in range(100)] + [(40, 0, 0, True)]
EXPECTED += [(41, -1, value * 2 + 41, True) for value in range(100)]
FOUND = [one if one[1] else (*one[:2], 0, one[3]) for one in drain()]`;
      assert.equal(await run(`exec(${JSON.stringify(expected)}, scope)`), "None");
      assert.equal(await run("FOUND == EXPECTED or FOUND"), "True");
      assert.equal(
        await run("(GO.set(), THREAD.join(), OTHER[1])[2]"),
        "[(41, -1, 500, True), (41, -1, 501, True), (41, -1, 502, True)]",
      );
    });
  });

  it("moves what is sent signals by a timer all the time, to a thread and to its process", async () => {
    await withPythonShell({ downstream: "forward" }, async (program, run) => {
      const timers = `
TIMER_CREATE, TIMER_SETTIME = (107, 110) if os.uname().machine == "aarch64" else (222, 223)
CAME = [0, 0]
def count(at):
    def came(*_): CAME[at] += 1
    return came
def begin(at, number, to):
    signal.signal(number, count(at))
    # struct sigevent: value, number, SIGEV_THREAD_ID or SIGEV_SIGNAL, thread
    event = struct.pack("QiiI44x", 0, number, to, threading.get_native_id())
    timer = ctypes.c_int()
    assert libc.syscall(TIMER_CREATE, 1, event, ctypes.byref(timer)) == 0
    every = struct.pack("qqqq", 0, 5000000, 0, 5000000)
    assert libc.syscall(TIMER_SETTIME, timer, 0, every, None) == 0
begin(0, 41, 4)
begin(1, 42, 0)
`;
      await run(`exec(${JSON.stringify(timers)}, scope)`);
      for (const to of ["b", "a"]) {
        await program.move(to);
        const [one = 0, other = 0] = JSON.parse(await run("CAME")) as number[];
        await until("both go on", async () => {
          const now = JSON.parse(await run("CAME")) as number[];
          return (now[0] ?? 0) > one + 5 && (now[1] ?? 0) > other + 5;
        });
      }
    });
  });

  it("tells what nobody can set again: the controlling terminal of a job", async () => {
    await withPythonShell({ downstream: "forward" }, async (program, run) => {
      const shell = `import pty
PID, TERMINAL = pty.fork()
if PID == 0: os.execve("/bin/bash", ["bash", "--norc", "-i"], {"PATH": "/bin:/usr/bin"})
`;
      await run(`exec(${JSON.stringify(shell)}, scope)`);
      await run(`os.write(TERMINAL, b"sleep 1000\\n")`);
      const job = `open("/proc/%d/task/%d/children" % (PID, PID)).read().split()`;
      await until("bash has started its job", async () => (await run(`len(${job})`)) === "1");
      const terminal = `open("/proc/%s/stat" % ${job}[0]).read().split()[6]`;
      assert.notEqual(await run(terminal), "'0'");
      const move = await program.move("b");
      assert.ok(move.notKept.length > 0);
      for (const line of move.notKept)
        assert.match(line, /^process \d+ \((bash|sleep)\): stat (tty|tpgid) was /);
      assert.equal(await run(terminal), "'0'", "carried by now: the table need not call it lost");
    });
  });
});
