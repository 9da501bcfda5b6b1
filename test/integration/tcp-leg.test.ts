/**
 * Legs and listeners against the real kernel, over loopback: what is told, when, in which order, and that no byte and no
 * anchor is lost. The far ends are plain descriptors, so that several things can happen to a leg before its next turn.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { EventEmitter, once } from "node:events";
import net from "node:net";
import { resolve } from "node:path";
import { after, describe, it } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { promisify } from "node:util";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { bound, sockets } from "#proxy/kernel/stream-sockets.ts";
import { ClientListener, type ListenerOptions } from "#proxy/listen/client-listener.ts";
import type { LegListener } from "#proxy/stream/leg.ts";
import { Pump } from "#proxy/stream/pump.ts";
import type { SocketKernel } from "#proxy/stream/socket-kernel.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";

const root = resolve(import.meta.dirname, "../..");
const WAIT_MS_MAX = 4_000;
/** of a leg */
const READ_BYTES = 262_144;
const READS_MAX = 4;
/** of a listener */
const ACCEPTS_MAX = 256;
const MSG_OOB = 1;
const LARGE_BYTES = 4 * 1024 * 1024;

// ---- bytes

/** A prime length: a block lost, repeated or misplaced does not fit. */
const PATTERN = randomBytes(1_048_573);

function pattern(from: number, length: number): Buffer {
  const parts: Buffer[] = [];
  for (let at = from; at < from + length; ) {
    const start = at % PATTERN.length;
    const part = PATTERN.subarray(start, Math.min(PATTERN.length, start + from + length - at));
    parts.push(part);
    at += part.length;
  }
  return Buffer.concat(parts);
}

/** One direction, checked byte by byte as it comes. */
class Check {
  bytes = 0;

  take(chunk: Buffer): void {
    assert.ok(chunk.equals(pattern(this.bytes, chunk.length)), `other bytes at ${this.bytes}`);
    this.bytes += chunk.length;
  }
}

// ---- waiting

/** Something may have changed. */
const changes = new EventEmitter().setMaxListeners(0);

async function until(condition: () => boolean, what: string): Promise<void> {
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(new Error(`waited ${WAIT_MS_MAX} ms for ${what}`)), WAIT_MS_MAX);
  try {
    while (!condition()) await once(changes, "change", { signal: late.signal });
  } catch (error) {
    throw late.signal.aborted ? late.signal.reason : error;
  } finally {
    clearTimeout(timer);
  }
}

/** What has happened to any leg by now has been told when this is over: anchors are told in their order. */
async function everythingIsTold(): Promise<void> {
  for (let round = 0; round < 2; round++) {
    const { leg, witness, peer } = await connected();
    leg.resumeReading();
    sendAll(peer, pattern(0, 1));
    await until(() => witness.bytes === 1, "the byte behind everything else");
    leg.reset();
    close(peer);
    await nextTurn();
  }
}

// ---- ends

class Witness implements LegListener {
  /** in order; data once for as long as nothing else comes between */
  readonly told: string[] = [];
  readonly check = new Check();
  reads = 0;
  /** what the listener does besides */
  onBytes: (chunk: Buffer) => void = (chunk) => this.check.take(chunk);
  onTold: (what: string) => void = () => {};
  onGone: () => void = () => {};

  get bytes(): number {
    return this.check.bytes;
  }

  #tell(what: string): void {
    if (what !== "data" || this.told.at(-1) !== "data") this.told.push(what);
    changes.emit("change");
    this.onTold(what);
  }
  onData(chunk: Buffer): void {
    this.reads++;
    this.onBytes(chunk);
    this.#tell("data");
  }
  onFin(): void {
    this.#tell("fin");
  }
  onReset(reason: string): void {
    this.#tell(`reset ${reason}`);
  }
  onDrain(): void {
    this.#tell("drain");
  }
  onBroken(error: unknown): void {
    rethrow(error);
  }
}

/** What a test's own callback throws ends the test. */
function rethrow(error: unknown): never {
  throw error;
}

const open = new Set<number>();
after(() => {
  for (const fd of open) descriptor.close(fd);
});

function close(fd: number): void {
  open.delete(fd);
  descriptor.close(fd);
}

function resetPeer(fd: number): void {
  open.delete(fd);
  sockets.reset(fd);
}

async function accepted(listener: number): Promise<number> {
  await polling.waitReadable(listener);
  return sock.accept(listener, sock.SOCK_NONBLOCK | sock.SOCK_CLOEXEC);
}

/** Two ends of one connection, both non-blocking. */
async function pairOf(): Promise<[near: number, far: number]> {
  const listener = sockets.listen({ address: "127.0.0.1", port: 0 }, 1);
  const near = sockets.dial({ address: "127.0.0.1", port: sockets.localPort(listener) });
  assert.ok(near >= 0);
  const far = await accepted(listener);
  descriptor.close(listener);
  open.add(far);
  return [near, far];
}

async function connected(
  socketKernel: SocketKernel = sockets,
): Promise<{ leg: TcpLeg; fd: number; witness: Witness; peer: number }> {
  const [fd, peer] = await pairOf();
  const leg = TcpLeg.attach(socketKernel, fd);
  const witness = new Witness();
  leg.listener = witness;
  return { leg, fd, witness, peer };
}

function widen(...fds: number[]): void {
  for (const fd of fds) {
    sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUFFORCE, LARGE_BYTES);
    sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_SNDBUFFORCE, LARGE_BYTES);
  }
}

