/** Programs that have a guest thread again and again while they compute, wait, fork, are stopped, frozen or killed: none notices. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import fs, {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmdirSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { type TestContext, test } from "node:test";
import { setImmediate, setTimeout as sleep } from "node:timers/promises";
import { type GuestThread, withGuestThread } from "#control/criu/guest-thread.ts";
import { WriteTracking } from "#control/criu/write-tracking.ts";
import { roomForThreads } from "#control/runtime/cgroups.ts";
import { lacking, until } from "../support/moved-program.ts";

const skip = lacking("python3");
const SECONDS = 4;
const BETWEEN_MS = 5;
const BUSY = 4;
/** on a machine that is busy with other things, too */
const ENDS_MS_MAX = 60_000;
const SYS_GETPID = 39;

/** Each says `fine` at the end, or what went wrong. */
const PROGRAMS: Record<string, string> = {
  "computes, with a signal each millisecond": `
n = 0
def ring(*_):
    global n; n += 1
signal.signal(signal.SIGALRM, ring); signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
look = lambda: hashlib.sha256(b"x" * 100000).hexdigest() + repr(math.fsum(math.sin(i) * math.sqrt(i) for i in range(2000)))
wanted = look()
while time.monotonic() < end:
    if look() != wanted: say("computed something else")
say("fine" if n > 10 else "no signals")
`,
  "has threads that wait for each other, and sleeps": `
q = queue.Queue(); got = [0]; sent = 0
def work():
    while q.get() is not None: got[0] += 1
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
r, w = os.pipe(); poll = select.epoll(); poll.register(r, select.EPOLLIN)
while time.monotonic() < end:
    for _ in range(50): q.put(1); sent += 1
    os.write(w, b"x")
    if not poll.poll(1) or os.read(r, 1) != b"x": say("waited in vain")
    began = time.monotonic(); time.sleep(0.003)
    if time.monotonic() - began < 0.003: say("slept too little")
for _ in threads: q.put(None)
for thread in threads: thread.join()
say("fine" if got[0] == sent else "lost some")
`,
  "waits with limits, which would never end if they began again each time": `
r, w = os.pipe(); poll = select.poll(); poll.register(r, select.POLLIN)
waits = [lambda: time.sleep(0.9), lambda: poll.poll(900), lambda: select.select([r], [], [], 0.9), lambda: threading.Event().wait(0.9)]
for wait in waits:
    began = time.monotonic(); wait()
    if time.monotonic() - began < 0.89: say(f"waited {time.monotonic() - began}")
say("fine")
`,
  "forks, and runs others by vfork(2)": `
files = os.listdir("/proc/self/fd")
while time.monotonic() < end:
    pid = os.fork()
    if pid == 0: os._exit(7)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 7: say("a child ended otherwise")
    if subprocess.run(["/bin/true"], close_fds=False).returncode != 0: say("a program ended otherwise")
now = os.listdir("/proc/self/fd")
say("fine" if now == files else f"{files} became {now}")
`,
  "has threads that fork, and looks at what it has open": `
def faults():
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try: links.append(os.readlink("/proc/self/fd/" + fd))
        except OSError: pass
    return any("userfaultfd" in link for link in links)
forked = [0]
def fork():
    while time.monotonic() < end:
        pid = os.fork()
        if pid == 0: os._exit(1 if faults() else 0)
        if os.waitpid(pid, 0)[1] != 0: say("a child has inherited it")
        forked[0] += 1
threads = [threading.Thread(target=fork) for _ in range(3)]
for thread in threads: thread.start()
while time.monotonic() < end:
    if faults(): say("it has it")
for thread in threads: thread.join()
say("fine" if forked[0] > 5 else f"forked {forked[0]} times")
`,
  "is stopped and goes on": `
n = 0
def ring(*_):
    global n; n += 1
signal.signal(signal.SIGCONT, ring)
me, child = os.getpid(), os.fork()
if child == 0:
    while time.monotonic() < end - 0.5:
        os.kill(me, signal.SIGSTOP); time.sleep(0.004); os.kill(me, signal.SIGCONT); time.sleep(0.004)
    os._exit(0)
while time.monotonic() < end: time.sleep(0.001)
os.waitpid(child, 0)
say("fine" if n > 5 else "was not stopped")
`,
  "has threads one of which is given what stops them all": `
me, child = os.getpid(), os.fork()
if child == 0:
    while time.monotonic() < end - 0.5:
        os.kill(me, signal.SIGSTOP); time.sleep(0.0007); os.kill(me, signal.SIGCONT); time.sleep(0.0007)
    os._exit(0)
data = b"x" * 200000
wanted, turns = hashlib.sha256(data).hexdigest(), [0] * 4
def work(which):
    while time.monotonic() < end:
        if hashlib.sha256(data).hexdigest() != wanted: say("computed something else")
        turns[which] += 1
threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
for thread in threads: thread.start()
while time.monotonic() < end: time.sleep(0.001)
for thread in threads: thread.join()
os.waitpid(child, 0)
say("fine" if min(turns) > 5 else f"turns: {turns}")
`,
  "makes threads all the time": `
made = 0
def work(n): results.append(n + 1)
while time.monotonic() < end:
    results = []
    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads:
        thread.join(2)
        if thread.is_alive(): say("one has not ended")
    if sorted(results) != [1, 2, 3, 4]: say("one has not worked")
    made += 4
say("fine" if made > 20 else f"made {made}")
`,
  "has a filter of its calls that refuses one": `
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
SYS_GETPPID = 110
# linux/filter.h: load the number; is it that one? EPERM : allowed
code = struct.pack("<" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, SYS_GETPPID, 0x06, 0, 0, 0x50001, 0x06, 0, 0, 0x7fff0000)
kept = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(kept)), 16)
if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, program) != 0: say("prctl(2): " + os.strerror(ctypes.get_errno()))
refused = 0
while time.monotonic() < end:
    for _ in range(100):
        if libc.syscall(SYS_GETPPID) != -1: say("it was let through")
        refused += 1
say("fine" if refused > 100 else f"refused {refused} times")
`,
  "waits under a filter that ends who begins a call again": `
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
SYS_RESTART_SYSCALL = 219
# linux/filter.h: load the number; is it that one? the process ends : allowed
code = struct.pack("<" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, SYS_RESTART_SYSCALL, 0x06, 0, 0, 0x80000000, 0x06, 0, 0, 0x7fff0000)
kept = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(kept)), 16)
if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, program) != 0: say("prctl(2): " + os.strerror(ctypes.get_errno()))
def compute():
    while time.monotonic() < end: hashlib.sha256(b"x" * 2000000).digest()
threading.Thread(target=compute, daemon=True).start()
poll = select.poll(); turns = 0
while time.monotonic() < end:
    poll.poll(20); turns += 1
say("fine" if turns > 3 else f"waited {turns} times")
`,
  "executes itself, from its first thread and from others": `
turn = int(os.environ.get("TURN", "0")) + 1
def again():
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", sys.orig_argv[-1]], {"TURN": str(turn), "END": str(end)})
if time.monotonic() > end: say("fine" if turn > 3 else f"turn {turn}")
if turn % 2: again()
threading.Thread(target=again).start()
while True: time.sleep(1)
`,
};

