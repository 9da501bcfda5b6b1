/** A tree that is never the same for long moves like any other: forks for each request, programs for each request, workers of two seconds. */
import assert from "node:assert/strict";
import type { Socket } from "node:net";
import { test } from "node:test";
import { lacking, type MovedProgram, until, withProgram } from "../support/moved-program.ts";

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