function narrow(...fds: number[]): void {
  for (const fd of fds) {
    sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUF, 32_768);
    sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_SNDBUF, 32_768);
  }
}

/** All of it at once, which the queues have room for. */
function sendAll(fd: number, bytes: Buffer): void {
  assert.equal(sock.send(fd, bytes, sock.MSG_DONTWAIT), bytes.length);
}

async function readAt(fd: number, check: Check, total: number): Promise<void> {
  const into = Buffer.allocUnsafe(READ_BYTES);
  while (check.bytes < total) {
    await polling.waitReadable(fd, AbortSignal.timeout(WAIT_MS_MAX));
    const bytes = sock.recv(fd, into, sock.MSG_DONTWAIT);
    assert.notEqual(bytes, 0, `the stream ended at ${check.bytes} of ${total} bytes`);
    check.take(into.subarray(0, bytes));
  }
}

async function arrived(leg: TcpLeg, bytes: number): Promise<void> {
  const deadline = performance.now() + WAIT_MS_MAX;
  while (leg.unreadBytes() < bytes) {
    assert.ok(performance.now() < deadline, `${leg.unreadBytes()} of ${bytes} bytes have arrived`);
    await nextTurn();
  }
}

/** Writes the pattern until a chunk is outstanding; returns how many bytes were written, that chunk included. */
function fill(leg: TcpLeg): number {
  for (let written = 0; ; ) {
    const chunk = pattern(written, READ_BYTES);
    written += chunk.length;
    if (!leg.write(chunk)) return written;
    assert.ok(written < 64 * LARGE_BYTES, "a send queue without an end");
  }
}

/** So that `fd`, once closed, is the next number the kernel gives. */
function occupyBelow(fd: number): number[] {
  const taken: number[] = [];
  for (;;) {
    const next = descriptor.dupCloexec(fd);
    taken.push(next);
    if (next > fd) return taken;
  }
}

