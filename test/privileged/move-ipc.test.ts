/** What an application has in its IPC namespace is there after a move: System V objects, POSIX queues, limits. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { lacking } from "../support/moved-program.ts";
import { type Run, withPythonShell } from "../support/python-shell.ts";
import { modes } from "../support/thorough.ts";

const skip = lacking("python3");

/** Runs the lines of a set-up, none of which may fail. */
async function all(run: Run, lines: string[]): Promise<void> {
  for (const line of lines) assert.doesNotMatch(await run(line), /^ERROR/, line);
}

async function answers(run: Run, lines: string[]): Promise<string[]> {
  const given: string[] = [];
  for (const line of lines) given.push(await run(line));
  return given;
}

const buffer = "(lambda b: (%, b.raw[:16]))(ctypes.create_string_buffer(8192))";
const systemV = {
  setup: [
    `libc.shmat.restype = ctypes.c_void_p`,
    `SEM = libc.semget(0x1234, 3, 0o1640)`,
    `[libc.semctl(SEM, n, 16, 40 + n) for n in range(3)]`,
    `QUEUE = libc.msgget(0x77, 0o1600)`,
    `[libc.msgsnd(QUEUE, struct.pack("q5s", kind, text), 5, 0) for kind, text in ((1, b"first"), (7, b"seven"), (1, b"again"))]`,
    `LOOSE = libc.shmget(0x99, 8192, 0o1600)`,
    `AT = libc.shmat(LOOSE, None, 0)`,
    `ctypes.memmove(AT, b"loose", 5)`,
    `libc.shmdt(ctypes.c_void_p(AT))`,
    `HELD = libc.shmget(0x9a, 3 << 20, 0o1600)`,
    `HERE = libc.shmat(HELD, None, 0)`,
    `ctypes.memmove(HERE, b"held", 4)`,
    // marked for removal, and still attached: it lives until it is detached
    `GONE = libc.shmget(0, 4096, 0o1600)`,
    `LAST = libc.shmat(GONE, None, 0)`,
    `ctypes.memmove(LAST, b"last", 4)`,
    `libc.shmctl(GONE, 0, None)`,
    // /proc/sys is read-only, but for who may mount: MS_BIND | MS_REMOUNT, and MS_RDONLY again
    `libc.mount(None, b"/proc/sys", None, 4096 | 32, None)`,
    `open("/proc/sys/kernel/msgmnb", "w").write("33333")`,
    `libc.mount(None, b"/proc/sys", None, 4096 | 32 | 1, None)`,
  ],
  look: [
    `[libc.semctl(libc.semget(0x1234, 0, 0), n, 12) for n in range(3)]`,
    `(libc.semget(0x1234, 0, 0) == SEM, libc.msgget(0x77, 0) == QUEUE, libc.shmget(0x99, 0, 0) == LOOSE, libc.shmget(0x9a, 0, 0) == HELD)`,
    `(lambda a: (ctypes.string_at(a, 5), libc.shmdt(ctypes.c_void_p(a))))(libc.shmat(LOOSE, None, 0))`,
    `(ctypes.string_at(HERE, 4), ctypes.string_at(LAST, 4))`,
    `open("/proc/sysvipc/msg").read().split("\\n")[1].split()[:5]`,
    `open("/proc/sys/kernel/msgmnb").read()`,
  ],
  /** takes the messages out, so it is asked once */
  last: [
    buffer.replace("%", "libc.msgrcv(QUEUE, b, 100, 7, 0o4000)"),
    buffer.replace("%", "libc.msgrcv(QUEUE, b, 100, 0, 0o4000)"),
    buffer.replace("%", "libc.msgrcv(QUEUE, b, 100, 0, 0o4000)"),
    buffer.replace("%", "libc.msgrcv(QUEUE, b, 100, 0, 0o4000)"),
  ],
};

const open = (name: string, flags: string): string =>
  `RT.mq_open(b"${name}", ${flags}, 0o640, struct.pack("8q", 0, 5, 100, 0, 0, 0, 0, 0))`;
