/** Clients whose connections are not like the others': what becomes of them in a move, and of the others. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import type { Socket } from "node:net";
import { after, before, describe, it } from "node:test";
import { setTimeout as delay, setImmediate as turn } from "node:timers/promises";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { LegSnapshot, SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { adoptDownstream, adoptUpstream } from "#proxy/cutover/adopt.ts";
import { captureDownstream, captureUpstream } from "#proxy/cutover/capture.ts";
import { hold } from "#proxy/cutover/hold.ts";
import { release } from "#proxy/cutover/release.ts";
import { retire } from "#proxy/cutover/retire.ts";
import { rollback } from "#proxy/cutover/rollback.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { sockets } from "#proxy/kernel/stream-sockets.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { captureLeg } from "#proxy/tcp/capture.ts";
import { type LegWork, localLegWork } from "#proxy/tcp/local-surgeon.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { type InProcessOptions, makeProxy, startInProcess } from "#test/support/in-process-proxy.ts";
import { headerOf } from "#test/support/proxy-headers.ts";
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

/** As if the address were elsewhere: a late acknowledgement that met no socket would be answered with RST. */
function dropAll(): () => void {
  const nft = (input: string): unknown => execFileSync("nft", ["-f", "-"], { input });
  nft("table inet gap { chain input { type filter hook input priority 0; meta l4proto tcp drop; }; }");
  return () => nft("delete table inet gap");
}

