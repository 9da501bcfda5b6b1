import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { parseStoreUrl } from "#proxy/store/open.ts";

test("store addresses: memory, one server, Sentinel, Cluster", () => {
  const single = { type: "single", db: 0 };
  assert.deepEqual(parseStoreUrl("memory:"), { type: "memory" });
  for (const [url, target] of [
    ["redis://10.0.0.1:7000", { servers: [{ host: "10.0.0.1", port: 7000 }], kind: single, tls: false }],
    ["rediss://redis", { servers: [{ host: "redis", port: 6379 }], kind: single, tls: true }],
    [
      "redis://me:p%40ss@[::1]:1/3",
      {
        servers: [{ host: "::1", port: 1 }],
        kind: { type: "single", db: 3 },
        tls: false,
        username: "me",
        password: "p@ss",
      },
    ],
    ["redis://:word@h", { servers: [{ host: "h", port: 6379 }], kind: single, tls: false, password: "word" }],
    [
      "redis+sentinel://a,b:2/main/1",
      {
        servers: [
          { host: "a", port: 26379 },
          { host: "b", port: 2 },
        ],
        kind: { type: "sentinel", name: "main", db: 1 },
        tls: false,
      },
    ],
    ["redis+cluster://a:1", { servers: [{ host: "a", port: 1 }], kind: { type: "cluster" }, tls: false }],
  ] as const) {
    assert.deepEqual(parseStoreUrl(url), { type: "redis", target });
  }
});

test("anything else is CONFIG_INVALID, and no message shows a password", () => {
  for (const url of [
    "",
    "memory",
    "redis:",
    "http://h",
    "redis://h:0",
    "redis://h:70000",
    "redis://a,b",
    "redis://h/x",
    "redis://h:1/99999",
    "redis+sentinel://a:1",
    "redis+cluster://a:1/2",
    "redis://u:hunter2%zz@h",
    "redis://u:hunter2@",
    "redis://u:hunter2@h:x",
  ]) {
    assert.throws(
      () => parseStoreUrl(url),
      (error: HoldfastError) => {
        assert.equal(error.code, "CONFIG_INVALID", url);
        assert.doesNotMatch(error.message, /hunter2/);
        return true;
      },
    );
  }
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.string().map((text) => `redis://${text}`),
      ),
      (url) => {
        try {
          parseStoreUrl(url);
        } catch (error) {
          assert.ok(error instanceof HoldfastError && error.code === "CONFIG_INVALID");
        }
      },
    ),
  );
});