/**
 * A loop in a restartable sequence (rseq(2), linux/rseq.h). If the kernel takes it that the thread has left the sequence, it forgets
 * that it is in one; the loop sees that, and counts. Counts: lost, aborts; third word: to end.
 *
 *   begin: mov %rsi, 8(%rdi)
 *   start: cmpq $0, 8(%rdi);  je lost;  cmpl $0, 16(%rdx);  je start
 *   end:   movq $0, 8(%rdi);  ret
 *   lost:  incq (%rdx);  jmp begin
 *          .long 0x53053053
 *   abort: incq 8(%rdx);  jmp begin
 */
const RESTARTABLE = `
import ctypes, mmap, struct
libc = ctypes.CDLL(None, use_errno=True)
code = bytes.fromhex("48897708" "48837f0800" "740f" "837a1000" "74f3" "48c7470800000000" "c3" "48ff02" "ebe1" "53300553" "48ff4208" "ebd7")
area = mmap.mmap(-1, 4096, prot=7)
at = ctypes.addressof(ctypes.c_char.from_buffer(area))
area[0:len(code)] = code
rseq, sequence, counts = at + 1024, at + 2048, at + 3072
struct.pack_into("<IIQQQ", area, 2048, 0, 0, at + 4, 13, at + 35)
def stop():
    time.sleep(max(0, end - time.monotonic()))
    ctypes.c_long.from_address(counts + 16).value = 1
threading.Thread(target=stop).start()
if libc.syscall(334, ctypes.c_void_p(rseq), 32, 0, 0x53053053) != 0: say("rseq(2): " + os.strerror(ctypes.get_errno()))
ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(at)(rseq, sequence, counts)
lost, aborts = struct.unpack_from("<qq", area, 3072)
say("fine" if lost == 0 and aborts > 5 else f"{lost} lost, {aborts} aborts")
`;
PROGRAMS["is in restartable sequences"] = RESTARTABLE;

