/** What waits in the kernel for clients and applications that do not read: little, so that a move has little to carry. */
import assert from "node:assert/strict";
import { connect, type Socket } from "node:net";
import { describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { shorten } from "#proxy/cutover/shorten.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { sockets } from "#proxy/kernel/stream-sockets.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { startInProcess } from "#test/support/in-process-proxy.ts";

const MIB = 1_048_576;
const KIB = 1024;
/** a segment of a loopback connection that was begun within the bound is finished */
const SEGMENT_BYTES = 64 * KIB;
const WAIT_MS_MAX = 20_000;
/** looks in a row without a change: nothing moves any more */
const STILL_LOOKS = 20;
const LOOK_MS = 10;
const PUSHED_BYTES = 64 * MIB;

/** Resolves when `look` has given the same for a while. */
async function settled(look: () => number): Promise<number> {
  const deadlineMs = performance.now() + WAIT_MS_MAX;
  let last = -1;
  for (let still = 0; still < STILL_LOOKS; ) {
    if (performance.now() > deadlineMs) throw new Error(`not still within ${WAIT_MS_MAX} ms: ${last}`);
    await delay(LOOK_MS);
    const now = look();
    still = now === last ? still + 1 : 0;
    last = now;
  }
  return last;
}

function legsOf(proxy: Awaited<ReturnType<typeof startInProcess>>["proxy"]): {
  client: TcpLeg;
  application: TcpLeg;
} {
  const [session] = proxy.sessions.values();
  const { downstream, upstream } = session ?? {};
  assert.ok(downstream instanceof TcpLeg && upstream instanceof TcpLeg);
  return { client: downstream, application: upstream };
}

/** of what waits for a client */
function boundsOf({ client, application }: ReturnType<typeof legsOf>): {
  unsentBytes: number;
  unreadBytes: number;
} {
  return {
    unsentBytes: sock.getsockoptInt(client.fd, sock.IPPROTO_TCP, sock.TCP_NOTSENT_LOWAT),
    unreadBytes: sock.getsockoptInt(application.fd, sock.SOL_SOCKET, sock.SO_RCVBUF),
  };
}

describe("a client that does not read", { timeout: 300_000 }, () => {
  it("has little waiting for it on the proxy's legs, and gets all of it when it reads", async () => {
    const pushed = Buffer.alloc(PUSHED_BYTES, "x");
    const serve = (socket: Socket): void => {
      socket.once("data", () => socket.write(pushed));
    };
    const { proxy, listen, stop } = await startInProcess({ serve });
    const fd = sockets.dial({ address: "127.0.0.1", port: listen });
    try {
      while (sockets.send(fd, Buffer.from("go")) !== 2) await delay(1);
      while (proxy.sessions.size === 0 || [...proxy.sessions.values()][0]?.state !== "open") await delay(1);
      const { client, application } = legsOf(proxy);
      await settled(
        () =>
          application.unreadBytes() +
          [...proxy.sessions.values()].reduce((sum, { outbound }) => sum + outbound.bytes, 0),
      );
      const unsent = descriptor.ioctlInt(client.fd, sock.SIOCOUTQNSD);
      assert.ok(unsent <= 64 * KIB + 2 * SEGMENT_BYTES, `${unsent} bytes are not sent`);
      assert.ok(application.unreadBytes() <= 256 * KIB, `${application.unreadBytes()} bytes are not read`);
      const pending = [...proxy.sessions.values()].reduce(
        (sum, { outbound }) => sum + outbound.pendingBytes,
        0,
      );
      assert.ok(pending <= 64 * KIB, `${pending} bytes are in user space`);
      const before = boundsOf({ client, application });
      // it reads after all
      const into = Buffer.alloc(MIB);
      let received = 0;
      while (received < PUSHED_BYTES) {
        const length = sockets.recv(fd, into);
        if (length > 0) received += length;
        else if (length === 0) break;
        else await delay(1);
      }
      assert.equal(received, PUSHED_BYTES);
      // … fast, so that it is served with longer queues from now on
      const now = boundsOf({ client, application });
      assert.ok(now.unsentBytes > before.unsentBytes, `${now.unsentBytes} bytes may be unsent`);
      assert.ok(now.unreadBytes > before.unreadBytes, `${now.unreadBytes} bytes may be unread`);
      assert.ok(now.unsentBytes <= 2 * MIB && now.unreadBytes <= 4 * MIB, JSON.stringify(now));
    } finally {
      sockets.close(fd);
      stop();
    }
  });
});

describe("a client that reads fast", { timeout: 300_000 }, () => {
  it("has short queues again when a hold is about to come, and misses nothing", async () => {
    const pushed = Buffer.alloc(MIB, "x");
    let left = 512;
    const serve = (socket: Socket): void => {
      const push = (): void => {
        while (left-- > 0) if (!socket.write(pushed)) return;
        socket.end();
      };
      socket.on("drain", push);
      push();
    };
    const { proxy, listen, stop } = await startInProcess({ serve });
    const client = connect(listen, "127.0.0.1");
    let received = 0;
    const ended = Promise.withResolvers<void>();
    client.on("data", ({ length }) => {
      received += length;
    });
    client.on("end", ended.resolve);
    try {
      while (proxy.sessions.size === 0 || [...proxy.sessions.values()][0]?.state !== "open") await delay(1);
      const legs = legsOf(proxy);
      const atFirst = boundsOf(legs).unreadBytes;
      while (boundsOf(legs).unreadBytes < 4 * atFirst) await delay(1);
      assert.equal((await shorten(proxy)).shortened, 1);
      while (legs.application.unreadBytes() > atFirst) await delay(1);
      // as much as a second of it does not make them longer: the hold comes before that
      const passed = received;
      while (received < passed + 64 * MIB) await delay(1);
      assert.equal(boundsOf(legs).unreadBytes, atFirst);
      assert.ok(legs.application.unreadBytes() <= atFirst, `${legs.application.unreadBytes()} bytes wait`);
      await ended.promise;
      assert.equal(received, 512 * MIB);
    } finally {
      client.destroy();
      stop();
    }
  });
});

describe("an application that stops reading", { timeout: 300_000 }, () => {
  it("has little waiting for it on the proxy's legs, however fast it was before, and gets all of it when it reads", async () => {
    const fast = 64 * MIB;
    const slow = 64 * MIB;
    let received = 0;
    const gate = Promise.withResolvers<void>();
    const serve = (socket: Socket): void => {
      socket.on("data", (chunk: Buffer) => {
        const before = received;
        received += chunk.length;
        if (before < fast && received >= fast) {
          socket.pause();
          gate.promise.then(() => socket.resume());
        }
      });
    };
    const { proxy, listen, stop } = await startInProcess({ serve });
    const client = connect(listen, "127.0.0.1");
    try {
      client.write(Buffer.alloc(fast + slow, "x"));
      while (received < fast) await delay(1);
      const legs = legsOf(proxy);
      const queued = (): number =>
        legs.client.unreadBytes() + descriptor.ioctlInt(legs.application.fd, sock.SIOCOUTQ);
      await settled(queued);
      const unsent = descriptor.ioctlInt(legs.application.fd, sock.SIOCOUTQNSD);
      assert.ok(legs.client.unreadBytes() <= 9 * MIB, `${legs.client.unreadBytes()} bytes are not read`);
      assert.ok(unsent <= 2.25 * MIB, `${unsent} bytes are not sent`);
      gate.resolve();
      while (received < fast + slow) await delay(1);
      assert.equal(received, fast + slow);
    } finally {
      client.destroy();
      stop();
    }
  });
});
