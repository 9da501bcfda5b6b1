/** Sockets of an application that the agent has a descriptor of for a moment, and their owner closes just then. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, readdirSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { describe, it, type TestContext } from "node:test";
import { Duplicates } from "#control/audit/descriptors.ts";
import { withSocketAt } from "#control/migration/sockets.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";

const skip = process.getuid?.() === 0 ? false : "needs root: pidfd_getfd of another process";
const LINGER_S = 20;
const MANY = 300;

/** Has connections whose peers do not read, closes those that it is told to, lets the peers read, and says how many came to their ends. */
const PROGRAM = `
import os, socket, struct, sys
count = int(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0), backlog=count)
peers, own, sent = [], [], []
for _ in range(count):
    peers.append(socket.socket())
    peers[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peers[-1].connect(listener.getsockname())
    own.append(listener.accept()[0])
    own[-1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    own[-1].setblocking(False)
    own[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, ${LINGER_S}))
    sent.append(0)
    try:
        while True: sent[-1] += own[-1].send(bytes(65536))
    except BlockingIOError: pass
print(*[one.fileno() for one in own], flush=True)
closes = {one.fileno(): one for one in own}
while (fd := int.from_bytes(os.read(0, 4), "little")) != 0: closes[fd].close()
def readAll(peer):
    peer.settimeout(${LINGER_S})
    got = 0
    while piece := peer.recv(1 << 20): got += len(piece)
    return got
print(sum(readAll(peer) == count for peer, count in zip(peers, sent)), flush=True)
`;

interface Application {
  pid: number;
  fds: number[];
  /** has it close one, and returns when it has */
  close(fd: number): void;
  /** How many of the peers have read all there was, and its end. */
  completed(): Promise<number>;
}

async function started(t: TestContext, count: number): Promise<Application> {
  const [out, into] = descriptor.pipe();
  const child = spawn("python3", ["-u", "-c", PROGRAM, String(count)], { stdio: [out, "pipe", "inherit"] });
  descriptor.close(out);
  t.after(() => {
    descriptor.close(into);
    child.kill("SIGKILL");
  });
  const pid = child.pid as number;
  const tell = (fd: number): void => {
    const word = Buffer.alloc(4);
    word.writeInt32LE(fd);
    writeSync(into, word);
  };
  const lines = createInterface({ input: child.stdout as Readable })[Symbol.asyncIterator]();
  const line = async (): Promise<string> => (await lines.next()).value ?? "";
  return {
    pid,
    fds: (await line()).split(" ").map(Number),
    close(fd) {
      tell(fd);
      while (existsSync(`/proc/${pid}/fdinfo/${fd}`));
    },
    async completed() {
      tell(0);
      return Number(await line());
    },
  };
}

function open(): number {
  return readdirSync("/proc/self/fd").length;
}

const WAYS: Record<string, (pid: number, fd: number, use: () => void) => void> = {
  "to be looked at in a move": (pid, fd, use) => withSocketAt({ pid, fd }, use),
  "for its fingerprint": (pid, fd, use) => {
    const duplicates = new Duplicates();
    duplicates.use({ pid, fd, link: "", name: "", inner: 0 }, use);
    duplicates.close();
  },
};

describe("a socket that its owner closes while the agent has it", { skip, timeout: 120_000 }, () => {
  for (const [what, look] of Object.entries(WAYS))
    it(`makes nobody wait, whatever SO_LINGER says: had ${what}`, async (t) => {
      const application = await started(t, 1);
      const [fd = -1] = application.fds;
      const began = performance.now();
      look(application.pid, fd, () => application.close(fd));
      const tookS = (performance.now() - began) / 1_000;
      assert.ok(tookS < LINGER_S / 2, `waited for ${tookS} s`);
      assert.equal(await application.completed(), 1);
    });

  it("is let go, and what is in it arrives, however many there are", async (t) => {
    const application = await started(t, MANY);
    const before = open();
    let most = 0;
    const began = performance.now();
    for (const fd of application.fds) {
      withSocketAt({ pid: application.pid, fd }, () => application.close(fd));
      most = Math.max(most, open() - before);
    }
    const tookS = (performance.now() - began) / 1_000;
    assert.ok(tookS < LINGER_S, `waited for ${tookS} s`);
    assert.ok(most < MANY / 2, `${most} descriptors at once`);
    assert.equal(await application.completed(), MANY);
  });
});
