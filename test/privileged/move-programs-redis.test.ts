/** redis-server moved while redis-benchmark, redis-cli and ioredis use it: every command answered, once, in order. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Redis } from "ioredis";
import { ended, lacking, until, withProgram } from "../support/moved-program.ts";
import { modes } from "../support/thorough.ts";

const port = 6379;
const workload = {
  container: {
    command: "redis-server --save  --appendonly no --bind 127.0.0.1 --port 9000".split(" "),
    rootfs: "host",
  },
  ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
};
const skip = lacking("redis-server", "redis-benchmark", "redis-cli");

/** How often redis has run a command since its statistics were reset. */
async function calls(redis: Redis, command: string): Promise<number> {
  const stats = await redis.info("commandstats");
  return Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(stats)?.[1] ?? 0);
}

for (const downstream of modes("takeover")) {
  test(`redis-benchmark notices no move, there and back (${downstream})`, { skip }, async () => {
    await withProgram({ downstream, workload }, async (program) => {
      const redis = new Redis(port, program.address, { retryStrategy: null });
      for (const { to, pipeline, requests } of [
        { to: "b", pipeline: 1, requests: 150_000 },
        { to: "a", pipeline: 16, requests: 900_000 },
      ]) {
        await redis.config("RESETSTAT");
        const argv = `redis-benchmark -h ${program.address} -p ${port} -t set -c 50 -P ${pipeline} -n ${requests} -r 1000 --csv`;
        const benchmark = program.spawn(argv.split(" "));
        await until("the benchmark runs", async () => (await calls(redis, "set")) > 1000);
        const move = await program.move(to);
        assert.ok(move.sessions > 50, `the benchmark was over before the hold: ${move.sessions} sessions`);
        const { status, stdout, stderr } = await ended(benchmark);
        assert.equal(status, 0, stderr);
        assert.equal(stderr, "");
        assert.match(stdout, /"SET","[\d.]+"/);
        assert.equal(await calls(redis, "set"), requests, "each request reached redis once");
      }
      redis.disconnect();
    });
  });

  test(`a counter ends at exactly the number of pipelined increments (${downstream})`, { skip }, async () => {
    await withProgram({ downstream, workload }, async (program) => {
      const redis = new Redis(port, program.address, { retryStrategy: null });
      const replies: number[] = [];
      let running = true;
      const increments = (async () => {
        while (running) {
          const pipeline = redis.pipeline();
          for (let i = 0; i < 200; i++) pipeline.incr("counter");
          for (const [error, reply] of (await pipeline.exec()) ?? []) {
            assert.equal(error, null);
            replies.push(reply as number);
          }
        }
      })();
      // redis-cli --pipe sends as fast as it can and counts what comes back
      const piped = 400_000;
      const cli = program.spawn(["redis-cli", "-h", program.address, "-p", String(port), "--pipe"], {
        stdio: ["pipe", "pipe", "pipe"],
      });
      cli.child.stdin?.end("INCR piped\r\n".repeat(piped));
      await until("increments are answered", () => replies.length > 1000);
      await program.move("b");
      await program.move("a");
      const { status, stdout } = await ended(cli);
      assert.equal(status, 0);
      assert.match(stdout, new RegExp(`errors: 0, replies: ${piped}`));
      running = false;
      await increments;
      assert.ok(
        replies.every((reply, index) => reply === index + 1),
        "replies are 1, 2, 3, …",
      );
      assert.equal(Number(await redis.get("counter")), replies.length);
      assert.equal(Number(await redis.get("piped")), piped);
      redis.disconnect();
    });
  });
}
