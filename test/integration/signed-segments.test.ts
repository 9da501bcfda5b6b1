/** Keys for signed TCP segments: real sockets of a process whose filter, or none, has let it set them. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { it } from "node:test";
import { checkSockets } from "#control/workload/preflight/sockets.ts";

const skip = process.getuid?.() === 0 ? false : "needs root: pidfd_getfd(2)";

/** Listens and dials with a key, and without; says the inodes of those with one. */
const SIGNING = `
import os, socket, struct, sys
def key(one, family, address):
    one.setsockopt(6, 14, struct.pack("<H6x16s104xBBHii80s", family, address, 0, 0, 3, 0, 0, b"key") if family == 10 else struct.pack("<H2x4s120xBBHii80s", family, address, 0, 0, 3, 0, 0, b"key"))
four, six, plain = socket.socket(), socket.socket(socket.AF_INET6), socket.create_server(("127.0.0.1", 0))
key(four, 2, bytes([127, 0, 0, 1])); four.bind(("127.0.0.1", 0)); four.listen()
key(six, 10, bytes(15) + bytes([1])); six.bind(("::1", 0)); six.listen()
dialling = socket.socket(); key(dialling, 2, bytes([127, 0, 0, 1])); dialling.connect(four.getsockname())
accepted = four.accept()[0]
unsigned = socket.create_connection(plain.getsockname())
waits = plain.accept()[0]
print(*(os.fstat(one.fileno()).st_ino for one in (four, six, dialling, accepted)), flush=True)
sys.stdin.read()
`;

it("a socket with keys for signed segments is refused by check, one without is not", { skip }, async () => {
  const program = spawn("python3", ["-c", SIGNING], { stdio: ["pipe", "pipe", "inherit"] });
  try {
    const [said] = (await once(createInterface(program.stdout), "line")) as [string];
    const signing = said.split(" ").map(Number);
    assert.equal(signing.length, 4);
    const found: string[] = [];
    const pid = program.pid as number;
    await checkSockets(
      { initPid: pid, pids: [pid], moving: [], upstreamPorts: [] },
      (id, severity, what, cure, subject) => {
        if (id === "socket.unix-outside") return; // what this process speaks to it by
        found.push(`${id} ${severity} ${/^socket (\d+) has keys/.exec(what)?.[1]}`);
        assert.match(what, /TCP_MD5SIG/);
        assert.ok(cure.length > 10);
        assert.equal(subject?.pid, pid);
      },
    );
    assert.deepEqual(found.sort(), signing.map((inode) => `socket.signed-segments error ${inode}`).sort());
  } finally {
    program.stdin.end();
    await once(program, "exit");
  }
});