describe("a leg that reads", () => {
  it("tells bytes and the FIN behind them, in one burst", async () => {
    const { leg, witness, peer } = await connected();
    leg.resumeReading();
    sendAll(peer, pattern(0, 100_000));
    sock.shutdown(peer, sock.SHUT_WR);
    await until(() => witness.told.includes("fin"), "the FIN");
    assert.deepEqual(witness.told, ["data", "fin"]);
    assert.equal(witness.bytes, 100_000);
    await everythingIsTold();
    assert.deepEqual(witness.told, ["data", "fin"]);
    leg.close();
    close(peer);
  });

  it("tells the FIN once, though it is asked to go on and the peer resets after it", async () => {
    const { leg, witness, peer } = await connected();
    leg.resumeReading();
    sock.shutdown(peer, sock.SHUT_WR);
    await until(() => witness.told.length > 0, "the FIN");
    leg.pauseReading();
    leg.resumeReading();
    resetPeer(peer);
    await everythingIsTold();
    assert.deepEqual(witness.told, ["fin"]);
    assert.equal(leg.write(Buffer.of(1)), false);
    await until(() => witness.told.length > 1, "the reset that a write finds");
    await everythingIsTold();
    assert.deepEqual(witness.told, ["fin", "reset EPIPE"]);
    assert.equal(leg.isOpen, false);
  });

  it("tells a FIN and a reset behind it as the FIN when both came before its turn", async () => {
    const { leg, witness, peer } = await connected();
    sendAll(peer, pattern(0, 10));
    sock.shutdown(peer, sock.SHUT_WR);
    resetPeer(peer);
    leg.resumeReading();
    await until(() => witness.told.includes("fin"), "the FIN");
    await everythingIsTold();
    assert.deepEqual(witness.told, ["data", "fin"]);
    leg.close();
  });

  it("tells of a reset behind a FIN whoever asks, whether it was told of the FIN or of one before", async () => {
    for (const [isTold, isEarly] of [
      [true, false],
      [false, true],
      [false, false],
    ]) {
      const { leg, witness, peer } = await connected();
      witness.onGone = () => leg.endIfReset();
      sock.shutdown(peer, sock.SHUT_WR);
      if (isEarly) {
        resetPeer(peer);
        await everythingIsTold();
      }
      if (!isTold) leg.endedBefore();
      leg.resumeReading();
      if (!isEarly) {
        await everythingIsTold();
        assert.deepEqual(witness.told, isTold ? ["fin"] : []);
        leg.endIfReset();
        assert.equal(leg.isOpen, true);
        resetPeer(peer);
      }
      await until(() => !leg.isOpen, "the reset");
      await everythingIsTold();
      assert.deepEqual(witness.told, [...(isTold ? ["fin"] : []), "reset EPIPE"]);
    }
  });

  it("takes an orderly end of both sides for no reset", async () => {
    const { leg, witness, peer } = await connected();
    let asked = 0;
    witness.onGone = () => {
      asked++;
      leg.endIfReset();
      changes.emit("change");
    };
    leg.resumeReading();
    leg.finish();
    sock.shutdown(peer, sock.SHUT_WR);
    await until(() => witness.told.includes("fin"), "the FIN");
    close(peer);
    await until(() => asked > 0, "the end of both sides");
    assert.deepEqual(witness.told, ["fin"]);
    assert.equal(leg.isClosedInKernel(), true);
    leg.close();
  });

  it("reads nothing while paused, and everything in order afterwards", async () => {
    const { leg, fd, witness, peer } = await connected();
    widen(fd, peer);
    leg.resumeReading();
    sendAll(peer, pattern(0, 10));
    await until(() => witness.bytes === 10, "the first bytes");
    leg.pauseReading();
    for (let at = 10; at < 500_010; at += 50_000) sendAll(peer, pattern(at, 50_000));
    sock.shutdown(peer, sock.SHUT_WR);
    await everythingIsTold();
    assert.deepEqual(witness.told, ["data"]);
    assert.equal(witness.bytes, 10);
    assert.equal(leg.unreadBytes(), 500_000);
    leg.resumeReading();
    assert.equal(witness.bytes, 10, "nothing is told from within resumeReading");
    await until(() => witness.told.includes("fin"), "the FIN");
    assert.equal(witness.bytes, 500_010);
    leg.close();
    close(peer);
  });

  it("tells a FIN that came while it was paused", async () => {
    const { leg, witness, peer } = await connected();
    sock.shutdown(peer, sock.SHUT_WR);
    await everythingIsTold();
    assert.deepEqual(witness.told, []);
    leg.resumeReading();
    assert.deepEqual(witness.told, []);
    await until(() => witness.told.length > 0, "the FIN");
    assert.deepEqual(witness.told, ["fin"]);
    leg.close();
    close(peer);
  });

  it("tells a reset at once while it is read, and when it is read again", async () => {
    for (const paused of [false, true]) {
      const { leg, witness, peer } = await connected();
      if (!paused) leg.resumeReading();
      sendAll(peer, pattern(0, 5));
      resetPeer(peer);
      if (paused) {
        await everythingIsTold();
        assert.deepEqual(witness.told, []);
        leg.resumeReading();
        assert.deepEqual(witness.told, []);
      }
      await until(() => witness.told.length > 1, "bytes and the reset");
      await everythingIsTold();
      assert.deepEqual(witness.told, ["data", "reset ECONNRESET"]);
      assert.equal(leg.isOpen, false);
      leg.resumeReading();
      leg.reset();
    }
  });

  it("goes on behind urgent data", async () => {
    const { leg, witness, peer } = await connected();
    const seen: Buffer[] = [];
    witness.onBytes = (chunk) => seen.push(Buffer.from(chunk));
    const text = () => Buffer.concat(seen).toString();
    leg.resumeReading();
    sendAll(peer, Buffer.from("before"));
    assert.equal(sock.send(peer, Buffer.from("!"), MSG_OOB), 1);
    sendAll(peer, Buffer.from("after"));
    // the urgent byte itself is not part of the stream, as for every program that does not ask for it
    await until(() => text() === "beforeafter", "the bytes on both sides of the mark");
    leg.pauseReading();
    sendAll(peer, Buffer.from(", then"));
    assert.equal(sock.send(peer, Buffer.from("!"), MSG_OOB), 1);
    sendAll(peer, Buffer.from(" the rest"));
    sock.shutdown(peer, sock.SHUT_WR);
    await everythingIsTold();
    leg.resumeReading();
    await until(() => witness.told.includes("fin"), "the FIN");
    assert.equal(text(), "beforeafter, then the rest");
    leg.close();
    close(peer);
  });

  for (const bytes of [READ_BYTES, 2 * READ_BYTES, READS_MAX * READ_BYTES]) {
    for (const fin of [false, true]) {
      it(`does not stall at exactly ${bytes} bytes${fin ? " and a FIN" : ""}`, async () => {
        const { leg, fd, witness, peer } = await connected();
        widen(fd, peer);
        sendAll(peer, pattern(0, bytes));
        if (fin) sock.shutdown(peer, sock.SHUT_WR);
        await arrived(leg, bytes);
        leg.resumeReading();
        await until(() => witness.bytes === bytes, "all bytes");
        if (fin) await until(() => witness.told.includes("fin"), "the FIN");
        else {
          sendAll(peer, pattern(bytes, 1));
          await until(() => witness.bytes === bytes + 1, "one more");
        }
        leg.close();
        close(peer);
      });
    }
  }
});

