/**
 * CRIU is killed in the middle of its dump, as by a person or where memory is short: what becomes of the application is told as it is.
 * And an agent is killed while its CRIU runs: nothing of it is left on the node.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { leftByCriu } from "#control/migration/left-by-criu.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import { lacking, type MovedProgram, until } from "../support/moved-program.ts";
import { faultsFile, type Run, runOn, withPythonShell } from "../support/python-shell.ts";

const skip = lacking("python3", "pgrep");
const CRIU = "$(pgrep -P $(pgrep -n -P $PPID -x nsenter))";

const COUNTERS = `
counts, ticks = [0] * 3, 0
def count(which):
    while True: counts[which] += 1; time.sleep(0.001)
def tick(*_):
    global ticks
    ticks += 1
for which in range(3): threading.Thread(target=count, args=(which,), daemon=True).start()
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
blob = os.urandom(1 << 20)
digest = hashlib.sha256(blob).hexdigest()
ours, theirs = socket.socketpair()
ours.send(b"kept")`;

async function assertGoesOn(run: Run): Promise<void> {
  const look = async (): Promise<number[]> => JSON.parse(await run("[*counts, ticks]")) as number[];
  const before = await look();
  await until("each thread and the timer go on", async () =>
    (await look()).every((now, which) => now > (before[which] ?? 0)),
  );
  assert.equal(await run("hashlib.sha256(blob).hexdigest() == digest"), "True");
  assert.equal(await run("theirs.recv(9, socket.MSG_PEEK)"), "b'kept'");
}

async function statusOf(program: MovedProgram): Promise<{ state?: string; problem?: unknown }> {
  type Status = { workloads: { state: string; problem: unknown }[] };
  return (await program.ask<Status>("GET", "/v1/status")).workloads[0] ?? {};
}

test("CRIU that is killed before it has begun leaves the application as it was", { skip }, async (t) => {
  const faults = faultsFile(t);
  await withPythonShell({ faults: { a: `file:${faults}` } }, async (program, run) => {
    await run(`exec(${JSON.stringify(COUNTERS)}, scope)`);
    for (const point of ["dump", "capture"]) {
      writeFileSync(faults, `exec@source:${point}=kill -KILL ${CRIU}`);
      const move = await program.tryMove("b");
      assert.ok(!("error" in move));
      assert.deepEqual([move.outcome, move.reason], ["rolled-back", "CRIU was killed (SIGKILL)"]);
      await assertGoesOn(run);
      assert.deepEqual(await statusOf(program).then(({ state, problem }) => [state, problem]), [
        "running",
        null,
      ]);
    }
    await program.move("b");
    await assertGoesOn(run);
  });
});

test("CRIU that is killed when it has dumped ends the application, which the move says, and it is started again; or it goes on", {
  skip,
}, async (t) => {
  const faults = faultsFile(t);
  await withPythonShell({ faults: { a: `file:${faults}` } }, async (program, run) => {
    await run(`exec(${JSON.stringify(COUNTERS)}, scope)`);
    writeFileSync(faults, `exec@source:dumped=kill -KILL ${CRIU}`);
    const move = await program.tryMove("b");
    assert.ok(!("error" in move));
    assert.equal(move.outcome, "rolled-back");
    // which of the two, is a matter of where its threads were
    if (move.reason === "CRIU was killed (SIGKILL)") return assertGoesOn(run);
    assert.match(
      move.reason ?? "",
      /; what CRIU had begun has harmed the application: process \d+ has ended$/,
    );
    await assert.rejects(run("1"));
    await until("it runs again, started anew", async () => {
      const socket = await program.connect(8080).catch(() => null);
      if (socket === null) return false;
      socket.setTimeout(1000, () => socket.destroy());
      const answer = await runOn(socket)("counts").catch(() => "none yet");
      socket.destroy();
      return answer.startsWith("ERROR NameError");
    });
    await until("status says so", async () => (await statusOf(program)).state === "running");
    await program.move("b");
  });
});

test("what CRIU has left in a process is found, and nothing in one that it has not touched", {
  skip,
}, async (t) => {
  const start = async (code: string): Promise<number> => {
    const child = spawn("python3", ["-u", "-c", `${code}\nprint("ready")\ntime.sleep(60)`], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    t.after(() => child.kill("SIGKILL"));
    await once(child.stdout, "data");
    return child.pid ?? -1;
  };
  const modules = "import ctypes, mmap, os, time";
  const untouched = await start(modules);
  const named = await start(`${modules}
other = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC); other[8:16] = b"CRIUMFD\\0"`);
  const touched = await start(`${modules}
call = bytes.fromhex("010000d4000020d4" if os.uname().machine == "aarch64" else "0f05cccccccccccc")
memory = os.memfd_create("CRIUMFD"); os.ftruncate(memory, 4096)
kept = mmap.mmap(memory, 4096)
other = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC); other[:8] = call
every = ctypes.c_uint64(2**64 - 1)
assert ctypes.CDLL(None).syscall(135 if os.uname().machine == "aarch64" else 14, 0, ctypes.byref(every), None, 8) == 0`);
  assert.deepEqual(await leftByCriu([untouched]), { harm: [], memory: [] });
  assert.deepEqual(await leftByCriu([untouched, named, touched]), {
    harm: [
      `process ${named} has bytes of CRIU's in its program`,
      `process ${touched} has bytes of CRIU's in its program`,
      `process ${touched} may hear no signals any more`,
    ],
    memory: [touched],
  });
  process.kill(untouched, "SIGKILL");
  assert.deepEqual(await leftByCriu([untouched]), { harm: [`process ${untouched} has ended`], memory: [] });
});

/** CRIU has been started when {@link kernelCacheOf} returns. */
const LEARNS = `
import { readFileSync } from "node:fs";
import { findCriu } from "#control/criu/tool.ts";
import { kernelCacheOf } from "#control/criu/worker.ts";
const criu = (await findCriu(${JSON.stringify(process.env.HOLDFAST_CACHE ?? "/var/cache/holdfast")})).sealed();
void kernelCacheOf(criu);
process.stdout.write(readFileSync(\`/proc/self/task/\${process.pid}/children\`, "utf8"));
process.kill(process.pid, "SIGKILL");
`;

test("an agent that is killed while its CRIU learns the kernel leaves no mount and no folder", {
  skip: lacking(),
}, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "hf-learns-"));
  t.after(() => {
    for (const name of readdirSync(folder)) mounts.unmountVisible(join(folder, name));
    rmSync(folder, { recursive: true });
  });
  const agent = spawn(process.execPath, ["--input-type=module", "-e", LEARNS], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, TMPDIR: folder },
  });
  let children = "";
  agent.stdout.setEncoding("utf8").on("data", (text: string) => {
    children += text;
  });
  const [, signal] = await once(agent, "close");
  assert.equal(signal, "SIGKILL");
  assert.match(children, /^\d+ $/, "CRIU was running");
  assert.deepEqual(readdirSync(folder), []);
  assert.ok(!readFileSync("/proc/self/mountinfo", "utf8").includes(folder));
});
