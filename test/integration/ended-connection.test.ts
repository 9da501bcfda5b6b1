/** What a socket says of a connection that is over, and whether one made anew says the same. Real sockets on the loopback device. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { end, endOf } from "#control/migration/ended-connection.ts";
import { hasArrived } from "#control/migration/over-loopback.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";

const skip = process.getuid?.() === 0 ? false : "needs root: SO_SNDBUFFORCE";
const unreadMax = 1 << 20;

function opened(loopback: string): { fd: number; peer: number } {
  const family = loopback.includes(":") ? 6 : 4;
  const listener = sock.tcpSocket(family);
  sock.bind(listener, { address: loopback, port: 0 });
  sock.listen(listener, 1);
  const fd = sock.tcpSocket(family);
  sock.tryConnect(fd, sock.getsockname(listener));
  arrives(listener, polling.POLLIN);
  const peer = sock.accept(listener, sock.SOCK_CLOEXEC);
  descriptor.close(listener);
  return { fd, peer };
}

function arrives(fd: number, event: number): void {
  assert.ok(hasArrived(() => (polling.pollNow(fd, event) & event) !== 0));
}

/** … and `fd`, its other end, has heard of it. */
function reset(peer: number, fd: number): void {
  const linger = Buffer.alloc(8);
  linger.writeInt32LE(1, 0);
  sock.setsockoptBuffer(peer, sock.SOL_SOCKET, sock.SO_LINGER, linger);
  assert.ok(hasArrived(() => descriptor.ioctlInt(peer, sock.SIOCOUTQ) === 0));
  descriptor.close(peer);
  arrives(fd, polling.POLLERR);
}

/** Nobody listens there. */
function freePort(loopback: string): Endpoint {
  const fd = sock.tcpSocket(loopback.includes(":") ? 6 : 4);
  sock.bind(fd, { address: loopback, port: 0 });
  const at = sock.getsockname(fd);
  descriptor.close(fd);
  return at;
}

function attempt(work: () => unknown): string {
  try {
    return String(work());
  } catch (error) {
    assert.ok(error instanceof HoldfastError);
    return error.code;
  }
}

/** Everything an application could ask, in an order in which it would. */
function observed(fd: number): string[] {
  const into = Buffer.alloc(64);
  const read = (): string =>
    attempt(() => into.subarray(0, sock.recv(fd, into, sock.MSG_DONTWAIT)).toString() || "end");
  const poll = (): string => `poll ${polling.pollNow(fd, polling.POLLIN | 0x2000)}`;
  const said = [
    poll(),
    read(),
    poll(),
    read(),
    read(),
    attempt(() => sock.getpeername(fd) && "peer"),
    poll(),
  ];
  return [...said, attempt(() => sock.send(fd, Buffer.from("x"), 0)), poll(), read()];
}

const cases: Record<string, (loopback: string) => number> = {
  "reset, with bytes that were not read": (loopback) => {
    const { fd, peer } = opened(loopback);
    sock.send(peer, Buffer.from("the last words"), 0);
    reset(peer, fd);
    return fd;
  },
  "reset, with nothing to read": (loopback) => {
    const { fd, peer } = opened(loopback);
    reset(peer, fd);
    return fd;
  },
  "reset, and the application has had the error": (loopback) => {
    const { fd, peer } = opened(loopback);
    reset(peer, fd);
    sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_ERROR);
    return fd;
  },
  "refused when it connected": (loopback) => {
    const fd = sock.tcpSocket(loopback.includes(":") ? 6 : 4);
    sock.tryConnect(fd, freePort(loopback));
    arrives(fd, polling.POLLERR);
    return fd;
  },
  "refused when it connected, and the application has had the error": (loopback) => {
    const fd = sock.tcpSocket(loopback.includes(":") ? 6 : 4);
    sock.tryConnect(fd, freePort(loopback));
    arrives(fd, polling.POLLERR);
    sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_ERROR);
    return fd;
  },
};

describe("a connection that is over", { skip }, () => {
  for (const loopback of ["127.0.0.1", "::1"])
    for (const [name, make] of Object.entries(cases))
      it(`says the same when it is made anew: ${name}, ${loopback}`, () => {
        const real = make(loopback);
        const other = make(loopback);
        const anew = sock.tcpSocket(loopback.includes(":") ? 6 : 4);
        try {
          assert.equal(sock.lastPeer(real)?.address, loopback);
          end(anew, endOf(real, unreadMax));
          const wanted = observed(other);
          assert.deepEqual(observed(real), wanted, "looking at it took something from it");
          assert.deepEqual(observed(anew), wanted);
        } finally {
          for (const fd of [real, other, anew]) descriptor.close(fd);
        }
      });

  it("that its peer had finished is read to its end", () => {
    const unread = Buffer.from("the last words");
    const fd = sock.tcpSocket(4);
    try {
      end(fd, { how: "fin", isSeen: false, unread });
      const into = Buffer.alloc(64);
      assert.equal(into.subarray(0, sock.recv(fd, into, 0)).toString(), "the last words");
      assert.equal(sock.recv(fd, into, 0), 0);
    } finally {
      descriptor.close(fd);
    }
  });

  it("gives back more than a send buffer holds by itself", () => {
    const unread = Buffer.alloc(300_000, "abcdefg");
    const { fd: real, peer } = opened("127.0.0.1");
    sock.setsockoptInt(real, sock.SOL_SOCKET, sock.SO_RCVBUFFORCE, 4 * unread.length);
    let sent = 0;
    while (sent < unread.length) sent += sock.send(peer, unread.subarray(sent), 0);
    reset(peer, real);
    const anew = sock.tcpSocket(4);
    try {
      sock.setsockoptInt(anew, sock.SOL_SOCKET, sock.SO_RCVBUFFORCE, 4 * unread.length);
      const ending = endOf(real, unreadMax);
      assert.ok(ending.unread.length > 0);
      end(anew, ending);
      assert.ok(endOf(anew, unreadMax).unread.equals(ending.unread), "not the same bytes");
    } finally {
      descriptor.close(real);
      descriptor.close(anew);
    }
  });
});
