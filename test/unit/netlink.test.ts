/** Dumps of the kernel's, read from answers as it gives them. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type Conversation, dump, dumpRequest } from "#proxy/kernel/netlink.ts";

const DUMP = 20;
const ERROR = 2;
const DONE = 3;
const MULTI = 0x2;
const INTERRUPTED = 0x10;

function message(type: number, payload: string, flags = MULTI): Buffer {
  const bytes = Buffer.alloc(16 + payload.length);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt16LE(type, 4);
  bytes.writeUInt16LE(flags, 6);
  bytes.write(payload, 16, "latin1");
  // messages begin at multiples of four
  return Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)]);
}

/** A kernel that answers each request with the next of these lists of datagrams. */
function kernel(...answers: Buffer[][]): Conversation & { asked: number; unread(): number } {
  let waiting: Buffer[] = [];
  return {
    asked: 0,
    send(request) {
      assert.equal(waiting.length, 0, "asked again before the answer was read");
      waiting = [...(answers[this.asked++] ?? [])];
      return request.length;
    },
    receive(into) {
      const next = waiting.shift();
      assert(next !== undefined, "the kernel has nothing more to say: this would wait for ever");
      return next.copy(into);
    },
    unread: () => waiting.length,
  };
}

const dumpOf = (on: Conversation): string[] =>
  dump(on, dumpRequest(DUMP, 4), 1).map((payload) => payload.toString("latin1"));

describe("a netlink dump", () => {
  it("is all messages of all answers up to the last", () => {
    const on = kernel([
      Buffer.concat([message(DUMP, "one"), message(DUMP, "two--")]),
      Buffer.concat([message(DUMP, "three"), message(DONE, "\0\0\0\0")]),
    ]);
    assert.deepEqual(dumpOf(on), ["one", "two--", "three"]);
    assert.equal(on.asked, 1);
  });

  it("is taken again, read to its end first, where the kernel says that it was interrupted", () => {
    const torn = [message(DUMP, "half", MULTI | INTERRUPTED), message(DONE, "\0\0\0\0")];
    const tornAtItsEnd = [message(DUMP, "half"), message(DONE, "\0\0\0\0", MULTI | INTERRUPTED)];
    const on = kernel(torn, tornAtItsEnd, [message(DUMP, "whole"), message(DONE, "\0\0\0\0")]);
    assert.deepEqual(dumpOf(on), ["whole"]);
    assert.deepEqual([on.asked, on.unread()], [3, 0]);
  });

  it("is the last one where they are all interrupted", () => {
    const torn = (text: string): Buffer[] => [
      message(DUMP, text, MULTI | INTERRUPTED),
      message(DONE, "\0\0\0\0"),
    ];
    assert.deepEqual(dumpOf(kernel(torn("first"), torn("second"), torn("third"), torn("fourth"))), ["third"]);
  });

  it("is an error where the kernel refuses, or answers in another form", () => {
    const refusal = Buffer.alloc(4);
    refusal.writeInt32LE(-1);
    assert.throws(() => dumpOf(kernel([message(ERROR, refusal.toString("latin1"))])), { code: "EPERM" });
    const tooLong = message(DUMP, "one");
    tooLong.writeUInt32LE(400, 0);
    const tooShort = message(DUMP, "");
    for (const odd of [tooLong, tooShort])
      assert.throws(() => dumpOf(kernel([odd])), { code: "KERNEL_UNKNOWN", source: "kernel" });
  });
});
