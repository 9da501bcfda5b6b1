/** What a move takes off an application's sockets and puts back. The application is this process; real sockets on the loopback device. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { hasArrived } from "#control/migration/over-loopback.ts";
import {
  fitOwnSockets,
  leaveOwnSockets,
  putBackOwnSockets,
  readOwnSockets,
  takeBackOwnSockets,
} from "#control/migration/own-sockets.ts";
import { classifySockets } from "#control/migration/sockets.ts";
import { receivedBytes } from "#control/migration/unread-datagrams.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { type DiagSocket, listSockets } from "#proxy/kernel/diag.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { nodeBinary } from "../lab/lab.ts";

const skip = process.getuid?.() === 0 ? false : "needs root: pidfd_getfd(2), SO_SNDBUFFORCE";
const pids = [process.pid];
const POLLRDHUP = 0x2000;

let dir: string;
let opened: number[];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "hf-own-"));
  opened = [];
});
afterEach(() => {
  for (const fd of opened) descriptor.close(fd);
  rmSync(dir, { recursive: true, force: true });
});

function listener(backlog: number): { fd: number; port: number } {
  const fd = sock.tcpSocket(4);
  opened.push(fd);
  sock.bind(fd, { address: "127.0.0.1", port: 0 });
  sock.listen(fd, backlog);
  return { fd, port: sock.getsockname(fd).port };
}

/** Waits until that is so: on a busy machine what is sent over the loopback device comes a moment later. */
function arrives(fd: number, event = polling.POLLIN): void {
  assert.ok(hasArrived(() => (polling.pollNow(fd, event) & event) !== 0));
}

function deliver(from: number, to: number, texts: string[]): void {
  for (const text of texts) {
    const before = receivedBytes(to);
    sock.sendto(from, Buffer.from(text), 0, sock.getsockname(to));
    assert.ok(hasArrived(() => receivedBytes(to) > before));
  }
}

function acceptFrom(server: number): number {
  arrives(server);
  return sock.accept(server, sock.SOCK_CLOEXEC);
}

function dial(port: number): { fd: number; local: number } {
  const fd = sock.tcpSocket(4);
  opened.push(fd);
  sock.tryConnect(fd, { address: "127.0.0.1", port });
  return { fd, local: sock.getsockname(fd).port };
}

function listed(port: number): DiagSocket {
  // others may have had the port before: what is left of them belongs to no process
  const found = listSockets({ localPort: port }).find(
    ({ state, inode }) => state !== "LISTEN" && inode !== 0,
  );
  assert.ok(found);
  return found;
}

function read(fd: number): string {
  const into = Buffer.alloc(64);
  try {
    return into.subarray(0, sock.recv(fd, into, sock.MSG_DONTWAIT)).toString();
  } catch (error) {
    assert.ok(error instanceof HoldfastError);
    return error.code;
  }
}

async function leave(cut: DiagSocket[]): Promise<void> {
  await leaveOwnSockets(dir, await classifySockets(pids, []), cut);
}

describe("the application's connections", { skip }, () => {
  it("are sessions where they came to the upstream's address, and not where they came to another of its port", async () => {
    const server = createServer().listen(0, "0.0.0.0");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const program = `for (const host of ["127.0.0.1", "127.0.0.2"]) require("net").connect(${port}, host);`;
    const client = spawn(nodeBinary, ["-e", program], { stdio: "ignore" });
    try {
      const peers: Socket[] = [];
      server.on("connection", (socket) => peers.push(socket.on("error", () => {})));
      while (peers.length < 2) await once(server, "connection");
      for (const address of ["127.0.0.1", "::FFFF:127.0.0.1", "0:0:0:0:0:ffff:7f00:1"]) {
        const { outbound } = await classifySockets([process.pid], [{ address, port }]);
        const past = outbound.filter(({ local }) => local.port === port);
        assert.deepEqual(
          past.map(({ local }) => local.address),
          ["127.0.0.2"],
          address,
        );
      }
      for (const peer of peers) peer.destroy();
    } finally {
      client.kill("SIGKILL");
      server.close();
    }
  });
});

