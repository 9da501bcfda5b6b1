/** Filters on the socket itself, over a veth pair between two network namespaces. */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { countSynRecv, destroySocket, listenBacklog, listSockets } from "#proxy/kernel/diag.ts";
import { shieldLeg, shieldListener, unshieldLeg, unshieldListener } from "#proxy/kernel/shield.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { adoptLeg, releaseLeg } from "#proxy/tcp/adopt.ts";
import { captureLeg, uncaptureLeg } from "#proxy/tcp/capture.ts";
import { acceptOne, dial, Flow, lacking, listenAt, Namespace, until, vethPair } from "./tcp-stage.ts";

const SERVER = "10.78.0.2";
const CLIENT = "10.78.0.1";
/** asm-generic/socket.h: bytes a second */
const SO_MAX_PACING_RATE = 47;

describe("a shield on the socket itself", { skip: lacking() }, () => {
  let clients: Namespace;
  let servers: Namespace;
  before(() => {
    clients = new Namespace();
    servers = new Namespace();
    vethPair(clients, servers, "c0", "s0");
    clients.ip(`addr add ${CLIENT}/24 dev c0`);
    servers.ip(`addr add ${SERVER}/24 dev s0`);
    servers.sysctl("ipv4/conf/all/promote_secondaries", 1);
  });
  after(() => {
    clients.close();
    servers.close();
  });

  async function connected(): Promise<{ listener: number; port: number; leg: number; peer: number }> {
    const { fd: listener, port } = servers.run(() => listenAt(SERVER));
    const peer = clients.run(() => dial({ address: SERVER, port }));
    return { listener, port, peer, leg: await acceptOne(listener) };
  }

  it("keeps segments from a leg: nothing is acknowledged, the peer sends again, all arrives afterwards", async () => {
    const { listener, leg, peer } = await connected();
    const toLeg = new Flow(5);
    const sent = servers.segmentsSent();
    shieldLeg(leg);
    toLeg.write(peer, 4_000);
    const beforeMs = clients.segmentsSent();
    await sleep(350);
    assert.equal(descriptor.ioctlInt(leg, sock.SIOCINQ), 0);
    assert.equal(descriptor.ioctlInt(peer, sock.SIOCOUTQ), 4_000);
    assert.equal(servers.segmentsSent(), sent, "a shielded leg answers nothing");
    assert.ok(clients.segmentsSent() > beforeMs, "the peer sends again");
    unshieldLeg(leg);
    await toLeg.readAll(leg);
    await until(() => descriptor.ioctlInt(peer, sock.SIOCOUTQ) === 0, "the peer's bytes to be acknowledged");
    for (const fd of [leg, peer, listener]) descriptor.close(fd);
  });

  it("may be taken off twice", async () => {
    const { listener, leg, peer } = await connected();
    unshieldLeg(leg);
    shieldLeg(leg);
    unshieldLeg(leg);
    unshieldLeg(leg);
    for (const fd of [leg, peer, listener]) descriptor.close(fd);
  });

  it("drops connection attempts at a listener; a handshake under way completes", async () => {
    const { fd: listener, port } = servers.run(() => listenAt(SERVER));
    // the SYN-ACK is lost on its way, so that the handshake stays half open until it is sent again
    const early = clients.run(() =>
      sock.socket(ipText.AF_INET, sock.SOCK_STREAM | sock.SOCK_NONBLOCK | sock.SOCK_CLOEXEC, 6),
    );
    servers.ip(`neigh replace ${CLIENT} lladdr 02:00:00:00:00:99 dev s0 nud permanent`);
    try {
      sock.connect(early, { address: SERVER, port });
    } catch (error) {
      assert.ok(error instanceof HoldfastError && error.code === "EINPROGRESS");
    }
    await until(() => servers.run(() => countSynRecv(port)) === 1, "a handshake in SYN_RECV");
    shieldListener(listener);
    const late = clients.run(() => dial({ address: SERVER, port }));
    servers.ip(`neigh del ${CLIENT} dev s0`);
    const accepted = await acceptOne(listener);
    assert.equal(sock.getpeername(accepted).port, sock.getsockname(early).port);
    await sleep(50);
    assert.equal(
      servers.run(() => countSynRecv(port)),
      0,
      "the later SYN was dropped",
    );
    const states = () => clients.run(() => listSockets({ remotePort: port })).map((socket) => socket.state);
    assert.ok(states().includes("SYN_SENT"));
    unshieldListener(listener);
    const second = await acceptOne(listener);
    assert.equal(sock.getpeername(second).port, sock.getsockname(late).port);
    for (const fd of [early, late, accepted, second, listener]) descriptor.close(fd);
  });

  it("keeps a live client's bytes out of a capture, and the release asks for them again", async () => {
    const { listener, leg, peer } = await connected();
    const toLeg = new Flow(5);
    const toPeer = new Flow(9);
    shieldLeg(leg);
    const snapshot = servers.run(() => captureLeg(leg));
    toLeg.write(peer, 20_000);
    // what is sent again must not come while there is no socket (in a move the address is elsewhere then)
    clients.ip(`neigh replace ${SERVER} lladdr 02:00:00:00:00:99 dev c0 nud permanent`);
    descriptor.close(leg);
    const adopted = servers.run(() => adoptLeg(snapshot, { shielded: true }));
    clients.ip(`neigh del ${SERVER} dev c0`);
    await sleep(20);
    assert.equal(descriptor.ioctlInt(adopted, sock.SIOCINQ), 0);
    servers.run(() => releaseLeg(adopted, snapshot, { probe: true }));
    await toLeg.readAll(adopted);
    toPeer.write(adopted, 20_000);
    await toPeer.readAll(peer);
    for (const fd of [adopted, peer, listener]) descriptor.close(fd);
  });

  it("keeps a captured leg from sending what it had not sent, though its timers run and the window is open", async () => {
    const { listener, leg, peer } = await connected();
    const toPeer = new Flow(9);
    const toLeg = new Flow(5);
    // as a congested path would: bytes stay unsent that the window allows, and a timer sends them piece by piece
    sock.setsockoptInt(leg, sock.SOL_SOCKET, SO_MAX_PACING_RATE, 100_000);
    toPeer.write(leg, 40_000);
    await sleep(20);
    shieldLeg(leg);
    const snapshot = servers.run(() => captureLeg(leg));
    assert.ok(snapshot.send.unsentBytes > 0);
    await sleep(800);
    const arrivedBytes = descriptor.ioctlInt(peer, sock.SIOCINQ);
    const sentBytes = toPeer.written - snapshot.send.unsentBytes;
    assert.ok(
      arrivedBytes <= sentBytes,
      `${arrivedBytes} bytes arrived, ${sentBytes} were sent at the capture`,
    );
    descriptor.close(leg);
    const adopted = servers.run(() => adoptLeg(snapshot, { shielded: true }));
    servers.run(() => assert.equal(releaseLeg(adopted, snapshot, { probe: true }).length, 0));
    await toPeer.readAll(peer);
    toLeg.write(peer, 3_000);
    await toLeg.readAll(adopted);
    for (const fd of [adopted, peer, listener]) descriptor.close(fd);
  });

  it("gives a captured leg with unsent bytes back, and all of them arrive", async () => {
    const { listener, leg, peer } = await connected();
    const toPeer = new Flow(9);
    sock.setsockoptInt(leg, sock.SOL_SOCKET, SO_MAX_PACING_RATE, 100_000);
    toPeer.write(leg, 40_000);
    await sleep(20);
    shieldLeg(leg);
    const snapshot = servers.run(() => captureLeg(leg));
    await sleep(300);
    unshieldLeg(leg);
    servers.run(() => uncaptureLeg(leg, snapshot));
    await toPeer.readAll(peer);
    for (const fd of [leg, peer, listener]) descriptor.close(fd);
  });

  it("lets a leg be adopted before its address is there", async () => {
    const { listener, leg, peer } = await connected();
    const toLeg = new Flow(5);
    const toPeer = new Flow(9);
    shieldLeg(leg);
    const snapshot = servers.run(() => captureLeg(leg));
    descriptor.close(leg);
    servers.ip(`addr del ${SERVER}/24 dev s0`);
    servers.ip("addr add 10.78.0.3/24 dev s0");
    toLeg.write(peer, 3_000);
    assert.throws(() => servers.run(() => adoptLeg(snapshot, { shielded: true })), { code: "EADDRNOTAVAIL" });
    const adopted = servers.run(() => adoptLeg(snapshot, { shielded: true, addressAbsent: true }));
    servers.ip(`addr add ${SERVER}/24 dev s0`);
    servers.run(() => releaseLeg(adopted, snapshot, { probe: true }));
    await toLeg.readAll(adopted);
    toPeer.write(adopted, 3_000);
    await toPeer.readAll(peer);
    servers.ip("addr del 10.78.0.3/24 dev s0");
    for (const fd of [adopted, peer, listener]) descriptor.close(fd);
  });

  it("is seen by sock_diag as nothing special: backlog, connections by inode, destruction", async () => {
    const { fd: listener, port } = servers.run(() => listenAt(SERVER));
    const endpoint = { address: SERVER, port };
    assert.equal(
      servers.run(() => listenBacklog(endpoint)),
      0,
    );
    assert.equal(
      clients.run(() => listenBacklog(endpoint)),
      null,
      "another namespace",
    );
    const peer = clients.run(() => dial(endpoint));
    await until(() => servers.run(() => listenBacklog(endpoint)) === 1, "a connection in the accept queue");
    const leg = await acceptOne(listener);
    const [mine] = servers.run(() => listSockets({ states: ["ESTABLISHED"], localPort: port }));
    assert.deepEqual(mine?.local, endpoint);
    assert.ok(mine && mine.inode > 0);
    servers.run(() => destroySocket(mine));
    assert.throws(() => sock.recv(leg, Buffer.alloc(1), sock.MSG_DONTWAIT), { code: "ECONNABORTED" });
    assert.throws(() => servers.run(() => destroySocket(mine)), { code: "ENOENT", source: "kernel" });
    assert.equal(
      servers.run(() => listenBacklog(endpoint)),
      0,
      "the listener on the same port is spared",
    );
    for (const fd of [leg, peer, listener]) descriptor.close(fd);
  });

  it("costs little: capture, adopt and release, measured", async (context) => {
    const { listener, leg, peer } = await connected();
    const rounds = 300;
    const us = { shield: 0, capture: 0, adopt: 0, release: 0 };
    const timed = <T>(part: keyof typeof us, action: () => T): T => {
      const started = process.hrtime.bigint();
      const result = action();
      us[part] += Number(process.hrtime.bigint() - started) / 1000 / rounds;
      return result;
    };
    let fd = leg;
    servers.run(() => {
      for (let round = 0; round < rounds; round++) {
        timed("shield", () => shieldLeg(fd));
        const snapshot = timed("capture", () => captureLeg(fd));
        descriptor.close(fd);
        fd = timed("adopt", () => adoptLeg(snapshot, { shielded: true }));
        timed("release", () => releaseLeg(fd, snapshot));
      }
    });
    context.diagnostic(
      Object.entries(us)
        .map(([part, value]) => `${part} ${value.toFixed(1)} µs`)
        .join(", "),
    );
    const flow = new Flow(1);
    flow.write(peer, 10_000);
    await flow.readAll(fd);
    uncaptureLeg(fd, captureLeg(fd));
    for (const each of [fd, peer, listener]) descriptor.close(each);
  });
});