const HEAD = `
import hashlib, math, os, queue, select, signal, subprocess, sys, threading, time
end = float(os.environ.get("END", time.monotonic() + ${SECONDS}))
def say(what):
    print(what, flush=True); os._exit(0)
if "END" not in os.environ: print("ready", flush=True)
`;

/** It counts, and says so. */
const COUNTS = `
def count():
    n = 0
    while True: n += 1; print(n, flush=True); time.sleep(0.002)
threading.Thread(target=count).start()
while True: time.sleep(10)
`;

interface Program {
  pid: number;
  shell: ChildProcess;
  said: () => string;
}

/** The first, when there is one. */
async function childOf(parent: number | undefined): Promise<number> {
  let found = "";
  await until("it has a child", () => {
    [found = ""] = readFileSync(`/proc/${parent}/task/${parent}/children`, "utf8").split(" ");
    return found !== "";
  });
  return Number(found);
}

/** Runs it; not as a child of ours: Node would take what only who traces it is to hear. */
async function started(t: TestContext, text: string, prefix = ""): Promise<Program> {
  const env = { ...process.env, GLIBC_TUNABLES: "glibc.pthread.rseq=0" };
  const shell = spawn("/bin/sh", ["-c", `${prefix} python3 -u -c "$0" & wait`, HEAD + text], {
    stdio: ["ignore", "pipe", "inherit"],
    env,
  });
  let said = "";
  shell.stdout.setEncoding("utf8").on("data", (piece: string) => {
    said += piece;
  });
  await until("it runs", () => said.startsWith("ready\n"));
  const first = await childOf(shell.pid);
  const pid = prefix === "" ? first : await childOf(first);
  t.after(() => {
    if (shell.exitCode === null) spawn("/bin/kill", ["-KILL", String(pid)]);
  });
  return { pid, shell, said: () => said };
}

for (const [what, text] of Object.entries(PROGRAMS))
  test(`a program that ${what} does not notice that it has had a guest`, { skip }, async (t) => {
    const { pid, said } = await started(t, text);
    let guests = 0;
    const untilMs = performance.now() + ENDS_MS_MAX;
    // it may write a line in pieces
    const hasEnded = (): boolean => /^ready\n.*\n/.test(said());
    for (; !hasEnded() && performance.now() < untilMs; await sleep(BETWEEN_MS)) {
      const tracking = await WriteTracking.of(pid);
      tracking?.begin();
      await tracking?.close();
      if (tracking !== null) guests++;
    }
    assert.equal(said(), "ready\nfine\n");
    assert.ok(guests > 5, `${guests} times`);
  });