describe("what a rolled-back move has taken off", { skip }, () => {
  it("a connection to others says what it had said, and then that it was reset", async () => {
    const { fd: server, port } = listener(1);
    const { fd, local } = dial(port);
    const peer = acceptFrom(server);
    opened.push(peer);
    sock.send(peer, Buffer.from("so far"), 0);
    arrives(fd);
    await leave([listed(local)]);
    arrives(peer, polling.POLLERR);
    assert.equal(read(peer), "ECONNRESET", "the peer was not told");
    for (const _ of ["once", "and again, by the next agent"]) await takeBackOwnSockets(dir, pids);
    assert.deepEqual([read(fd), read(fd), read(fd)], ["so far", "ECONNRESET", ""]);
  });

  it("one whose peer had finished is read to its end", async () => {
    const { fd: server, port } = listener(1);
    const { fd, local } = dial(port);
    const peer = acceptFrom(server);
    sock.send(peer, Buffer.from("good bye"), 0);
    descriptor.close(peer);
    arrives(fd, POLLRDHUP);
    await leave([listed(local)]);
    await takeBackOwnSockets(dir, pids);
    assert.deepEqual([read(fd), read(fd)], ["good bye", ""]);
  });

  it("one that was being made is made after all, and is blocking or not as before", async () => {
    const { fd: server, port } = listener(0);
    dial(port); // fills the queue: what comes then is not answered
    arrives(server);
    const { fd, local } = dial(port);
    const flags = descriptor.fileFlags(fd);
    const socket = listed(local);
    assert.equal(socket.state, "SYN_SENT");
    await leave([socket]);
    await takeBackOwnSockets(dir, pids);
    await takeBackOwnSockets(dir, pids);
    assert.equal(descriptor.fileFlags(fd), flags);
    assert.equal(read(fd), "EAGAIN");
    opened.push(acceptFrom(server));
    while ((polling.pollNow(fd, 4) & 4) === 0) await sleep(10); // the next SYN is sent after a second
    assert.equal(sock.getpeername(fd).port, port);
    assert.equal(sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_ERROR), 0);
  });

  it("nothing else is touched", async () => {
    const { fd: server, port } = listener(1);
    const { fd, local } = dial(port);
    const peer = acceptFrom(server);
    opened.push(peer);
    const udp = sock.socket(ipText.AF_INET, sock.SOCK_DGRAM | sock.SOCK_NONBLOCK, 0);
    const other = sock.socket(ipText.AF_INET, sock.SOCK_DGRAM, 0);
    opened.push(udp, other);
    sock.bind(udp, { address: "127.0.0.1", port: 0 });
    deliver(other, udp, ["one", "", "three"]);
    await leave([]);
    await takeBackOwnSockets(dir, pids);
    assert.deepEqual([read(udp), read(udp), read(udp), read(udp)], ["one", "", "three", "EAGAIN"]);
    sock.send(peer, Buffer.from("still here"), 0);
    arrives(fd);
    assert.equal(read(fd), "still here");
    assert.equal(listed(local).state, "ESTABLISHED");
  });
});

describe("what the target puts into the restored sockets", { skip }, () => {
  it("is what they had: what was unread, and the end", async () => {
    const udp = sock.socket(ipText.AF_INET, sock.SOCK_DGRAM | sock.SOCK_NONBLOCK, 0);
    const other = sock.socket(ipText.AF_INET, sock.SOCK_DGRAM, 0);
    opened.push(udp, other);
    sock.bind(udp, { address: "127.0.0.1", port: 0 });
    const to = sock.getsockname(udp);
    deliver(other, udp, ["one", "two"]);
    const { fd: server, port } = listener(1);
    const { fd } = dial(port);
    const peer = acceptFrom(server);
    sock.send(peer, Buffer.from("last words"), 0);
    arrives(fd);
    sock.setsockoptBuffer(peer, sock.SOL_SOCKET, sock.SO_LINGER, Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]));
    descriptor.close(peer);
    arrives(fd, polling.POLLERR);
    await leave([]);
    const own = readOwnSockets(dir);
    assert.ok(own !== null);
    // as CRIU restores them: the same numbers, and nothing in them
    for (const gone of [udp, fd]) descriptor.close(gone);
    opened = opened.filter((one) => one !== udp && one !== fd);
    const again = [sock.socket(ipText.AF_INET, sock.SOCK_DGRAM | sock.SOCK_NONBLOCK, 0), sock.tcpSocket(4)];
    opened.push(...again);
    assert.deepEqual(again, [udp, fd]);
    sock.bind(udp, to);
    await putBackOwnSockets(pids, own);
    assert.deepEqual([read(udp), read(udp), read(udp)], ["one", "two", "EAGAIN"]);
    assert.deepEqual([read(fd), read(fd), read(fd)], ["last words", "ECONNRESET", ""]);
  });
});

describe("what a source says of its sockets", { skip }, () => {
  it("is checked before it is used", () => {
    assert.equal(readOwnSockets(dir), null);
    for (const text of [
      "",
      "{}",
      `{"sockets":[{"kind":"ended"}]}`,
      `{"sockets":[{"kind":"internal","inode":"1"}]}`,
    ]) {
      writeFileSync(join(dir, "own-sockets.json"), text);
      assert.throws(() => readOwnSockets(dir), { code: "OWN_SOCKETS_INVALID" });
    }
    writeFileSync(join(dir, "files.img"), "not an image");
    assert.throws(() => fitOwnSockets(dir, { sockets: [] }, { initPid: process.pid, vip: undefined }), {
      code: /^CRIU_/,
    });
  });
});
