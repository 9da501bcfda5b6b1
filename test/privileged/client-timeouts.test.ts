/** Clients that vanish without a word, and those that say nothing for ever; before and after a move of their sockets. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { adoptDownstream, adoptUpstream } from "#proxy/cutover/adopt.ts";
import { captureDownstream, captureUpstream } from "#proxy/cutover/capture.ts";
import { hold } from "#proxy/cutover/hold.ts";
import { release } from "#proxy/cutover/release.ts";
import { retire } from "#proxy/cutover/retire.ts";
import { rollback } from "#proxy/cutover/rollback.ts";
import { shieldLeg } from "#proxy/kernel/shield.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { sockets } from "#proxy/kernel/stream-sockets.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { type InProcess, makeProxy, startInProcess } from "#test/support/in-process-proxy.ts";
import { RawEnd } from "#test/support/raw-ends.ts";
import { lacking } from "./tcp-stage.ts";

const WAIT_MS_MAX = 10_000;
const TIMEOUTS = { keepAliveMs: 1_000, userTimeoutMs: 2_000 };

async function until(what: string, done: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + WAIT_MS_MAX;
  while (!done()) {
    if (performance.now() > deadlineMs) throw new Error(`not within ${WAIT_MS_MAX} ms: ${what}`);
    await delay(5);
  }
}

/** A client's descriptor, whose connection the application has answered. */
async function client({ proxy, listen }: InProcess): Promise<number> {
  const fd = sockets.dial({ address: "127.0.0.1", port: listen });
  await until("connected", () => sockets.send(fd, Buffer.from("hello")) === 5);
  await until("the echo", () => sockets.unreadBytes(fd) === 5);
  await until("a session", () => proxy.sessions.size === 1);
  return fd;
}

function timeoutsOf(proxy: WorkloadProxy): object {
  const [session] = proxy.sessions.values();
  const leg = session?.downstream;
  assert.ok(leg instanceof TcpLeg);
  const option = (level: number, name: number): number => sock.getsockoptInt(leg.fd, level, name);
  return {
    keepAlive: option(sock.SOL_SOCKET, sock.SO_KEEPALIVE),
    idleSeconds: option(sock.IPPROTO_TCP, sock.TCP_KEEPIDLE),
    everySeconds: option(sock.IPPROTO_TCP, sock.TCP_KEEPINTVL),
    userTimeoutMs: option(sock.IPPROTO_TCP, sock.TCP_USER_TIMEOUT),
  };
}

const EXPECTED = { keepAlive: 1, idleSeconds: 1, everySeconds: 1, userTimeoutMs: 2_000 };

/** Up to where it would be committed. */
async function capture(proxy: WorkloadProxy): ReturnType<typeof captureDownstream> {
  proxy.role = "held";
  await hold(proxy);
  await captureUpstream(proxy);
  return captureDownstream(proxy);
}

describe("a client that vanishes", { skip: lacking(), timeout: 600_000 }, () => {
  it("is noticed, though nothing is sent to it, and its session is reset", async () => {
    const stage = await startInProcess({ port: TIMEOUTS });
    const fd = await client(stage);
    try {
      shieldLeg(fd); // its kernel hears nothing any more
      await until("the session is over", () => stage.proxy.sessions.size === 0);
      assert.equal(stage.proxy.counters.sessionsReset, 1);
    } finally {
      sockets.close(fd);
      stage.stop();
    }
  });

  it("is looked for as before after a rollback, and not while its socket is captured", async () => {
    const stage = await startInProcess({ port: TIMEOUTS, downstream: "takeover" });
    const fd = await client(stage);
    try {
      assert.deepEqual(timeoutsOf(stage.proxy), EXPECTED);
      await capture(stage.proxy);
      const still = [...stage.proxy.sessions.values()][0]?.detachedDownstream?.fd as number;
      assert.equal(sock.getsockoptInt(still, sock.SOL_SOCKET, sock.SO_KEEPALIVE), 0);
      assert.equal(sock.getsockoptInt(still, sock.IPPROTO_TCP, sock.TCP_USER_TIMEOUT), 0);
      await rollback(stage.proxy);
      assert.deepEqual(timeoutsOf(stage.proxy), EXPECTED);
      sockets.send(fd, Buffer.from("again"));
      await until("the echo", () => sockets.unreadBytes(fd) === 10);
    } finally {
      sockets.close(fd);
      stage.stop();
    }
  });

  it("is looked for by the proxy that has its socket after a move", async () => {
    const stage = await startInProcess({ port: TIMEOUTS, downstream: "takeover" });
    const fd = await client(stage);
    const { proxy: next } = makeProxy({
      port: { ...TIMEOUTS, listen: stage.listen, upstream: stage.proxy.config.ports[0]?.upstream as never },
      downstream: "takeover",
    });
    try {
      stage.proxy.role = "held";
      await hold(stage.proxy);
      const upstream = await captureUpstream(stage.proxy);
      const downstream = await captureDownstream(stage.proxy);
      retire(stage.proxy, null);
      await adoptUpstream(next, upstream.sessions);
      await adoptDownstream(next, downstream.sessions);
      await release(next);
      assert.deepEqual(timeoutsOf(next), EXPECTED);
      sockets.send(fd, Buffer.from("again"));
      await until("the echo", () => sockets.unreadBytes(fd) === 10);
    } finally {
      sockets.close(fd);
      next.stop();
      stage.stop();
    }
  });
});

describe("a session that passes nothing", { skip: lacking(), timeout: 600_000 }, () => {
  it("is ended in order after idleMsMax, and one that passes something is not", async () => {
    const ended: string[] = [];
    const stage = await startInProcess({
      port: { idleMsMax: 300 },
      serve: (socket) =>
        socket.on("data", (data) => socket.write(data)).on("end", () => ended.push("application")),
    });
    const [quiet, lively] = [await RawEnd.dial(stage.listen), await RawEnd.dial(stage.listen)];
    const talk = setInterval(() => lively.socket.write("x"), 20);
    try {
      quiet.socket.write("hello");
      await quiet.has(5);
      await quiet.until("its end", () => quiet.over !== null);
      assert.equal(quiet.over, "end");
      await until("the application's end", () => ended.length === 1);
      assert.equal(lively.over, null);
      assert.equal(stage.proxy.counters.sessionsIdle, 1);
    } finally {
      clearInterval(talk);
      quiet.destroy();
      lively.destroy();
      stage.stop();
    }
  });
});
