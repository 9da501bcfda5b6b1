/** Daemons that an application starts: they stay its own and move along, where the workload says so; else `check` says that they keep it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { lacking, until } from "../support/moved-program.ts";
import { type Run, withPythonShell } from "../support/python-shell.ts";

const skip = lacking("runc", "python3");

/**
 * Each counts, and notes who its parent is and of what session it is. `daemon(7)` forks twice, so that the leader of its session has ended
 * (epmd, many servers); of a session of its own (tmux); an orphan of the application's session; and one whose leader is alive elsewhere.
 */
const DAEMONS = `
import mmap, os, struct, time, signal
table = mmap.mmap(-1, 4096)
def note(at):
    count = 0
    while True:
        count += 1
        table[at * 16:at * 16 + 16] = struct.pack("4i", os.getpid(), os.getppid(), os.getsid(0), count)
        time.sleep(0.005)
def orphan(at, leads, again):
    first = os.fork()
    if first == 0:
        if leads: os.setsid()
        if again and os.fork() != 0: os._exit(0)
        if not again:
            second = os.fork()
            if second != 0: os._exit(0)
        note(at)
    os.waitpid(first, 0)
def leader(at):
    # it stays, and what it has made is orphaned in its session
    if os.fork() == 0:
        os.setsid()
        middle = os.fork()
        if middle == 0:
            if os.fork() != 0: os._exit(0)
            note(at)
        os.waitpid(middle, 0)
        signal.pause()
def own_session(at):
    first = os.fork()
    if first == 0:
        if os.fork() != 0: os._exit(0)
        os.setsid()
        note(at)
    os.waitpid(first, 0)
orphan(0, True, True)
own_session(1)
orphan(2, False, True)
leader(3)
def rows(): return [list(struct.unpack("4i", table[at * 16:at * 16 + 16])) for at in range(4)]
`;

type Row = [pid: number, parent: number, session: number, count: number];

const rows = async (run: Run): Promise<Row[]> => JSON.parse(await run("rows()")) as Row[];
const identities = (all: Row[]): number[][] => all.map(([pid, parent, session]) => [pid, parent, session]);

async function start(run: Run): Promise<Row[]> {
  assert.equal(await run(`exec(${JSON.stringify(DAEMONS)}, scope)`), "None");
  const parent = Number(await run('__import__("os").getpid()'));
  await until("they are orphans that count", async () =>
    (await rows(run)).every(([pid, above, , count]) => pid > 0 && above === parent && count > 2),
  );
  return rows(run);
}

test("daemons stay those of an application that says so, and move with it", { skip }, async () => {
  await withPythonShell({ downstream: "forward", workload: { subreaper: true } }, async (program, run) => {
    const before = await start(run);
    for (const to of ["b", "a"]) {
      await program.move(to);
      const then = await rows(run);
      await until("all of them go on", async () =>
        (await rows(run)).every(([, , , count], at) => count > (then[at]?.[3] ?? 0)),
      );
      assert.deepEqual(identities(await rows(run)), identities(before));
    }
    // one that ends is the application's to reap, and the next takes its place below the same process
    const [pid] = before[0] ?? [0];
    await run(`__import__("os").kill(${pid}, 9)`);
    assert.equal(await run(`__import__("os").waitpid(${pid}, 0)`), `(${pid}, 9)`);
    await run("orphan(0, True, True)");
    await until("it has another", async () => {
      const [row] = await rows(run);
      return row !== undefined && row[0] !== pid && row[1] === before[0]?.[1];
    });
    await program.move("b");
    assert.equal(identities(await rows(run))[3]?.join(), identities(before)[3]?.join());
  });
});

test("daemons that have ended stay to be reaped, of an application that is a subreaper by itself", {
  skip,
}, async () => {
  await withPythonShell({ downstream: "takeover" }, async (program, run) => {
    assert.equal(await run('__import__("ctypes").CDLL(None).prctl(36, 1, 0, 0, 0)'), "0");
    const before = await start(run);
    const [[first = 0] = [], , , [last = 0] = []] = before;
    for (const pid of [first, last]) await run(`__import__("os").kill(${pid}, 9)`);
    const states = (): Promise<string> =>
      run(
        `" ".join(open("/proc/%d/stat" % pid).read().split()[2] for pid in [${before.map(([pid]) => pid).join()}])`,
      );
    await until("they have ended", async () => /Z . . Z/.test(await states()));
    for (const to of ["b", "a"]) {
      await program.move(to);
      assert.match(await states(), /Z . . Z/);
    }
    for (const pid of [first, last])
      assert.equal(await run(`__import__("os").waitpid(${pid}, 0)`), `(${pid}, 9)`);
  });
});

test("daemons of one that does not are found by check, which says what to do", { skip }, async () => {
  await withPythonShell({ downstream: "forward" }, async (program, run) => {
    await run(`exec(${JSON.stringify(DAEMONS)}, scope)`);
    await until("they are seen", async () => (await program.findings()).length > 0);
    const [finding] = await program.findings();
    assert.equal(finding?.id, "application.trees");
    assert.match(finding?.cure ?? "", /subreaper: true/);
    const move = await program.tryMove("b");
    assert.ok(!("error" in move), JSON.stringify(move));
    assert.deepEqual([move.outcome, move.holdMs], ["rolled-back", 0]);
    assert.match(move.reason ?? "", /the container has \d process trees below its init: .*subreaper: true/);
  });
});
