import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { afterEach, beforeEach, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createServer as createTlsServer, connect as tlsConnect } from "node:tls";
import { KeyRing } from "#control/agent/key-ring.ts";
import {
  AGENT_CIPHER,
  AGENT_VERSIONS,
  type DialSecureOptions,
  dialSecure,
  listenSecure,
  type SecureListener,
} from "#control/agent/secure.ts";
import { Trust } from "#control/agent/trust.ts";
import { Channel } from "#proxy/contract/channel.ts";
import { keyId, type SharedKeys } from "#proxy/contract/shared-keys.ts";
import { until } from "#test/support/moved-program.ts";

/** on a machine that has much else to do */
const WAIT_MS_MAX = 10_000;
const key = randomBytes(32);
let ring: KeyRing;
let listener: SecureListener;
let refused: string[];
let peers: string[];

beforeEach(async () => {
  ring = new KeyRing([key]);
  refused = [];
  peers = [];
  listener = await listen(WAIT_MS_MAX);
});

afterEach(() => listener.close());

const listen = (handshakeMsMax: number): Promise<SecureListener> =>
  listenSecure({
    host: "127.0.0.1",
    port: 0,
    trust: trustOf("b", ring),
    handshakeMsMax,
    onPeer: (stream, peerNode) => {
      peers.push(peerNode);
      let received = 0;
      new Channel(stream, {
        handlers: {
          whoami: () => ({ result: peerNode }),
          image: (_params, body) => {
            received += body.length;
          },
          received: () => ({ result: received }),
        },
      });
    },
    onRefused: (line) => refused.push(line),
  });

const trustOf = (node: string, keys: KeyRing): Trust =>
  new Trust({ node, ring: keys, identity: null, revoked: null });

interface Dial extends Partial<DialSecureOptions> {
  ring?: KeyRing;
  node?: string;
}

function dial({ ring: keys = ring, node = "a", ...overrides }: Dial = {}) {
  return dialSecure({
    host: "127.0.0.1",
    port: listener.port,
    trust: trustOf(node, keys),
    timeoutMs: WAIT_MS_MAX,
    ...overrides,
  });
}

async function refusal(): Promise<string> {
  await until("a refusal", () => refused.length > 0);
  await sleep(20);
  assert.equal(refused.length, 1, `one line for one refusal: ${JSON.stringify(refused)}`);
  assert.deepEqual(peers, []);
  return refused[0] as string;
}

/** Whatever was refused, the next honest peer is served. */
async function stillServes(): Promise<void> {
  const channel = new Channel(await dial());
  assert.equal((await channel.call("whoami", {})).result, "a");
  channel.close();
}