/**
 * An ELF program (x86-64) that makes a thread, which executes the program again, some thousand times a second; elf(5), execve(2).
 *
 *          mov $56, %eax;  mov $0x50f00, %edi;  lea -4096(%rsp), %rsi;  xor %edx, %edx;  xor %r10d, %r10d;  syscall    clone(2)
 *          test %eax, %eax;  je thread
 *   first: mov $34, %eax;  syscall;  jmp first                                                                         pause(2)
 *   thread: mov $59, %eax;  lea path(%rip), %rdi;  xor %esi, %esi;  xor %edx, %edx;  syscall;  jmp thread               execve(2)
 *   path:  "/proc/self/exe"
 */
function executesItself(): Buffer {
  const code = Buffer.from(
    "b838000000bf000f0500488db42400f0ffff31d24531d20f0585c07409b8220000000f05ebf7" +
      "b83b000000488d3d0800000031f631d20f05ebec2f70726f632f73656c662f65786500",
    "hex",
  );
  const [headers, at] = [120, 0x400000];
  const file = Buffer.alloc(headers + code.length);
  Buffer.from("7f454c46020101", "hex").copy(file);
  file.set([2, 0, 62, 0, 1], 16); // ET_EXEC, EM_X86_64, EV_CURRENT
  file.writeBigUInt64LE(BigInt(at + headers), 24);
  file.writeBigUInt64LE(64n, 32); // where the one program header is
  file.set([64, 0, 56, 0, 1], 52);
  file.set([1, 0, 0, 0, 7], 64); // PT_LOAD, readable, writable, executable
  for (const [index, word] of [0, at, at, file.length, file.length, 4096].entries())
    file.writeBigUInt64LE(BigInt(word), 72 + index * 8);
  code.copy(file, headers);
  return file;
}

test("a program that a thread of its own executes again all the time goes on, whenever it has a guest", {
  skip: process.arch === "x64" ? false : "a program of x86-64",
}, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "hf-guest-"));
  writeFileSync(join(folder, "program"), executesItself(), { mode: 0o755 });
  const text = `timeout -s KILL ${ENDS_MS_MAX / 1000} "$0" & wait`;
  const shell = spawn("/bin/sh", ["-c", text, join(folder, "program")], { stdio: "ignore" });
  const pid = await childOf(await childOf(shell.pid));
  t.after(() => {
    if (existsSync(`/proc/${pid}`)) process.kill(pid, "SIGKILL");
    rmSync(folder, { recursive: true });
  });
  /** AT_RANDOM and where the stack is, others each time; while it is executed it has none */
  const look = (): string | null => {
    try {
      return readFileSync(`/proc/${pid}/auxv`, "hex") || null;
    } catch {
      return null;
    }
  };
  // threads that are killed reach their end late where others want the processors, too
  for (let n = 0; n < BUSY; n++) spawn("timeout", [String(SECONDS), "sh", "-c", "while :; do :; done"]);
  const beganMs = performance.now();
  const hasTime = (ms: number): boolean => performance.now() < beganMs + ms;
  let guests = 0;
  // of some thousand tries one finds a thread that lives long enough: about one a second
  for (let tries = 0; hasTime(SECONDS * 1_000) || (guests === 0 && hasTime(ENDS_MS_MAX / 2)); tries++) {
    await setImmediate();
    if ((await withGuestThread(pid, ({ call }) => call(SYS_GETPID))) !== null) guests++;
    if (tries % 50 > 0) continue;
    const before = look();
    await until("it is executed again", () => ![null, before].includes(look()));
  }
  assert.ok(guests > 0);
});