const posix = {
  setup: [
    `RT = ctypes.CDLL("librt.so.1", use_errno=True)`,
    `HELD = ${open("/held", "os.O_CREAT | os.O_RDWR | os.O_NONBLOCK")}`,
    `WRITES = ${open("/held", "os.O_WRONLY")}`,
    `LOOSE = ${open("/loose", "os.O_CREAT | os.O_RDWR")}`,
    `[RT.mq_send(queue, text, len(text), priority) for queue in (HELD, LOOSE) for priority, text in ((0, b"low"), (9, b"high 1"), (9, b"high 2"), (3, b""))]`,
    `RT.mq_close(LOOSE)`,
  ],
  look: [
    `sorted((n, oct(os.stat("/dev/mqueue/" + n).st_mode), open("/dev/mqueue/" + n).read()) for n in os.listdir("/dev/mqueue"))`,
    `[fcntl.fcntl(d, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK) for d in (HELD, WRITES)]`,
    `(lambda b: (RT.mq_getattr(HELD, b), struct.unpack("8q", b.raw)[1:4]))(ctypes.create_string_buffer(64))`,
    `open("/proc/self/mountinfo").read().count(" /dev/mqueue ")`,
  ],
  last: [
    ...Array.from({ length: 5 }, () => buffer.replace("%", "RT.mq_receive(HELD, b, 8192, None)")),
    `LOOSE = ${open("/loose", "os.O_RDWR | os.O_NONBLOCK")}`,
    ...Array.from({ length: 5 }, () => buffer.replace("%", "RT.mq_receive(LOOSE, b, 8192, None)")),
    `(RT.mq_send(WRITES, b"through", 7, 0), ${buffer.replace("%", "RT.mq_receive(HELD, b, 8192, None)")})`,
  ],
};

for (const downstream of modes("forward")) {
  for (const [what, { setup, look, last }] of Object.entries({ "System V": systemV, POSIX: posix })) {
    test(`${what} objects move there and back, ${downstream}`, { skip }, async () => {
      const workload = { container: { capabilities: { add: ["SYS_ADMIN"] } } };
      await withPythonShell({ downstream, workload }, async (program, run) => {
        await all(run, setup);
        const before = await answers(run, look);
        for (const to of ["b", "a"]) {
          await program.move(to);
          assert.deepEqual(await answers(run, look), before, `on ${to}`);
        }
        const taken = await answers(run, last);
        // the same in a container of which nothing has moved
        await withPythonShell({ downstream, workload }, async (_, stay) => {
          await all(stay, setup);
          assert.deepEqual(taken, await answers(stay, last));
        });
      });
    });
  }
}

test("a move that is rolled back leaves the queues as they were", { skip }, async () => {
  const faults = { b: "fail@target:restored" };
  await withPythonShell({ downstream: "forward", faults }, async (program, run) => {
    await all(run, posix.setup);
    const before = await answers(run, posix.look);
    const move = await program.tryMove("b");
    assert.ok(!("error" in move) && move.outcome === "rolled-back", JSON.stringify(move));
    assert.deepEqual(await answers(run, posix.look), before);
    assert.match(await run(buffer.replace("%", "RT.mq_receive(HELD, b, 8192, None)")), /high 1/);
  });
});

test("a queue that notifies, and one without a name, are found before anybody is held", {
  skip,
}, async () => {
  await withPythonShell({ downstream: "forward" }, async (program, run) => {
    await all(run, posix.setup);
    assert.deepEqual(await program.findings(), []);
    // struct sigevent: SIGEV_SIGNAL, SIGUSR1
    await all(run, [
      `RT.mq_unlink(b"/held")`,
      `QUEUE = ${open("/told", "os.O_CREAT | os.O_RDWR")}`,
      `RT.mq_notify(QUEUE, struct.pack("qii48x", 0, 10, 0))`,
    ]);
    const whats = (await program.findings()).map(({ what }) => what);
    assert.equal(whats.filter((what) => /notified .* queue \/told/.test(what)).length, 1, whats.join("\n"));
    assert.equal(whats.filter((what) => /queue that was unlinked/.test(what)).length, 2, whats.join("\n"));
    assert.match(JSON.stringify(await program.tryMove("b")), /mq_notify/);
  });
});

test("who may have semaphores to undo is told, where there are any", { skip }, async () => {
  await withPythonShell({ downstream: "forward" }, async (program, run) => {
    const make = `
def child(undo):
    reading, writing = os.pipe(); pid = os.fork()
    if pid == 0:
        # one semaphore, by one less, with SEM_UNDO or without
        os.write(writing, str(libc.semop(SEM, struct.pack("Hhh", 0, -1, undo), 1)).encode()); signal.pause(); os._exit(0)
    return os.read(reading, 9), pid`;
    await all(run, [
      `exec(${JSON.stringify(make)}, scope)`,
      `SEM = libc.semget(0x1234, 1, 0o1600); libc.semctl(SEM, 0, 16, 40)`,
      `PLAIN = child(0)`,
    ]);
    assert.deepEqual(await program.findings(), []);
    await all(run, [`UNDOES = child(0x1000)`]);
    assert.equal(await run(`(PLAIN[0], UNDOES[0], libc.semctl(SEM, 0, 12))`), "(b'0', b'0', 38)");
    const found = await program.findings();
    assert.deepEqual(
      found.map(({ id, severity }) => [id, severity]),
      [["ipc.semaphore-undo", "warning"]],
    );
    await program.move("b");
    await all(run, [`[(os.kill(pid, 9), os.waitpid(pid, 0)) for _, pid in (PLAIN, UNDOES)]`]);
    assert.equal(await run(`libc.semctl(SEM, 0, 12)`), "38", "carried by now");
  });
});
