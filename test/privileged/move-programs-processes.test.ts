/** Applications of several processes, tied together by pipes, Unix sockets and shared memory, move as one tree. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { nodeBinary } from "../lab/lab.ts";
import { lacking, type MovedProgram, until, withProgram } from "../support/moved-program.ts";

const python = "/usr/bin/python3";
const port = 8080;
const skip = lacking("python3");

/**
 * A shell pipeline behind a socket: each line goes through a pipe to sed, a Unix socket to a child, a queue in shared
 * memory and back; every stage has a counter of its own.
 */
const pipeline = `
import ctypes, multiprocessing, os, signal, socket, subprocess, threading
context = multiprocessing.get_context("fork")
shared = context.Value(ctypes.c_longlong, 0)
ours, theirs = socket.socketpair()
def child():
    ours.close()
    file = theirs.makefile("rw")
    for n, line in enumerate(file, 1):
        with shared.get_lock(): shared.value += 1
        file.write("%d:%s" % (n, line)); file.flush()
process = context.Process(target=child)
process.start()
theirs.close()
unix = ours.makefile("rw")
named = socket.socket(socket.AF_UNIX)
named.bind("/tmp/named.sock"); named.listen()
def local():
    while True:
        peer = named.accept()[0]
        data = peer.recv(100)
        peer.sendall(data.upper()); peer.close()
threading.Thread(target=local, daemon=True).start()
sed = subprocess.Popen(["sed", "-u", "s/x/y/g"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
sh = subprocess.Popen(["sh", "-c", 'n=0; while read line; do n=$((n+1)); echo "$n $line"; done'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
zombie = subprocess.Popen(["true"])
server = socket.create_server(("127.0.0.1", 9000))
while True:
    client = server.accept()[0]
    for line in client.makefile("r"):
        sed.stdin.write(line); sed.stdin.flush()
        line = sed.stdout.readline()
        sh.stdin.write(line); sh.stdin.flush()
        line = sh.stdout.readline()
        unix.write(line); unix.flush()
        line = unix.readline().strip()
        peer = socket.socket(socket.AF_UNIX); peer.connect("/tmp/named.sock"); peer.sendall(b"abc")
        line += " %s %d\\n" % (peer.recv(100).decode(), shared.value)
        peer.close()
        client.sendall(line.encode())
`;

const cluster = `
import cluster from "node:cluster";
import { createServer } from "node:net";
if (cluster.isPrimary) {
  let total = 0;
  for (let i = 0; i < 2; i++) cluster.fork().on("message", function (message) { this.send({ id: message.id, total: ++total }); });
} else {
  let next = 0;
  const waiting = new Map();
  process.on("message", ({ id, total }) => { waiting.get(id)(total); waiting.delete(id); });
  createServer((socket) => {
    socket.on("error", () => {});
    let text = "";
    socket.setEncoding("utf8").on("data", (piece) => {
      text += piece;
      for (let at; (at = text.indexOf("\\n")) >= 0; text = text.slice(at + 1)) {
        const line = text.slice(0, at);
        const id = ++next;
        waiting.set(id, (total) => socket.write(line + " " + process.pid + " " + total + "\\n"));
        process.send({ id });
      }
    });
  }).listen(9000, "127.0.0.1");
}
`;

let folder = "";
before(() => {
  folder = mkdtempSync(join(tmpdir(), "hf-processes-"));
  writeFileSync(join(folder, "cluster.mjs"), cluster);
});
after(() => rmSync(folder, { recursive: true, force: true }));

class Lines {
  readonly answers: string[] = [];
  #sent = 0;
  #write: (line: string) => void;
  over: string | null = null;

  private constructor(write: (line: string) => void) {
    this.#write = write;
  }

  static async open(program: MovedProgram): Promise<Lines> {
    const socket = await program.connect(port);
    const lines = new Lines((line) => socket.write(line));
    let text = "";
    socket.setEncoding("utf8").on("data", (piece: string) => {
      const [rest = "", ...whole] = (text + piece).split("\n").reverse();
      text = rest;
      lines.answers.push(...whole.reverse());
    });
    socket.on("error", (error) => (lines.over = error.message)).on("end", () => (lines.over = "end"));
    return lines;
  }

  /** Sends that many lines and waits for their answers; `meanwhile` runs when they are on their way. */
  async ask(count: number, meanwhile: () => Promise<unknown> = async () => {}): Promise<void> {
    for (let i = 0; i < count; i++) this.#write(`x${++this.#sent}\n`);
    await meanwhile();
    await until("every line is answered", () => this.answers.length === this.#sent || this.over !== null);
    assert.equal(this.over, null);
  }
}

test("pipes, Unix sockets, shared memory, threads and a zombie of one tree", { skip }, async () => {
  const workload = {
    container: { command: [python, "-c", pipeline], rootfs: "host" },
    ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
  };
  await withProgram({ downstream: "takeover", workload }, async (program) => {
    const lines = await Lines.open(program);
    await lines.ask(20);
    await lines.ask(2000, () => program.move("b"));
    await lines.ask(2000, () => program.move("a"));
    await lines.ask(20);
    for (const [index, answer] of lines.answers.entries()) {
      const n = index + 1;
      assert.equal(answer, `${n}:${n} y${n} ABC ${n}`);
    }
  });
});

test("a Node cluster: workers keep their connections, the primary its count", { skip }, async () => {
  const workload = {
    container: {
      command: [nodeBinary, "/srv/cluster.mjs"],
      rootfs: "host",
      mounts: [{ source: join(folder, "cluster.mjs"), target: "/srv/cluster.mjs", readonly: true }],
    },
    ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
  };
  await withProgram({ downstream: "forward", workload }, async (program) => {
    const clients = await Promise.all(Array.from({ length: 6 }, () => Lines.open(program)));
    const ask = (count: number, meanwhile?: () => Promise<unknown>): Promise<unknown> =>
      Promise.all([...clients.map((lines) => lines.ask(count)), meanwhile?.()]);
    await ask(10);
    await ask(1000, () => program.move("b"));
    await ask(1000, () => program.move("a"));
    const totals = clients.flatMap(({ answers }) => answers.map((answer) => Number(answer.split(" ")[2])));
    assert.deepEqual(
      totals.sort((x, y) => x - y),
      Array.from({ length: 6 * 2010 }, (_, i) => i + 1),
      "the primary counted each line once",
    );
    for (const { answers } of clients) {
      const workers = new Set(answers.map((answer) => answer.split(" ")[1]));
      assert.equal(workers.size, 1, "a connection stays with its worker");
      assert.ok(answers.every((answer, index) => answer.startsWith(`x${index + 1} `)));
    }
    assert.equal(
      new Set(clients.map(({ answers }) => answers[0]?.split(" ")[1])).size,
      2,
      "both workers serve",
    );
  });
});
