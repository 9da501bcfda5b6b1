/** Clients whose connections are not like the others': what becomes of them in a move, and of the others. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { LegSnapshot } from "#proxy/contract/snapshot.ts";
import { adoptDownstream, adoptUpstream } from "#proxy/cutover/adopt.ts";
import { captureDownstream, captureUpstream } from "#proxy/cutover/capture.ts";
import { hold } from "#proxy/cutover/hold.ts";
import type { LegKernel } from "#proxy/cutover/leg-kernel.ts";
import { release } from "#proxy/cutover/release.ts";
import { retire } from "#proxy/cutover/rollback.ts";
import type { WorkloadProxy } from "#proxy/cutover/workload-proxy.ts";
import { adoptLeg } from "#proxy/tcp/adopt.ts";
import * as kernel from "#proxy/tcp/kernel.ts";
import { sockets } from "#proxy/tcp/sockets.ts";
import { type InProcessOptions, makeProxy, startInProcess } from "#test/support/in-process-proxy.ts";
import { lacking, Namespace } from "./tcp-stage.ts";

const WAIT_MS_MAX = 5_000;
const VIP = "fd99::50";
const LINK_LOCAL = "fe80::9";

async function until(what: string, done: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + WAIT_MS_MAX;
  while (!done()) {
    if (performance.now() > deadlineMs) throw new Error(`not within ${WAIT_MS_MAX} ms: ${what}`);
    await delay(5);
  }
}

/** Everything a takeover does with a proxy's sessions, into another proxy of this process. */
async function move(
  from: WorkloadProxy,
  options: InProcessOptions,
): Promise<{ to: WorkloadProxy; lost: number }> {
  const { listen, upstream } = from.config.ports[0] as (typeof from.config.ports)[0];
  const port = from.listeners[0]?.port ?? listen;
  const { proxy: to } = makeProxy({ ...options, downstream: "takeover", port: { listen: port, upstream } });
  from.role = "held";
  await hold(from);
  const upstreams = await captureUpstream(from);
  const downstreams = await captureDownstream(from);
  retire(from, null);
  adoptUpstream(to, upstreams.sessions);
  const { lost } = adoptDownstream(to, downstreams.sessions);
  to.role = "owner";
  release(to);
  return { to, lost };
}

describe("a client's connection that is not like the others", { skip: lacking(), timeout: 600_000 }, () => {
  const home = openSync("/proc/thread-self/ns/net", "r");
  let node: Namespace;
  let outside: Namespace;
  before(async () => {
    node = new Namespace();
    outside = new Namespace();
    node.ip("link add name eth0 index 77 type veth peer name eth9");
    node.ip(`link set eth9 netns /proc/${process.pid}/fd/${outside.fd}`);
    node.ip("link set eth0 up");
    node.ip(`address add ${VIP}/64 dev eth0 nodad`);
    outside.ip("link set eth9 addrgenmode none up");
    outside.ip(`address add ${LINK_LOCAL}/64 dev eth9 nodad`);
    outside.ip("route add fd99::/64 dev eth9");
    kernel.setns(node.fd, kernel.CLONE_NEWNET);
  });
  after(() => {
    kernel.setns(home, kernel.CLONE_NEWNET);
    for (const fd of [home, node.fd, outside.fd]) closeSync(fd);
  });

  it("goes along where its address means something on the link only", async () => {
    const options = { downstream: "takeover", listenAddress: VIP, listenDevice: "eth0" } as const;
    const stage = await startInProcess(options);
    const fd = outside.run(() => {
      const socket = kernel.tcpSocket(6);
      const index = Number(
        /^(\d+):/.exec(String(execFileSync("ip", ["-o", "link", "show", "dev", "eth9"])))?.[1],
      );
      kernel.bind(socket, { address: LINK_LOCAL, port: 0 }, index);
      assert.equal(kernel.tryConnect(socket, { address: VIP, port: stage.listen }), 0);
      return socket;
    });
    let to: WorkloadProxy | null = null;
    try {
      await until("sent", () => sockets.send(fd, Buffer.from("hello")) === 5);
      await until("the echo", () => sockets.unreadBytes(fd) === 5);
      const moved = await move(stage.proxy, options);
      to = moved.to;
      assert.equal(moved.lost, 0);
      sockets.send(fd, Buffer.from("again"));
      await until("the echo", () => sockets.unreadBytes(fd) === 10);
    } finally {
      sockets.close(fd);
      to?.stop();
      stage.stop();
    }
  });

  it("is lost alone, counted and told, where it cannot be built; its application's end is reset", async () => {
    const ended: string[] = [];
    const stage = await startInProcess({
      downstream: "takeover",
      serve: (socket) => {
        socket.on("data", (data) => socket.write(data));
        socket.on("error", (error: NodeJS.ErrnoException) => ended.push(error.code ?? ""));
      },
    });
    const [odd, plain] = [1, 2].map(() => sockets.dial({ address: "127.0.0.1", port: stage.listen })) as [
      number,
      number,
    ];
    const oddPort = kernel.getsockname(odd).port;
    const spoilt: Partial<LegKernel> = {
      adoptLeg: (snapshot: LegSnapshot, options) => {
        if (snapshot.remote.port === oddPort) throw Object.assign(new Error("odd"), { code: "EINVAL" });
        return adoptLeg(snapshot, options);
      },
    };
    let to: WorkloadProxy | null = null;
    try {
      for (const fd of [odd, plain]) {
        await until("sent", () => sockets.send(fd, Buffer.from("hello")) === 5);
        await until("the echo", () => sockets.unreadBytes(fd) === 5);
      }
      const moved = await move(stage.proxy, { kernel: spoilt });
      to = moved.to;
      assert.equal(moved.lost, 1);
      assert.equal(to.counters.legFailures, 1);
      sockets.send(plain, Buffer.from("again"));
      await until("the echo", () => sockets.unreadBytes(plain) === 10);
      await until("the application's end", () => ended.length === 1);
      assert.deepEqual(ended, ["ECONNRESET"]);
      assert.equal(to.sessions.size, 1);
    } finally {
      for (const fd of [odd, plain]) sockets.close(fd);
      to?.stop();
      stage.stop();
    }
  });
});
