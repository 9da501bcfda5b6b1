/** WebSocket frames: what is under way, what waits for an answer, and each frame that is refused. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { Observer } from "#proxy/protocol/observer.ts";
import type { OpaqueReason } from "#proxy/protocol/opaque-reason.ts";
import type { WebSocketState } from "#proxy/protocol/websocket-conversation.ts";
import {
  encodeClose,
  encodeFrame,
  encodePing,
  encodePong,
  FrameWalker,
  OPCODE,
} from "#proxy/protocol/websocket-frames.ts";
import { frameBytes } from "#test/support/observed.ts";

const REQUEST = Buffer.from("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");

function opened(extensions = ""): Observer {
  const observer = new Observer({ protocol: "auto", hooks: {} });
  observer.inbound(REQUEST);
  observer.outbound(
    Buffer.from(`HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${extensions}\r\n`),
  );
  return observer;
}

const DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
const masked = (first: number, payload: Buffer | string = "") =>
  frameBytes({ first, masked: true, payload: Buffer.from(payload) });
const plain = (first: number, payload: Buffer | string = "") =>
  frameBytes({ first, masked: false, payload: Buffer.from(payload) });

function stateOf(observer: Observer): WebSocketState {
  assert.ok(observer.webSocket !== null);
  return observer.webSocket;
}

describe("a frame of the client is refused", () => {
  const cases: [what: string, reason: OpaqueReason, frames: Buffer[], extensions?: string][] = [
    ["without a mask", "websocket-mask", [plain(0x81, "a")]],
    ["with RSV1 that was not negotiated", "websocket-reserved-bits", [masked(0xc1, "a")]],
    [
      "with RSV1 of another extension",
      "websocket-reserved-bits",
      [masked(0xc1)],
      "Sec-WebSocket-Extensions: x-permessage-deflate\r\n",
    ],
    ["with RSV2", "websocket-reserved-bits", [masked(0xa1, "a")], DEFLATE],
    ["with RSV3", "websocket-reserved-bits", [masked(0x91, "a")], DEFLATE],
    [
      "with RSV1 in the middle of a message",
      "websocket-reserved-bits",
      [masked(0x41), masked(0xc0)],
      DEFLATE,
    ],
    ["with RSV1 on a Ping", "websocket-reserved-bits", [masked(0xc9)], DEFLATE],
    ["with opcode 3", "websocket-opcode", [masked(0x83)]],
    ["with opcode 11", "websocket-opcode", [masked(0x8b)]],
    ["that is a Ping in fragments", "websocket-control", [masked(0x09)]],
    ["that is a Ping of 126 bytes", "websocket-control", [masked(0x89, Buffer.alloc(126))]],
    ["that continues nothing", "websocket-continuation", [masked(0x80)]],
    ["that begins a message in another", "websocket-continuation", [masked(0x01), masked(0x81)]],
    ["with 125 written in 16 bits", "websocket-length", [Buffer.of(0x82, 0xfe, 0, 125, 0, 0, 0, 0)]],
    [
      "with 65,535 written in 64 bits",
      "websocket-length",
      [Buffer.of(0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0)],
    ],
    [
      "with the top bit of its length",
      "websocket-length",
      [Buffer.of(0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)],
    ],
    ["that is a Close of one byte", "websocket-close", [masked(0x88, "a")]],
    ["that is a Close with code 1005", "websocket-close", [masked(0x88, Buffer.of(0x03, 0xed))]],
    ["that is a Close with code 999", "websocket-close", [masked(0x88, Buffer.of(0x03, 0xe7))]],
    ["that is a Close with code 2999", "websocket-close", [masked(0x88, Buffer.of(0x0b, 0xb7))]],
    ["that brings data behind a Close", "websocket-close", [masked(0x88), masked(0x81)]],
  ];
  for (const [what, reason, frames, extensions] of cases) {
    it(what, () => {
      const observer = opened(extensions);
      for (const frame of frames) {
        assert.equal(observer.protocol, "websocket");
        observer.inbound(frame);
      }
      assert.equal(observer.opaqueReason, reason);
      assert.equal(observer.webSocket, null);
      assert.equal(observer.bytesIn, REQUEST.length + Buffer.concat(frames).length);
    });
  }

  it("of the application with a mask", () => {
    const observer = opened();
    observer.outbound(masked(0x81, "a"));
    assert.equal(observer.opaqueReason, "websocket-mask");
  });
});

describe("a WebSocket", () => {
  it("is at a boundary between messages, and takes control frames between fragments", () => {
    const observer = opened();
    const start = observer.bytesIn;
    assert.ok(observer.inboundAtBoundary && observer.outboundAtBoundary);
    const first = masked(0x01, "abc");
    observer.inbound(first.subarray(0, 4));
    assert.ok(stateOf(observer).inMidFrame && !observer.inboundAtBoundary);
    observer.inbound(first.subarray(4));
    assert.ok(!stateOf(observer).inMidFrame && !observer.inboundAtBoundary);
    observer.inbound(masked(0x8a, "p"));
    assert.equal(observer.inboundMessageStart, start);
    assert.equal(stateOf(observer).lastMessageInEnd, -1);
    observer.inbound(masked(0x80));
    assert.ok(observer.inboundAtBoundary);
    assert.equal(observer.inboundMessageStart, observer.bytesIn);
    assert.equal(stateOf(observer).lastMessageInEnd, observer.bytesIn);
    assert.equal(observer.requests, 1);
    observer.outbound(plain(0x82, "x").subarray(0, 1));
    assert.ok(stateOf(observer).outMidFrame && !observer.outboundAtBoundary);
    assert.ok(!stateOf(observer).compressedIn);
  });

  it("tells which Ping waits for its Pong", () => {
    const observer = opened();
    observer.inbound(masked(0x89, "one"));
    observer.inbound(masked(0x89, "two"));
    assert.equal(stateOf(observer).unansweredPing?.toString(), "two");
    observer.outbound(encodePong(Buffer.from("one")));
    assert.equal(stateOf(observer).unansweredPing?.toString(), "two");
    observer.outbound(encodePong(Buffer.from("two")));
    assert.equal(stateOf(observer).unansweredPing, null);
    observer.inbound(masked(0x89));
    assert.equal(stateOf(observer).unansweredPing?.length, 0);
    observer.outbound(encodePing(Buffer.alloc(0)));
    assert.equal(stateOf(observer).unansweredPing?.length, 0);
  });

  it("tells who has closed, and who compresses", () => {
    const observer = opened(DEFLATE);
    observer.outbound(plain(0xc1, "x"));
    assert.ok(!stateOf(observer).compressedIn);
    observer.inbound(masked(0xc1, "x"));
    assert.ok(stateOf(observer).compressedIn);
    observer.outbound(encodeClose(1012, "service restart"));
    assert.ok(stateOf(observer).closeOut && !stateOf(observer).closeIn);
    observer.inbound(masked(0x88, Buffer.of(0x03, 0xf4)));
    observer.inbound(masked(0x8a));
    assert.ok(stateOf(observer).closeIn);
  });

  it("passes over a payload of 2^40 bytes", () => {
    const observer = opened();
    observer.outbound(Buffer.of(0x82, 127, 0, 0, 1, 0, 0, 0, 0, 0));
    observer.outbound(Buffer.alloc(1000));
    assert.ok(stateOf(observer).outMidFrame);
    assert.equal(observer.protocol, "websocket");
  });
});

describe("a walker taken from the observer", () => {
  it("goes on with bytes that do not pass it, and leaves it where it is", () => {
    const observer = opened();
    const bytes = Buffer.concat([masked(0x01, "abc"), masked(0x89, "ping"), masked(0x80, "d"), masked(0x88)]);
    fc.assert(
      fc.property(fc.nat({ max: bytes.length }), (at) => {
        const passing = Observer.restore(observer.save(), { protocol: "auto", hooks: {} });
        passing.inbound(bytes.subarray(0, at));
        const before = passing.inboundMessageStart;
        const ended: string[] = [];
        const walker = passing.frames({
          onFrame: ({ opcode, offset }) => ended.push(`${opcode} ${offset}`),
          onControl: (opcode, payload) => ended.push(`control ${opcode} ${payload}`),
        });
        assert.equal(walker.feed(bytes.subarray(at)), null);
        const start = REQUEST.length;
        const all = [
          `1 ${start + 9}`,
          "control 9 ping",
          `9 ${start + 19}`,
          `0 ${start + 26}`,
          "control 8 ",
          `8 ${start + 32}`,
        ];
        assert.deepEqual(ended, all.slice(all.length - ended.length));
        assert.equal(ended.length > 0, at < bytes.length);
        assert.equal(walker.offset, start + bytes.length);
        assert.equal(passing.inboundMessageStart, before);
      }),
    );
  });

  it("is not to be had without frames", () => {
    const observer = new Observer({ protocol: "http", hooks: {} });
    assert.throws(() => observer.frames(), { code: "ERR_ASSERTION" });
  });

  it("stays wrong once it is", () => {
    const walker = new FrameWalker({ masked: true, hooks: {} });
    assert.equal(walker.feed(Buffer.of(0x81, 0)), "websocket-mask");
    assert.equal(walker.feed(masked(0x81)), "websocket-mask");
  });
});

describe("a frame of ours", () => {
  it("is read as what it was made of", () => {
    fc.assert(
      fc.property(fc.constantFrom(0, 124, 125, 126, 127, 65_535, 65_536, 70_000), (size) => {
        const frame = encodeFrame(OPCODE.binary, Buffer.alloc(size));
        const seen: number[] = [];
        const walker = new FrameWalker({
          masked: false,
          hooks: { onFrame: ({ opcode, payloadBytes, fin }) => seen.push(opcode, payloadBytes, Number(fin)) },
        });
        assert.equal(walker.feed(frame), null);
        assert.deepEqual(seen, [OPCODE.binary, size, 1]);
        assert.equal(walker.offset, frame.length);
      }),
    );
    assert.deepEqual(encodeClose(1001, "é"), Buffer.of(0x88, 4, 0x03, 0xe9, 0xc3, 0xa9));
    assert.throws(() => encodePing(Buffer.alloc(126)), { code: "ERR_ASSERTION" });
  });
});