describe("a leg that writes", () => {
  it("keeps what the kernel does not take, and tells when it is out, not from within the call", async () => {
    const { leg, witness, peer } = await connected();
    const written = fill(leg);
    assert.deepEqual(witness.told, []);
    await everythingIsTold();
    assert.deepEqual(witness.told, [], "nobody has read anything yet");
    const check = new Check();
    await readAt(peer, check, written);
    await until(() => witness.told.length > 0, "the drain");
    await everythingIsTold();
    assert.deepEqual(witness.told, ["drain"]);
    assert.equal(check.bytes, written);
    leg.close();
    close(peer);
  });

  it("still says of a chunk, when the peer has reset, how much of it the peer cannot have read", async () => {
    const { leg, witness, peer } = await connected();
    const pump = new Pump();
    pump.setSink(leg);
    const total = 2 * LARGE_BYTES;
    let notGiven = -1;
    witness.onTold = (what) => {
      if (what.startsWith("reset")) notGiven = pump.pendingBytes;
    };
    pump.resend(pattern(0, total));
    const check = new Check();
    await readAt(peer, check, 100_000);
    await everythingIsTold();
    const before = pump.pendingBytes;
    assert.ok(
      before > 0 && total - before >= check.bytes,
      `${before} of ${total} bytes, ${check.bytes} read`,
    );
    resetPeer(peer);
    await until(() => witness.told.length > 0, "the reset");
    assert.ok(notGiven > 0 && notGiven <= before, `${notGiven} of ${total} bytes, ${before} before`);
    assert.equal(leg.isOpen, false);
  });

  it("tells a reset though it is paused, while a chunk is outstanding", async () => {
    const { leg, witness, peer } = await connected();
    fill(leg);
    resetPeer(peer);
    await until(() => witness.told.length > 0, "the reset");
    await everythingIsTold();
    assert.deepEqual(witness.told, ["reset ECONNRESET"]);
    assert.equal(leg.isOpen, false);
  });

  it("tells later of a write that found the connection reset", async () => {
    const { leg, witness, peer } = await connected();
    resetPeer(peer);
    await everythingIsTold();
    assert.equal(leg.write(Buffer.of(1)), false);
    assert.deepEqual(witness.told, []);
    await until(() => witness.told.length > 0, "the reset");
    await everythingIsTold();
    assert.deepEqual(witness.told, ["reset ECONNRESET"]);
  });

  it("tells a reset that came with the end of an answer, longer than one turn reads, while a chunk is outstanding", async () => {
    const { leg, fd, witness, peer } = await connected();
    widen(fd, peer);
    const bytes = (READS_MAX + 2) * READ_BYTES + 1;
    fill(leg);
    sendAll(peer, pattern(0, bytes));
    await arrived(leg, bytes);
    sock.shutdown(peer, sock.SHUT_WR);
    resetPeer(peer);
    leg.resumeReading();
    await until(() => witness.told.some((what) => what.startsWith("reset")), "the reset");
    await everythingIsTold();
    assert.equal(witness.bytes, bytes);
    assert.equal(witness.told[0], "data");
    assert.match(witness.told.at(-1) ?? "", /^reset /);
    assert.equal(leg.isOpen, false);
  });

  for (const how of ["a chunk outstanding", "a write that fails"]) {
    it(`reads an answer that came before a reset to its end, with ${how}`, async () => {
      const { leg, fd, witness, peer } = await connected();
      widen(fd, peer);
      const bytes = (READS_MAX + 2) * READ_BYTES + 1;
      if (how === "a chunk outstanding") fill(leg);
      sendAll(peer, pattern(0, bytes));
      await arrived(leg, bytes);
      resetPeer(peer);
      leg.resumeReading();
      if (how === "a write that fails") assert.equal(leg.write(Buffer.of(1)), false);
      await until(() => witness.told.some((what) => what.startsWith("reset")), "the reset");
      await everythingIsTold();
      assert.equal(witness.bytes, bytes);
      assert.deepEqual(witness.told, ["data", "reset ECONNRESET"]);
    });
  }

  it("sends its FIN and still reads", async () => {
    const { leg, witness, peer } = await connected();
    leg.resumeReading();
    assert.equal(leg.write(pattern(0, 10)), true);
    leg.finish();
    const check = new Check();
    await readAt(peer, check, 10);
    await polling.waitReadable(peer);
    assert.equal(sock.recv(peer, Buffer.alloc(1), sock.MSG_DONTWAIT), 0);
    sendAll(peer, pattern(0, 20));
    close(peer);
    await until(() => witness.told.includes("fin"), "the FIN");
    assert.equal(witness.bytes, 20);
    assert.equal(leg.isClosedInKernel(), true);
    leg.close();
  });
});

