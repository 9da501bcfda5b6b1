/** Programs whose threads are borrowed again and again while they compute, wait, fork, and are stopped: none notices. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { WriteTracking } from "#control/criu/write-tracking.ts";
import { lacking, until } from "../support/moved-program.ts";

const skip = lacking("python3");
const SECONDS = 4;
const BETWEEN_MS = 5;

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
say("fine" if n > 100 else "no signals")
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
say("fine" if n > 50 else "was not stopped")
`,
};
const HEAD = `
import hashlib, math, os, queue, select, signal, subprocess, sys, threading, time
end = time.monotonic() + ${SECONDS}
def say(what):
    print(what, flush=True); os._exit(0)
print("ready", flush=True)
`;

for (const [what, text] of Object.entries(PROGRAMS))
  test(`a program that ${what} does not notice that its threads are borrowed`, { skip }, async () => {
    // not a child of ours: Node would take what only who traces it is to hear
    const shell = spawn("/bin/sh", ["-c", 'python3 -u -c "$0" & wait', HEAD + text], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    let said = "";
    shell.stdout.setEncoding("utf8").on("data", (piece: string) => {
      said += piece;
    });
    await until("it runs", () => said === "ready\n");
    const pid = Number(readFileSync(`/proc/${shell.pid}/task/${shell.pid}/children`, "utf8").split(" ")[0]);
    let borrowed = 0;
    for (; said === "ready\n"; await sleep(BETWEEN_MS)) {
      const tracking = await WriteTracking.of(pid);
      tracking?.begin();
      await tracking?.close();
      if (tracking !== null) borrowed++;
    }
    assert.equal(said, "ready\nfine\n");
    assert.ok(borrowed > 20, `${borrowed} times`);
  });
