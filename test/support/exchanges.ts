/**
 * Exchanges of many protocols with one moved program: each is a generator that yields whenever a move may happen, with
 * bytes of it under way, and checks what has come of that move when it goes on.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { createReadStream, mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { TestContext } from "node:test";
import { Client, type Dispatcher } from "undici";
import type { LabProcess } from "../lab/lab.ts";
import type { CountedClient } from "./counted-client.ts";
import { type MovedProgram, until, workloadName } from "./moved-program.ts";

/** Once over after the last move; a failure before is the whole test's. */
export type Exchange = AsyncGenerator<void, void>;

/** What the program of test/apps/exchanges says of a body. */
export interface Summary {
  bytes: number;
  sha256: string;
}

const flowBytes = 200_000;
const pieceBytes = 4 * 1024;
const pieceMs = 2;
const chunkBytes = 64 * 1024;
const answerMsMax = 10_000;
const exchangeMsMax = 60_000;

/**
 * Starts every exchange, moves the program along `route` while all of them are under way, and finishes each as a
 * subtest of its own.
 */
export async function throughMoves(
  t: TestContext,
  program: MovedProgram,
  route: string[],
  exchanges: Record<string, Exchange>,
): Promise<void> {
  const all = Object.entries(exchanges);
  try {
    for (const to of route) {
      // settled, so that nobody is left running when another fails
      for (const [index, step] of (
        await Promise.allSettled(all.map(([, steps]) => steps.next()))
      ).entries()) {
        if (step.status === "rejected") throw step.reason;
        assert.equal(step.value.done, false, `${all[index]?.[0]} was over before the move to ${to}`);
      }
      const connections = connectionsTo(program);
      const move = await program.move(to);
      assert.ok(
        move.sessions >= connections.length,
        `${move.sessions} sessions moved of ${connections.length}`,
      );
      await everyConnectionIsShown(program);
    }
    let failed = "";
    for (const [name, steps] of all) {
      await t.test(name, { timeout: exchangeMsMax }, async () => {
        try {
          assert.equal((await steps.next()).done, true, "another move was expected");
        } catch (error) {
          failed = name;
          throw error;
        }
      });
    }
    assert.equal(failed, "", "an exchange did not survive");
  } finally {
    // not waited for: one that hangs goes on only when the laboratory ends its client
    for (const [, steps] of all) steps.return().catch(() => {});
  }
}

/** The clients' connections to the program as their kernel has them, as "10.99.0.100:40000". */
function connectionsTo(program: MovedProgram): string[] {
  const filter = ["state", "established", "dst", program.address];
  return execFileSync("ss", ["-Htn", ...filter], { encoding: "utf8" })
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.trim().split(/\s+/)[2] ?? "");
}

/** `holdfast sessions --json` has the clients' connections, each of them once and no other. */
async function everyConnectionIsShown(program: MovedProgram): Promise<void> {
  let shown: string[] = [];
  let there: string[] = [];
  try {
    await until("the sessions are the clients' connections", async () => {
      const { json } = await program.lab.cli(program.at, ["sessions", workloadName, "--json"]);
      shown = (json as { sessions: { client: string }[] }).sessions.map(({ client }) => client).sort();
      there = connectionsTo(program).sort();
      return shown.join() === there.join();
    });
  } catch {
    assert.deepEqual(shown, there, "the sessions are the clients' connections");
  }
}

/** The program of test/apps/exchanges as seen by a test that opens and watches its gates. */
export class Gates {
  readonly origin: string;

  constructor(origin: string) {
    this.origin = origin;
  }

  async #ask<T>(method: Dispatcher.HttpMethod, path: string, body: string | null = null): Promise<T> {
    // a connection an answer, so that none of ours is idle in a move
    const client = new Client(this.origin, { headersTimeout: answerMsMax });
    try {
      const response = await client.request({ method, path, body, reset: true });
      assert.equal(response.statusCode, 200, `${method} ${path}`);
      return (await response.body.json()) as T;
    } finally {
      await client.close();
    }
  }

  async open(name: string, body = ""): Promise<void> {
    await this.#ask("POST", `/gates/${name}`, body);
  }

  /** Resolves when that many exchanges wait at the gate. */
  async crowded(name: string, count = 1): Promise<void> {
    await until(`${count} wait at ${name}`, async () => {
      const { waiting } = await this.#ask<{ waiting: number }>("GET", `/gates/${name}`);
      return waiting === count;
    });
  }

  /** What `GET /bytes/NAME` has sent, when it is over. */
  async sent(name: string): Promise<Summary> {
    let summary: Summary | null = null;
    await until(`${name} is sent`, async () => {
      summary = await this.#ask<Summary | null>("GET", `/sent/${name}`);
      return summary !== null;
    });
    return summary as unknown as Summary;
  }
}

