/** What a process has open says whether it may be in a call that writes to pages it took hold of before (`unseen-writes.ts`). */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { type TestContext, test } from "node:test";
import { mayMissWrites } from "#control/criu/unseen-writes.ts";
import { lacking } from "../support/moved-program.ts";

const skip = lacking("python3");

/** @param opens Python that opens what is looked at, and keeps it */
async function missesWrites(t: TestContext, opens: string): Promise<boolean> {
  const program = `import mmap, os, pty, select, socket, sys, tempfile\n${opens}\nprint("ready", flush=True)\nsys.stdin.read()`;
  const child = spawn("/usr/bin/python3", ["-c", program], { stdio: ["pipe", "pipe", "inherit"] });
  t.after(() => child.stdin.end());
  const [said] = (await Promise.race([once(child.stdout, "data"), once(child, "exit")])) as [unknown];
  assert.match(String(said), /^ready/);
  return mayMissWrites(child.pid ?? -1);
}

const COPIES: Record<string, string> = {
  "pipes alone": "",
  "the null device and random numbers": `a, b = open("/dev/null"), open("/dev/urandom", "rb")`,
  "a terminal": "a = pty.openpty()",
  TCP: `
a = socket.create_server(("127.0.0.1", 0))
b = socket.create_connection(a.getsockname())
c = a.accept()
d = socket.socket(socket.AF_INET6)`,
  datagrams: "a = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]",
  "raw sockets": "a = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
  "UNIX sockets":
    "a = socket.socketpair(), socket.socketpair(type=socket.SOCK_DGRAM), socket.socketpair(type=socket.SOCK_SEQPACKET)",
  netlink: "a = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
  "a file, its folder, a memfd and an epoll": `a, b, c, d = open("/proc/self/maps"), os.open("/dev", 0), os.memfd_create("x"), select.epoll()`,
};

const MAY_NOT: Record<string, string> = {
  "a device that is not known": `a = open("/dev/loop-control")`,
  "a block device": `
path = tempfile.mkdtemp(dir="/dev") + "/disk"
os.mknod(path, 0o60600, os.makedev(7, 0))
try: a = os.open(path, os.O_RDONLY)
finally: os.unlink(path); os.rmdir(os.path.dirname(path))`,
  "a socket that gets frames": "a = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)",
  "a socket of a protocol that is not known": "a = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
};

for (const [what, opens] of Object.entries(COPIES))
  test(`a process that has ${what} open is tracked`, { skip }, async (t) => {
    assert.equal(await missesWrites(t, opens), false);
  });

for (const [what, opens] of Object.entries(MAY_NOT))
  test(`a process that has ${what} open is compared`, { skip }, async (t) => {
    assert.equal(await missesWrites(t, opens), true);
  });