describe("a leg that is given up", () => {
  for (const end of ["close", "reset", "detach"] as const) {
    it(`tells nothing after ${end}, whatever was under way`, async () => {
      for (const outstanding of [false, true]) {
        const { leg, fd, witness, peer } = await connected();
        if (outstanding) fill(leg);
        sendAll(peer, pattern(0, 10));
        leg.resumeReading();
        leg[end]();
        assert.equal(leg.isOpen, false);
        assert.equal(leg.write(Buffer.of(1)), true);
        leg.resumeReading();
        leg.finish();
        leg.reset();
        leg.close();
        assert.equal(leg.detach().fd, -1);
        if (end === "detach") {
          sendAll(peer, pattern(10, 10));
          sock.shutdown(peer, sock.SHUT_WR);
        }
        await everythingIsTold();
        assert.deepEqual(witness.told, []);
        if (end === "detach") {
          const check = new Check();
          await readAt(fd, check, 20);
          descriptor.close(fd);
        }
        close(peer);
      }
    });

    it(`may ${end} itself in onData, with more to read`, async () => {
      const { leg, fd, witness, peer } = await connected();
      widen(fd, peer);
      sendAll(peer, pattern(0, 3 * READ_BYTES));
      await arrived(leg, 3 * READ_BYTES);
      witness.onTold = () => leg[end]();
      leg.resumeReading();
      await until(() => witness.reads > 0, "bytes");
      await everythingIsTold();
      assert.equal(witness.reads, 1);
      assert.deepEqual(witness.told, ["data"]);
      if (end === "detach") descriptor.close(fd);
      close(peer);
    });

    it(`may be given up with ${end} by another leg whose turn comes first`, async () => {
      const ends = [await connected(), await connected()] as const;
      for (const [index, { leg, witness, peer }] of ends.entries()) {
        const other = ends[1 - index] as (typeof ends)[0];
        witness.onTold = () => {
          if (other.leg.isOpen) other.leg[end]();
        };
        leg.resumeReading();
        sendAll(peer, pattern(0, 10));
      }
      await until(() => ends.some(({ witness }) => witness.told.length > 0), "the first of them");
      await everythingIsTold();
      assert.deepEqual(ends.map(({ witness }) => witness.told.length).sort(), [0, 1]);
      for (const { leg, fd, peer } of ends) {
        if (leg.isOpen) leg.close();
        else if (end === "detach") descriptor.close(fd);
        close(peer);
      }
    });
  }

  it("may pause itself in onData, and go on", async () => {
    const { leg, fd, witness, peer } = await connected();
    widen(fd, peer);
    sendAll(peer, pattern(0, 3 * READ_BYTES));
    await arrived(leg, 3 * READ_BYTES);
    witness.onTold = () => leg.pauseReading();
    for (let reads = 1; reads <= 3; reads++) {
      leg.resumeReading();
      await until(() => witness.reads === reads, "the next chunk");
      await everythingIsTold();
      assert.equal(witness.reads, reads);
    }
    assert.equal(witness.bytes, 3 * READ_BYTES);
    leg.close();
    close(peer);
  });

  for (const next of ["dialled", "accepted"] as const) {
    it(`leaves its number to a leg that is ${next} at once, which hears of its own events only`, async () => {
      // full: a handshake does not complete
      const full = sockets.listen({ address: "127.0.0.1", port: 0 }, 0);
      const to = { address: "127.0.0.1", port: sockets.localPort(full) };
      const waiting = sockets.dial(to);
      await polling.waitReadable(full);
      const ready = sockets.listen({ address: "127.0.0.1", port: 0 }, 1);
      const peerOfNext = sockets.dial({ address: "127.0.0.1", port: sockets.localPort(ready) });
      await polling.waitReadable(ready);

      const numbers: number[] = [];
      const counting: SocketKernel = {
        ...sockets,
        watch(fd, watcher) {
          numbers.push(fd);
          sockets.watch(fd, watcher);
        },
      };
      const told: string[] = [];
      const nextWitness = new Witness();
      let nextLeg: TcpLeg | null = null;
      const ends = [await connected(), await connected()] as const;
      const gaps = occupyBelow(Math.max(ends[0].fd, ends[1].fd));
      for (const [index, { leg, witness, peer }] of ends.entries()) {
        const other = ends[1 - index] as (typeof ends)[0];
        witness.onTold = () => {
          if (nextLeg !== null) return;
          other.leg.close();
          nextLeg =
            next === "accepted"
              ? TcpLeg.attach(counting, sockets.accept(ready))
              : TcpLeg.dial(counting, to, {
                  onConnect: () => told.push("connected"),
                  onError: (code) => told.push(code),
                  onBroken: rethrow,
                });
          nextLeg.listener = nextWitness;
          nextLeg.resumeReading();
          assert.deepEqual(numbers, [other.fd], "the number is used again");
        };
        leg.resumeReading();
        sendAll(peer, pattern(0, 10));
        sock.shutdown(peer, sock.SHUT_WR);
      }
      await until(() => nextLeg !== null, "one of the two");
      await everythingIsTold();
      assert.deepEqual(told, []);
      assert.deepEqual(nextWitness.told, []);
      assert.equal((nextLeg as unknown as TcpLeg).isOpen, true);
      if (next === "accepted") {
        sendAll(peerOfNext, pattern(0, 7));
        await until(() => nextWitness.bytes === 7, "its own bytes");
      }
      (nextLeg as unknown as TcpLeg).close();
      for (const { leg, peer } of ends) {
        leg.close();
        close(peer);
      }
      for (const fd of [...gaps, full, waiting, ready, peerOfNext]) descriptor.close(fd);
    });
  }
});

