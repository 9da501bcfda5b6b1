/** What an application may have unsent in the kernel: bounded on its own side of a session too. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { describe, it } from "node:test";
import { socketInodes, withSocketAt } from "#control/migration/sockets.ts";
import { UnsentBound } from "#control/workload/unsent-bound.ts";
import { listSockets } from "#proxy/kernel/diag.ts";
import * as sock from "#proxy/kernel/socket.ts";

const skip = process.getuid?.() === 0 ? false : "needs root: pidfd_getfd of another process";
const MIB = 1_048_576;
const BOUND_BYTES = 16 * 1024;

/** Listens on two ports, the second with a bound of its own; to whoever connects it sends as much as the kernel takes. */
const server = `
import socket, threading
TCP_NOTSENT_LOWAT = 25
def serve(listener):
    while True:
        client = listener.accept()[0]
        client.setblocking(False)
        taken = 0
        try:
            while True: taken += client.send(bytes(${MIB}))
        except BlockingIOError: print("taken", taken, flush=True)
        kept.append(client)
kept, ports = [], []
for lowat in [0, 4096]:
    listener = socket.create_server(("127.0.0.1", 0))
    if lowat: listener.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, lowat)
    ports.append(listener.getsockname()[1])
    threading.Thread(target=serve, args=(listener,)).start()
print("ports", *ports, flush=True)
`;

function lines(child: ChildProcess): () => Promise<string[]> {
  let text = "";
  child.stdout?.setEncoding("utf8").on("data", (piece: string) => (text += piece));
  return async () => {
    while (!text.includes("\n")) await once(child.stdout ?? child, "data");
    const [line = ""] = text.split("\n");
    text = text.slice(line.length + 1);
    return line.split(" ");
  };
}

/** TCP_NOTSENT_LOWAT of a process's socket that is bound to this port, and of what it has accepted there. */
async function lowats(pid: number, port: number): Promise<number[]> {
  const places = await socketInodes([pid]);
  return listSockets({ localPort: port })
    .map(({ inode }) => places.get(inode))
    .filter((place) => place !== undefined)
    .map(
      (place) =>
        withSocketAt(place, (fd) => sock.getsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NOTSENT_LOWAT)) ?? -1,
    );
}

describe("an application that writes to a client who does not read", { skip, timeout: 60_000 }, () => {
  it("has little unsent on connections it accepts from then on; a bound of its own stays", async () => {
    const child = spawn("python3", ["-u", "-c", server], { stdio: ["ignore", "pipe", "inherit"] });
    try {
      const pid = child.pid ?? 0;
      const next = lines(child);
      const [port = 0, own = 0] = (await next()).slice(1).map(Number);
      const bound = new UnsentBound();
      await bound.look(pid, [port, own]);
      assert.deepEqual([await lowats(pid, port), await lowats(pid, own)], [[BOUND_BYTES], [4096]]);
      const client = connect(port, "127.0.0.1").pause();
      await once(client, "connect");
      const [, taken] = await next();
      assert.deepEqual(await lowats(pid, port), [BOUND_BYTES, BOUND_BYTES]);
      const [accepted] = listSockets({ localPort: port, states: ["ESTABLISHED"] });
      const unsent = accepted?.sendQueue ?? Number.POSITIVE_INFINITY;
      assert.ok(Number(taken) > 0 && unsent <= MIB, `${unsent} bytes wait in the kernel`);
      client.destroy();
      await bound.look(pid, [port, own]);
      assert.deepEqual(await lowats(pid, own), [4096]);
    } finally {
      child.kill("SIGKILL");
    }
  });
});