/** Bytes to and fro in both moves, each the right one, and a connection that ends in order after the last of them. */
export async function* counted(client: CountedClient): Exchange {
  const well = (): void => {
    assert.deepEqual({ over: client.over, corruptAt: client.corruptAt }, { over: null, corruptAt: -1 });
  };
  const more = async (): Promise<void> => {
    const goal = client.answeredBytes + flowBytes;
    await until(`${goal} bytes are answered`, () => client.answeredBytes >= goal || client.over !== null);
    well();
  };
  // at a steady rate, which leaves the machine to the move
  const sending = setInterval(() => client.send(pieceBytes), pieceMs);
  try {
    for (const _ of [1, 2]) {
      await more();
      yield;
    }
    await more();
    clearInterval(sending);
    await until("the last byte is answered", () => client.answeredBytes === client.sentBytes);
    well();
    client.socket.end();
    await until("the connection ends", () => client.over !== null);
    assert.equal(client.over, "end");
  } finally {
    clearInterval(sending);
    client.socket.destroy();
  }
}

/** Resolves when a file that a client writes has grown by `bytes` since now; fails when the client ends first. */
export async function grows(file: string, client: LabProcess, bytes = flowBytes): Promise<void> {
  const goal = sizeOf(file) + bytes;
  await until(`${file} has ${goal} bytes`, () => sizeOf(file) >= goal || client.exited);
  assert.ok(!client.exited, `${client.child.spawnargs.join(" ")} has ended: ${client.stderr}`);
}

export function sizeOf(file: string): number {
  return statSync(file, { throwIfNoEntry: false })?.size ?? 0;
}

export async function summaryOf(file: string): Promise<Summary> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(file), hash);
  return { bytes: sizeOf(file), sha256: hash.digest("hex") };
}

/** Random bytes into a client's standard input as fast as it takes them, so that some are always on their way. */
export class Feed {
  bytes = 0;
  readonly #stdin: Writable;
  readonly #client: LabProcess;
  readonly #hash = createHash("sha256");
  #ending = false;

  constructor(client: LabProcess) {
    assert.ok(client.child.stdin);
    this.#client = client;
    this.#stdin = client.child.stdin;
    this.#stdin.on("error", () => {}); // the client has ended, and says why
    this.#write();
  }

  #write(): void {
    const chunk = randomBytes(chunkBytes);
    this.#hash.update(chunk);
    this.bytes += chunkBytes;
    if (this.#ending) this.#stdin.end(chunk);
    else if (this.#stdin.write(chunk)) setImmediate(() => this.#write());
    else this.#stdin.once("drain", () => this.#write());
  }

  /** Resolves when the client has taken `more` bytes since now; fails when it ends first. */
  async flows(more = 1024 * 1024): Promise<void> {
    const goal = this.bytes + more;
    await until(`${goal} bytes are taken`, () => this.bytes >= goal || this.#client.exited);
    assert.ok(!this.#client.exited, this.#client.stderr);
  }

  /** Ends the body; what the client has got when it is over. */
  async end(): Promise<Summary> {
    this.#ending = true;
    await until("the last bytes are taken", () => this.#stdin.writableFinished || this.#client.exited);
    return { bytes: this.bytes, sha256: this.#hash.digest("hex") };
  }
}

/** Events of an EventSource stream kept in a file: the ids, as far as they are whole. */
export function eventIds(file: string): number[] {
  return [...readFileSync(file, "utf8").matchAll(/^id: (\d+)\ndata: x*\n\n/gm)].map(([, id]) => Number(id));
}

export function assertConsecutive(numbers: number[], what: string): void {
  assert.ok(numbers.length > 0, `no ${what}`);
  const first = numbers.findIndex((number, index) => number !== index + 1);
  assert.equal(first, -1, `${what}: ${numbers.slice(first - 2, first + 3)} at ${first}`);
}

/** A key and its certificate for holdfast.test, as key.pem and cert.pem of a folder. */
export function makeCertificate(folder: string): void {
  mkdirSync(folder, { recursive: true });
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
  const subject = ["-subj", "/CN=holdfast.test", "-addext", "subjectAltName=DNS:holdfast.test"];
  const files = ["-keyout", join(folder, "key.pem"), "-out", join(folder, "cert.pem")];
  execFileSync("openssl", ["req", "-x509", ...key, ...subject, ...files], { stdio: "pipe" });
}
