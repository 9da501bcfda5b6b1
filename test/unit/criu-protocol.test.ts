import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { decodeResponse, decodeStats, encodeRequest } from "#control/criu/protocol.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

/** `criu_resp` as protoc encodes it: type NOTIFY, success, notify { script: "pre-dump", pid: 7 } */
const NOTIFY = Buffer.from("080610012a0c0a087072652d64756d701007", "hex");

test("a hook's notification and a failure are understood", () => {
  assert.deepEqual(decodeResponse(NOTIFY), {
    ...decodeResponse(NOTIFY),
    type: 6,
    success: true,
    notify: "pre-dump",
  });
  const failure = decodeResponse(Buffer.from("08011000380a4a0462616421", "hex"));
  assert.deepEqual(
    { type: failure.type, success: failure.success, errno: failure.errno, message: failure.message },
    { type: 1, success: false, errno: 10, message: "bad!" },
  );
});

test("CRIU's version is told in as many numbers as it has", () => {
  // type VERSION (10), success, version { major_number: 4, minor_number: 2 [, sublevel: 1], name: "x" }
  assert.equal(decodeResponse(Buffer.from("080a1001520708041002320178", "hex")).version, "4.2");
  assert.equal(decodeResponse(Buffer.from("080a10015209080410022001320178", "hex")).version, "4.2.1");
});

test("an answer to a hook is the bytes that CRIU expects", () => {
  // type NOTIFY (6), notify_success true
  assert.equal(encodeRequest({ type: "NOTIFY", notifySuccess: true }).toString("hex"), "08061801");
  assert.equal(encodeRequest({ type: "NOTIFY", notifySuccess: false }).toString("hex"), "08061800");
});

test("whatever comes from CRIU is read or refused, never anything else", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      for (const decode of [decodeResponse, decodeStats]) {
        try {
          decode(Buffer.from(bytes));
        } catch (error) {
          assert.ok(error instanceof HoldfastError, String(error));
        }
      }
    }),
  );
});