describe("a leg that is dialled", () => {
  /** What was told, in order; `late` while it may not be told yet. */
  function dial(to: Endpoint, socketKernel: SocketKernel = sockets): { leg: TcpLeg; told: string[] } {
    const told: string[] = [];
    let returned = false;
    const tell = (what: string) => {
      told.push(returned ? what : `${what} too early`);
      changes.emit("change");
    };
    const leg = TcpLeg.dial(socketKernel, to, {
      onConnect: () => tell("connected"),
      onError: tell,
      onBroken: rethrow,
    });
    returned = true;
    return { leg, told };
  }

  for (const address of ["127.0.0.1", "::1"]) {
    it(`is told connected, once, and works (${address})`, async () => {
      const listener = sockets.listen({ address, port: 0 }, 1);
      const { leg, told } = dial({ address, port: sockets.localPort(listener) });
      const witness = new Witness();
      leg.listener = witness;
      const peer = await accepted(listener);
      await until(() => told.length > 0, "the connection");
      assert.equal(leg.write(pattern(0, 10)), true);
      const check = new Check();
      await readAt(peer, check, 10);
      leg.resumeReading();
      sendAll(peer, pattern(0, 10));
      descriptor.close(peer);
      await until(() => witness.told.includes("fin"), "the FIN");
      await everythingIsTold();
      assert.deepEqual(told, ["connected"]);
      assert.deepEqual(witness.told, ["data", "fin"]);
      leg.close();
      descriptor.close(listener);
    });
  }

  it("is told why it failed, once, and later: refused, unreachable", async () => {
    const nobody = bound({ address: "127.0.0.1", port: 0 });
    const refused = dial({ address: "127.0.0.1", port: sockets.localPort(nobody) });
    // the broadcast address of the loopback network
    const unreachable = dial({ address: "127.255.255.255", port: 9 });
    await until(() => refused.told.length > 0 && unreachable.told.length > 0, "both errors");
    await everythingIsTold();
    assert.deepEqual(refused.told, ["ECONNREFUSED"]);
    assert.deepEqual(unreachable.told, ["ENETUNREACH"]);
    assert.equal(refused.leg.isOpen || unreachable.leg.isOpen, false);
    descriptor.close(nobody);
  });

  it("is told nothing once it was given up", async () => {
    const listener = sockets.listen({ address: "127.0.0.1", port: 0 }, 8);
    const to = { address: "127.0.0.1", port: sockets.localPort(listener) };
    const nobody = bound({ address: "127.0.0.1", port: 0 });
    const dials = [
      dial(to),
      dial(to),
      dial({ address: "127.0.0.1", port: sockets.localPort(nobody) }),
      dial({ address: "127.255.255.255", port: 9 }),
    ];
    for (const [index, { leg, told }] of dials.entries()) {
      const witness = new Witness();
      witness.onTold = (what) => told.push(what);
      leg.listener = witness;
      if (index % 2 === 0) leg.close();
      else leg.reset();
    }
    await everythingIsTold();
    for (const { told } of dials) assert.deepEqual(told, []);
    descriptor.close(listener);
    descriptor.close(nobody);
  });

  it("that nobody can watch is told so, and so is an accepted one: no descriptor is left", async () => {
    const open = new Set<number>();
    const unwatched: SocketKernel = {
      ...sockets,
      // fs.epoll.max_user_watches
      watch(fd) {
        open.add(fd);
        throw Object.assign(new Error("epoll_ctl failed with ENOSPC"), { code: "ENOSPC" });
      },
      unwatch: () => {},
      close(fd) {
        open.delete(fd);
        sockets.close(fd);
      },
    };
    const listener = sockets.listen({ address: "127.0.0.1", port: 0 }, 1);
    const { leg, told } = dial({ address: "127.0.0.1", port: sockets.localPort(listener) }, unwatched);
    const { leg: attached, witness, peer } = await connected(unwatched);
    await until(() => told.length > 0 && witness.told.length > 0, "both errors");
    assert.deepEqual(told, ["ENOSPC"]);
    assert.deepEqual(witness.told, ["reset ENOSPC"]);
    assert.equal(leg.isOpen || attached.isOpen, false);
    assert.deepEqual([...open], []);
    descriptor.close(listener);
    close(peer);
  });
});

describe("a leg that is detached", () => {
  it("gives what is not in the kernel, and goes on when attached again: nothing is lost or repeated", async () => {
    const [fd, peer] = await pairOf();
    narrow(fd, peer);
    const toPeer = new Check();
    const fromPeer = new Check();
    let leg = TcpLeg.attach(sockets, fd);
    let written = 0;
    let sent = 0;
    for (let round = 0; round < 20; round++) {
      const witness = new Witness();
      witness.onBytes = (chunk) => fromPeer.take(chunk);
      leg.listener = witness;
      const size = 50_000 + round * 10_007;
      // both queues full, something unread, in different states of progress
      const full = !leg.write(pattern(written, size));
      written += size;
      sent += Math.max(0, sock.send(peer, pattern(sent, 20_000 + round), sock.MSG_DONTWAIT));
      if (round % 2 === 0) leg.resumeReading();
      if (round % 3 === 0) await readAt(peer, toPeer, toPeer.bytes + 1);
      if (round % 4 === 0) await nextTurn();
      const { fd: given, pending } = leg.detach();
      assert.equal(given, fd);
      assert.equal(full || pending.length === 0, true);
      // as many as the kernel has never been given
      assert.ok(pending.equals(pattern(written - pending.length, pending.length)));
      written -= pending.length;
      leg = TcpLeg.attach(sockets, given);
    }
    const witness = new Witness();
    witness.onBytes = (chunk) => fromPeer.take(chunk);
    leg.listener = witness;
    const last = leg.write(pattern(written, 300_000));
    written += 300_000;
    leg.resumeReading();
    await readAt(peer, toPeer, written);
    if (!last) await until(() => witness.told.includes("drain"), "the drain");
    leg.finish();
    await polling.waitReadable(peer);
    assert.equal(sock.recv(peer, Buffer.alloc(1), sock.MSG_DONTWAIT), 0, "nothing comes twice");
    close(peer);
    await until(() => witness.told.includes("fin"), "the FIN");
    assert.equal(fromPeer.bytes, sent);
    leg.close();
  });

  it("is not open any more when a write has taken the reset from the kernel: nobody is to detach it", async () => {
    const { leg, witness, peer } = await connected();
    resetPeer(peer);
    leg.write(Buffer.of(1));
    assert.equal(leg.isOpen, false);
    await until(() => witness.told.length > 0, "the reset");
    assert.deepEqual(witness.told, ["reset ECONNRESET"]);
  });
});

// ---- with pumps

