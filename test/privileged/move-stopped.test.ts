/** Nobody can tell that an application was stopped for a move: not a shell, not su, not a parent, not a handler of SIGCONT. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { lacking, until } from "../support/moved-program.ts";
import { type Run, withPythonShell } from "../support/python-shell.ts";
import { modes } from "../support/thorough.ts";

const skip = lacking("python3", "su", "bash");

/** A shell in a pseudo terminal with a job in front, su, a parent that asks for everything, a handler of SIGCONT. */
const watchers = [
  `exec(${JSON.stringify(`import pty
pid, TERMINAL = pty.fork()
if pid == 0: os.execve("/bin/bash", ["bash", "--norc", "-i"], {"PS1": "PROMPT$ ", "PATH": "/bin:/usr/bin"})
`)}, scope)`,
  `os.write(TERMINAL, b"sleep 1000\\n")`,
  `SU = subprocess.Popen(["su", "root", "-c", "sleep 2000"])`,
  `exec(${JSON.stringify(`seen = []
CHILD = os.fork()
if CHILD == 0: time.sleep(3000)
def watch():
    while True:
        pid, status = os.waitpid(CHILD, os.WUNTRACED | os.WCONTINUED)
        seen.append("stopped" if os.WIFSTOPPED(status) else "continued" if os.WIFCONTINUED(status) else "ended")
threading.Thread(target=watch, daemon=True).start()
conts = []
signal.signal(signal.SIGCONT, lambda *_: conts.append(1))
signal.signal(signal.SIGCHLD, lambda *_: conts.append(2))
`)}, scope)`,
];

const state = (pid: string): string => `open("/proc/%d/stat" % ${pid}).read().split()[2]`;

/** What the watchers have been told; the terminal is read until it is empty. */
async function told(run: Run): Promise<string[]> {
  const lines = [
    `b"".join(iter(lambda: os.read(TERMINAL, 65536) if select.select([TERMINAL], [], [], 0.2)[0] else b"", b""))`,
    `(seen, conts)`,
    state("SU.pid"),
  ];
  const answers: string[] = [];
  for (const line of lines) answers.push(await run(line));
  return answers;
}

async function start(run: Run): Promise<void> {
  for (const line of watchers) assert.doesNotMatch(await run(line), /^ERROR/, line);
  await until("the shell runs its job", async () =>
    (await run(`subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout`)).includes(
      "sleep 1000",
    ),
  );
  await until("su runs its command", async () =>
    (await run(`subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout`)).includes(
      "\\nsleep 2000",
    ),
  );
  await told(run);
  await run(`conts.clear()`); // ps was a child
}

const nothing = ["b''", "([], [])", "'S'"];

for (const downstream of modes("takeover")) {
  test(`shells, su and parents are told nothing, ${downstream}`, { skip }, async () => {
    await withPythonShell({ downstream }, async (program, run) => {
      await start(run);
      for (const to of ["b", "a"]) {
        await program.move(to);
        assert.deepEqual(await told(run), nothing, `on ${to}`);
      }
      // the job is still the terminal's: Ctrl-C ends it
      await run(`os.write(TERMINAL, b"\\x03")`);
      await until("the shell prompts", async () => (await told(run))[0]?.includes("PROMPT$ ") === true);
    });
  });
}

for (const fault of ["fail@target:restored", "fail@target:freeze"]) {
  test(`nor by a move that is rolled back, ${fault}`, { skip }, async () => {
    await withPythonShell({ downstream: "takeover", faults: { b: fault } }, async (program, run) => {
      await start(run);
      const move = await program.tryMove("b");
      assert.ok(!("error" in move) && move.outcome === "rolled-back", JSON.stringify(move));
      assert.deepEqual(await told(run), nothing);
    });
  });
}

/** what stops a process whatever it wants, and what Ctrl-Z sends, which stops no process of an orphaned group (setpgid(2)) */
for (const signal of ["SIGSTOP", "SIGTSTP"]) {
  test(`what ${signal} had stopped stays stopped, and what ran runs`, { skip }, async () => {
    await withPythonShell({ downstream: "forward" }, async (program, run) => {
      for (const line of [
        `STOPPED = subprocess.Popen(["sleep", "1000"], process_group=0)`,
        `RUNS = subprocess.Popen(["sleep", "1000"])`,
        `STOPPED.send_signal(signal.${signal})`,
      ])
        assert.doesNotMatch(await run(line), /^ERROR/, line);
      await until("it is stopped", async () => (await run(state("STOPPED.pid"))) === "'T'");
      for (const to of ["b", "a"]) {
        await program.move(to);
        await until("it is stopped again", async () => (await run(state("STOPPED.pid"))) === "'T'");
        assert.equal(await run(state("RUNS.pid")), "'S'");
      }
      await run(`STOPPED.send_signal(signal.SIGCONT)`);
      await until("it goes on", async () => (await run(state("STOPPED.pid"))) === "'S'");
    });
  });
}

/** CRIU 4.2 knows no other stop signals than those above; `check` cannot tell which it was once the parent has asked */
test("what its terminal had stopped is no reason to lose anything: the move is refused, or rolls back", {
  skip,
}, async () => {
  await withPythonShell({ downstream: "takeover" }, async (program, run) => {
    await run(`STOPPED = subprocess.Popen(["sleep", "1000"], process_group=0)`);
    await run(`STOPPED.send_signal(signal.SIGTTIN)`);
    await until("it is stopped", async () => (await run(state("STOPPED.pid"))) === "'T'");
    const refused = await program.tryMove("b");
    assert.match(JSON.stringify(refused), /process\.stopped-by-terminal/);
    await run(`os.waitpid(STOPPED.pid, os.WUNTRACED)`);
    const move = await program.tryMove("b");
    assert.match(JSON.stringify(move), /rolled-back.*stopped by its terminal \(signal 21\)/);
    await run(`STOPPED.send_signal(signal.SIGCONT)`);
    await until("it goes on", async () => (await run(state("STOPPED.pid"))) === "'S'");
    await program.move("b");
  });
});

test("without a freezer nobody stays stopped but who was stopped before", { skip }, async () => {
  const faults = { a: "without@agent:freezer", b: "without@agent:freezer;fail@target:restored" };
  await withPythonShell({ downstream: "forward", faults }, async (program, run) => {
    await start(run);
    assert.doesNotMatch(await run(`STOPPED = subprocess.Popen(["sleep", "1000"])`), /^ERROR/);
    await run(`STOPPED.send_signal(signal.SIGSTOP)`);
    await until("it is stopped", async () => (await run(state("STOPPED.pid"))) === "'T'");
    const first = await program.tryMove("b");
    assert.match(JSON.stringify(first), /rolled-back.*fault injected/);
    for (const to of [null, "b", "a"]) {
      if (to !== null) await program.move(to);
      // whoever hears that a child went on looks for a moment and sleeps again
      const sleeps = async (pid: string): Promise<boolean> => (await run(state(pid))) === "'S'";
      await until(`su sleeps on ${program.at}`, () => sleeps("SU.pid"));
      await until(`a child sleeps on ${program.at}`, () => sleeps("CHILD"));
      assert.equal(await run(state("STOPPED.pid")), "'T'", `what was stopped, on ${program.at}`);
    }
  });
});