const hasGoneOn = async ({ said }: Program): Promise<void> => {
  const before = said().length;
  await until("it goes on", () => said().length > before + 20);
};
const stateOf = (pid: number): string[] =>
  readdirSync(`/proc/${pid}/task`).map((tid) => {
    const status = readFileSync(`/proc/${pid}/task/${tid}/status`, "utf8");
    return `${/^State:\s*(\w)/m.exec(status)?.[1]} ${/^TracerPid:\s*(\d+)/m.exec(status)?.[1]}`;
  });

test("a process that is stopped while it has a guest stays stopped until it is told to go on", {
  skip,
}, async (t) => {
  const program = await started(t, COUNTS);
  const { pid } = program;
  const got = await withGuestThread(pid, async ({ call }) => {
    process.kill(pid, "SIGSTOP");
    const first = await call(SYS_GETPID);
    return [first, await call(SYS_GETPID)];
  });
  assert.deepEqual(got, [pid, pid]);
  await until("it has stopped", () => stateOf(pid).every((state) => state === "T 0"));
  await sleep(50); // what it said before has been heard
  const { length } = program.said();
  await sleep(50);
  assert.equal(program.said().length, length);
  process.kill(pid, "SIGCONT");
  await hasGoneOn(program);
  assert.equal(stateOf(pid).length, 2);
});

test("a process that is stopped and continued while it has a guest goes on", { skip }, async (t) => {
  const program = await started(t, COUNTS);
  const { pid } = program;
  const got = await withGuestThread(pid, async ({ call }) => {
    process.kill(pid, "SIGSTOP");
    await call(SYS_GETPID);
    process.kill(pid, "SIGCONT");
    return call(SYS_GETPID);
  });
  assert.equal(got, pid);
  await hasGoneOn(program);
});

test("the first process of a PID namespace, which takes no stop from within but while it is traced, has no guest", {
  skip,
}, async (t) => {
  const program = await started(
    t,
    `
child = os.fork()
if child == 0:
    while time.monotonic() < end: os.kill(1, signal.SIGSTOP)
    os._exit(0)
${COUNTS}`,
    "unshare --pid --fork --kill-child",
  );
  for (let tries = 0; tries < 20; tries++)
    assert.equal(await withGuestThread(program.pid, ({ call }) => call(SYS_GETPID)), null);
  await hasGoneOn(program);
});

test("how many threads a process's control group has room for is known", { skip }, async (t) => {
  const { pid } = await started(t, COUNTS);
  const root = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].find((folder) =>
    existsSync(join(folder, "cgroup.procs")),
  );
  assert.ok(root !== undefined);
  const group = join(root, `hf-guest-room-${pid}`);
  mkdirSync(group);
  t.after(async () => {
    if (existsSync(`/proc/${pid}`)) writeFileSync(join(root, "cgroup.procs"), String(pid));
    await until("the group is empty", () => readFileSync(join(group, "cgroup.procs"), "utf8") === "");
    rmdirSync(group);
  });
  writeFileSync(join(group, "cgroup.procs"), String(pid));
  assert.equal(await roomForThreads(pid), Number.POSITIVE_INFINITY);
  writeFileSync(join(group, "pids.max"), "40");
  assert.equal(await roomForThreads(pid), 38);
});

/** Maps a file that is called as the kernel's own code is, below that, and of which nothing can be executed. */
const NAMED_SO = `
import mmap, tempfile
folder = tempfile.mkdtemp()
path = os.path.join(folder, "x[vdso]")
with open(path, "wb") as file: file.write(b"\\x0f\\x05" * 2048)
fd = os.open(path, os.O_RDONLY)
kept = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
`;

test("a program that maps a file called as the kernel's own code is has a guest by that code", {
  skip,
}, async (t) => {
  const program = await started(t, NAMED_SO + COUNTS);
  const { pid } = program;
  await hasGoneOn(program);
  const mapped = /^\S+ .* (\/\S*)\/x\[vdso\]$/m.exec(readFileSync(`/proc/${pid}/maps`, "utf8"))?.[1] ?? "";
  t.after(() => rmSync(mapped, { recursive: true }));
  assert.equal(await withGuestThread(pid, ({ call }) => call(SYS_GETPID)), pid);
  await hasGoneOn(program);
});