describe("the stream between agents", () => {
  test("is TLS 1.3, keyed by the shared key, with forward secrecy, and knows the peer's name", async () => {
    const stream = await dial({ peer: "b" });
    assert.equal(stream.getProtocol(), "TLSv1.3");
    assert.equal(stream.getCipher().name, AGENT_CIPHER);
    const exchange = stream.getEphemeralKeyInfo() as { type?: string } | null;
    assert.ok(exchange?.type, "an ephemeral key exchange");
    assert.equal(stream.isSessionReused(), true);
    assert.deepEqual(stream.getPeerCertificate(), {});
    const channel = new Channel(stream);
    assert.equal((await channel.call("whoami", {})).result, "a");
    channel.close();
    assert.deepEqual(refused, []);
  });

  test("carries images fast", async (t) => {
    const channel = new Channel(await dial());
    const chunk = Buffer.alloc(512 * 1024, 1);
    const chunks = 256;
    const startedMs = performance.now();
    for (let n = 0; n < chunks; n++) await channel.send("image", {}, chunk);
    assert.equal((await channel.call("received", {})).result, chunk.length * chunks);
    const seconds = (performance.now() - startedMs) / 1000;
    t.diagnostic(`${((chunk.length * chunks) / 1e6 / seconds).toFixed(0)} MB/s, both ends in one thread`);
    channel.close();
  });

  test("a wrong key is refused, with one line at each end", async () => {
    await assert.rejects(dial({ ring: new KeyRing([randomBytes(32)]) }), {
      code: "PEER_AUTH",
      message: /same key file/,
    });
    assert.match(await refusal(), /its key [0-9a-f]{8} is not in our key file/);
    await stillServes();
  });

  test("keys are changed in three steps, and nobody is refused in between; then who has only the old one is", async () => {
    const added = randomBytes(32);
    const dialler = new KeyRing([key]);
    const works = async (): Promise<void> => {
      const channel = new Channel(await dial({ ring: dialler }));
      assert.equal((await channel.call("whoami", {})).result, "a");
      channel.close();
    };
    const steps: SharedKeys[] = [[key, added], [added, key], [added]];
    const kept = new Channel(await dial({ ring: dialler }));
    for (const step of steps) {
      for (const side of [ring, dialler]) {
        side.replace(step);
        await works();
      }
    }
    await kept.closed;
    assert.deepEqual(refused, [`ended the stream of node a: its key ${keyId(key)} has left our key file`]);
    refused.length = 0;
    peers.length = 0;
    await assert.rejects(dial({ ring: new KeyRing([key]) }), { code: "PEER_AUTH", message: /same key file/ });
    assert.match(
      await refusal(),
      new RegExp(`node a, and its key ${keyId(key)} is not in our key file .*${keyId(added)}`),
    );
  });

  test("a stream ends at the dialler too when the key it was opened with goes", async () => {
    const dialler = new KeyRing([key, randomBytes(32)]);
    const stream = await dial({ ring: dialler });
    await until("served", () => peers.length === 1); // or the listener tells of one that left in the handshake
    dialler.replace([randomBytes(32), key]);
    assert.ok(!stream.destroyed, "the key is still one of ours");
    dialler.replace([randomBytes(32)]);
    assert.ok(stream.destroyed);
  });

  test("the highest version that both speak is spoken; where there is none, both are told which there are", async () => {
    const newest = Math.max(...AGENT_VERSIONS);
    for (const [versions, spoken] of [
      [AGENT_VERSIONS, newest],
      [[newest + 1, newest], newest],
    ] as const) {
      const stream = await dial({ versions });
      assert.equal(stream.alpnProtocol, `holdfast-agent/${spoken}`);
      await until("served", () => peers.length === 1);
      stream.destroy();
      peers.length = 0;
    }
    const mine = [newest + 2, newest + 1];
    await assert.rejects(dial({ versions: mine, peer: "b" }), {
      code: "PEER_AUTH",
      message: `node b at 127.0.0.1:${listener.port}: it speaks version ${AGENT_VERSIONS.join(", ")} of the agents' protocol, this agent ${mine.join(", ")}: bring them to versions of Holdfast that follow each other`,
    });
    assert.match(await refusal(), /refused node a: it speaks no version .* that this agent does \(3\)/);
    await stillServes();
  });

  test("a dialler that means another node is refused", async () => {
    await assert.rejects(dial({ peer: "c" }), { code: "PEER_AUTH", message: /node c at .*another node/ });
    assert.match(await refusal(), /another node/);
    await stillServes();
  });

  test("a peer whose name is no node name is refused", async () => {
    await assert.rejects(dial({ node: "../../etc" }), { code: "PEER_AUTH" });
    await refusal();
    await stillServes();
  });

  test("TLS without the key is refused", async () => {
    const socket = tlsConnect({ host: "127.0.0.1", port: listener.port, rejectUnauthorized: false });
    await assert.rejects(once(socket, "close"));
    assert.match(await refusal(), /without a node's key/);
    await stillServes();
  });

  test("plaintext, garbage, a port scan and silence are refused", async () => {
    for (const bytes of ["GET / HTTP/1.1\r\n\r\n", randomBytes(500), null, "silence"]) {
      refused.length = 0;
      peers.length = 0;
      const impatient = bytes === "silence" ? await listen(150) : null;
      const socket = connect((impatient ?? listener).port, "127.0.0.1");
      socket.on("error", () => {});
      await once(socket, "connect");
      if (bytes === null) socket.destroy();
      else if (bytes !== "silence") socket.write(bytes);
      const line = await refusal();
      assert.match(line, /^refused /);
      if (bytes === "silence") assert.match(line, /silent/);
      if (bytes === null) assert.match(line, /left/);
      socket.destroy();
      await impatient?.close();
    }
    peers.length = 0;
    await stillServes();
  });

  test("connections that never show the key keep no peer out, however many they are", async () => {
    const connectionsMax = 20;
    const crowded = await listenSecure({
      host: "127.0.0.1",
      port: 0,
      trust: trustOf("b", ring),
      handshakeMsMax: 60_000,
      connectionsMax,
      onPeer: (stream, peerNode) =>
        new Channel(stream, { handlers: { whoami: () => ({ result: peerNode }) } }),
      onRefused: (line) => refused.push(line),
    });
    const silent = Array.from({ length: 3 * connectionsMax }, () => {
      const socket = connect(crowded.port, "127.0.0.1");
      socket.on("error", () => {});
      return socket;
    });
    try {
      await Promise.all(silent.map((socket) => once(socket, "connect")));
      const channel = new Channel(await dial({ port: crowded.port }));
      assert.equal((await channel.call("whoami", {})).result, "a");
      channel.close();
      await until("one line for each", () => refused.length > 2 * connectionsMax);
      assert.equal(refused.length, 2 * connectionsMax + 1, "one line for each that made room");
    } finally {
      for (const socket of silent) socket.destroy();
      await crowded.close();
    }
  });

  test("dialling tells nobody there, somebody silent and a server that is no agent apart", async () => {
    const mute = createServer(() => {}).listen(0, "127.0.0.1");
    const answers: Socket[] = [];
    mute.on("connection", (socket) => answers.push(socket));
    await once(mute, "listening");
    const mutePort = (mute.address() as AddressInfo).port;
    await assert.rejects(dial({ port: mutePort, timeoutMs: 50 }), { code: "PEER_TIMEOUT", retryable: true });
    await assert.rejects(dial({ port: mutePort, signal: AbortSignal.timeout(20) }), { code: "PEER_ABORTED" });
    for (const socket of answers) socket.destroy();
    mute.close();
    await once(mute, "close");
    await assert.rejects(dial({ port: mutePort }), { code: "PEER_UNREACHABLE", retryable: true });

    const http = createServer((socket) => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n")).listen(
      0,
      "127.0.0.1",
    );
    await once(http, "listening");
    await assert.rejects(dial({ port: (http.address() as AddressInfo).port }), { code: "PEER_AUTH" });
    http.close();
  });

  test("an impostor with a certificate and no key is refused by the dialler", async () => {
    const { execFileSync } = await import("node:child_process");
    const { mkdtempSync, readFileSync, rmSync } = await import("node:fs");
    const folder = mkdtempSync("/tmp/holdfast-secure-");
    const args =
      "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=b -keyout k -out c -days 1";
    execFileSync("openssl", args.split(" "), { cwd: folder, stdio: "ignore" });
    const impostor = createTlsServer({
      key: readFileSync(`${folder}/k`),
      cert: readFileSync(`${folder}/c`),
      ALPNProtocols: ["holdfast-agent/1"],
    }).listen(0, "127.0.0.1");
    impostor.on("tlsClientError", () => {});
    await once(impostor, "listening");
    await assert.rejects(dial({ port: (impostor.address() as AddressInfo).port, peer: "b" }), {
      code: "PEER_AUTH",
    });
    impostor.close();
    rmSync(folder, { recursive: true });
  });

  test("a peer that vanishes in mid-stream ends its channel, not the agent", async () => {
    const stream = await dial();
    const channel = new Channel(stream);
    await channel.call("whoami", {});
    stream.destroy();
    await channel.closed;
    await stillServes();
  });

  test("ports in use are plain errors", async () => {
    await assert.rejects(
      listenSecure({
        host: "127.0.0.1",
        port: listener.port,
        trust: trustOf("x", ring),
        onPeer() {},
        onRefused() {},
      }),
      { code: "LISTEN_FAILED" },
    );
  });
});