describe("two legs and two pumps", () => {
  it("carry many megabytes both ways past slow readers, byte for byte, and hold little of it", async () => {
    const total = 24 * 1024 * 1024;
    const application = net.createServer({ allowHalfOpen: true }).listen(0, "127.0.0.1");
    await once(application, "listening");
    const to = { address: "127.0.0.1", port: (application.address() as net.AddressInfo).port };
    let pendingMax = 0;
    let drains = 0;
    const inbound = new Pump();
    const outbound = new Pump();
    const side = (into: Pump, outOf: Pump): LegListener => ({
      onData(chunk) {
        into.receive(chunk);
        pendingMax = Math.max(pendingMax, into.pendingBytes);
      },
      onFin: () => into.receiveFin(),
      onDrain() {
        drains++;
        outOf.drained();
      },
      onReset: (reason) => assert.fail(reason),
      onBroken: rethrow,
    });
    const legs: TcpLeg[] = [];
    const listener = ClientListener.open({
      ...listening(),
      onAccept(fd) {
        const downstream = TcpLeg.attach(sockets, fd);
        const upstream = TcpLeg.dial(sockets, to, {
          onConnect() {
            upstream.listener = side(outbound, inbound);
            inbound.setSink(upstream);
            outbound.setSource(upstream);
          },
          onError: (code) => assert.fail(code),
          onBroken: rethrow,
        });
        downstream.listener = side(inbound, outbound);
        inbound.setSource(downstream);
        outbound.setSink(downstream);
        legs.push(downstream, upstream);
      },
    });
    const client = net.connect({ host: "127.0.0.1", port: listener.port, allowHalfOpen: true });
    const [served] = (await once(application, "connection")) as [net.Socket];
    const ends = [client, served].map(async (socket) => {
      const check = new Check();
      // slow: one look at a time, and a turn of the loop in between
      const readAll = (async () => {
        for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
          check.take(chunk as Buffer);
          if (check.bytes % 7 === 0) await nextTurn();
        }
      })();
      for (let at = 0; at < total; ) {
        const bytes = Math.min(total - at, 1 + ((at * 7) % 300_000));
        if (!socket.write(pattern(at, bytes))) await once(socket, "drain");
        at += bytes;
      }
      socket.end();
      await readAll;
      return check.bytes;
    });
    assert.deepEqual(await Promise.all(ends), [total, total]);
    assert.ok(drains > 0, "the readers were not slow");
    assert.ok(pendingMax <= READ_BYTES, `${pendingMax} bytes were in user space`);
    assert.equal(inbound.finSent && outbound.finSent, true);
    for (const leg of legs) leg.close();
    listener.close();
    application.close();
  });
});

// ---- in turn

describe("a leg that always has something to read", () => {
  for (const restless of [false, true]) {
    it(`leaves their turns to others${restless ? ", though it is paused and resumed all the time" : ""}`, async () => {
      const busy = await connected();
      widen(busy.fd, busy.peer);
      let sent = 0;
      const more = () => {
        sendAll(busy.peer, pattern(sent, READ_BYTES));
        sent += READ_BYTES;
      };
      for (let chunks = 0; chunks < 6; chunks++) more();
      await arrived(busy.leg, sent);
      busy.witness.onTold = () => {
        more();
        if (!restless) return;
        busy.leg.pauseReading();
        busy.leg.resumeReading();
      };
      busy.leg.resumeReading();
      let readsMax = 0;
      for (let turns = 0; turns < 60; turns++) {
        const before = busy.witness.reads;
        await nextTurn();
        readsMax = Math.max(readsMax, busy.witness.reads - before);
      }
      // once as one that asked for another turn, once for the anchor that came meanwhile
      assert.ok(readsMax >= 1 && readsMax <= 2 * READS_MAX, `${readsMax} reads in one turn`);

      const before = busy.witness.reads;
      const other = await connected();
      other.leg.resumeReading();
      sendAll(other.peer, pattern(0, 1));
      let timerFired = false;
      setTimeout(() => {
        timerFired = true;
        changes.emit("change");
      }, 1);
      await until(() => other.witness.bytes === 1 && timerFired, "the other leg and the timer");
      assert.ok(busy.witness.reads > before, "it was not busy");
      for (const { leg, peer } of [busy, other]) {
        leg.reset();
        close(peer);
      }
    });
  }
});

// ---- listeners

function listening(): ListenerOptions {
  return {
    kernel: sockets,
    address: "127.0.0.1",
    port: 0,
    bind: null,
    onAccept: (fd) => descriptor.close(fd),
    onError: (error) => assert.fail(error),
  };
}

