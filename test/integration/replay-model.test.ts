/**
 * Many clients over an application that ends and comes back at random moments, in whatever phase each request is: before
 * its head is complete, in its body, before its answer, in the middle of it. Checked against what may happen at all: a request
 * that is not idempotent is carried out at most once over all lives, a whole body or none; answers come in order, one a request,
 * each its own; a connection that ends early ends without a made-up answer; and nothing is left.
 */
import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import type { Socket } from "node:net";
import { after, before, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { answersIn, ReplayStage } from "#test/support/mortal-application.ts";
import type { RawEnd } from "#test/support/raw-ends.ts";

const RUN_MS = Number(process.env.REPLAY_MODEL_MS ?? 4_000);
const SEED = Number(process.env.REPLAY_MODEL_SEED ?? randomInt(2 ** 31));
const CLIENTS = 24;

/** mulberry32 */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface Request {
  id: string;
  method: "GET" | "POST" | "PUT";
  body: string;
}

/** How often each request was carried out, by its id. */
const executed = new Map<string, number>();
const faults: string[] = [];

/** One connection of the application: framing by hand, so that a request counts when its last byte is here, and not before. */
function serve(socket: Socket, next: () => number): void {
  let pending = "";
  const queue: string[] = [];
  let isAnswering = false;
  const answer = async (): Promise<void> => {
    if (isAnswering) return;
    isAnswering = true;
    for (let text = queue.shift(); text !== undefined; text = queue.shift()) {
      await delay(Math.floor(next() * 6));
      const cut = Math.floor(next() * text.length);
      socket.write(text.slice(0, cut));
      if (next() < 0.3) await delay(1);
      socket.write(text.slice(cut));
    }
    isAnswering = false;
  };
  socket.on("data", (bytes) => {
    pending += String(bytes);
    for (;;) {
      const end = pending.indexOf("\r\n\r\n");
      if (end < 0) return;
      const head = pending.slice(0, end);
      const [, method, id] = /^(GET|POST|PUT) \/(\S+) HTTP\/1\.1\r\n/.exec(head) ?? [];
      if (method === undefined || id === undefined) {
        faults.push(`the application got ${JSON.stringify(head.slice(0, 60))}`);
        socket.resetAndDestroy();
        return;
      }
      const length = Number(/Content-Length: (\d+)/.exec(head)?.[1] ?? 0);
      if (pending.length < end + 4 + length) return;
      const body = pending.slice(end + 4, end + 4 + length);
      if (body !== bodyOf(id, length)) faults.push(`the body of ${id} is wrong`);
      pending = pending.slice(end + 4 + length);
      executed.set(id, (executed.get(id) ?? 0) + 1);
      queue.push(`HTTP/1.1 200 OK\r\nContent-Length: ${id.length}\r\n\r\n${id}`);
      void answer();
    }
  });
  socket.on("end", () => socket.end());
}

function bodyOf(id: string, length: number): string {
  return id.repeat(Math.ceil(length / id.length)).slice(0, length);
}

class Outcome {
  readonly sent: Request[] = [];
  readonly end: RawEnd;
  constructor(end: RawEnd) {
    this.end = end;
  }
}

let stage: ReplayStage;
before(async () => {
  stage = await ReplayStage.start([{ protocol: "http" }], {
    stallMsMax: 5,
    lingerMsMax: 500,
    replayBytesMax: 8 * 1024,
    heldSessionBytesMax: 4 * 1024,
    unavailableMsMax: 60_000,
  });
});
after(() => stage.stop());

it("keeps its word whatever happens when", { timeout: 300_000 }, async (t) => {
  t.diagnostic(`REPLAY_MODEL_SEED=${SEED}`);
  const next = random(SEED);
  stage.application.serve = (socket) => serve(socket, next);
  await stage.application.restart();
  const descriptors = stage.proxy.descriptors;
  const deadlineMs = performance.now() + RUN_MS;
  const outcomes: Outcome[] = [];
  let ids = 0;

  async function client(): Promise<void> {
    let outcome: Outcome | null = null;
    while (performance.now() < deadlineMs) {
      if (outcome === null) {
        outcome = new Outcome(await stage.dial());
        outcomes.push(outcome);
      }
      const { end, sent } = outcome;
      const burst = 1 + Math.floor(next() * 3);
      for (let count = 0; count < burst && end.over === null; count++) {
        const id = `r${ids++}`;
        const method = (["GET", "POST", "PUT"] as const)[Math.floor(next() * 3)] ?? "GET";
        const length = method === "GET" ? 0 : Math.floor(next() ** 4 * 20_000);
        const body = bodyOf(id, length);
        sent.push({ id, method, body });
        const text = `${method} /${id} HTTP/1.1\r\nHost: app\r\n${method === "GET" ? "" : `Content-Length: ${length}\r\n`}\r\n${body}`;
        const cut = Math.floor(next() * text.length);
        end.socket.write(text.slice(0, cut));
        if (next() < 0.5) await delay(Math.floor(next() * 8));
        end.socket.write(text.slice(cut));
      }
      await end.until(
        "every answer, or an end",
        () => end.over !== null || answersIn(end.received).length >= sent.length,
      );
      if (end.over !== null) {
        end.socket.end();
        outcome = null;
      } else if (next() < 0.1) {
        if (next() < 0.5) end.socket.end();
        else end.socket.resetAndDestroy();
        await end.ending();
        outcome = null;
      } else if (next() < 0.3) await delay(Math.floor(next() * 10));
    }
    outcome?.end.socket.end();
  }

  async function fate(): Promise<void> {
    while (performance.now() < deadlineMs) {
      await delay(Math.floor(next() * 60));
      const paused = next() < 0.3;
      if (paused) await stage.pause(Math.floor(next() * 20));
      stage.application.end(next() < 0.5 ? "reset" : "fin");
      await delay(Math.floor(next() * 30));
      await stage.application.begin();
      if (paused) await stage.resume();
    }
  }

  await Promise.all([fate(), ...Array.from({ length: CLIENTS }, client)]);
  const counters = (await stage.status()).counters;
  t.diagnostic(
    `${ids} requests, ${stage.application.life} lives, ${outcomes.length} connections, ` +
      `${counters.requestsReplayed} sent again, ${counters.requestsRefused} refused, ${counters.sessionsReset} reset`,
  );
  assert.deepEqual(faults, []);
  const seen = { ok: 0, refused: 0 };
  for (const { end, sent } of outcomes) {
    const answers = answersIn(end.received);
    assert.ok(answers.length <= sent.length, "more answers than requests");
    for (const [index, { status, body }] of answers.entries()) {
      const request = sent[index] as Request;
      if (status === 200) assert.equal(body, request.id, "an answer of another request");
      else assert.equal(status, 503);
      seen[status === 200 ? "ok" : "refused"]++;
      const times = executed.get(request.id) ?? 0;
      if (status === 200) assert.ok(times >= 1, `${request.id} was answered and not carried out`);
    }
  }
  for (const { sent } of outcomes)
    for (const { id, method } of sent) {
      const times = executed.get(id) ?? 0;
      if (method === "POST") assert.ok(times <= 1, `${id} was carried out ${times} times`);
      else assert.ok(times <= 3, `${id} was given to ${times} lives`);
    }
  assert.ok(seen.ok > 100 && (counters.requestsReplayed ?? 0) > 0 && seen.refused > 0, JSON.stringify(seen));
  await stage.clear();
  const open = await stage.until(
    "descriptors as before",
    async () => stage.proxy.descriptors,
    (count) => count <= descriptors,
  );
  assert.ok(open <= descriptors, `${open} descriptors, ${descriptors} before`);
});
