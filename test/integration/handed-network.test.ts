/**
 * Sockets of another network namespace, made of a few that were handed over. Here that namespace is the test's own, and nobody else's:
 * what there is of sockets in it is the test's doing.
 */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it, type TestContext } from "node:test";
import {
  hasOwnNetwork,
  inNetworkOf,
  insideNetworkOf,
  makeHandedSockets,
} from "#control/runtime/network-namespace.ts";
import { HANDED_SOCKETS, type HandedSocket } from "#proxy/contract/commands.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as passing from "#proxy/kernel/descriptor-passing.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { listSockets } from "#proxy/kernel/diag.ts";
import * as libc from "#proxy/kernel/libc.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import { HandedNetwork, UpstreamNetwork } from "#proxy/kernel/network.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { until } from "#test/support/moved-program.ts";

const netns = `hfhn-${process.pid}`;
execFileSync("ip", ["netns", "add", netns]);
execFileSync("ip", ["-n", netns, "link", "set", "lo", "up"]);
const home = openSync("/proc/thread-self/ns/net", "r");
const there = openSync(`/run/netns/${netns}`, "r");
namespaces.setns(there, namespaces.CLONE_NEWNET);
closeSync(there);
after(() => {
  namespaces.setns(home, namespaces.CLONE_NEWNET);
  closeSync(home);
  execFileSync("ip", ["netns", "delete", netns]);
});

const LOOPBACK = { 4: "127.0.0.1", 6: "::1" } as const;

function handed(t: TestContext): { network: HandedNetwork; sockets: Map<HandedSocket, number> } {
  const sockets = makeHandedSockets(process.pid);
  const network = new HandedNetwork(sockets);
  t.after(() => network.close());
  return { network, sockets };
}

function descriptors(): number {
  return readdirSync("/proc/self/fd").length;
}

describe("a network that was handed over", () => {
  for (const family of [4, 6] as const) {
    it(`makes sockets over IPv${family} as socket(2) does`, async (t) => {
      const { network } = handed(t);
      const server = createServer((socket) => socket.pipe(socket)).listen(0, LOOPBACK[family]);
      t.after(() => server.close());
      await new Promise((resolve) => server.once("listening", resolve));
      const { port } = server.address() as { port: number };
      const fd = network.tryTcpSocket(family);
      assert.ok(fd >= 0, libc.errnoName(-fd));
      t.after(() => descriptor.close(fd));
      const fresh = sock.tcpSocket(family);
      t.after(() => descriptor.close(fresh));
      for (const option of [sock.SO_ERROR, sock.SO_RCVBUF, sock.SO_REUSEADDR, sock.SO_KEEPALIVE])
        assert.equal(
          sock.getsockoptInt(fd, sock.SOL_SOCKET, option),
          sock.getsockoptInt(fresh, sock.SOL_SOCKET, option),
          `option ${option}`,
        );
      // the number of a port that it does not have any more is still shown (inet_sport)
      assert.equal(sock.getsockname(fd).address, sock.getsockname(fresh).address);
      assert.equal(descriptor.fileFlags(fd), descriptor.fileFlags(fresh));
      assert.equal(sock.lastPeer(fd), null);
      sock.tryConnect(fd, { address: LOOPBACK[family], port });
      await until("it is connected", () => (polling.pollNow(fd, polling.EPOLLOUT) & polling.EPOLLOUT) !== 0);
      assert.equal(sock.send(fd, Buffer.from("hello"), 0), 5);
      const answer = Buffer.alloc(16);
      await until("it has the answer", () => sock.tryRecv(fd, answer) === 5);
    });
  }

  it("leaves nothing behind: no descriptor, no TIME_WAIT, and no port taken", (t) => {
    const { network, sockets } = handed(t);
    const before = descriptors();
    const waiting = listSockets({ states: ["TIME_WAIT"] }).length;
    for (let round = 0; round < 200; round++) {
      const fd = network.tryTcpSocket(4);
      assert.ok(fd >= 0, libc.errnoName(-fd));
      sock.bind(fd, { address: "127.0.0.1", port: 0 });
      descriptor.close(fd);
    }
    assert.equal(descriptors(), before);
    // of the tests before: those that were connected
    const left = listSockets({ states: ["TIME_WAIT"] }).length - waiting;
    assert.equal(left, 0);
    const again = sock.tcpSocket(4);
    t.after(() => descriptor.close(again));
    const { port } = sock.getsockname(sockets.get("listener4") as number);
    sock.bind(again, { address: "0.0.0.0", port });
  });

  it("takes nobody's connection but its own", (t) => {
    const { network, sockets } = handed(t);
    const listener = sockets.get("listener4") as number;
    // as one who connects in between: the queue is first come, first served
    sock.listen(listener, 8);
    const stranger = sock.tcpSocket(4);
    t.after(() => descriptor.close(stranger));
    sock.tryConnect(stranger, sock.getsockname(listener));
    const fd = network.tryTcpSocket(4);
    assert.ok(fd >= 0, libc.errnoName(-fd));
    assert.equal(sock.lastPeer(fd), null);
    descriptor.close(fd);
    // it has been closed on, not kept
    assert.notEqual(polling.pollNow(stranger, polling.POLLIN) & (polling.POLLIN | polling.POLLHUP), 0);
  });

  it("says so where there is no such socket, and goes on", (t) => {
    const { sockets } = handed(t);
    const four = new HandedNetwork(new Map([...sockets].filter(([name]) => !name.endsWith("6"))));
    assert.equal(four.tryTcpSocket(6), -constants.errno.EAFNOSUPPORT);
    assert.throws(() => four.withRaw(6, () => 0), { code: "EAFNOSUPPORT" });
    const fd = four.tryTcpSocket(4);
    assert.ok(fd >= 0);
    descriptor.close(fd);
  });

  it("answers the next question after one that was broken off", (t) => {
    const { network } = handed(t);
    assert.throws(
      () =>
        network.withDiag((fd) => {
          sock.send(fd, dumpRequest(), 0);
          throw new Error("broken off");
        }),
      /broken off/,
    );
    const server = sock.tcpSocket(4);
    t.after(() => descriptor.close(server));
    sock.bind(server, { address: "127.0.0.1", port: 0 });
    sock.listen(server, 1);
    const { port } = sock.getsockname(server);
    assert.equal(listSockets({ states: ["LISTEN"], localPort: port }, network).length, 1);
  });
});

