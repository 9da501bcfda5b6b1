/** What a socket says of a connection that is over, and whether one made anew says the same. Real sockets on the loopback device. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { end, endOf } from "#control/migration/ended-connection.ts";
import { hasArrived } from "#control/migration/over-loopback.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as kernel from "#proxy/kernel/kernel.ts";

const skip = process.getuid?.() === 0 ? false : "needs root: SO_SNDBUFFORCE";
const unreadMax = 1 << 20;

function opened(loopback: string): { fd: number; peer: number } {
  const family = loopback.includes(":") ? 6 : 4;
  const listener = kernel.tcpSocket(family);
  kernel.bind(listener, { address: loopback, port: 0 });
  kernel.listen(listener, 1);
  const fd = kernel.tcpSocket(family);
  kernel.tryConnect(fd, kernel.getsockname(listener));
  arrives(listener, kernel.POLLIN);
  const peer = kernel.accept(listener, kernel.SOCK_CLOEXEC);
  kernel.close(listener);
  return { fd, peer };
}

function arrives(fd: number, event: number): void {
  assert.ok(hasArrived(() => (kernel.pollNow(fd, event) & event) !== 0));
}

/** … and `fd`, its other end, has heard of it. */
function reset(peer: number, fd: number): void {
  const linger = Buffer.alloc(8);
  linger.writeInt32LE(1, 0);
  kernel.setsockoptBuffer(peer, kernel.SOL_SOCKET, kernel.SO_LINGER, linger);
  assert.ok(hasArrived(() => kernel.ioctlInt(peer, kernel.SIOCOUTQ) === 0));
  kernel.close(peer);
  arrives(fd, kernel.POLLERR);
}

/** Nobody listens there. */
function freePort(loopback: string): Endpoint {
  const fd = kernel.tcpSocket(loopback.includes(":") ? 6 : 4);
  kernel.bind(fd, { address: loopback, port: 0 });
  const at = kernel.getsockname(fd);
  kernel.close(fd);
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
    attempt(() => into.subarray(0, kernel.recv(fd, into, kernel.MSG_DONTWAIT)).toString() || "end");
  const poll = (): string => `poll ${kernel.pollNow(fd, kernel.POLLIN | 0x2000)}`;
  const said = [
    poll(),
    read(),
    poll(),
    read(),
    read(),
    attempt(() => kernel.getpeername(fd) && "peer"),
    poll(),
  ];
  return [...said, attempt(() => kernel.send(fd, Buffer.from("x"), 0)), poll(), read()];
}

const cases: Record<string, (loopback: string) => number> = {
  "reset, with bytes that were not read": (loopback) => {
    const { fd, peer } = opened(loopback);
    kernel.send(peer, Buffer.from("the last words"), 0);
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
    kernel.getsockoptInt(fd, kernel.SOL_SOCKET, kernel.SO_ERROR);
    return fd;
  },
  "refused when it connected": (loopback) => {
    const fd = kernel.tcpSocket(loopback.includes(":") ? 6 : 4);
    kernel.tryConnect(fd, freePort(loopback));
    arrives(fd, kernel.POLLERR);
    return fd;
  },
  "refused when it connected, and the application has had the error": (loopback) => {
    const fd = kernel.tcpSocket(loopback.includes(":") ? 6 : 4);
    kernel.tryConnect(fd, freePort(loopback));
    arrives(fd, kernel.POLLERR);
    kernel.getsockoptInt(fd, kernel.SOL_SOCKET, kernel.SO_ERROR);
    return fd;
  },
};

describe("a connection that is over", { skip }, () => {
  for (const loopback of ["127.0.0.1", "::1"])
    for (const [name, make] of Object.entries(cases))
      it(`says the same when it is made anew: ${name}, ${loopback}`, () => {
        const real = make(loopback);
        const other = make(loopback);
        const anew = kernel.tcpSocket(loopback.includes(":") ? 6 : 4);
        try {
          assert.equal(kernel.lastPeer(real)?.address, loopback);
          end(anew, endOf(real, unreadMax));
          const wanted = observed(other);
          assert.deepEqual(observed(real), wanted, "looking at it took something from it");
          assert.deepEqual(observed(anew), wanted);
        } finally {
          for (const fd of [real, other, anew]) kernel.close(fd);
        }
      });

  it("that its peer had finished is read to its end", () => {
    const unread = Buffer.from("the last words");
    const fd = kernel.tcpSocket(4);
    try {
      end(fd, { how: "fin", isSeen: false, unread });
      const into = Buffer.alloc(64);
      assert.equal(into.subarray(0, kernel.recv(fd, into, 0)).toString(), "the last words");
      assert.equal(kernel.recv(fd, into, 0), 0);
    } finally {
      kernel.close(fd);
    }
  });

  it("gives back more than a send buffer holds by itself", () => {
    const unread = Buffer.alloc(300_000, "abcdefg");
    const { fd: real, peer } = opened("127.0.0.1");
    kernel.setsockoptInt(real, kernel.SOL_SOCKET, kernel.SO_RCVBUFFORCE, 4 * unread.length);
    let sent = 0;
    while (sent < unread.length) sent += kernel.send(peer, unread.subarray(sent), 0);
    reset(peer, real);
    const anew = kernel.tcpSocket(4);
    try {
      kernel.setsockoptInt(anew, kernel.SOL_SOCKET, kernel.SO_RCVBUFFORCE, 4 * unread.length);
      const ending = endOf(real, unreadMax);
      assert.ok(ending.unread.length > 0);
      end(anew, ending);
      assert.ok(endOf(anew, unreadMax).unread.equals(ending.unread), "not the same bytes");
    } finally {
      kernel.close(real);
      kernel.close(anew);
    }
  });
});
