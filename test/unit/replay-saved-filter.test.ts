/** What is known of a session, as bytes for another node: comes back as it was, and nothing else is taken for it. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { decodeFilter, encodeFilter, type SavedFilter } from "#proxy/replay/saved-filter.ts";

/** plain objects, as decoding makes them */
const PLAIN = { noNullPrototype: true } as const;
const bytes = fc.uint8Array({ maxLength: 60 }).map((array) => Buffer.from(array));
const offset = fc.maxSafeNat();
const watch: fc.Arbitrary<SavedFilter> = fc.record(
  {
    observer: bytes,
    name: fc.option(fc.string({ maxLength: 40 })),
    noTakeover: fc.boolean(),
    replay: fc.option(
      fc.record(
        {
          sentUpTo: offset,
          losses: offset,
          swallows: fc.boolean(),
          isAnsweredEarly: fc.boolean(),
          logBase: offset,
          log: bytes,
          messageEnds: fc.array(offset, { maxLength: 5 }),
          setUp: fc.record(
            {
              isKnown: fc.boolean(),
              seen: offset,
              isLost: fc.boolean(),
              messages: fc.array(fc.record({ end: offset, bytes }, PLAIN), { maxLength: 3 }),
            },
            PLAIN,
          ),
          handshake: fc.option(
            fc.record(
              {
                request: bytes,
                agreed: fc.record(
                  {
                    accept: fc.option(fc.string()),
                    protocol: fc.option(fc.string()),
                    extensions: fc.string(),
                  },
                  PLAIN,
                ),
              },
              PLAIN,
            ),
          ),
        },
        PLAIN,
      ),
    ),
  },
  PLAIN,
);

describe("a saved watch", () => {
  it("comes back as it was", () => {
    fc.assert(fc.property(watch, (saved) => assert.deepEqual(decodeFilter(encodeFilter(saved)), saved)));
  });

  it("is refused by its code when it is damaged, and never otherwise", () => {
    fc.assert(
      fc.property(watch, fc.nat(), fc.nat(255), fc.boolean(), (saved, place, value, isCut) => {
        const encoded = encodeFilter(saved);
        const at = place % encoded.length;
        const damaged = isCut ? encoded.subarray(0, at) : Buffer.from(encoded);
        if (!isCut) damaged[at] = value;
        try {
          decodeFilter(damaged);
          assert.ok(!isCut, "what is cut off is noticed");
        } catch (error) {
          assert.ok(error instanceof HoldfastError, String(error));
          assert.equal(error.code, "SNAPSHOT_INVALID");
        }
      }),
    );
    assert.throws(() => decodeFilter(Buffer.concat([encodeFilter(plain), Buffer.from([0])])), {
      code: "SNAPSHOT_INVALID",
    });
  });
});

const plain: SavedFilter = { observer: Buffer.alloc(0), name: null, noTakeover: false, replay: null };
