/** What an adopted leg is good for afterwards, and the kernel calls around it. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { Socket } from "node:net";
import { after, before, describe, it } from "node:test";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { OWN_NETWORK } from "#proxy/kernel/network.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as procs from "#proxy/kernel/processes.ts";
import { shieldLeg, unshieldLeg } from "#proxy/kernel/shield.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readState } from "#proxy/kernel/tcp-state.ts";
import { adoptLeg, releaseLeg } from "#proxy/tcp/adopt.ts";
import { captureLeg } from "#proxy/tcp/capture.ts";
import { provoke } from "#proxy/tcp/inject.ts";
import { acceptOne, dial, Flow, lacking, listenAt, Namespace, untilState } from "./tcp-stage.ts";

const LARGE_BYTES = 8 * 1024 * 1024;
const SND_MSS_AT = 16;

function segmentBytes(fd: number): number {
  const info = Buffer.alloc(64);
  sock.getsockoptBuffer(fd, sock.IPPROTO_TCP, sock.TCP_INFO, info);
  return info.readUInt32LE(SND_MSS_AT);
}

describe("an adopted leg", { skip: lacking() }, () => {
  let place: Namespace;
  before(() => {
    place = new Namespace();
    // as on a wire: loopback's own segments are larger than TCP_MAXSEG can say
    place.ip("link set lo mtu 1500");
  });
  after(() => place.close());

  /** `leg` is the dialling side, as a proxy's upstream leg; `peer` the accepted one. */
  async function upstream(address: string): Promise<{ listener: number; leg: number; peer: number }> {
    const { fd: listener, port } = place.run(() => listenAt(address));
    const leg = place.run(() => dial({ address, port }));
    return { listener, leg, peer: await acceptOne(listener) };
  }

  function replace(leg: number): number {
    return place.run(() => {
      const snapshot = captureLeg(leg);
      descriptor.close(leg);
      const adopted = adoptLeg(snapshot, { shielded: false });
      assert.equal(releaseLeg(adopted, snapshot).length, 0);
      return adopted;
    });
  }

  for (const address of ["127.0.0.1", "::1"]) {
    it(`is a net.Socket again, with its segment size (${address})`, async () => {
      const { listener, leg, peer } = await upstream(address);
      const toPeer = new Flow(1);
      toPeer.write(leg, 50_000);
      await toPeer.readAll(peer);
      sock.setsockoptInt(leg, sock.IPPROTO_TCP, sock.TCP_NODELAY, 1);
      sock.setsockoptInt(leg, sock.SOL_SOCKET, sock.SO_KEEPALIVE, 1);
      const before = segmentBytes(leg);
      const adopted = replace(leg);
      assert.equal(segmentBytes(adopted), before);
      assert.equal(sock.getsockoptInt(adopted, sock.IPPROTO_TCP, sock.TCP_NODELAY), 1);
      assert.equal(sock.getsockoptInt(adopted, sock.SOL_SOCKET, sock.SO_KEEPALIVE), 1);
      assert.equal(sock.getsockoptInt(adopted, sock.SOL_SOCKET, sock.SO_BUF_LOCK), 0);
      const socket = new Socket({ fd: adopted, allowHalfOpen: true });
      sock.send(peer, Buffer.from("ping"), 0);
      const [chunk] = (await once(socket, "data")) as [Buffer];
      assert.equal(chunk.toString(), "ping");
      socket.end("pong");
      const answer = Buffer.alloc(16);
      await polling.waitReadable(peer);
      const size = sock.recv(peer, answer, sock.MSG_DONTWAIT);
      assert.equal(answer.subarray(0, size).toString(), "pong");
      descriptor.close(peer);
      await once(socket, "close");
      descriptor.close(listener);
    });

    it(`ends at its peer when nobody has it any more, although that has just been asked something else (${address})`, async () => {
      const { listener, leg, peer } = await upstream(address);
      const snapshot = captureLeg(leg);
      for (let ask = 0; ask < 2; ask++) place.run(() => provoke(snapshot, OWN_NETWORK));
      descriptor.close(leg);
      assert.equal(readState(peer), "ESTABLISHED", "in repair mode it has closed without a word");
      place.run(() => provoke(snapshot, OWN_NETWORK));
      await untilState(peer, "CLOSE");
      descriptor.close(peer);
      descriptor.close(listener);
    });

    it(`keeps queues of several megabytes in both directions (${address})`, async (context) => {
      const { listener, leg, peer } = await upstream(address);
      for (const fd of [leg, peer]) {
        sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUFFORCE, LARGE_BYTES);
        sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_SNDBUFFORCE, LARGE_BYTES);
      }
      const toPeer = new Flow(1);
      const toLeg = new Flow(2);
      await toPeer.fill(leg, 4 * LARGE_BYTES);
      await toLeg.fill(peer, 4 * LARGE_BYTES);
      // a frozen peer, see tcp-move-states.test.ts
      shieldLeg(peer);
      const { snapshot, adopted } = place.run(() => {
        const snapshot = captureLeg(leg);
        descriptor.close(leg);
        return { snapshot, adopted: adoptLeg(snapshot, { shielded: false }) };
      });
      unshieldLeg(peer);
      const rest = place.run(() => releaseLeg(adopted, snapshot));
      const { receive, send } = snapshot;
      context.diagnostic(
        `unread ${receive.bytes.length}, queued ${send.bytes.length}, unsent ${send.unsentBytes}`,
      );
      assert.ok(receive.bytes.length > 2_000_000 && send.bytes.length > 4_000_000);
      assert.equal(rest.length, 0);
      await Promise.all([toPeer.readAll(peer), toLeg.readAll(adopted)]);
      for (const fd of [adopted, peer, listener]) descriptor.close(fd);
    });
  }

  it("goes on whose window the kernel had taken back, with a segment of its peer beyond it", async () => {
    const { listener, leg, peer } = await upstream("127.0.0.1");
    const toLeg = new Flow(2);
    await toLeg.fill(peer, 10_000_000);
    const adopted = place.run(() => {
      const snapshot = captureLeg(leg);
      descriptor.close(leg);
      const { rcv_wup } = snapshot.window;
      // as seen behind a receive buffer that was made smaller beside a peer that sends: no window, and 267,100 bytes beyond it
      const window = { ...snapshot.window, rcv_wnd: 0, snd_wl1: (rcv_wup + 267_100) >>> 0 };
      const adopted = adoptLeg({ ...snapshot, window }, { shielded: false });
      releaseLeg(adopted, snapshot, { probe: true });
      return adopted;
    });
    const toPeer = new Flow(1);
    toPeer.write(adopted, 1_000);
    await Promise.all([toPeer.readAll(peer), toLeg.readAll(adopted)]);
    for (const fd of [adopted, peer, listener]) descriptor.close(fd);
  });

  it("with bytes on the way survives the RST of a peer that is not there yet", async () => {
    const { listener, leg, peer } = await upstream("127.0.0.1");
    shieldLeg(peer);
    const toPeer = new Flow(1);
    toPeer.write(leg, 1_000);
    const snapshot = place.run(() => captureLeg(leg));
    const peerSnapshot = place.run(() => {
      unshieldLeg(peer);
      return captureLeg(peer);
    });
    for (const fd of [leg, peer, listener]) descriptor.close(fd);
    const adopted = place.run(() => adoptLeg(snapshot, { shielded: false }));
    // its first retransmission meets no socket
    await new Promise((resolve) => setTimeout(resolve, 1_300));
    assert.equal(readState(adopted), "ESTABLISHED");
    const restored = place.run(() => adoptLeg(peerSnapshot, { shielded: false }));
    place.run(() => {
      releaseLeg(restored, peerSnapshot);
      releaseLeg(adopted, snapshot);
    });
    await toPeer.readAll(restored);
    for (const fd of [adopted, restored]) descriptor.close(fd);
  });
});

