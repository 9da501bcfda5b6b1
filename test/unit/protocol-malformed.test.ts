/** The corpus of malformed input, as the observer sees it: the same however it is cut, and never guessed at. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Observer } from "#proxy/protocol/observer.ts";
import {
  ENDLESS,
  HANDSHAKE_ANSWER,
  MALFORMED,
  type Malformed,
  randomSplit,
  seededRandom,
} from "#test/support/malformed.ts";
import { observe, type Segment } from "#test/support/observed.ts";

const BYTE_BY_BYTE_MAX = 4096;
/** what RFC 9112 6 leaves no doubt about, although receivers are known that do not keep to it */
const WELL_FRAMED = [
  // a body of a method that usually has none
  "cl-0-delete-chunked",
  "cl-0-get-with-body",
  "cl-0-head-with-body",
  "te-0-options-body",
  "te-only-in-get",
  "te-te-upgrade-with-body",
  // an expectation does not change where the body ends
  "cl-0-expect-continue",
  "cl-0-expect-unknown",
  // large, as uploads are
  "chunk-size-beyond-32-bits",
  "cl-value-beyond-32-bits",
  // trailers frame nothing
  "trailer-framing-fields",
].sort();
const SAVED_BYTES_MAX = 200_000;
const ENDLESS_BYTES = 512 * 1024;

function segmentsOf({ side, before, bytes, handshakeBytes }: Malformed): Segment[] {
  if (side === "server")
    return [
      { side: "client", bytes: before },
      { side: "server", bytes },
    ];
  if (handshakeBytes === 0) return [{ side: "client", bytes }];
  return [
    { side: "client", bytes: bytes.subarray(0, handshakeBytes) },
    { side: "server", bytes: HANDSHAKE_ANSWER },
    { side: "client", bytes: bytes.subarray(handshakeBytes) },
  ];
}

describe("malformed input", () => {
  for (const entry of MALFORMED) {
    it(`is the same however it is cut: ${entry.name}`, () => {
      const segments = segmentsOf(entry);
      const random = seededRandom(7);
      for (const protocol of ["auto", "http"] as const) {
        const whole = observe(segments, [], { protocol, fin: true });
        const size = entry.bytes.length;
        const ways =
          size === 0 ? [] : [randomSplit(entry.bytes, 9, random), randomSplit(entry.bytes, 40, random)];
        if (size <= BYTE_BY_BYTE_MAX) ways.push([1]);
        for (const pieces of ways)
          assert.deepEqual(observe(segments, pieces, { protocol, fin: true }), whole);
      }
    });
  }

  it("is not named where two receivers may find a different number of messages in it", () => {
    const named = MALFORMED.filter(({ protocol, ambiguous }) => protocol === "http" && ambiguous)
      .filter((entry) => {
        const { state } = observe(segmentsOf(entry), [], { protocol: "http" });
        return state.opaqueReason === null && (state.requests as number) > 0;
      })
      .map(({ name }) => name);
    assert.deepEqual(named.sort(), WELL_FRAMED);
  });

  for (const { name, side, before, opening, block } of ENDLESS) {
    it(`is kept in part only: ${name}`, () => {
      const observer = new Observer({ protocol: "auto", hooks: {} });
      const send = (from: "client" | "server", bytes: Buffer): void => {
        if (from === "client") observer.inbound(bytes);
        else observer.outbound(bytes);
      };
      send(side === "client" ? "server" : "client", before);
      send(side, opening);
      const sent = Math.ceil(ENDLESS_BYTES / block.length);
      for (let times = 0; times < sent; times++) send(side, block);
      assert.ok(observer.save().length < SAVED_BYTES_MAX);
      assert.ok(observer.bytesIn + observer.bytesOut >= ENDLESS_BYTES);
    });
  }
});
