/** What a session may hold while its application is unavailable: not read, then memory, then a sealed file, then refused. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, it } from "node:test";
import { answersOf, get, ok, post, ReplayStage } from "#test/support/mortal-application.ts";
import { RawEnd, within } from "#test/support/raw-ends.ts";

const MIB = 1024 * 1024;
const skip = process.getuid?.() === 0 ? false : "needs root: mount(2)";
const DISK_BYTES = 64 * 1024;
const UPLOAD_BYTES = 20 * MIB;
const MARKER = "a plain text marker that must not be on any disk ";

function head(bytes: number): string {
  return `PUT /up HTTP/1.1\r\nHost: app\r\nContent-Length: ${bytes}\r\n\r\n`;
}

function digest(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Files of a process that have no name any more. */
function deletedFiles(pid: number, directory: string): string[] {
  return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      const path = `/proc/${pid}/fd/${fd}`;
      const target = readlinkSync(path);
      return target.startsWith(directory) && target.endsWith("(deleted)") ? [path] : [];
    } catch {
      return []; // closed meanwhile
    }
  });
}

describe("bytes held for an application that is away", { timeout: 300_000 }, () => {
  let stage: ReplayStage;
  const limits = {
    stallMsMax: 300,
    heldSessionBytesMax: MIB,
    heldWorkloadBytesMax: 3 * MIB,
    spillBytesMax: 24 * MIB,
    replayBytesMax: 64 * 1024,
    unavailableMsMax: 30_000,
    lingerMsMax: 300,
  };
  before(async () => {
    stage = await ReplayStage.start([{ protocol: "http" }], limits);
  });
  afterEach(() => stage.clear());
  after(() => stage.stop());

  /** A client in the middle of a body, its application gone. */
  async function upload(bytes: number): Promise<RawEnd> {
    const { client } = await stage.pair(head(bytes));
    stage.application.end();
    await stage.untilAway(1);
    return client;
  }

  async function bytesOf(server: RawEnd): Promise<Buffer> {
    await server.until("a head", () => server.received.includes("\r\n\r\n"));
    const [, length = "0"] = /Content-Length: (\d+)/.exec(String(server.received.subarray(0, 200))) ?? [];
    const start = server.received.indexOf("\r\n\r\n") + 4;
    await server.has(start + Number(length));
    return server.received.subarray(start);
  }

  it("reads nothing at first: a client is slowed down, not relieved of its bytes", async () => {
    const patient = await ReplayStage.start([{ protocol: "http" }], { stallMsMax: 3_600_000 });
    try {
      const { client } = await patient.pair(head(16 * MIB));
      patient.application.end();
      await patient.untilAway(1);
      client.socket.write(Buffer.alloc(16 * MIB, 7));
      // Each answer is a turn in which the proxy would have read what had come.
      for (let turn = 0; turn < 50; turn++) assert.equal((await patient.status()).heldBytes, 0);
      assert.ok(client.socket.writableLength > MIB, "nobody takes them");
      await patient.application.begin();
      const body = await bytesOf(await patient.application.accept());
      assert.ok(body.equals(Buffer.alloc(16 * MIB, 7)));
    } finally {
      await patient.stop();
    }
  });

  it("keeps in memory what the client sends when that takes too long", async () => {
    const client = await upload(100_000);
    client.socket.write(Buffer.alloc(100_000));
    const { spilledBytes } = await stage.until(
      "all of it is held in memory",
      () => stage.status(),
      ({ heldBytes }) => heldBytes === 100_000,
    );
    assert.equal(spilledBytes, 0);
    await stage.application.begin();
    assert.equal((await bytesOf(await stage.application.accept())).length, 100_000);
  });

  it("keeps 20 MiB in memory and in a sealed file without a name, and delivers every byte", async () => {
    const bytes = randomBytes(UPLOAD_BYTES);
    for (let at = 0; at + MARKER.length < bytes.length; at += 64 * 1024) bytes.write(MARKER, at, "latin1");
    const client = await upload(bytes.length);
    client.socket.write(bytes);
    await stage.until(
      "all is held",
      () => stage.status(),
      ({ heldBytes, spilledBytes }) => heldBytes + spilledBytes >= bytes.length,
    );
    const { heldBytes } = await stage.status();
    assert.ok(heldBytes <= limits.heldSessionBytesMax && heldBytes > limits.heldSessionBytesMax / 2);
    assert.deepEqual(
      readdirSync(stage.directory).filter((name) => !name.startsWith("p.sock")),
      [],
      "no named file",
    );
    const files = deletedFiles(stage.proxy.process.pid as number, stage.directory);
    assert.equal(files.length, 1);
    const onDisk = readFileSync(files[0] as string);
    assert.ok(onDisk.length > UPLOAD_BYTES - 2 * MIB);
    assert.ok(!onDisk.includes(MARKER), "sealed");
    await stage.application.begin();
    const server = await stage.application.accept();
    assert.equal(digest(await bytesOf(server)), digest(bytes));
    server.socket.write(ok("stored"));
    assert.equal((await answersOf(client, 1))[0]?.body, "stored");
    assert.deepEqual(
      deletedFiles(stage.proxy.process.pid as number, stage.directory),
      [],
      "the file is closed",
    );
  });

  it("refuses the newest when memory and disk are full, and counts it", async () => {
    const before = await stage.count("heldRefused");
    const client = await upload(40 * MIB);
    client.socket.write(Buffer.alloc(40 * MIB));
    const [answer] = await answersOf(client, 1);
    assert.equal(answer?.status, 503);
    assert.equal(answer?.headers.get("connection"), "close");
    assert.ok(answer?.headers.has("retry-after"));
    assert.equal((await stage.count("heldRefused")) - before, 1);
    assert.equal((await stage.status()).heldBytes, 0, "what it held is let go");
    await stage.proxy.untilSessions(0);
  });

  it("shares memory among the sessions: those behind the limit go to the disk", async () => {
    const clients: RawEnd[] = [];
    for (let index = 0; index < 4; index++) clients.push((await stage.pair(head(MIB - 1))).client);
    stage.application.end();
    await stage.untilAway(4);
    const bodies = clients.map((_, index) => Buffer.alloc(MIB - 1, index + 1));
    for (const [index, client] of clients.entries()) client.socket.write(bodies[index] as Buffer);
    const { heldBytes } = await stage.until(
      "all is held",
      () => stage.status(),
      (status) => status.heldBytes + status.spilledBytes >= 4 * (MIB - 1),
    );
    assert.ok(heldBytes <= limits.heldWorkloadBytesMax, `${heldBytes} bytes in memory`);
    await stage.application.begin();
    const digests = new Set<string>();
    for (let index = 0; index < 4; index++)
      digests.add(digest(await bytesOf(await stage.application.accept())));
    assert.deepEqual(digests, new Set(bodies.map(digest)));
  });

  it("counts a client that sends one byte at a time for what it costs", async () => {
    const client = await upload(50_000);
    client.socket.setNoDelay(true);
    const { rssBytes } = (await stage.proxy.call<{ rssBytes: number }>("status", {})).result;
    for (let index = 0; index < 50_000; index++) client.socket.write("x");
    await stage.until(
      "all is held",
      () => stage.status(),
      ({ heldBytes }) => heldBytes === 50_000,
    );
    const after = (await stage.proxy.call<{ rssBytes: number }>("status", {})).result.rssBytes;
    assert.ok(after - rssBytes < 32 * MIB, `${after - rssBytes} bytes for 50,000`);
    await stage.application.begin();
    assert.equal((await bytesOf(await stage.application.accept())).length, 50_000);
  });

  it("closes a WebSocket that sends more than may be held with 1013", async () => {
    const { client, server } = await stage.pair(
      get(
        "/",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
      ),
    );
    const agreed =
      "HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: y\r\n\r\n";
    server.socket.write(agreed);
    await client.has(agreed.length);
    stage.application.end();
    await stage.untilAway(1);
    const frame = Buffer.alloc(14 + 30 * MIB);
    frame.set([0x82, 0xff]);
    frame.writeBigUInt64BE(BigInt(30 * MIB), 2);
    client.socket.write(frame);
    assert.equal(await client.ending(), "end");
    const close = client.received.subarray(agreed.length);
    assert.deepEqual([close[0], close.readUInt16BE(2)], [0x88, 1013]);
  });

  it("answers 503 to the client that would be one too many, and serves it later", async () => {
    const few = await ReplayStage.start([{ protocol: "http" }], { heldSessionsMax: 2 });
    try {
      await few.pause();
      const waiting = [await few.dial(), await few.dial()];
      await few.proxy.untilSessions(2);
      const refused = await few.dial();
      refused.socket.write(get("/"));
      assert.equal((await answersOf(refused, 1))[0]?.status, 503);
      assert.equal(await few.count("sessionsRefused"), 1);
      for (const client of waiting) client.socket.write(get("/"));
      await few.resume();
      for (const client of waiting) {
        const server = await few.application.accept();
        server.socket.write(ok("late"));
        assert.equal(client.over, null);
      }
      for (const client of waiting) await answersOf(client, 1);
      refused.socket.write(get("/again"));
      const server = await few.application.accept();
      server.socket.write(ok("again"));
      assert.equal((await answersOf(refused, 2))[1]?.status, 200);
    } finally {
      await few.stop();
    }
  });

  it("ends a client that asks on and on for what it is refused, and reads nothing", async () => {
    const few = await ReplayStage.start([{ protocol: "http" }], { heldSessionsMax: 1 });
    try {
      await few.pause();
      await few.dial();
      await few.proxy.untilSessions(1);
      const greedy = await few.dial();
      greedy.socket.pause();
      // answers are longer: many times what sockets hold
      greedy.socket.write(Buffer.from(get("/", `X: ${"x".repeat(80)}\r\n`).repeat(200_000)));
      await few.until(
        "it is reset",
        () => few.count("sessionsReset"),
        (count) => count === 1,
      );
      assert.ok((await few.count("requestsRefused")) < 100_000);
    } finally {
      await few.stop();
    }
  });

  it("does not count clients it has kept over the end of the application as new ones", async () => {
    const few = await ReplayStage.start([{ protocol: "http" }], { heldSessionsMax: 2 });
    try {
      for (let index = 0; index < 4; index++) {
        const { client, server } = await few.pair(get("/"));
        server.socket.write(ok("x"));
        await answersOf(client, 1);
      }
      await few.pause();
      const late = await few.dial();
      await few.proxy.untilSessions(5);
      late.socket.write(post("/", "late"));
      await few.resume();
      const server = await few.application.accept();
      await server.has(post("/", "late").length);
    } finally {
      await few.stop();
    }
  });

  it("refuses the first byte where neither memory nor disk may have any", async () => {
    const none = await ReplayStage.start([{ protocol: "http" }], {
      heldSessionBytesMax: 0,
      spillBytesMax: 0,
      stallMsMax: 10,
    });
    try {
      await isRefused(none, 1);
    } finally {
      await none.stop();
    }
  });

  it("keeps nothing on a disk that is full, and says so", { skip }, async () => {
    const disk = mkdtempSync(join(tmpdir(), "holdfast-disk-"));
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${DISK_BYTES}`, "holdfast", disk]);
    try {
      const full = await ReplayStage.start(
        [{ protocol: "http" }],
        { heldSessionBytesMax: 0, spillBytesMax: 24 * MIB, stallMsMax: 10 },
        { spillDir: disk },
      );
      try {
        await isRefused(full, 4 * DISK_BYTES);
        assert.equal((await full.status()).spilledBytes, 0, "what it had kept is let go");
        assert.deepEqual(deletedFiles(full.proxy.process.pid as number, disk), []);
      } finally {
        await full.stop();
      }
    } finally {
      execFileSync("umount", [disk]);
      rmdirSync(disk);
    }
  });

  /** A client of a stage of its own, whose application is away and that goes on with its body. */
  async function isRefused(of: ReplayStage, bytes: number): Promise<void> {
    const { client } = await of.pair(head(bytes));
    of.application.end();
    await of.untilAway(1);
    client.socket.write(Buffer.alloc(bytes));
    assert.equal((await answersOf(client, 1))[0]?.status, 503);
    assert.equal(await of.count("heldRefused"), 1);
  }
});

describe("an application that is back and does not read", { timeout: 120_000 }, () => {
  const UPGRADE =
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n";
  const AGREED =
    "HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: y\r\n\r\n";
  /** more than the sockets to an application take that does not read */
  const HELD_BYTES = 3 * MIB;
  let stage: ReplayStage;
  before(async () => {
    stage = await ReplayStage.start([{ protocol: "http" }, { protocol: "websocket", setUp: "none" }], {
      stallMsMax: 10,
      heldSessionBytesMax: HELD_BYTES + MIB,
      spillBytesMax: 0,
      unavailableMsMax: 30_000,
      lingerMsMax: 30_000,
    });
  });
  afterEach(() => stage.clear());
  after(() => stage.stop());

  /** The client, over the end of its application, has sent `bytes`, and the next instance is there. */
  async function sent(client: RawEnd, bytes: Buffer): Promise<void> {
    stage.application.end();
    await stage.untilAway(1);
    client.socket.write(bytes);
    await stage.until(
      "all is held",
      () => stage.status(),
      ({ heldBytes }) => heldBytes === bytes.length,
    );
    await stage.application.begin();
  }

  /** Takes the first bytes, says something, and reads no more. */
  function saysAndStops(words: string | Buffer): Promise<RawEnd> {
    const { promise, resolve } = Promise.withResolvers<RawEnd>();
    stage.application.serve = (socket) => {
      const server = new RawEnd(socket);
      socket.once("data", () => {
        socket.pause();
        socket.write(words);
        resolve(server);
      });
    };
    return within("the next instance has a request", promise);
  }

  it("has a client refused that sends more than may be held, and sees it go", async () => {
    const broken = await stage.count("sessionsBroken");
    const { client } = await stage.pair(head(40 * MIB));
    const next = saysAndStops("");
    await sent(client, Buffer.alloc(HELD_BYTES));
    const server = await next;
    client.socket.write(Buffer.alloc(8 * MIB));
    const [answer] = await answersOf(client, 1);
    assert.equal(answer?.status, 503);
    assert.equal(await client.ending(), "end");
    assert.equal((await stage.count("sessionsBroken")) - broken, 0);
    server.socket.resume();
    assert.equal(await server.ending(), "ECONNRESET");
    client.socket.resetAndDestroy();
    await stage.proxy.untilSessions(0);
  });

  it("has a client reset that it has begun to answer: a refusal would be taken for more of the answer", async () => {
    const { client } = await stage.pair(head(40 * MIB));
    const begun = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun";
    const next = saysAndStops(begun);
    await sent(client, Buffer.alloc(HELD_BYTES));
    await next;
    await client.has(begun.length);
    client.socket.write(Buffer.alloc(8 * MIB));
    assert.equal(await client.ending(), "ECONNRESET");
    assert.equal(String(client.received), begun);
  });

  it("has a WebSocket reset that it is in the middle of a frame of", async () => {
    const { client, server } = await stage.pair(get("/", UPGRADE), stage.ports[1]);
    server.socket.write(AGREED);
    await client.has(AGREED.length);
    const begun = Buffer.from([0x81, 5, 0x68, 0x65]);
    const next = saysAndStops(Buffer.concat([Buffer.from(AGREED), begun]));
    const frame = Buffer.alloc(HELD_BYTES);
    frame.set([0x82, 0xff]);
    frame.writeBigUInt64BE(BigInt(30 * MIB), 2);
    await sent(client, frame);
    await next;
    await client.has(AGREED.length + begun.length);
    client.socket.write(Buffer.alloc(8 * MIB));
    assert.equal(await client.ending(), "ECONNRESET");
    assert.ok(
      client.received.equals(Buffer.concat([Buffer.from(AGREED), begun])),
      "no Close within the frame",
    );
  });
});