/** Puts bytes where the kernel's own code in a process's memory makes a system call, and returns what was there. */
function kernelCode(t: TestContext, pid: number): (code: Buffer, offset?: number) => Buffer {
  const [, start = "0", end = "0"] =
    /^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$/m.exec(readFileSync(`/proc/${pid}/maps`, "utf8")) ?? [];
  const [from, to] = [Number.parseInt(start, 16), Number.parseInt(end, 16)];
  const memory = openSync(`/proc/${pid}/mem`, "r+");
  t.after(() => closeSync(memory));
  const bytes = Buffer.alloc(to - from);
  readSync(memory, bytes, 0, bytes.length, from);
  const at = bytes.indexOf(Buffer.from([0x0f, 0x05]));
  return (code, offset = 0) => {
    writeSync(memory, code, 0, null, from + at + offset);
    return bytes.subarray(at, at + code.length);
  };
}

/** x86-64: what the kernel's own code makes of a call when its instruction has been replaced */
const REPLACED: Record<string, string> = {
  "another call": "b06e0f05", // mov $110, %al;  syscall   getppid(2)
  "a call of a 32-bit program": "cd80", // int $0x80
  "the same call from elsewhere": "900f05", // nop;  syscall
  "no call": "0f0b", // ud2
};

for (const [what, code] of Object.entries(REPLACED))
  test(`a guest makes no call when ${what} has been put where it is made, and the program ends`, {
    skip,
  }, async (t) => {
    const { pid, shell } = await started(t, COUNTS);
    const put = kernelCode(t, pid);
    let result: number | null = null;
    const got = await withGuestThread(pid, async ({ call }) => {
      put(Buffer.from(code, "hex"));
      result = await call(SYS_GETPID);
      return result;
    });
    assert.deepEqual([got, result], [null, null]);
    await until("its parent has heard of it", () => shell.exitCode !== null);
    assert.ok(!existsSync(`/proc/${pid}`));
  });

/**
 * wait: cmpb $0, flag(%rip);  je wait;  mov $95, %eax;  mov $63, %edi;  syscall   umask(2)
 * flag: 0
 */
const CALLS_LATE = Buffer.from("803d0e0000000074f7b85f000000bf3f0000000f0500", "hex");

test("a guest that makes another call when it is no longer waited for makes none", { skip }, async (t) => {
  const program = await started(t, COUNTS);
  const { pid } = program;
  const put = kernelCode(t, pid);
  const umask = (): string | undefined =>
    /^Umask:.*$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[0];
  const before = umask();
  const got = await withGuestThread(pid, async ({ tid, call }) => {
    const was = put(CALLS_LATE);
    try {
      return await call(SYS_GETPID);
    } catch (error) {
      put(Buffer.from([1]), CALLS_LATE.length - 1);
      await until("it calls", () =>
        readFileSync(`/proc/${pid}/task/${tid}/syscall`, "utf8").startsWith("95 0x3f "),
      );
      put(was);
      throw error;
    }
  });
  assert.equal(got, null);
  assert.equal(umask(), before);
  await hasGoneOn(program);
});

for (const when of ["while it has a guest", "by one of its own calls"])
  test(`of a process that is killed ${when} nothing is left`, { skip }, async (t) => {
    const { pid, shell } = await started(t, when.startsWith("by") ? COUNTS : "time.sleep(60)");
    const got = await withGuestThread(pid, async ({ call }) => {
      // exit_group(2)
      if (when.startsWith("by")) return call(231, 3);
      process.kill(pid, "SIGKILL");
      return call(SYS_GETPID);
    });
    assert.equal(got, null);
    await until("its parent has heard of it", () => shell.exitCode !== null);
    assert.ok(!existsSync(`/proc/${pid}`));
  });