describe("a proxy's way to its application", () => {
  it("is what the command names, and nothing is kept of what an agent sent that did not come to name it", (t) => {
    const folder = mkdtempSync(join(tmpdir(), "hf-net-"));
    t.after(() => rmSync(folder, { recursive: true }));
    const inbox = join(folder, "net");
    const upstream = new UpstreamNetwork();
    upstream.open(inbox);
    upstream.set("own");
    assert.equal(upstream.tryTcpSocket(4), -constants.errno.EAGAIN);
    assert.throws(() => upstream.take("first"), { code: "NETWORK_NOT_HANDED" });
    const before = descriptors();
    send(inbox, "of an agent that died");
    send(inbox, "first");
    upstream.take("first");
    assert.equal(descriptors(), before + HANDED_SOCKETS.length);
    const fd = upstream.tryTcpSocket(4);
    assert.ok(fd >= 0);
    descriptor.close(fd);
    send(inbox, "second");
    upstream.take("second");
    assert.throws(() => upstream.take("third"), { code: "NETWORK_NOT_HANDED" });
    assert.equal(descriptors(), before + HANDED_SOCKETS.length, "one network at a time");
    upstream.set("own");
    assert.equal(descriptors(), before);
  });
});

function send(inbox: string, token: string): void {
  const made = makeHandedSockets(process.pid);
  passing.sendDescriptors(inbox, Buffer.from(JSON.stringify({ token, sockets: [...made.keys()] })), [
    ...made.values(),
  ]);
  for (const fd of made.values()) descriptor.close(fd);
}

/** struct nlmsghdr, struct inet_diag_req_v2: all TCP sockets over IPv4 */
function dumpRequest(): Buffer {
  const request = Buffer.alloc(72);
  request.writeUInt32LE(72, 0);
  request.writeUInt16LE(20, 4);
  request.writeUInt16LE(0x301, 6);
  request.writeUInt8(ipText.AF_INET, 16);
  request.writeUInt8(sock.IPPROTO_TCP, 17);
  request.writeUInt32LE(0xffffffff, 20);
  return request;
}

describe("the network of a container that has ended", () => {
  // it has no namespace any more, though it is in the process table until somebody has waited for it (namespaces(7))
  it("is nobody's, and nothing is changed in place of it", async (t) => {
    const forgetful =
      "import os, time; pid = os.fork() or os._exit(0); print(pid, flush=True); time.sleep(100)";
    const parent = spawn("python3", ["-c", forgetful], { stdio: ["ignore", "pipe", "ignore"] });
    t.after(() => parent.kill());
    const [line] = (await once(parent.stdout, "data")) as [Buffer];
    const pid = Number(String(line));
    await until("it is a zombie", () => /^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, "utf8")));
    assert.equal(hasOwnNetwork(process.pid), false);
    assert.equal(hasOwnNetwork(pid), null);
    const refused = { code: "CONTAINER_ENDED", retryable: true };
    assert.throws(() => insideNetworkOf(pid, () => assert.fail("in another network")), refused);
    assert.throws(() => makeHandedSockets(pid), refused);
    assert.ok(inNetworkOf([pid], () => true));
  });
});
