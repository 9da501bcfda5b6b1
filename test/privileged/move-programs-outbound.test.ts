/** Connections that the application itself made, to a server outside the workload. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { test } from "node:test";
import { lacking, type MovedProgram, until, withProgram } from "../support/moved-program.ts";

const python = "/usr/bin/python3";
const skip = lacking("python3");
const port = 8080;
const serverPort = 5000;

/** Keeps a connection to the server, counts on it, makes a new one at once when it is lost; tells what it saw. */
const client = `
import json, os, socket, threading, time
seen = {"connects": 0, "errors": [], "numbers": 0}
def work():
    while True:
        try:
            source = (os.environ["BIND"], 0) if os.environ.get("BIND") else None
            peer = socket.create_connection(("10.99.0.100", ${serverPort}), source_address=source)
            seen["connects"] += 1
            file = peer.makefile("rw")
            n = 0
            while True:
                n += 1
                file.write("%d\\n" % n); file.flush()
                line = file.readline()
                if line != "%d\\n" % n: raise RuntimeError("read " + repr(line))
                seen["numbers"] += 1
                time.sleep(0.002)
        except Exception as error:
            seen["errors"].append(repr(error))
            time.sleep(0.001)
threading.Thread(target=work, daemon=True).start()
server = socket.create_server(("127.0.0.1", 9000))
def serve(peer):
    file = peer.makefile("rw")
    for line in file: file.write(json.dumps(seen) + "\\n"); file.flush()
while True: threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
`;

/** Prints the hardware address of every ARP frame whose sender says that it has the VIP (RFC 826, section "Packet format"). */
const claims = `
import socket
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
print("listening", flush=True)
while True:
    frame = frames.recv(2048)
    if frame[28:32] == socket.inet_aton("10.99.0.50"): print(frame[22:28].hex(), flush=True)
`;

interface Seen {
  connects: number;
  errors: string[];
  numbers: number;
}

/** In the clients' namespace: sends each line back and keeps an eye on how connections end. */
async function startServer(): Promise<{ server: Server; sockets: Set<Socket>; resets: string[] }> {
  const sockets = new Set<Socket>();
  const resets: string[] = [];
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", (error) => resets.push(error.message));
    socket.on("close", () => sockets.delete(socket));
    socket.pipe(socket);
  });
  await new Promise<void>((resolve) => server.listen(serverPort, "10.99.0.100", resolve));
  return { server, sockets, resets };
}

async function ask(program: MovedProgram): Promise<() => Promise<Seen>> {
  const socket = await program.connect(port);
  let text = "";
  socket.setEncoding("utf8").on("data", (piece: string) => (text += piece));
  return async () => {
    socket.write("?\n");
    await until("the application answers", () => text.includes("\n"));
    const answer = JSON.parse(text) as Seen;
    text = "";
    return answer;
  };
}

function workload(outbound: "close" | "keep", env: Record<string, string>): Record<string, unknown> {
  return {
    container: { command: [python, "-c", client], rootfs: "host", env },
    ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
    outbound,
  };
}

test("by default the application sees its outbound connection reset and connects again", {
  skip,
}, async () => {
  for (const downstream of ["takeover", "forward"] as const) {
    await withProgram({ downstream, workload: workload("close", {}) }, async (program) => {
      const { server, sockets } = await startServer();
      try {
        const look = await ask(program);
        await until("it is connected", async () => (await look()).numbers > 10);
        const early = (await look()).errors.length; // it may have been there before its server
        for (const to of ["b", "a"]) {
          const before = await look();
          await program.move(to);
          await until(`it has connected from ${to}`, async () => (await look()).connects > before.connects);
          const numbers = (await look()).numbers;
          await until("it counts again", async () => (await look()).numbers > numbers + 10);
          await until("one connection is left", () => sockets.size === 1);
        }
        const { errors } = await look();
        for (const error of errors.slice(early))
          assert.match(error, /^(ConnectionResetError|BrokenPipeError|OSError\(107)/, error);
      } finally {
        for (const socket of sockets) socket.destroy();
        server.close();
      }
    });
  }
});

test("with outbound: keep a connection from the VIP goes along", { skip }, async () => {
  const options = { downstream: "takeover" as const, workload: workload("keep", { BIND: "10.99.0.50" }) };
  await withProgram(options, async (program) => {
    const { server, sockets, resets } = await startServer();
    try {
      const look = await ask(program);
      await until("it is connected", async () => (await look()).numbers > 10);
      const { connects, errors } = await look();
      for (const to of ["b", "a"]) {
        await program.move(to);
        const { numbers } = await look();
        await until(`it counts on ${to}`, async () => (await look()).numbers > numbers + 50);
      }
      const after = await look();
      assert.deepEqual({ connects: after.connects, errors: after.errors }, { connects, errors });
      assert.deepEqual(resets, []);
    } finally {
      for (const socket of sockets) socket.destroy();
      server.close();
    }
  });
});

test("a move that fails leaves a kept outbound connection as it was", { skip }, async () => {
  const faults = { b: "fail@target:restored" };
  const options = {
    downstream: "takeover" as const,
    workload: workload("keep", { BIND: "10.99.0.50" }),
    faults,
  };
  await withProgram(options, async (program) => {
    const { server, sockets, resets } = await startServer();
    const sniffer = spawn(python, ["-c", claims], { stdio: ["ignore", "pipe", "inherit"] });
    let claimed = "";
    sniffer.stdout.setEncoding("latin1").on("data", (text: string) => (claimed += text));
    try {
      await until("the sniffer listens", () => claimed.includes("listening"));
      const look = await ask(program);
      await until("it is connected", async () => (await look()).numbers > 10);
      const { connects, errors } = await look();
      const move = await program.tryMove("b");
      assert.ok("outcome" in move && move.outcome === "rolled-back", JSON.stringify(move));
      const { numbers } = await look();
      await until("it goes on counting", async () => (await look()).numbers > numbers + 50);
      const after = await look();
      assert.deepEqual({ connects: after.connects, errors: after.errors }, { connects, errors });
      assert.deepEqual(resets, []);
      const nodes = new Set(claimed.trim().split("\n").slice(1));
      assert.equal(nodes.size, 1, `only the node that has the address says so, not ${[...nodes].join(", ")}`);
    } finally {
      sniffer.kill();
      await once(sniffer, "exit");
      for (const socket of sockets) socket.destroy();
      server.close();
    }
  });
});
