/**
 * Where the tests of legs happen: network namespaces of their own, raw sockets driven step by step, and a byte pattern
 * that shows a lost, repeated or misplaced byte at its position.
 *
 * Only this process's main thread changes namespace. A socket stays in the namespace it was made in.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint, LegState } from "#proxy/contract/snapshot.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readState } from "#proxy/kernel/tcp-state.ts";

const WAIT_MS_MAX = 8_000;
const CHUNK_BYTES = 64 * 1024;
/** 2 ms apart; longer than an acknowledgement may be delayed (TCP_DELACK_MAX, 200 ms) while one is still to come */
const FULL_LOOKS = 15;
const FULL_LOOKS_UNACKED = 120;

/** A sentence when this machine cannot run the tests, else false: for node:test's `skip`. */
export function lacking(): string | false {
  if (process.getuid?.() !== 0) return "needs root: network namespaces and TCP_REPAIR";
  return false;
}

function currentNamespace(): number {
  return openSync("/proc/thread-self/ns/net", "r");
}

export class Namespace {
  readonly fd: number;

  constructor() {
    const home = currentNamespace();
    try {
      namespaces.unshare(namespaces.CLONE_NEWNET);
      this.fd = currentNamespace();
      execFileSync("ip", ["link", "set", "lo", "up"]);
    } finally {
      namespaces.setns(home, namespaces.CLONE_NEWNET);
      closeSync(home);
    }
  }

  run<T>(action: () => T): T {
    const home = currentNamespace();
    namespaces.setns(this.fd, namespaces.CLONE_NEWNET);
    try {
      return action();
    } finally {
      namespaces.setns(home, namespaces.CLONE_NEWNET);
      closeSync(home);
    }
  }

  ip(command: string): void {
    this.run(() => execFileSync("ip", command.split(" ")));
  }

  sysctl(name: string, value: string | number): void {
    this.run(() => writeFileSync(`/proc/sys/net/${name}`, String(value)));
  }

  /** TCP segments sent and sent again by this namespace so far; pure RSTs included. */
  segmentsSent(): number {
    const lines = this.run(() => readFileSync("/proc/thread-self/net/snmp", "latin1"))
      .split("\n")
      .filter((line) => line.startsWith("Tcp:"))
      .map((line) => line.split(" "));
    const [names, values] = lines;
    assert.ok(names && values);
    const value = (name: string) => Number(values[names.indexOf(name)]);
    return value("OutSegs") + value("RetransSegs") + value("OutRsts");
  }

  close(): void {
    closeSync(this.fd);
  }
}

/** Two namespaces, the ends of one veth pair: `a0` in the first, `b0` in the second. */
export function vethPair(first: Namespace, second: Namespace, firstName: string, secondName: string): void {
  first.run(() => {
    execFileSync("ip", ["link", "add", firstName, "type", "veth", "peer", "name", secondName]);
    execFileSync("ip", ["link", "set", secondName, "netns", `/proc/${process.pid}/fd/${second.fd}`]);
    execFileSync("ip", ["link", "set", firstName, "up"]);
  });
  second.ip(`link set ${secondName} up`);
}

// ---- sockets

const STREAM = sock.SOCK_STREAM | sock.SOCK_NONBLOCK | sock.SOCK_CLOEXEC;

export function listenAt(
  address: string,
  options: { dualStack?: boolean } = {},
): { fd: number; port: number } {
  const v6 = address.includes(":") || options.dualStack === true;
  const fd = sock.socket(v6 ? ipText.AF_INET6 : ipText.AF_INET, STREAM, sock.IPPROTO_TCP);
  sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_REUSEADDR, 1);
  sock.bind(fd, { address: options.dualStack === true ? "::" : address, port: 0 });
  sock.listen(fd, 16);
  return { fd, port: sock.getsockname(fd).port };
}

export function dial(remote: Endpoint): number {
  const v6 = remote.address.includes(":");
  const fd = sock.socket(v6 ? ipText.AF_INET6 : ipText.AF_INET, STREAM, sock.IPPROTO_TCP);
  try {
    sock.connect(fd, remote);
  } catch (error) {
    if (!(error instanceof HoldfastError && error.code === "EINPROGRESS")) throw error;
  }
  return fd;
}

