/** A tree that is never the same for long moves like any other: forks for each request, programs for each request, workers of two seconds. */
import assert from "node:assert/strict";
import { statSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import { test } from "node:test";
import { lacking, type MovedProgram, until, withProgram } from "../support/moved-program.ts";
import { faultsFile, withPythonShell } from "../support/python-shell.ts";

const port = 8080;
const moves = Number(process.env.HOLDFAST_TEST_MOVES ?? 4);

/**
 * A child for each connection, that answers each line with its count. Beside them processes that come and end all the time: a program
 * every few milliseconds (as CGI), children that end at once, workers that write to their memory for two seconds.
 */
const server = `
import os, random, signal, socket, subprocess, threading, time
heap = [os.urandom(4096) for _ in range(2000)]
def worker(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        heap[random.randrange(len(heap))] = os.urandom(4096)
        time.sleep(0.001)
def forever(seconds, pause):
    while True:
        pid = os.fork()
        if pid == 0:
            try: worker(seconds)
            finally: os._exit(0)
        if seconds < 1: os.waitpid(pid, 0)
        else: threading.Thread(target=os.waitpid, args=(pid, 0), daemon=True).start()
        time.sleep(pause)
def programs():
    while True:
        subprocess.run(["/bin/true"])
        time.sleep(0.005)
def serve(client):
    for n, line in enumerate(client.makefile("r"), 1):
        client.sendall(b"%d %d\\n" % (n, os.getpid()))
server = socket.create_server(("127.0.0.1", 9000))
for target, args in ((forever, (0.001, 0.001)), (forever, (0.02, 0.003)), (forever, (2, 0.3)), (programs, ())):
    threading.Thread(target=target, args=args, daemon=True).start()
while True:
    client = server.accept()[0]
    pid = os.fork()
    if pid == 0:
        server.close()
        try: serve(client)
        finally: os._exit(0)
    client.close()
    threading.Thread(target=os.waitpid, args=(pid, 0), daemon=True).start()
`;

/** Asks line by line, one after the other, until told to stop. */
class Asker {
  readonly answers: string[] = [];
  over: string | null = null;
  #socket: Socket;
  #asking = true;

  constructor(socket: Socket) {
    this.#socket = socket;
    let text = "";
    socket.setEncoding("utf8").on("data", (piece: string) => {
      const [rest = "", ...lines] = (text + piece).split("\n").reverse();
      text = rest;
      this.answers.push(...lines.reverse());
      if (this.#asking) this.#ask();
    });
    socket.on("error", (error) => (this.over = error.message)).on("end", () => (this.over ??= "end"));
    this.#ask();
  }

  async stop(): Promise<void> {
    const asked = this.answers.length;
    await until("another answer", () => this.answers.length > asked || this.over !== null);
    this.#asking = false;
    assert.equal(this.over, null);
    this.#socket.destroy();
  }

  #ask(): void {
    this.#socket.write("x\n");
  }
}

async function askOnce(program: MovedProgram): Promise<void> {
  const asker = new Asker(await program.connect(port));
  await asker.stop();
}

test(`a tree that forks all the time moves ${moves} times of ${moves}`, {
  skip: lacking("python3"),
}, async () => {
  const workload = {
    container: { command: ["/usr/bin/python3", "-c", server], rootfs: "host" },
    ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
  };
  await withProgram({ downstream: "takeover", workload }, async (program) => {
    const asker = new Asker(await program.connect(port));
    for (let move = 0; move < moves; move++) {
      const to = program.at === "a" ? "b" : "a";
      await program.move(to);
      await askOnce(program);
    }
    await asker.stop();
    const children = new Set(asker.answers.map((answer) => answer.split(" ")[1]));
    assert.equal(children.size, 1, "one child served the whole connection");
    assert.deepEqual(
      asker.answers.map((answer) => Number(answer.split(" ")[0])),
      asker.answers.map((_, index) => index + 1),
    );
  });
});

/** Forks a child that stays when it is sent SIGUSR1. */
const forks = `
kids = []
def fork(*_):
    pid = os.fork()
    if pid == 0:
        while True: signal.pause()
    kids.append(pid)
signal.signal(signal.SIGUSR1, fork)
`;

/**
 * Just before the freeze: has the application fork a child with the number of the CRIU that waits on the other node to restore it.
 */
const collide = (source: number, target: number): string => `
import glob, os, signal, subprocess, sys, time
def read(path):
    try: return open(path, "rb").read()
    except OSError: return b""
def has(pid, network, word):
    try: return os.stat("/proc/%s/ns/net" % pid).st_ino == network and word in read("/proc/%s/cmdline" % pid)
    except OSError: return False
def pids(): return [path.split("/")[2] for path in glob.glob("/proc/[0-9]*")]
def inner(pid): return int(([line for line in read("/proc/%s/status" % pid).decode().splitlines() if line.startswith("NSpid:")] or ["0"])[0].split()[-1])
own = os.readlink("/proc/self/ns/pid")
[criu] = [pid for pid in pids() if has(pid, ${target}, b"swrk") and os.readlink("/proc/%s/ns/pid" % pid) != own]
wanted = inner(criu)
shell = [pid for pid in pids() if has(pid, ${source}, b"/srv/shell.py")][0]
for attempt in range(20):
    subprocess.run(["nsenter", "-t", shell, "-p", "--", "/bin/sh", "-c", "echo %d > /proc/sys/kernel/ns_last_pid" % (wanted - 1)], check=True)
    os.kill(int(shell), signal.SIGUSR1)
    time.sleep(0.2)
    if wanted in [inner(pid) for pid in pids() if has(pid, ${source}, b"/srv/shell.py")]: sys.exit(0)
sys.exit("no child got number %d" % wanted)
`;

test("a child that has the number of the CRIU that is to restore it", {
  skip: lacking("python3"),
}, async (t) => {
  const faults = faultsFile(t);
  await withPythonShell({ faults: { a: `file:${faults}` } }, async (program, run) => {
    assert.equal(await run(`exec(${JSON.stringify(forks)}, scope)`), "None");
    const script = `${faults}.py`;
    const network = (node: string): number => statSync(`/run/netns/${program.lab.place(node).netns}`).ino;
    writeFileSync(script, collide(network("a"), network("b")));
    writeFileSync(faults, `exec@source:hold=/usr/bin/python3 ${script}`);
    await program.move("b");
    assert.notEqual(await run("kids"), "[]");
    assert.equal(await run("[pid for pid in kids if os.waitpid(pid, os.WNOHANG)[0] != 0]"), "[]");
  });
});
