import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { seal, unseal } from "#proxy/store/seal.ts";

const key = randomBytes(32);
const context = { workload: "chat", epoch: 7, kind: "held" };
const refused = { code: "SEAL_INVALID" };

test("what is sealed opens again, and never looks the same twice", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 5000 }), (bytes) => {
      const plain = Buffer.from(bytes);
      const sealed = seal(key, context, plain);
      assert.ok(unseal([key], context, sealed).equals(plain));
      assert.ok(!sealed.equals(seal(key, context, plain)));
    }),
  );
});

test("anything altered, cut or longer is refused", () => {
  const sealed = seal(key, context, Buffer.from("the application's secrets"));
  for (let at = 0; at < sealed.length; at++) {
    const altered = Buffer.from(sealed);
    altered[at] = (altered[at] as number) ^ 1;
    assert.throws(() => unseal([key], context, altered), refused, `byte ${at}`);
    assert.throws(() => unseal([key], context, sealed.subarray(0, at)), refused, `cut at ${at}`);
  }
  assert.throws(() => unseal([key], context, Buffer.concat([sealed, Buffer.alloc(1)])), refused);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
      assert.throws(() => unseal([key], context, Buffer.from(bytes)), refused);
    }),
  );
});

test("another key, workload, epoch or kind does not open it", () => {
  const sealed = seal(key, context, Buffer.from("x"));
  assert.throws(() => unseal([randomBytes(32)], context, sealed), refused);
  assert.throws(() => unseal([key], { ...context, workload: "chat2" }, sealed), refused);
  assert.throws(() => unseal([key], { ...context, epoch: 8 }, sealed), refused);
  assert.throws(() => unseal([key], { ...context, kind: "image" }, sealed), refused);
});
