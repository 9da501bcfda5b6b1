/**
 * Malformed and ambiguous input through one real proxy process, between raw ends: each byte arrives as it was sent, each
 * end as it was made, whatever the proxy believes about the protocol; and nothing of it stays behind.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import {
  ENDLESS,
  type Endless,
  MALFORMED,
  type Malformed,
  randomSplit,
  seededRandom,
} from "#test/support/malformed.ts";
import { MalformedStage, type PortShape } from "#test/support/malformed-stage.ts";
import { RawApplication, RawEnd } from "#test/support/raw-ends.ts";

/** Entries (their frames, where a handshake precedes them) up to here are also sent byte by byte, each waited for. */
const SINGLE_BYTES_MAX = 320;
const RANDOM_PARTS_MAX = 7;
const SEED = 20_260_101;
const ENDLESS_BYTES = 24 * 1024 * 1024;
/** what it keeps more than before as a part of what passed */
const GROWTH_SHARE_MAX = 0.05;
/** a leak stays */
const DESCRIPTORS_MS_MAX = 5_000;
/** while {@link ENDLESS_BYTES} pass through each of the ports at once, whose sessions may keep 256 kB each in either direction */
const ENDLESS_KEPT_BYTES_MAX = 4 * 1024 * 1024;
/** … and what becomes resident, of the 144 MiB: the garbage that V8 lets lie, which malloc(3) need not give back */
const ENDLESS_RESIDENT_BYTES_MAX = 96 * 1024 * 1024;

/** what the proxy adds to the head of an answer on a `replay` port (proxy/replay/protocol-filter.ts) */
const EDITED = "; client_no_context_takeover";
/** nothing, answers 503, or a WebSocket's Close */
const OWN_WORDS = /^(HTTP\/1\.1 503 |\x88|$)/;
/** of the application, that one session may be sent to again before it is refused */
const LIVES_MAX = 4;
/** … and one that has sent half a head, as long as its client has not gone */
const HALF_HEAD_LIVES_MAX = 11;
const latin1 = (bytes: Buffer): string => bytes.toString("latin1");

const SHAPES: PortShape[] = (["auto", "http", "websocket"] as const).flatMap((protocol) =>
  (["transplant", "replay"] as const).map((continuity) => ({ protocol, continuity })),
);
const NAMES = SHAPES.map(({ protocol, continuity }) => `${protocol}, ${continuity}`);

const SPLITS = ["whole", "single bytes", "random"] as const;
const ENDINGS = ["application ends", "application resets", "client ends", "client resets"] as const;
interface Ends {
  client: RawEnd;
  server: RawEnd;
}
interface Parts {
  request: number[];
  answer: number[];
}
type Split = (typeof SPLITS)[number];
type Ending = (typeof ENDINGS)[number];

const sent = (side: "client" | "server"): Malformed[] => MALFORMED.filter((entry) => entry.side === side);
const asked = sent("client");
const answered = sent("server");

/** The lengths of the parts that an entry is sent in. */
function partsOf(entry: Malformed, split: Split, random: () => number): number[] {
  const { bytes, handshakeBytes } = entry;
  if (bytes.length === 0) return [];
  if (split === "random") return randomSplit(bytes, RANDOM_PARTS_MAX, random);
  const rest = bytes.length - handshakeBytes;
  if (split === "single bytes" && rest <= SINGLE_BYTES_MAX)
    return [...(handshakeBytes > 0 ? [handshakeBytes] : []), ...new Array<number>(rest).fill(1)];
  return [bytes.length];
}