/** Everything a takeover does with a proxy's sessions, into another proxy of this process. */
async function move(
  from: WorkloadProxy,
  options: InProcessOptions & {
    /** over what was captured of the application's connections */
    change?: (sessions: SessionSnapshot[]) => SessionSnapshot[];
    beforeRelease?: (to: WorkloadProxy) => Promise<void>;
  },
): Promise<{ to: WorkloadProxy; lost: number }> {
  const { listen, upstream } = from.config.ports[0] as (typeof from.config.ports)[0];
  const port = from.listeners[0]?.port ?? listen;
  const { proxy: to } = makeProxy({
    ...options,
    downstream: "takeover",
    port: { ...options.port, listen: port, upstream },
  });
  from.role = "held";
  await hold(from);
  const upstreams = await captureUpstream(from);
  const downstreams = await captureDownstream(from);
  const { change = (sessions) => sessions, beforeRelease } = options;
  const accept = dropAll();
  retire(from, null);
  const lost =
    (await adoptUpstream(to, change(upstreams.sessions))).lost +
    (await adoptDownstream(to, downstreams.sessions)).lost;
  accept();
  await beforeRelease?.(to);
  await release(to);
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
    namespaces.setns(node.fd, namespaces.CLONE_NEWNET);
  });
  after(() => {
    namespaces.setns(home, namespaces.CLONE_NEWNET);
    for (const fd of [home, node.fd, outside.fd]) closeSync(fd);
  });

  it("has no more room for what waits for it after some moves than after one, if it does not read, and gets all of it", async () => {
    // All of the first fits somewhere on its way: this application is not frozen, and has nothing to say during a move.
    const first = Buffer.alloc(192 * 1024, "x");
    const rest = Buffer.alloc(8 * 1_048_576, "x");
    let unwritten = (): number => 0;
    const options: InProcessOptions = {
      downstream: "takeover",
      listenAddress: VIP,
      serve: (socket) => {
        socket.write(first);
        socket.once("data", () => socket.write(rest));
        unwritten = () => socket.writableLength;
      },
    };
    const stage = await startInProcess(options);
    const fd = sock.tcpSocket(6);
    let owner = stage.proxy;
    const upstream = (): TcpLeg => {
      const leg = [...owner.sessions.values()][0]?.upstream;
      assert(leg instanceof TcpLeg);
      return leg;
    };
    try {
      assert.equal(sock.tryConnect(fd, { address: VIP, port: stage.listen }), 0);
      await until("all of the first is on its way", () => {
        const [{ outbound, upstream: leg } = {}] = owner.sessions.values();
        if (outbound === undefined || !(leg instanceof TcpLeg) || unwritten() > 0) return false;
        return outbound.bytes + leg.unreadBytes() === first.length;
      });
      const rooms: number[] = [];
      const roomOf = (leg: number): number => sock.getsockoptInt(leg, sock.SOL_SOCKET, sock.SO_RCVBUF);
      for (let moves = 0; moves < 5; moves++) {
        // before the leg speaks: whatever room there is then, its application fills
        const beforeRelease = async (to: WorkloadProxy): Promise<void> => {
          for (const { detachedUpstream } of to.sessions.values())
            rooms.push(detachedUpstream === null ? 0 : roomOf(detachedUpstream.fd));
        };
        const moved = await move(owner, { ...options, beforeRelease });
        owner = moved.to;
        assert.equal(moved.lost, 0);
        rooms.push(roomOf(upstream().fd));
      }
      assert.deepEqual(rooms, Array(10).fill(160 * 1024));
      assert.equal(sockets.send(fd, Buffer.from("more")), 4);
      const into = Buffer.alloc(1_048_576);
      let received = 0;
      await until("all of it", () => {
        for (let length = 1; length > 0; received += Math.max(length, 0)) length = sockets.recv(fd, into);
        return received >= first.length + rest.length;
      });
      assert.equal(received, first.length + rest.length);
    } finally {
      sockets.close(fd);
      owner.stop();
      stage.stop();
    }
  });

  it("has nothing of its application's to carry where it reads after all when the application is still", async () => {
    const stage = await startInProcess({
      downstream: "takeover",
      listenAddress: VIP,
      serve: (socket) => socket.write(Buffer.alloc(512 * 1024, "x")),
    });
    const fd = sock.tcpSocket(6);
    try {
      assert.equal(sock.tryConnect(fd, { address: VIP, port: stage.listen }), 0);
      await until("its client is full", () => {
        const [{ outbound, upstream } = {}] = stage.proxy.sessions.values();
        return outbound?.isBlocked === true && upstream instanceof TcpLeg && upstream.unreadBytes() > 0;
      });
      stage.proxy.role = "held";
      await hold(stage.proxy);
      let isCaptured = false;
      const captured = captureUpstream(stage.proxy).finally(() => {
        isCaptured = true;
      });
      const into = Buffer.alloc(1_048_576);
      while (!isCaptured) {
        sockets.recv(fd, into);
        await turn();
      }
      const { sessions } = await captured;
      assert.deepEqual(
        sessions.map(({ upstream }) => upstream?.receive.bytes.length),
        [0],
      );
      await rollback(stage.proxy);
    } finally {
      sockets.close(fd);
      stage.stop();
    }
  });

  it("goes along where its address means something on the link only", async () => {
    const options = { downstream: "takeover", listenAddress: VIP, listenDevice: "eth0" } as const;
    const stage = await startInProcess(options);
    const fd = outside.run(() => {
      const socket = sock.tcpSocket(6);
      const index = Number(
        /^(\d+):/.exec(String(execFileSync("ip", ["-o", "link", "show", "dev", "eth9"])))?.[1],
      );
      sock.bind(socket, { address: LINK_LOCAL, port: 0 }, index);
      assert.equal(sock.tryConnect(socket, { address: VIP, port: stage.listen }), 0);
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

  it("goes along where a load balancer has named the client, and where it has not finished doing so", async () => {
    const proxyProtocol = { from: [{ address: "127.0.0.1", prefix: 32 }], headerMsMax: 60_000 };
    const port = { proxyProtocol, sessionsPerClientMax: 2 };
    const stage = await startInProcess({ downstream: "takeover", port });
    const to = { address: "127.0.0.1", port: stage.listen };
    const header = headerOf("198.51.100.7", 4000);
    const [whole, half, none] = Array.from({ length: 3 }, () => sockets.dial(to)) as [number, number, number];
    const fds = [whole, half, none];
    const clients = (proxy: WorkloadProxy) => [...proxy.sessions.values()].map(({ client }) => client);
    let moved: WorkloadProxy | null = null;
    try {
      const begun = Buffer.concat([header, Buffer.from("hello")]);
      await until("sent", () => sockets.send(whole, begun) === begun.length);
      await until("the echo", () => sockets.unreadBytes(whole) === 5);
      await until("sent", () => sockets.send(half, header.subarray(0, 20)) === 20);
      await until("three sessions", () => stage.proxy.sessions.size === 3);
      await until("it is read", () =>
        [...stage.proxy.sessions.values()].some(({ header }) => header?.bytes.length === 20),
      );
      ({ to: moved } = await move(stage.proxy, { port }));
      assert.equal(clients(moved).filter((client) => client === "198.51.100.7:4000").length, 1);
      for (const [fd, rest] of [
        [whole, "again"],
        [half, Buffer.concat([header.subarray(20), Buffer.from("hello")])],
        [none, Buffer.concat([headerOf("198.51.100.8", 4001), Buffer.from("hello")])],
      ] as const)
        assert.equal(sockets.send(fd, Buffer.from(rest as string)), rest.length);
      await until("the echoes", () => fds.every((fd) => sockets.unreadBytes(fd) === (fd === whole ? 10 : 5)));
      assert.equal(clients(moved).filter((client) => client === "198.51.100.7:4000").length, 2);
      assert.equal(moved.admission.refusesClient(0, "198.51.100.7:1"), "sessionsPerClientMax");
      assert.equal(moved.admission.refusesClient(0, "198.51.100.8:1"), null);
      const named = clients(moved);
      ({ to: moved } = await move(moved, { port }));
      assert.deepEqual(clients(moved).sort(), named.sort());
    } finally {
      for (const fd of fds) sockets.close(fd);
      moved?.stop();
      stage.stop();
    }
  });

  it("goes on where its header was not complete at the hold of a move that is rolled back", async () => {
    const proxyProtocol = { from: [{ address: "127.0.0.1", prefix: 32 }], headerMsMax: 60_000 };
    const stage = await startInProcess({ downstream: "takeover", port: { proxyProtocol } });
    const header = headerOf("198.51.100.7", 4000);
    const fd = sockets.dial({ address: "127.0.0.1", port: stage.listen });
    try {
      await until("sent", () => sockets.send(fd, header.subarray(0, 20)) === 20);
      await until("it is read", () => [...stage.proxy.sessions.values()][0]?.header?.bytes.length === 20);
      stage.proxy.role = "held";
      await hold(stage.proxy);
      await captureUpstream(stage.proxy);
      await captureDownstream(stage.proxy);
      sockets.send(fd, header.subarray(20));
      await rollback(stage.proxy);
      sockets.send(fd, Buffer.from("hello"));
      await until("the echo", () => sockets.unreadBytes(fd) === 5);
      assert.equal([...stage.proxy.sessions.values()][0]?.client, "198.51.100.7:4000");
    } finally {
      sockets.close(fd);
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
    const oddPort = sock.getsockname(odd).port;
    const spoilt: Partial<LegWork> = {
      adoptLeg: (snapshot: LegSnapshot, options) => {
        if (snapshot.remote.port === oddPort) throw Object.assign(new Error("odd"), { code: "EINVAL" });
        return localLegWork().adoptLeg(snapshot, options);
      },
    };
    let to: WorkloadProxy | null = null;
    try {
      for (const fd of [odd, plain]) {
        await until("sent", () => sockets.send(fd, Buffer.from("hello")) === 5);
        await until("the echo", () => sockets.unreadBytes(fd) === 5);
      }
      const moved = await move(stage.proxy, { legWork: spoilt });
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

  for (const [how, options] of [
    ["built", { adopts: false }],
    ["captured", { adopts: true }],
  ] as const) {
    it(`is lost alone where the application's leg cannot be ${how}: that is silent until the release, then both ends are reset`, async () => {
      const application = new Map<string, { socket: Socket; ended: string | null }>();
      const stage = await startInProcess({
        downstream: "takeover",
        serve: (socket) => {
          socket.on("error", (error: NodeJS.ErrnoException) => {
            for (const end of application.values()) if (end.socket === socket) end.ended = error.code ?? "";
          });
          socket.on("data", (data) => {
            application.set(String(data).slice(0, 3), { socket, ended: null });
            socket.write(data);
          });
        },
      });
      const [odd, plain] = [1, 2].map(() => sockets.dial({ address: "127.0.0.1", port: stage.listen })) as [
        number,
        number,
      ];
      let oddLocal = 0;
      const spoilt: Partial<LegWork> = {
        adoptLeg: (snapshot: LegSnapshot, adoption) => {
          if (snapshot.local.port === oddLocal) throw Object.assign(new Error("odd"), { code: "EINVAL" });
          return localLegWork().adoptLeg(snapshot, adoption);
        },
      };
      let to: WorkloadProxy | null = null;
      try {
        for (const [fd, text] of [
          [odd, "odd"],
          [plain, "pln"],
        ] as const) {
          await until("sent", () => sockets.send(fd, Buffer.from(text)) === 3);
          await until("the echo", () => sockets.unreadBytes(fd) === 3);
        }
        const end = application.get("odd");
        oddLocal = end?.socket.remotePort ?? 0;
        const moved = await move(stage.proxy, {
          legWork: options.adopts ? {} : spoilt,
          change: (sessions) =>
            sessions.map((session) =>
              options.adopts && session.upstream?.local.port === oddLocal
                ? { ...session, upstream: { ...session.upstream, state: "CLOSE" } }
                : session,
            ),
          beforeRelease: async () => {
            // As CRIU's restore does it: against an address without a socket this would be answered with RST at once.
            if (!options.adopts) for (const { socket } of application.values()) socket.write("unsent");
            await turn();
            await turn();
            assert.deepEqual(
              [...application.values()].map(({ ended }) => ended),
              [null, null],
            );
          },
        });
        to = moved.to;
        assert.equal(moved.lost, 1);
        assert.equal(to.counters.legFailures, 1);
        await until("the application's end", () => end?.ended !== null);
        assert.equal(end?.ended, "ECONNRESET");
        await until("the client's reset", () => sockets.isClosed(odd));
        const unsent = options.adopts ? 0 : 6;
        await until("what the other was sent", () => sockets.unreadBytes(plain) === 3 + unsent);
        sockets.send(plain, Buffer.from("again"));
        await until("the echo", () => sockets.unreadBytes(plain) === 8 + unsent);
        assert.equal(to.sessions.size, 1);
      } finally {
        for (const fd of [odd, plain]) sockets.close(fd);
        to?.stop();
        stage.stop();
      }
    });
  }

  it("hinders the move where the application's address is somebody else's here, which is said, and nothing is left of it", async () => {
    const stage = await startInProcess({ downstream: "takeover" });
    const fds = [1, 2].map(() => sockets.dial({ address: "127.0.0.1", port: stage.listen }));
    let taken = -1;
    let to: WorkloadProxy | null = null;
    try {
      for (const fd of fds) {
        await until("sent", () => sockets.send(fd, Buffer.from("hello")) === 5);
        await until("the echo", () => sockets.unreadBytes(fd) === 5);
      }
      stage.proxy.role = "held";
      await hold(stage.proxy);
      const { sessions } = await captureUpstream(stage.proxy);
      await captureDownstream(stage.proxy);
      retire(stage.proxy, null);
      const [first] = sessions;
      assert.ok(first?.upstream);
      const { local } = first.upstream;
      taken = sock.tcpSocket(4);
      sock.bind(taken, local);
      sock.listen(taken, 1);
      let isSpoilt = true;
      const spoilt: Partial<LegWork> = {
        adoptLeg: (snapshot: LegSnapshot, adoption) => {
          if (isSpoilt && snapshot.local.port === local.port)
            throw Object.assign(new Error("odd"), { code: "EINVAL" });
          return localLegWork().adoptLeg(snapshot, adoption);
        },
      };
      const port = stage.proxy.config.ports[0] ?? {};
      ({ proxy: to } = makeProxy({ downstream: "takeover", port, legWork: spoilt }));
      const standby = to;
      const before = sockets.lowestFreeDescriptor();
      await assert.rejects(() => adoptUpstream(standby, sessions), {
        code: "PROXY_ADOPT",
        message: new RegExp(
          `${local.address}:${local.port}, the proxy's end .* cannot be had here .*EADDRINUSE.*: end what listens there`,
        ),
      });
      assert.equal(sockets.lowestFreeDescriptor(), before, "no descriptor is left");
      isSpoilt = false; // beside somebody else's listener it can be
      assert.deepEqual((await adoptUpstream(standby, sessions)).legs, 2, "and can be tried again");
    } finally {
      for (const fd of [...fds, ...(taken < 0 ? [] : [taken])]) sockets.close(fd);
      to?.stop();
      stage.stop();
    }
  });

  it("is adopted once, however often that is asked for", async () => {
    const stage = await startInProcess({ downstream: "takeover" });
    const fd = sockets.dial({ address: "127.0.0.1", port: stage.listen });
    let to: WorkloadProxy | null = null;
    try {
      await until("sent", () => sockets.send(fd, Buffer.from("hello")) === 5);
      await until("the echo", () => sockets.unreadBytes(fd) === 5);
      stage.proxy.role = "held";
      await hold(stage.proxy);
      const upstreams = await captureUpstream(stage.proxy);
      const downstreams = await captureDownstream(stage.proxy);
      retire(stage.proxy, null);
      ({ proxy: to } = makeProxy({ downstream: "takeover", port: stage.proxy.config.ports[0] ?? {} }));
      await adoptUpstream(to, upstreams.sessions);
      // The agent asks, dies before it has noted the answer, and its successor asks again.
      for (let agent = 0; agent < 2; agent++) {
        assert.deepEqual(
          { ...(await adoptDownstream(to, downstreams.sessions)), adoptUs: 0 },
          { sessions: 1, legs: 1, adoptUs: 0, lost: 0 },
        );
      }
      await release(to);
      sockets.send(fd, Buffer.from("again"));
      await until("the echo", () => sockets.unreadBytes(fd) === 10);
      assert.equal(to.sessions.size, 1);
    } finally {
      sockets.close(fd);
      to?.stop();
      stage.stop();
    }
  });

  it("goes on in a rollback where the application's leg could not be captured", async () => {
    let isSpoilt = true;
    const stage = await startInProcess({
      downstream: "takeover",
      legWork: {
        captureLeg: (fd) => {
          if (isSpoilt) throw Object.assign(new Error("odd"), { code: "EINVAL" });
          return captureLeg(fd);
        },
      },
    });
    const fd = sockets.dial({ address: "127.0.0.1", port: stage.listen });
    try {
      await until("sent", () => sockets.send(fd, Buffer.from("hello")) === 5);
      await until("the echo", () => sockets.unreadBytes(fd) === 5);
      stage.proxy.role = "held";
      await hold(stage.proxy);
      const { sessions } = await captureUpstream(stage.proxy);
      const { state, remote } = sessions[0]?.upstream ?? {};
      assert.deepEqual(
        { state, port: remote?.port },
        { state: "CLOSE", port: stage.proxy.config.ports[0]?.upstream.port },
      );
      isSpoilt = false;
      await captureDownstream(stage.proxy);
      assert.deepEqual(await rollback(stage.proxy), { sessions: 1, lost: 0 });
      sockets.send(fd, Buffer.from("again"));
      await until("the echo", () => sockets.unreadBytes(fd) === 10);
    } finally {
      sockets.close(fd);
      stage.stop();
    }
  });

  it("fails the move where what hinders it is the node's, or passes", async () => {
    for (const error of [
      Object.assign(new Error("no room"), { code: "EMFILE" }),
      new HoldfastError("restless", { code: "LEG_NOT_QUIET", source: "kernel", retryable: true }),
    ]) {
      const captureSpoilt = (): never => {
        throw error;
      };
      const stage = await startInProcess({ downstream: "takeover", legWork: { captureLeg: captureSpoilt } });
      const fd = sockets.dial({ address: "127.0.0.1", port: stage.listen });
      try {
        await until("sent", () => sockets.send(fd, Buffer.from("hello")) === 5);
        await until("the echo", () => sockets.unreadBytes(fd) === 5);
        stage.proxy.role = "held";
        await hold(stage.proxy);
        await assert.rejects(captureUpstream(stage.proxy), { code: "PROXY_CAPTURE" });
      } finally {
        sockets.close(fd);
        stage.stop();
      }
    }
  });
});