/**
 * It replaces memory while it is tracked, has a userfaultfd(2) of its own tell what is written there, writes all of it, and asks that. Says
 * where the memory is; then, when it has a signal, that it has done so.
 */
const TRACKS_ITSELF = `
import ctypes, fcntl, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
size = 16 * 4096
at = libc.mmap(None, size, 3, 0x22, -1, 0)
ctypes.memset(at, 1, size)
print(at, flush=True)
signal.sigwait([signal.SIGUSR1])
if libc.mmap(at, size, 3, 0x32, -1, 0) != at: say("mmap")
fd = libc.syscall(323, 0x80001)
fcntl.ioctl(fd, 0xc018aa3f, bytearray(struct.pack("<QQQ", 0xaa, 1 << 13 | 1 << 15, 0)))
fcntl.ioctl(fd, 0xc020aa00, bytearray(struct.pack("<QQQQ", at, size, 2, 0)))
ctypes.memset(at, 2, size)
found = ctypes.create_string_buffer(24)
asked = bytearray(struct.pack("<12Q", 96, 3, at, at + size, 0, ctypes.addressof(found), 1, 0, 0, 2, 0, 2))
print("written", fcntl.ioctl(os.open("/proc/self/pagemap", os.O_RDONLY), 0xc0606610, asked), flush=True)
time.sleep(60)
`;

test("memory that a program has replaced, and tracks by itself, does not count as unwritten", {
  skip,
}, async (t) => {
  const { pid, said } = await started(t, TRACKS_ITSELF);
  await until("it says where", () => said().split("\n").length === 3);
  const at = Number(said().split("\n")[1]);
  const tracking = await WriteTracking.of(pid);
  assert.ok(tracking !== null);
  t.after(() => tracking.close());
  const isAmong = (ranges: { vaddr: number; pages: number }[]): boolean =>
    ranges.some(({ vaddr, pages }) => vaddr < at + 16 * 4096 && vaddr + pages * 4096 > at);
  assert.ok(!isAmong(tracking.begin()));
  assert.ok(isAmong(tracking.begin()));
  assert.ok(isAmong(tracking.unwritten()));
  process.kill(pid, "SIGUSR1");
  await until("it has", () => said().endsWith("written 1\n"));
  assert.ok(!isAmong(tracking.unwritten()));
});

/** Says where its memory is; writes one page of it when it has a signal, and says so. */
const WRITES_ONE_PAGE = `
import ctypes, mmap
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
area = mmap.mmap(-1, 32 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = ctypes.addressof(ctypes.c_char.from_buffer(area))
ctypes.memset(at, 1, 32 * 4096)
print(at, flush=True)
signal.sigwait([signal.SIGUSR1])
ctypes.memset(at + 5 * 4096, 2, 4096)
print("written", flush=True)
time.sleep(60)
`;

test("a page that was written does not count as unwritten when the kernel shows its mapping twice", {
  skip,
}, async (t) => {
  const { pid, said } = await started(t, WRITES_ONE_PAGE);
  await until("it says where", () => said().split("\n").length === 3);
  const at = Number(said().split("\n")[1]);
  const tracking = await WriteTracking.of(pid);
  assert.ok(tracking !== null);
  t.after(() => tracking.close());
  tracking.begin();
  process.kill(pid, "SIGUSR1");
  await until("it has", () => said().endsWith("written\n"));
  // as where it grew between two read(2) of the list: first as long as it was, then all of it
  const line = (pages: number): string =>
    `${at.toString(16)}-${(at + pages * 4096).toString(16)} rw-p 00000000 00:00 0\n`;
  const read = t.mock.method(fs, "readFileSync", () => line(16) + line(32));
  syncBuiltinESMExports();
  try {
    assert.deepEqual(tracking.begin(), [
      { vaddr: at, pages: 5 },
      { vaddr: at + 6 * 4096, pages: 10 },
      { vaddr: at + 16 * 4096, pages: 16 },
    ]);
    assert.equal(read.mock.callCount(), 1);
  } finally {
    read.mock.restore();
    syncBuiltinESMExports();
  }
});