describe("kernel calls", { skip: lacking() }, () => {
  it("take a descriptor out of another process, and wait for its end without blocking", async () => {
    const child = spawn("sleep", ["60"], { stdio: ["pipe", "ignore", "ignore"] });
    assert.ok(child.pid);
    const pidfd = procs.pidfdOpen(child.pid);
    const taken = procs.pidfdGetfd(pidfd, 0);
    descriptor.close(taken);
    const over = polling.waitReadable(pidfd);
    procs.pidfdSendSignal(pidfd, 9);
    await over;
    descriptor.close(pidfd);
    assert.throws(() => procs.pidfdGetfd(pidfd, 0), { code: "EBADF", source: "kernel" });
  });

  it("carry messages over a socket pair, and give up waiting when told to", async () => {
    const [ours, theirs] = sock.socketpairSeqpacket();
    const message = Buffer.alloc(64);
    const first = sock.recvAsync(ours, message);
    sock.send(theirs, Buffer.from("hello"), 0);
    assert.equal(message.toString("utf8", 0, await first), "hello");
    const abort = new AbortController();
    const waiting = polling.waitReadable(ours, abort.signal);
    abort.abort(new Error("enough"));
    await assert.rejects(waiting, /enough/);
    descriptor.close(theirs);
    assert.equal(await sock.recvAsync(ours, message), 0);
    descriptor.close(ours);
  });
});
