/** What is kept of a link, against a model: whatever is framed and acknowledged, the rest is what is framed again. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { Kept } from "#proxy/link/kept.ts";

const step = fc.oneof(
  fc.record({ push: fc.oneof(fc.integer({ min: 1, max: 100 }), fc.integer({ min: 1, max: 20_000 })) }),
  fc.record({ drop: fc.double({ min: 0, max: 1, noNaN: true }) }),
);

describe("what is kept", () => {
  it("is all that was framed and not acknowledged, in order", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const kept = new Kept();
        let model = Buffer.alloc(0);
        let next = 0;
        for (const one of steps) {
          if ("push" in one) {
            const chunk = Buffer.alloc(one.push, next++ % 251);
            kept.push(chunk);
            model = Buffer.concat([model, chunk]);
          } else {
            const bytes = Math.floor(one.drop * kept.bytes);
            kept.drop(bytes);
            model = model.subarray(bytes);
          }
          assert.equal(kept.bytes, model.length);
          assert.ok(Buffer.concat(kept.chunks()).equals(model));
        }
      }),
    );
  });

  it("is in few pieces, however small the ones that were framed", () => {
    const kept = new Kept();
    for (let i = 0; i < 10_000; i++) kept.push(Buffer.of(i & 0xff));
    assert.equal(kept.bytes, 10_000);
    assert.ok(kept.chunks().length <= 3);
  });

  it("is never less than nothing", () => {
    const kept = new Kept();
    kept.push(Buffer.alloc(3));
    assert.throws(() => kept.drop(4), /no more is acknowledged than is kept/);
  });
});