/** Of the hierarchies that are mounted here. */
const FREEZERS = ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"].flatMap((folder) => {
  if (existsSync(join(folder, "cgroup.controllers"))) return [{ version: "v2", folder }];
  return folder.endsWith("freezer") && existsSync(folder) ? [{ version: "v1", folder }] : [];
});

test("there is a freezer", () => assert.notEqual(FREEZERS.length, 0));

for (const { version, folder } of FREEZERS)
  for (const when of ["before it has a guest", "while it has one"])
    test(`a process that is frozen ${when} is given back when it goes on, ${version}`, {
      skip,
    }, async (t) => {
      const program = await started(t, COUNTS);
      const { pid } = program;
      const group = join(folder, `hf-guest-${pid}`);
      const isFrozen = (frozen: boolean): void => {
        if (version === "v1") writeFileSync(join(group, "freezer.state"), frozen ? "FROZEN" : "THAWED");
        else writeFileSync(join(group, "cgroup.freeze"), frozen ? "1" : "0");
      };
      mkdirSync(group);
      t.after(async () => {
        isFrozen(false);
        if (existsSync(`/proc/${pid}`)) writeFileSync(join(folder, "cgroup.procs"), String(pid));
        await until("the group is empty", () => readFileSync(join(group, "cgroup.procs"), "utf8") === "");
        rmdirSync(group);
      });
      writeFileSync(join(group, "cgroup.procs"), String(pid));
      if (when.startsWith("before")) isFrozen(true);
      const call = async ({ call }: GuestThread): Promise<number> => {
        if (!when.startsWith("before")) isFrozen(true);
        return call(SYS_GETPID);
      };
      await withGuestThread(pid, call).then(
        (got) => assert.equal(got, null),
        (error) => assert.equal(error.code, "FREEZER"),
      );
      isFrozen(false);
      await until("nobody traces it", () => stateOf(pid).every((state) => state.endsWith(" 0")));
      await hasGoneOn(program);
      assert.equal(stateOf(pid).length, 2);
      assert.equal(await withGuestThread(pid, ({ call }) => call(SYS_GETPID)), pid);
      await hasGoneOn(program);
    });

test("a program goes on as before when the agent is killed while it has a guest there", {
  skip,
}, async (t) => {
  const program = await started(t, COUNTS);
  const { pid } = program;
  const blocked = (): string[] =>
    readdirSync(`/proc/${pid}/task`).map((tid) => {
      return /^SigBlk:.*$/m.exec(readFileSync(`/proc/${pid}/task/${tid}/status`, "utf8"))?.[0] ?? "";
    });
  const before = blocked();
  const text = `import { withGuestThread } from "#control/criu/guest-thread.ts";
    await withGuestThread(${pid}, async ({ call }) => {
      await call(${SYS_GETPID});
      console.log("there");
      await new Promise((never) => setTimeout(never, ${ENDS_MS_MAX}));
    });`;
  for (let times = 0; times < 3; times++) {
    const argv = [...process.execArgv, "--input-type=module", "-e", text];
    const agent = spawn(process.execPath, argv, { stdio: ["ignore", "pipe", "inherit"] });
    t.after(() => agent.kill("SIGKILL"));
    await once(agent.stdout as Readable, "data");
    assert.equal(readdirSync(`/proc/${pid}/task`).length, before.length + 1);
    agent.kill("SIGKILL");
    await until("its guest has ended", () => readdirSync(`/proc/${pid}/task`).length === before.length);
    assert.deepEqual(blocked(), before);
    await hasGoneOn(program);
  }
});
