/** redis-server with redis-benchmark and ioredis: transactions, subscriptions, blocked clients, scripts, expiry. */
import assert from "node:assert/strict";
import { Redis } from "ioredis";
import { ended } from "../../support/moved-program.ts";
import { type Program, upstreamPort, versionFrom } from "../program.ts";

export const redis: Program = {
  name: "redis",
  title: "Redis",
  needs: ["redis-server", "redis-benchmark"],
  version: () => versionFrom(["redis-server", "--version"]),
  command: [
    "redis-server",
    "--bind",
    "127.0.0.1",
    "--port",
    upstreamPort,
    "--dir",
    "/tmp",
    "--appendonly",
    "yes",
  ],
  port: 6379,
  keeps: "keys, WATCH and MULTI, subscriptions, blocked clients, scripts; with its append-only file",
  async use(stage) {
    const clients: Redis[] = [];
    const dial = (): Redis => {
      const client = new Redis(redis.port, stage.address, { retryStrategy: null });
      client.on("error", () => {}); // what was asked is refused, and says why
      clients.push(client);
      return client;
    };
    try {
      for (let n = 0; n < 3; n++)
        stage.client(`counter ${n}`, async ({ beat, over, pace }) => {
          const client = dial();
          for (let expected = 0; !over(); ) {
            const pipeline = client.pipeline();
            for (let i = 0; i < 50; i++) pipeline.incr(`counter${n}`);
            for (const [error, reply] of (await pipeline.exec()) ?? []) {
              assert.equal(error, null);
              assert.equal(reply, ++expected);
            }
            beat();
            await pace();
          }
        });
      const [subscriber, publisher, blocked, watching, plain] = [dial(), dial(), dial(), dial(), dial()];
      const heard: string[] = [];
      await subscriber.psubscribe("news*");
      subscriber.on("pmessage", (_pattern, _channel, message) => heard.push(message));
      stage.client("published", async ({ beat, over, pace }) => {
        for (let n = 1; !over(); n++) {
          assert.equal(await publisher.publish("news1", String(n)), 1, "who heard it");
          beat();
          await pace();
        }
        await publisher.publish("news1", "end");
      });
      stage.client("redis-benchmark", async ({ beat, over, pace }) => {
        while (!over()) {
          const argv = `redis-benchmark -h ${stage.address} -p ${redis.port} -t set,lpush -c 20 -P 4 -n 20000 -r 1000 --csv`;
          const benchmark = stage.program.spawn(argv.split(" "));
          const answer = ended(benchmark);
          for (let done = false; !done; ) {
            done = await Promise.race([answer.then(() => true), pace().then(() => false)]);
            beat();
          }
          const { status, stdout, stderr } = await answer;
          assert.equal(status, 0, stderr);
          assert.equal(stderr, "");
          assert.match(stdout, /"LPUSH","[\d.]+"/);
        }
      });
      const popped = blocked.blpop("queue", 0);
      await plain.set("watched", "1");
      await watching.watch("watched");
      assert.equal(await watching.call("MULTI"), "OK");
      assert.equal(await watching.call("INCR", "watched"), "QUEUED");
      const script = String(await plain.script("LOAD", "return redis.call('incr', KEYS[1])"));
      await plain.set("expires", "1", "EX", 3600);
      await stage.moves();
      assert.deepEqual(await watching.call("EXEC"), [2], "the transaction that was open");
      assert.equal(await plain.evalsha(script, 1, "watched"), 3);
      assert.ok(Number(await plain.ttl("expires")) > 3000);
      await plain.rpush("queue", "at last");
      assert.deepEqual(await popped, ["queue", "at last"]);
      await stage.finish();
      await plain.ping();
      const end = heard.indexOf("end");
      assert.deepEqual(
        heard,
        [...Array.from({ length: end }, (_, index) => String(index + 1)), "end"],
        "messages of the subscription",
      );
    } finally {
      for (const client of clients) client.disconnect();
    }
  },
};