describe("a listener", () => {
  it("accepts thousands of clients, also while more keep coming, and leaves others their turns", async () => {
    const clients = 4_000;
    const dials: number[] = [];
    const fds = new Set<number>();
    let atOnceMax = 0;
    let atOnce = 0;
    const listener = ClientListener.open({
      ...listening(),
      onAccept(fd) {
        fds.add(fd);
        if (dials.length < clients) dials.push(sockets.dial(to));
        if (atOnce++ === 0) setImmediate(() => (atOnce = 0));
        atOnceMax = Math.max(atOnceMax, atOnce);
        changes.emit("change");
      },
    });
    const to = { address: "127.0.0.1", port: listener.port };
    while (dials.length < clients / 2) dials.push(sockets.dial(to));
    await until(() => fds.size === clients, "all of them");
    assert.ok(dials.every((fd) => fd >= 0));
    assert.ok(atOnceMax <= ACCEPTS_MAX, `${atOnceMax} accepted in one turn`);
    for (const fd of [...dials, ...fds]) descriptor.close(fd);
    listener.close();
  });

  it("may be closed by the first client of many", async () => {
    let count = 0;
    const listener = ClientListener.open({
      ...listening(),
      onAccept(fd) {
        count++;
        descriptor.close(fd);
        listener.close();
        changes.emit("change");
      },
    });
    const to = { address: "127.0.0.1", port: listener.port };
    const dials = Array.from({ length: 10 }, () => sockets.dial(to));
    await until(() => count > 0, "a client");
    await everythingIsTold();
    assert.equal(count, 1);
    assert.equal(listener.fd, -1);
    listener.close();
    for (const fd of dials) descriptor.close(fd);
  });

  it("takes a bound descriptor, and gives its port back when closed", async () => {
    const fd = bound({ address: "::1", port: 0 });
    const { port } = sock.getsockname(fd);
    let count = 0;
    const listener = ClientListener.open({
      ...listening(),
      bind: () => fd,
      onAccept(client) {
        count++;
        descriptor.close(client);
        changes.emit("change");
      },
    });
    assert.equal(listener.fd, fd);
    assert.equal(listener.port, port);
    const client = sockets.dial({ address: "::1", port });
    await until(() => count === 1, "the client");
    descriptor.close(client);
    listener.close();
    descriptor.close(bound({ address: "::1", port }));
  });

  it("says why it cannot listen", () => {
    const first = ClientListener.open(listening());
    const codeOf = (options: Partial<ListenerOptions>): unknown[] => {
      try {
        ClientListener.open({ ...listening(), ...options });
      } catch (error) {
        const { code, cause, retryable } = error as HoldfastError;
        return [code, (cause as NodeJS.ErrnoException).code, retryable];
      }
      return [];
    };
    assert.deepEqual(codeOf({ port: first.port }), ["PROXY_LISTEN", "EADDRINUSE", true]);
    // TEST-NET-1
    assert.deepEqual(codeOf({ address: "192.0.2.1" }), ["PROXY_LISTEN", "EADDRNOTAVAIL", true]);
    first.close();
  });
});

// ---- in a process of its own

const run = promisify(execFile);

async function child(script: string, descriptors = 256): Promise<unknown> {
  const head = `
    import { setTimeout as delay, setImmediate as nextTurn } from "node:timers/promises";
    import { ClientListener } from "#proxy/listen/client-listener.ts";
    import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
    import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as polling from "#proxy/kernel/polling.ts";
import * as sock from "#proxy/kernel/socket.ts";
    import { sockets } from "#proxy/kernel/stream-sockets.ts";
    const here = { address: "127.0.0.1", port: 0 };
    const late = setTimeout(() => { throw new Error("late"); }, ${WAIT_MS_MAX});
    // nothing else keeps it alive
    const say = (what) => { clearTimeout(late); process.stdout.write(JSON.stringify(what)); };
    /** takes every descriptor there is */
    const exhaust = () => { const fds = []; for (;;) try { fds.push(descriptor.dupCloexec(0)); } catch { return fds; } };
  `;
  const node = [process.execPath, "--input-type=module", "-e", head + script];
  const { stdout } = await run("sh", ["-c", `ulimit -n ${descriptors}; exec "$0" "$@"`, ...node], {
    cwd: root,
  });
  return JSON.parse(stdout);
}

describe("in a process of its own", () => {
  it("a dial without a descriptor left says EMFILE, later", async () => {
    const told = await child(`
      const listener = sockets.listen(here, 1);
      const to = { ...here, port: sockets.localPort(listener) };
      exhaust();
      let returned = false;
      const tell = (what) => say([what, returned]);
      TcpLeg.dial(sockets, to, { onConnect: () => tell("connected"), onError: tell });
      returned = true;
    `);
    assert.deepEqual(told, ["EMFILE", true]);
  });

  it("a listener without a descriptor left says so, not for each client, and accepts them all afterwards", async () => {
    const clients = 20;
    const told = await child(`
      const errors = new Set(); let count = 0, accepted = 0;
      const listener = ClientListener.open({
        kernel: sockets, ...here, bind: null,
        onAccept() { if (++accepted === ${clients}) say({ errors: [...errors], few: count <= 1 + (performance.now() - since) / 100 }); },
        onError(error) { errors.add(error.message); count++; },
      });
      const to = { ...here, port: listener.port };
      const fds = Array.from({ length: ${clients} }, () => sock.socket(ipText.AF_INET, sock.SOCK_STREAM, 0));
      const taken = exhaust();
      const since = performance.now();
      for (const fd of fds) { sock.connect(fd, to); for (let turns = 0; turns < 3; turns++) await nextTurn(); }
      while (count < 2) await delay(1);
      for (const fd of taken) descriptor.close(fd);
    `);
    assert.deepEqual(told, { errors: ["accept: EMFILE"], few: true });
  });

  it("what a listener throws ends its leg and reaches the listener, and what it promises is done without another event", async () => {
    const told = await child(`
      const listener = sockets.listen(here, 1);
      const fd = sockets.dial({ ...here, port: sockets.localPort(listener) });
      await polling.waitReadable(listener);
      const peer = sockets.accept(listener);
      const leg = TcpLeg.attach(sockets, fd);
      const order = [];
      leg.listener = {
        onData() {
          process.nextTick(() => order.push("tick"));
          Promise.resolve().then(() => order.push("promise")).then(() => sock.shutdown(peer, sock.SHUT_WR));
        },
        onFin() { throw new Error("a bug"); },
        onBroken(error) { say([...order, error.message, leg.isOpen]); },
      };
      leg.resumeReading();
      sock.send(peer, Buffer.of(1), 0);
    `);
    assert.deepEqual(told, ["tick", "promise", "a bug", false]);
  });
});
