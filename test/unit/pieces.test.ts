/** Captured sessions are given piece by piece. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { decodeSessions } from "#proxy/contract/snapshot-codec.ts";
import { checkTotal, PIECE_BYTES, PIECE_SESSIONS, Pieces } from "#proxy/cutover/pieces.ts";

const LIMITS = { sessionsMax: 100_000, bytesMax: 1 << 30 };

function session(id: string, bytes: number): SessionSnapshot {
  return {
    id,
    port: 0,
    anchor: "a",
    client: "",
    headerAwaited: false,
    acceptedAtMs: 0,
    bytesIn: 0,
    bytesOut: 0,
    upstream: null,
    downstream: null,
    pendingIn: Buffer.alloc(bytes),
    pendingOut: Buffer.alloc(0),
    finIn: "none",
    finOut: "none",
    filter: Buffer.alloc(0),
  };
}

function taken(pieces: Pieces): { ids: string[][]; left: number[] } {
  const ids: string[][] = [];
  const left: number[] = [];
  do {
    ids.push(decodeSessions(pieces.take(), LIMITS).map(({ id }) => id));
    left.push(pieces.left);
  } while (pieces.left > 0);
  return { ids, left };
}

describe("captured sessions", () => {
  it("come in one piece when there is little of them, or none", () => {
    assert.deepEqual(taken(new Pieces([])), { ids: [[]], left: [0] });
    assert.deepEqual(taken(new Pieces([session("a", 1), session("b", 0)])), { ids: [["a", "b"]], left: [0] });
  });

  it("come in pieces that end with the session that fills them, each session once and in order", () => {
    const half = PIECE_BYTES / 2;
    const pieces = new Pieces([
      session("a", half),
      session("b", half),
      session("c", PIECE_BYTES * 2),
      session("d", half),
      session("e", 0),
    ]);
    assert.deepEqual(taken(pieces), { ids: [["a", "b"], ["c"], ["d", "e"]], left: [3, 2, 0] });
  });

  it("come in pieces of no more sessions than the other side takes at once, however small they are", () => {
    const many = Array.from({ length: PIECE_SESSIONS + 2 }, (_, index) => session(`${index}`, 0));
    const { ids, left } = taken(new Pieces(many));
    assert.deepEqual(left, [2, 0]);
    assert.deepEqual(
      ids.flat(),
      many.map(({ id }) => id),
    );
  });

  it("are refused when they are more than the proxy is to keep", () => {
    checkTotal(1 << 30);
    assert.throws(() => checkTotal((1 << 30) + 1), { code: "PROXY_CAPTURE", retryable: true });
  });
});