describe("malformed input between raw ends", { timeout: 300_000 }, () => {
  const applications: RawApplication[] = [];
  let stage: MalformedStage;
  let passedBytes = 0;
  /** connections to each application */
  const total = SHAPES.map(() => 0);

  before(async () => {
    for (const _ of SHAPES) applications.push(await RawApplication.start());
    stage = await MalformedStage.start(
      SHAPES.map((shape, at) => ({ port: (applications[at] as RawApplication).port, shape })),
    );
  });
  after(async () => {
    for (const application of applications) application.close();
    await stage.stop();
  });

  async function dial(lane: number): Promise<Ends> {
    const application = applications[lane] as RawApplication;
    application.onFurther = null;
    const client = await RawEnd.dial(stage.ports[lane] as number);
    const server = await application.accept();
    total[lane] = (total[lane] ?? 0) + 1;
    return { client, server };
  }

  /** One end sends the entry, the other one has it, and nothing else; part by part where they are few. */
  async function passes(from: RawEnd, to: RawEnd, entry: Malformed, parts: number[]): Promise<void> {
    const start = to.receivedBytes;
    await from.send(entry.bytes, parts, (sentBytes) => to.has(start + sentBytes));
    assert.deepEqual(to.received.subarray(start), entry.bytes);
    assert.equal(to.over, null);
    passedBytes += entry.bytes.length;
  }

  async function finish(client: RawEnd, server: RawEnd, ending: Ending): Promise<void> {
    const [first, second] = ending.startsWith("client") ? [client, server] : [server, client];
    const counts = [first.receivedBytes, second.receivedBytes];
    if (ending.endsWith("resets")) {
      first.socket.resetAndDestroy();
      assert.equal(await second.ending(), "ECONNRESET");
    } else {
      first.socket.end();
      assert.equal(await second.ending(), "end");
      second.socket.end();
      assert.equal(await first.ending(), "end");
    }
    assert.deepEqual([first.receivedBytes, second.receivedBytes], counts, "nobody has added anything");
  }

  /**
   * A `replay` port holds the head of an answer until it is complete, and may hide the application's end. So: the request
   * has arrived as it was sent; when both ends have said goodbye the client has had the whole answer first, and then at most
   * a word of the proxy's own; and the application was asked a bounded number of times. Of an answer whose head the application
   * never completed the client has seen nothing, and may be reset.
   */
  async function survives(
    lane: number,
    ends: Ends,
    request: Malformed,
    answer: Malformed,
    parts: Parts,
  ): Promise<void> {
    const { client, server } = ends;
    const application = applications[lane] as RawApplication;
    await passes(client, server, request, parts.request);
    const before = application.connections;
    application.onFurther = (further) => further.socket.end();
    await server.send(answer.bytes, parts.answer);
    server.socket.end();
    client.socket.end();
    const ending = await client.ending();
    application.onFurther = null;
    const received = latin1(client.received).replace(EDITED, "");
    const expected = latin1(answer.bytes);
    const hasHead = expected.includes("\r\n\r\n");
    if (hasHead) assert.equal(ending, "end");
    if (hasHead || received !== "") assert.equal(received.slice(0, expected.length), expected);
    assert.match(received.slice(received === "" ? 0 : expected.length), OWN_WORDS);
    const further = application.connections - before;
    assert.ok(further <= (hasHead ? LIVES_MAX : HALF_HEAD_LIVES_MAX), `${further} further connections`);
    total[lane] = (total[lane] ?? 0) + further;
    server.destroy();
    client.destroy();
  }

  /** Each entry once on this port; split and ending change from entry to entry, so that three rounds have all splits. */
  async function round(lane: number, turn: number): Promise<void> {
    const random = seededRandom(SEED + lane * 100 + turn);
    for (let at = 0; at < Math.max(asked.length, answered.length); at++) {
      const request = asked[at % asked.length] as Malformed;
      const answer = answered[at % answered.length] as Malformed;
      const split = SPLITS[(at + turn) % SPLITS.length] as Split;
      const ending = ENDINGS[(at + turn) % ENDINGS.length] as Ending;
      const parts = { request: partsOf(request, split, random), answer: partsOf(answer, split, random) };
      let ends: Ends | undefined;
      try {
        ends = await dial(lane);
        const { client, server } = ends;
        if (SHAPES[lane]?.continuity === "replay") await survives(lane, ends, request, answer, parts);
        else {
          await passes(client, server, request, parts.request);
          await passes(server, client, answer, parts.answer);
          await finish(client, server, ending);
        }
      } catch (cause) {
        ends?.client.destroy();
        ends?.server.destroy();
        throw new Error(`${request.name}, answered with ${answer.name}, ${split}, ${ending}`, { cause });
      }
    }
  }

  async function nothingIsLeft(connections: number[]): Promise<void> {
    await stage.proxy.untilSessions(0);
    assert.ok(stage.isAlive);
    assert.deepEqual(
      applications.map((application) => application.connections),
      connections,
      "one connection to the application for each of the clients'",
    );
  }

  for (const [lane, name] of NAMES.entries())
    it(`arrives byte for byte, and the end as it was made: ${name}`, async () => {
      for (let turn = 0; turn < SPLITS.length; turn++) await round(lane, turn);
      await nothingIsLeft(total);
    });

  it("leaves no memory behind", async () => {
    const before = await stage.memory();
    const passedBefore = passedBytes;
    const descriptors = stage.proxy.descriptors;
    await Promise.all(
      SHAPES.map(async (_, lane) => {
        for (let turn = 0; turn < SPLITS.length; turn++) await round(lane, turn);
      }),
    );
    await nothingIsLeft(total);
    const growth = (await stage.memory()).keptBytes - before.keptBytes;
    const passed = passedBytes - passedBefore;
    assert.ok(growth < passed * GROWTH_SHARE_MAX, `${growth} bytes more than before, ${passed} have passed`);
    // a session is off the books a moment before its descriptors are closed
    const deadlineMs = performance.now() + DESCRIPTORS_MS_MAX;
    while (stage.proxy.descriptors > descriptors && performance.now() < deadlineMs) await delay(5);
    assert.ok(stage.proxy.descriptors <= descriptors, "a descriptor is left");
  });

  /** Sends an entry's beginning and then its block, over and over; the other end takes it all. */
  async function stream(lane: number, entry: Endless): Promise<void> {
    const { client, server } = await dial(lane);
    const [from, to] = entry.side === "client" ? [client, server] : [server, client];
    await to.send(entry.before, [entry.before.length]);
    await from.has(entry.before.length);
    to.keeps = false;
    const blocks = Math.ceil(ENDLESS_BYTES / entry.block.length);
    await from.send(entry.opening, [entry.opening.length]);
    for (let block = 0; block < blocks; block++) await from.send(entry.block, [entry.block.length]);
    const expected = entry.opening.length + blocks * entry.block.length;
    await to.has(expected);
    assert.equal(to.receivedBytes, expected, entry.name);
    client.socket.resetAndDestroy();
    assert.equal(await server.ending(), "ECONNRESET");
  }

  // What the process needs once is there from now on: compiled code, and the room for garbage.
  it("carries streams without an end through all ports at once", async () => {
    const [entry] = ENDLESS;
    assert.ok(entry !== undefined);
    await Promise.all(SHAPES.map((_, lane) => stream(lane, entry)));
    await stage.proxy.untilSessions(0);
  });

  for (const entry of ENDLESS)
    it(`passes ${entry.name} without keeping it`, async () => {
      const before = await stage.memory();
      await Promise.all(SHAPES.map((_, lane) => stream(lane, entry)));
      const after = await stage.memory();
      const kept = after.keptBytes - before.keptBytes;
      assert.ok(kept < ENDLESS_KEPT_BYTES_MAX, `${kept} bytes more than before`);
      const resident = after.residentBytes - before.residentBytes;
      assert.ok(resident < ENDLESS_RESIDENT_BYTES_MAX, `${resident} bytes more resident than before`);
      await stage.proxy.untilSessions(0);
    });
});
