/** A leg in each TCP state is captured, sent as bytes, adopted and released; its peer notices nothing. */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { LegSnapshot, LegState, SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { decodeSessions, encodeSessions } from "#proxy/contract/snapshot-codec.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { shieldLeg, unshieldLeg } from "#proxy/kernel/shield.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readState } from "#proxy/kernel/tcp-state.ts";
import { adoptLeg, releaseLeg } from "#proxy/tcp/adopt.ts";
import { captureLeg, finUnacked, uncaptureLeg } from "#proxy/tcp/capture.ts";
import {
  acceptOne,
  dial,
  Flow,
  lacking,
  listenAt,
  Namespace,
  resetSocket,
  until,
  untilState,
  vethPair,
} from "./tcp-stage.ts";

const QUEUE_BYTES_MAX = 24 * 1024 * 1024;
const DUE_SEGMENTS_MAX = 10;
const VIP4 = "10.77.0.10";
const VIP6 = "fd77::10";

/** A place where a leg lives, another it moves to, and what happens in between. */
interface Place {
  name: string;
  address4: string;
  address6: string;
  peers: Namespace;
  source: Namespace;
  target: Namespace;
  handOver(): void;
  handBack(): void;
  close(): void;
}

function oneNamespace(): Place {
  const only = new Namespace();
  return {
    name: "within one network namespace",
    address4: "127.0.0.1",
    address6: "::1",
    peers: only,
    source: only,
    target: only,
    handOver: () => {},
    handBack: () => {},
    close: () => only.close(),
  };
}

/** The peer behind a bridge; the address moves from one namespace to the other. */
function twoNamespaces(): Place {
  const peers = new Namespace();
  const source = new Namespace();
  const target = new Namespace();
  peers.ip("link add br0 type bridge");
  peers.ip("link set br0 up");
  for (const [namespace, name] of [
    [source, "s0"],
    [target, "t0"],
  ] as const) {
    vethPair(peers, namespace, name, "e0");
    peers.ip(`link set ${name} master br0`);
  }
  peers.ip("addr add 10.77.0.1/24 dev br0");
  peers.ip("-6 addr add fd77::1/64 dev br0 nodad");
  const give = (to: Namespace, from: Namespace | null) => {
    from?.ip(`addr del ${VIP4}/24 dev e0`);
    from?.ip(`-6 addr del ${VIP6}/64 dev e0`);
    to.ip(`addr add ${VIP4}/24 dev e0`);
    to.ip(`-6 addr add ${VIP6}/64 dev e0 nodad`);
    peers.ip("neigh flush dev br0");
  };
  give(source, null);
  return {
    name: "from one network namespace to another, with its address",
    address4: VIP4,
    address6: VIP6,
    peers,
    source,
    target,
    handOver: () => give(target, source),
    handBack: () => give(source, target),
    close: () => {
      for (const namespace of [peers, source, target]) namespace.close();
    },
  };
}

type Family = "IPv4" | "IPv6" | "IPv4 on a dual-stack listener";

class Session {
  readonly place: Place;
  readonly listener: number;
  leg: number;
  readonly peer: number;
  readonly toPeer = new Flow(3);
  readonly toLeg = new Flow(101);

  constructor(place: Place, listener: number, leg: number, peer: number) {
    this.place = place;
    this.listener = listener;
    this.leg = leg;
    this.peer = peer;
  }

  static async open(place: Place, family: Family): Promise<Session> {
    const address = family === "IPv6" ? place.address6 : place.address4;
    const dualStack = family === "IPv4 on a dual-stack listener";
    const { fd, port } = place.source.run(() => listenAt(address, { dualStack }));
    const peer = place.peers.run(() => dial({ address, port }));
    const leg = await acceptOne(fd);
    return new Session(place, fd, leg, peer);
  }

  /** Both directions carry bytes. */
  async converse(): Promise<void> {
    for (let round = 0; round < 3; round++) {
      this.toPeer.write(this.leg, 5_000);
      await this.toPeer.readAll(this.peer);
      this.toLeg.write(this.peer, 7_000);
      await this.toLeg.readAll(this.leg);
    }
  }

  async move(expected: LegState): Promise<LegSnapshot> {
    const { source, target } = this.place;
    // an ACK that it delays may fall due in any moment
    const mayAck = descriptor.ioctlInt(this.peer, sock.SIOCOUTQ) > 0;
    const sent = source.segmentsSent();
    // the peer's kernel goes on: an ACK that it delayed must neither change the leg while it is read ...
    shieldLeg(this.leg);
    const snapshot = source.run(() => captureLeg(this.leg));
    assert.equal(snapshot.state, expected);
    // MSG_PEEK makes the kernel send the ACK that it was delaying, which may let the peer's kernel send on
    const unacked = snapshot.send.bytes.length > snapshot.send.unsentBytes || finUnacked(snapshot.state);
    const due = mayAck || snapshot.receive.bytes.length > 0 || unacked ? DUE_SEGMENTS_MAX : 0;
    const sentByCapture = source.segmentsSent() - sent;
    assert.ok(sentByCapture <= due, `capture sent ${sentByCapture} segments`);
    // ... nor meet no socket in between, and be answered with RST
    shieldLeg(this.peer);
    descriptor.close(this.leg);
    // a retransmission may fall due in between; repair mode does not stop the timers
    if (!unacked && source !== this.place.peers)
      assert.equal(source.segmentsSent() - sent, sentByCapture, "close is silent");
    this.place.handOver();
    const arrived = overTheWire(snapshot);
    const beforehand = target.segmentsSent();
    this.leg = target.run(() => adoptLeg(arrived, { shielded: false }));
    // in one namespace the peer's own timers count too
    if (target !== this.place.peers) {
      assert.equal(target.segmentsSent(), beforehand, "adopt is silent");
    }
    unshieldLeg(this.peer);
    const rest = target.run(() => releaseLeg(this.leg, arrived));
    assert.equal(rest.length, 0);
    assert.equal(sock.getsockoptInt(this.leg, sock.SOL_SOCKET, sock.SO_REUSEADDR), 1);
    return snapshot;
  }

  /** The leg closes, then the peer. */
  async closeInOrder(): Promise<void> {
    sock.shutdown(this.leg, sock.SHUT_WR);
    await this.toPeer.readToEnd(this.peer);
    this.toLeg.write(this.peer, 3_000);
    sock.shutdown(this.peer, sock.SHUT_WR);
    await this.toLeg.readToEnd(this.leg);
    await untilState(this.leg, "CLOSE");
  }

  /** What is left after a failed test ends without troubling the next one. */
  end(): void {
    for (const fd of [this.leg, this.peer]) {
      try {
        resetSocket(fd);
      } catch {
        // closed by the test
      }
    }
    descriptor.close(this.listener);
  }
}

function overTheWire(leg: LegSnapshot): LegSnapshot {
  const nothing = Buffer.alloc(0);
  const session: SessionSnapshot = {
    id: "one",
    port: 0,
    anchor: "node",
    acceptedAtMs: 1,
    client: "",
    headerAwaited: false,
    bytesIn: 0,
    bytesOut: 0,
    upstream: null,
    downstream: leg,
    pendingIn: nothing,
    pendingOut: nothing,
    finIn: "none",
    finOut: "none",
    filter: Buffer.alloc(0),
  };
  const [arrived] = decodeSessions(encodeSessions([session]), { sessionsMax: 1, bytesMax: 1 << 28 });
  assert.ok(arrived?.downstream);
  assert.deepEqual(arrived.downstream, leg);
  return arrived.downstream;
}

const SCENARIOS: { name: string; act: (session: Session) => Promise<void> }[] = [
  {
    name: "ESTABLISHED and idle, twice",
    act: async (session) => {
      await session.converse();
      await session.move("ESTABLISHED");
      await session.converse();
      await session.closeInOrder();
    },
  },
  {
    name: "unread bytes in the receive queue",
    act: async (session) => {
      await session.converse();
      session.toLeg.write(session.peer, 50_000);
      await until(() => descriptor.ioctlInt(session.leg, sock.SIOCINQ) === 50_000, "50,000 unread bytes");
      const snapshot = await session.move("ESTABLISHED");
      assert.equal(snapshot.receive.bytes.length, 50_000);
      await session.toLeg.readAll(session.leg);
      await session.converse();
      await session.closeInOrder();
    },
  },
  {
    name: "unacknowledged and unsent bytes, a peer that does not read",
    act: async (session) => {
      await session.toPeer.fill(session.leg, QUEUE_BYTES_MAX);
      const snapshot = await session.move("ESTABLISHED");
      assert.ok(snapshot.send.unsentBytes > 0);
      await session.toPeer.readAll(session.peer);
      await session.converse();
      await session.closeInOrder();
    },
  },
  {
    name: "full queues in both directions",
    act: async (session) => {
      await session.toPeer.fill(session.leg, QUEUE_BYTES_MAX);
      await session.toLeg.fill(session.peer, QUEUE_BYTES_MAX);
      const snapshot = await session.move("ESTABLISHED");
      assert.ok(snapshot.send.bytes.length > 0 && snapshot.receive.bytes.length > 0);
      await Promise.all([session.toPeer.readAll(session.peer), session.toLeg.readAll(session.leg)]);
      await session.converse();
      await session.closeInOrder();
    },
  },
  {
    name: "bytes on the way that the peer never got",
    act: async (session) => {
      await session.converse();
      shieldLeg(session.peer);
      session.toPeer.write(session.leg, 9_000);
      await sleep(5);
      const snapshot = await session.move("ESTABLISHED");
      assert.ok(snapshot.send.bytes.length > snapshot.send.unsentBytes);
      unshieldLeg(session.peer);
      await session.toPeer.readAll(session.peer);
      await session.converse();
      await session.closeInOrder();
    },
  },
  {
    name: "CLOSE_WAIT with unread bytes",
    act: async (session) => {
      await session.converse();
      session.toLeg.write(session.peer, 30_000);
      sock.shutdown(session.peer, sock.SHUT_WR);
      await untilState(session.leg, "CLOSE_WAIT");
      await session.move("CLOSE_WAIT");
      assert.equal(readState(session.leg), "CLOSE_WAIT");
      await session.toLeg.readToEnd(session.leg);
      session.toPeer.write(session.leg, 20_000);
      sock.shutdown(session.leg, sock.SHUT_WR);
      await session.toPeer.readToEnd(session.peer);
      await untilState(session.leg, "CLOSE");
    },
  },
  {
    name: "CLOSE_WAIT with a full send queue",
    act: async (session) => {
      sock.shutdown(session.peer, sock.SHUT_WR);
      await untilState(session.leg, "CLOSE_WAIT");
      await session.toPeer.fill(session.leg, QUEUE_BYTES_MAX);
      await session.move("CLOSE_WAIT");
      await session.toPeer.readAll(session.peer);
      await session.toLeg.readToEnd(session.leg);
      sock.shutdown(session.leg, sock.SHUT_WR);
      await session.toPeer.readToEnd(session.peer);
      await untilState(session.leg, "CLOSE");
    },
  },
  {
    name: "FIN_WAIT1, our FIN behind unsent bytes",
    act: async (session) => {
      await session.toPeer.fill(session.leg, QUEUE_BYTES_MAX);
      sock.shutdown(session.leg, sock.SHUT_WR);
      const snapshot = await session.move("FIN_WAIT1");
      assert.equal(snapshot.send.bytes.length > 0, true);
      session.toLeg.write(session.peer, 10_000);
      await session.toLeg.readAll(session.leg);
      await session.toPeer.readToEnd(session.peer);
      await untilState(session.leg, "FIN_WAIT2");
      sock.shutdown(session.peer, sock.SHUT_WR);
      await session.toLeg.readToEnd(session.leg);
      await untilState(session.leg, "CLOSE");
    },
  },
  {
    name: "FIN_WAIT1, our FIN lost on the way",
    act: async (session) => {
      await session.converse();
      shieldLeg(session.peer);
      session.toPeer.write(session.leg, 1_000);
      sock.shutdown(session.leg, sock.SHUT_WR);
      await session.move("FIN_WAIT1");
      assert.equal(readState(session.leg), "FIN_WAIT1");
      unshieldLeg(session.peer);
      await session.toPeer.readToEnd(session.peer);
      sock.shutdown(session.peer, sock.SHUT_WR);
      await session.toLeg.readToEnd(session.leg);
      await untilState(session.leg, "CLOSE");
    },
  },
  {
    name: "FIN_WAIT2 with unread bytes",
    act: async (session) => {
      await session.converse();
      sock.shutdown(session.leg, sock.SHUT_WR);
      await untilState(session.leg, "FIN_WAIT2");
      session.toLeg.write(session.peer, 40_000);
      await until(() => descriptor.ioctlInt(session.leg, sock.SIOCINQ) === 40_000, "40,000 unread bytes");
      await session.move("FIN_WAIT2");
      assert.equal(readState(session.leg), "FIN_WAIT2");
      await session.toLeg.readAll(session.leg);
      await session.toPeer.readToEnd(session.peer);
      session.toLeg.write(session.peer, 12_345);
      sock.shutdown(session.peer, sock.SHUT_WR);
      await session.toLeg.readToEnd(session.leg);
      await untilState(session.leg, "CLOSE");
    },
  },
  {
    name: "LAST_ACK, our FIN behind unsent bytes",
    act: async (session) => {
      session.toLeg.write(session.peer, 10_000);
      sock.shutdown(session.peer, sock.SHUT_WR);
      await untilState(session.leg, "CLOSE_WAIT");
      await session.toPeer.fill(session.leg, QUEUE_BYTES_MAX);
      sock.shutdown(session.leg, sock.SHUT_WR);
      await session.move("LAST_ACK");
      assert.equal(readState(session.leg), "LAST_ACK");
      await session.toLeg.readToEnd(session.leg);
      await session.toPeer.readToEnd(session.peer);
      await untilState(session.leg, "CLOSE");
    },
  },
  {
    name: "LAST_ACK, our FIN lost on the way",
    act: async (session) => {
      await session.converse();
      sock.shutdown(session.peer, sock.SHUT_WR);
      await untilState(session.leg, "CLOSE_WAIT");
      shieldLeg(session.peer);
      session.toPeer.write(session.leg, 2_000);
      sock.shutdown(session.leg, sock.SHUT_WR);
      await session.move("LAST_ACK");
      unshieldLeg(session.peer);
      await session.toPeer.readToEnd(session.peer);
      await session.toLeg.readToEnd(session.leg);
      await untilState(session.leg, "CLOSE");
    },
  },
  {
    name: "CLOSING: both FINs crossed, ours unacknowledged",
    act: async (session) => {
      await session.converse();
      for (const fd of [session.leg, session.peer]) shieldLeg(fd);
      // less than one segment with its FIN: the peer hears no ACK and so repeats only its first
      session.toPeer.write(session.leg, 200);
      session.toLeg.write(session.peer, 300);
      for (const fd of [session.leg, session.peer]) sock.shutdown(fd, sock.SHUT_WR);
      unshieldLeg(session.leg);
      await untilState(session.leg, "CLOSING");
      await session.move("CLOSING");
      assert.equal(readState(session.leg), "CLOSING");
      unshieldLeg(session.peer);
      await session.toPeer.readToEnd(session.peer);
      await session.toLeg.readToEnd(session.leg);
      await untilState(session.leg, "CLOSE");
    },
  },
  {
    name: "RST from the peer after the move",
    act: async (session) => {
      await session.converse();
      await session.move("ESTABLISHED");
      resetSocket(session.peer);
      await untilState(session.leg, "CLOSE");
      assert.throws(() => sock.recv(session.leg, Buffer.alloc(1), sock.MSG_DONTWAIT), {
        code: "ECONNRESET",
      });
    },
  },
  {
    name: "RST to the peer after the move",
    act: async (session) => {
      await session.converse();
      await session.move("ESTABLISHED");
      resetSocket(session.leg);
      await untilState(session.peer, "CLOSE");
      assert.throws(() => sock.recv(session.peer, Buffer.alloc(1), sock.MSG_DONTWAIT), {
        code: "ECONNRESET",
      });
    },
  },
  {
    name: "CLOSE: reset by the peer before the capture, not adoptable",
    act: async (session) => {
      await session.converse();
      session.toLeg.write(session.peer, 100);
      session.toPeer.write(session.leg, 100);
      resetSocket(session.peer);
      await untilState(session.leg, "CLOSE");
      const snapshot = captureLeg(session.leg);
      assert.equal(snapshot.state, "CLOSE");
      assert.equal(snapshot.receive.bytes.length + snapshot.send.bytes.length, 0);
      overTheWire(snapshot);
      const refusal = (error: unknown) =>
        error instanceof HoldfastError && error.code === "LEG_NOT_ADOPTABLE";
      assert.throws(() => adoptLeg(snapshot, { shielded: false }), refusal);
    },
  },
  {
    name: "rolled back three times",
    act: async (session) => {
      for (let round = 0; round < 3; round++) {
        session.toLeg.write(session.peer, 1_000);
        uncaptureLeg(session.leg, captureLeg(session.leg));
        await session.toLeg.readAll(session.leg);
        await session.converse();
      }
      await session.closeInOrder();
    },
  },
];

const WITHOUT: { name: string; sysctl: [name: string, value: number][] }[] = [
  { name: "without timestamps", sysctl: [["ipv4/tcp_timestamps", 0]] },
  { name: "without window scaling", sysctl: [["ipv4/tcp_window_scaling", 0]] },
  { name: "without SACK", sysctl: [["ipv4/tcp_sack", 0]] },
  {
    name: "without any option",
    sysctl: [
      ["ipv4/tcp_timestamps", 0],
      ["ipv4/tcp_window_scaling", 0],
      ["ipv4/tcp_sack", 0],
    ],
  },
];
const SCENARIOS_WITHOUT = [
  "full queues in both directions",
  "CLOSE_WAIT with a full send queue",
  "FIN_WAIT2 with unread bytes",
];

for (const makePlace of [oneNamespace, twoNamespaces]) {
  describe(`a leg moves ${makePlace === oneNamespace ? "within one network namespace" : "between two, with its address"}`, {
    skip: lacking(),
  }, () => {
    let place: Place;
    before(() => {
      place = makePlace();
    });
    after(() => place.close());

    async function play(family: Family, act: (session: Session) => Promise<void>): Promise<void> {
      const session = await Session.open(place, family);
      const moved = { done: false };
      const { handOver } = place;
      place.handOver = () => {
        moved.done = true;
        handOver();
      };
      try {
        await act(session);
      } finally {
        place.handOver = handOver;
        session.end();
        if (moved.done) place.handBack();
      }
    }

    for (const family of ["IPv4", "IPv6", "IPv4 on a dual-stack listener"] as const) {
      for (const { name, act } of SCENARIOS) it(`${name} (${family})`, () => play(family, act));
    }

    for (const { name: lack, sysctl } of WITHOUT) {
      for (const { name, act } of SCENARIOS.filter((scenario) => SCENARIOS_WITHOUT.includes(scenario.name))) {
        it(`${name}, ${lack}`, async () => {
          // the target keeps its defaults: what counts is what was negotiated
          for (const [key, value] of sysctl) place.source.sysctl(key, value);
          try {
            await play("IPv4", async (session) => {
              for (const [key] of sysctl) place.source.sysctl(key, 1);
              await act(session);
            });
          } finally {
            for (const [key] of sysctl) place.source.sysctl(key, 1);
          }
        });
      }
    }
  });
}
