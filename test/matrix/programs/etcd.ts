/** etcd (one member), with etcdctl and its JSON gateway: a watch, a lease that is kept alive, a lock, revisions. */
import assert from "node:assert/strict";
import { Client } from "undici";
import { type Program, upstream, versionFrom } from "../program.ts";
import { assertCounted } from "../stage.ts";

const writers = 3;

export const etcd: Program = {
  name: "etcd",
  title: "etcd",
  needs: ["etcd", "etcdctl"],
  version: () => versionFrom(["etcd", "--version"]),
  command: [
    ...["etcd", "--data-dir", "/tmp/etcd", "--name", "matrix"],
    ...["--listen-client-urls", `http://${upstream}`, "--advertise-client-urls", `http://${upstream}`],
    ...[
      "--listen-peer-urls",
      "http://127.0.0.1:9001",
      "--initial-advertise-peer-urls",
      "http://127.0.0.1:9001",
    ],
    ...["--initial-cluster", "matrix=http://127.0.0.1:9001"],
  ],
  port: 2379,
  keeps: "keys and revisions, a watch, a lease kept alive, a lock",
  async use(stage) {
    const origin = `http://${stage.address}:${etcd.port}`;
    const etcdctl = (...args: string[]): string[] => ["etcdctl", "--endpoints", origin, ...args];
    const env = { ETCDCTL_API: "3" };
    const watch = stage.talk(etcdctl("watch", "--prefix", "key/"), env);
    const lock = stage.talk(etcdctl("lock", "--ttl", "30", "guard"), env);
    const lockKey = await lock.line();
    assert.match(lockKey, /^guard\//);
    const grant = /lease (\S+) granted/.exec(await stage.talk(etcdctl("lease", "grant", "30"), env).line());
    const lease = grant?.[1] ?? "";
    const alive = stage.talk(etcdctl("lease", "keep-alive", lease), env);
    assert.match(await alive.line(), /keepalived with TTL\(30\)/);
    const leased = stage.talk(etcdctl("put", `--lease=${lease}`, "leased", "value"), env);
    assert.equal(await leased.line(), "OK");
    // the watch is there as soon as it reports something
    const first = stage.talk(etcdctl("put", "key/first", "0"), env);
    assert.equal(await first.line(), "OK");
    assert.deepEqual([await watch.line(), await watch.line(), await watch.line()], ["PUT", "key/first", "0"]);

    const revisions: number[] = [];
    const written = new Map<string, string[]>();
    for (let n = 0; n < writers; n++) {
      const key = `key/${n}`;
      const values: string[] = [];
      written.set(key, values);
      stage.client(`writer ${n}`, async ({ beat, over, pace }) => {
        const client = new Client(origin, { pipelining: 1 });
        let connects = 0;
        client.on("connect", () => connects++);
        try {
          for (let count = 1; !over(); count++) {
            const { statusCode, body } = await client.request({
              method: "POST",
              path: "/v3/kv/put",
              body: JSON.stringify({ key: base64(key), value: base64(String(count)) }),
            });
            const text = await body.text();
            assert.equal(statusCode, 200, text);
            revisions.push(Number((JSON.parse(text) as { header: { revision: string } }).header.revision));
            values.push(String(count));
            beat();
            await pace();
          }
          assert.equal(connects, 1, "connections");
        } finally {
          await client.destroy();
        }
      });
    }
    await stage.moves();
    await stage.finish();
    assertCounted(revisions, "revisions", Math.min(...revisions));
    const reported = new Map<string, string[]>();
    for (let events = 0; events < revisions.length; events++) {
      const [kind, key = "", value = ""] = [await watch.line(), await watch.line(), await watch.line()];
      assert.equal(kind, "PUT");
      reported.set(key, [...(reported.get(key) ?? []), value]);
    }
    assert.deepEqual(reported, written, "the watch reported every value, once, in order");
    assert.equal(alive.over, null, "the lease was kept alive");
    const left = await stage.talk(etcdctl("lease", "timetolive", "--keys", lease), env).line();
    assert.match(left, /granted with TTL\(30s\), remaining\(\d+s\), attached keys\(\[leased\]\)/);
    assert.equal(lock.over, null, `the lock is still held: ${lock.complaints}`);
    const holder = stage.talk(etcdctl("get", "--prefix", "--keys-only", "guard/"), env);
    assert.equal(await holder.line(), lockKey);
  },
};

function base64(text: string): string {
  return Buffer.from(text).toString("base64");
}
