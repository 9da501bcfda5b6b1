/**
 * Many clients that send a byte now and then, and never a whole request (slowloris), headers or bodies or frames: what one
 * of them costs is bounded, others are served meanwhile, and nothing of them stays.
 *
 * No clock drives them: the next byte goes out when the application has had the last one, so a byte a client is always
 * under way, on sockets that are all open.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { MALFORMED } from "#test/support/malformed.ts";
import { MalformedStage, type PortShape } from "#test/support/malformed-stage.ts";
import { RawApplication, RawEnd } from "#test/support/raw-ends.ts";

const SLOW_CLIENTS = 600;
const BYTES_EACH = 40;
/** in the proxy: the least that a session may cost is an issue's figure of its own, this is what it must not become */
const CLIENT_BYTES_MAX = 48 * 1024;
/** compiled code, and chunks of malloc(3) that lie between others */
const SLACK_BYTES_MAX = 16 * 1024 * 1024;
/** to each slow client while one honest request is served; one that had to wait for them would see all of {@link BYTES_EACH} */
const DRIPS_MEANWHILE_MAX = BYTES_EACH / 2;
const HONEST_REQUESTS = 20;
/** watched when all have gone; a tick is 10 ms (USER_HZ) */
const IDLE_MS = 1_000;
const IDLE_TICKS_MAX = 20;

const SHAPES: PortShape[] = [
  { protocol: "auto", continuity: "transplant" },
  { protocol: "http", continuity: "replay" },
  { protocol: "websocket", continuity: "replay" },
];
const HONEST = Buffer.from("GET /honest HTTP/1.1\r\nHost: a\r\n\r\n");
const ANSWER = Buffer.from("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");

/** Each the beginning of something that is never finished. */
const BEGINNINGS: Buffer[] = [
  Buffer.from("GET /first HTTP/1.1\r\nHost: a\r\nX: "),
  Buffer.from("POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"),
  Buffer.from("POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n"),
  MALFORMED.find(({ name }) => name === "websocket-fragment-never-ends")?.bytes ?? Buffer.alloc(0),
  Buffer.alloc(0),
];

describe("clients that send a byte now and then", { timeout: 300_000 }, () => {
  const applications: RawApplication[] = [];
  let stage: MalformedStage;
  /** of all slow clients, what has arrived */
  let dripped = 0;

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

  async function dial(lane: number): Promise<{ client: RawEnd; server: RawEnd }> {
    const client = await RawEnd.dial(stage.ports[lane] as number);
    return { client, server: await (applications[lane] as RawApplication).accept() };
  }

  async function honestRequest(lane: number): Promise<void> {
    const { client, server } = await dial(lane);
    const before = dripped;
    client.socket.write(HONEST);
    await server.has(HONEST.length);
    server.socket.write(ANSWER);
    await client.has(ANSWER.length);
    assert.deepEqual(client.received, ANSWER);
    const meanwhile = (dripped - before) / SLOW_CLIENTS;
    assert.ok(meanwhile < DRIPS_MEANWHILE_MAX, `${meanwhile} bytes from each slow client before an answer`);
    client.socket.end();
    await server.ending();
    server.socket.end();
    await client.ending();
  }

  const cpuTicks = (): number => {
    const fields =
      readFileSync(`/proc/${stage.proxy.process.pid}/stat`, "latin1").split(") ")[1]?.split(" ") ?? [];
    return Number(fields[11]) + Number(fields[12]);
  };

  for (const [lane, { protocol, continuity }] of SHAPES.entries())
    it(`cost a bounded memory and hinder nobody: ${protocol}, ${continuity}`, async () => {
      await honestRequest(lane);
      const descriptors = stage.proxy.descriptors;
      const before = await stage.memory();
      const slow: { client: RawEnd; server: RawEnd }[] = [];
      const sent: Buffer[] = [];
      for (let at = 0; at < SLOW_CLIENTS; at++) {
        const ends = await dial(lane);
        const beginning = BEGINNINGS[at % BEGINNINGS.length] as Buffer;
        ends.client.socket.write(beginning);
        slow.push(ends);
        sent.push(beginning);
      }
      let honest = 0;
      const drip = Buffer.from("x");
      await Promise.all([
        ...slow.map(async ({ client, server }, at) => {
          const { length } = sent[at] as Buffer;
          await server.has(length);
          for (let count = 1; count <= BYTES_EACH; count++) {
            client.socket.write(drip);
            await server.has(length + count);
            dripped++;
          }
        }),
        (async () => {
          for (; honest < HONEST_REQUESTS; honest++) await honestRequest(lane);
        })(),
      ]);
      assert.equal(honest, HONEST_REQUESTS);
      for (const [at, { client, server }] of slow.entries()) {
        assert.deepEqual(server.received, Buffer.concat([sent[at] as Buffer, Buffer.alloc(BYTES_EACH, "x")]));
        assert.equal(client.receivedBytes, 0);
        assert.equal(client.over, null);
      }
      const growth = (await stage.memory()).residentBytes - before.residentBytes;
      assert.ok(
        growth < SLACK_BYTES_MAX + SLOW_CLIENTS * CLIENT_BYTES_MAX,
        `${growth} bytes for ${SLOW_CLIENTS} clients`,
      );
      assert.equal((await stage.proxy.status()).sessions, SLOW_CLIENTS);
      for (const { client, server } of slow) {
        client.socket.resetAndDestroy();
        await server.ending();
        server.destroy();
      }
      await stage.proxy.untilSessions(0);
      assert.ok(stage.proxy.descriptors <= descriptors, "a descriptor is left");
      // A timer that had been left would run in a process that has nothing else to do. Of a whole processor it is 100.
      const ticks = cpuTicks();
      await delay(IDLE_MS);
      assert.ok(cpuTicks() - ticks <= IDLE_TICKS_MAX, "the proxy works although nobody asks it anything");
    });
});