export async function acceptOne(listener: number): Promise<number> {
  let fd = -1;
  await until(() => {
    try {
      fd = sock.accept(listener, sock.SOCK_NONBLOCK | sock.SOCK_CLOEXEC);
      return true;
    } catch (error) {
      if (error instanceof HoldfastError && error.code === "EAGAIN") return false;
      throw error;
    }
  }, "a connection to accept");
  return fd;
}

/** close(2) that sends RST. */
export function resetSocket(fd: number): void {
  const linger = Buffer.alloc(8);
  linger.writeInt32LE(1, 0);
  sock.setsockoptBuffer(fd, sock.SOL_SOCKET, sock.SO_LINGER, linger);
  descriptor.close(fd);
}

export async function until(condition: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + WAIT_MS_MAX;
  while (!condition()) {
    assert.ok(performance.now() < deadline, `waited ${WAIT_MS_MAX} ms for ${what}`);
    await sleep(1);
  }
}

export async function untilState(fd: number, state: LegState): Promise<void> {
  await until(() => readState(fd) === state, `state ${state}`);
}

// ---- bytes

function patternAt(position: number, seed: number): number {
  return (position * 31 + (position >>> 8) * 7 + (position >>> 16) * 13 + seed) & 0xff;
}

/** One direction of a session: what was written and what was read of an endless pattern. */
export class Flow {
  readonly seed: number;
  written = 0;
  read = 0;

  constructor(seed: number) {
    this.seed = seed;
  }

  #pattern(from: number, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length);
    for (let index = 0; index < length; index++) bytes[index] = patternAt(from + index, this.seed);
    return bytes;
  }

  /** Writes up to `bytes`; returns how much the kernel took. */
  write(fd: number, bytes: number): number {
    let total = 0;
    while (total < bytes) {
      const taken = sock.send(
        fd,
        this.#pattern(this.written, Math.min(CHUNK_BYTES, bytes - total)),
        sock.MSG_DONTWAIT,
      );
      if (taken <= 0) break;
      total += taken;
      this.written += taken;
    }
    return total;
  }

  /** Until the kernel takes nothing more, and still takes nothing after a pause. */
  async fill(fd: number, bytesMax: number): Promise<void> {
    // full is when nothing is taken and what is unsent stays the same, not when the other side is slow for a moment
    let unsent = -1;
    let looks = FULL_LOOKS;
    for (let still = 0; still < looks && this.written < bytesMax; ) {
      const written = this.write(fd, bytesMax - this.written);
      const now = descriptor.ioctlInt(fd, sock.SIOCOUTQNSD);
      // an acknowledgement that the other side's kernel delays may let it all go
      looks = descriptor.ioctlInt(fd, sock.SIOCOUTQ) > now ? FULL_LOOKS_UNACKED : FULL_LOOKS;
      still = written === 0 && now > 0 && now === unsent ? still + 1 : 0;
      unsent = now;
      await sleep(2);
    }
  }

  /** Checks what is there now; true at the end of the stream. */
  #drain(fd: number): boolean {
    const into = Buffer.allocUnsafe(CHUNK_BYTES);
    for (;;) {
      let size: number;
      try {
        size = sock.recv(fd, into, sock.MSG_DONTWAIT);
      } catch (error) {
        if (error instanceof HoldfastError && error.code === "EAGAIN") return false;
        throw error;
      }
      if (size === 0) return true;
      if (!into.subarray(0, size).equals(this.#pattern(this.read, size))) {
        for (let index = 0; index < size; index++) {
          assert.equal(
            into[index],
            patternAt(this.read + index, this.seed),
            `byte ${this.read + index} differs`,
          );
        }
      }
      this.read += size;
    }
  }

  /** Everything written arrives, byte for byte, and nothing more. */
  async readAll(fd: number): Promise<void> {
    await until(() => {
      assert.equal(this.#drain(fd), false, `the stream ended after ${this.read} of ${this.written} bytes`);
      return this.read >= this.written;
    }, `${this.written} bytes (at ${this.read})`);
    assert.equal(this.read, this.written);
  }

  /** As {@link readAll}, then the end of the stream. */
  async readToEnd(fd: number): Promise<void> {
    await until(() => this.#drain(fd), `the end of the stream (at byte ${this.read} of ${this.written})`);
    assert.equal(this.read, this.written);
  }
}
