/** Sessions that share a connection: downloads that take all there is of it, and one that says a byte now and then. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { describe, it } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { SO_SNDBUF, SOL_SOCKET, setsockoptInt } from "#proxy/kernel/socket.ts";
import { FrameDecoder } from "#proxy/link/link-codec.ts";
import { LINK_WINDOW_BYTES } from "#proxy/link/link-flow.ts";
import type { LiveSession } from "#proxy/workload/live-session.ts";
import { assertNobodyNoticed, startLinked } from "#test/support/linked-proxies.ts";
import { RawEnd } from "#test/support/raw-ends.ts";
import { type Direction, PACED_QUEUE_BYTES, type Wire } from "#test/support/wire.ts";

const DOWNLOADS = 99;
const BYTES = 10;
/** of all downloads together, what may be on its way: an answer in line behind it would let all of that pass */
const QUEUED_BYTES = DOWNLOADS * LINK_WINDOW_BYTES;
/** what one may say in its turn, and what waits for the kernel before all turns */
const SHARE_BYTES = 16 * 1024;
const ROOM_BYTES = 256 * 1024;
/** nobody can overtake what the kernel has, and a byte comes to its turn only when the application has answered it */
const ON_THE_WAY_BYTES = 2 * 1024 * 1024;
const BULK = 0x62;
/** what the greeting of a trunk in the clear has in front of channels' frames */
const GREETING_BYTES: Record<Direction, number> = { up: 4 + 49, down: 20 + 36 };
/** the session that came first */
const MODEST = 0;

/** Of frames on a trunk in the clear: what others' bytes come down between a byte of one session and its answer. */
class Watched {
  /** bytes of others, for each byte that was answered */
  readonly waited: number[] = [];
  others = 0;
  #sentAt = 0;
  readonly #greeting = { ...GREETING_BYTES };
  readonly #decoders: Record<Direction, FrameDecoder>;

  constructor(wire: Wire) {
    const decoder = (onData: (bytes: number, channel: number) => void): FrameDecoder =>
      new FrameDecoder(
        { onData: (part, channel) => onData(part.length, channel), onControl: () => {} },
        true,
      );
    this.#decoders = {
      up: decoder((_, channel) => {
        if (channel === MODEST) this.#sentAt = this.others;
      }),
      down: decoder((bytes, channel) => {
        if (channel === MODEST) this.waited.push(this.others - this.#sentAt);
        else this.others += bytes;
      }),
    };
    wire.tap = (bytes, direction) => {
      const greeting = Math.min(this.#greeting[direction], bytes.length);
      this.#greeting[direction] -= greeting;
      assert.ok(this.#decoders[direction].feed(bytes.subarray(greeting)));
      return bytes;
    };
  }
}

/** The application: a client that says BULK is sent bytes without end, any other what it sends. */
function serve(socket: Socket): void {
  const bulk = Buffer.alloc(64 * 1024);
  const fill = (): void => {
    while (!socket.destroyed && socket.write(bulk));
  };
  socket.on("data", (bytes: Buffer) => {
    if (bytes[0] === BULK) {
      socket.on("drain", fill);
      fill();
    } else socket.write(bytes);
  });
}

/** Reads a piece, and no more before the next turn but one. */
async function downloadSlowly(socket: Socket): Promise<void> {
  await once(socket, "connect");
  socket.write(Buffer.of(BULK));
  socket.on("data", () => {
    socket.pause();
    setImmediate(() => setImmediate(() => socket.resume()));
  });
}

describe("a session among downloads over one trunk", { timeout: 60_000 }, () => {
  it("is not kept waiting by what they have queued, only by what each may say in its turn", async (it) => {
    const linked = await startLinked({ links: "plain", serve });
    it.after(() => linked.stop());
    // one piece a turn and little in the kernel, so that all waits at the owner's
    linked.wire.paceDown = true;
    const watched = new Watched(linked.wire);
    const modest = await RawEnd.dial(linked.listen);
    it.after(() => modest.destroy());
    modest.socket.write("x");
    await modest.has(1);
    const [{ downstream }] = [...linked.owner.sessions.values()] as [LiveSession];
    setsockoptInt(downstream?.fd ?? -1, SOL_SOCKET, SO_SNDBUF, PACED_QUEUE_BYTES);
    const downloads = Array.from({ length: DOWNLOADS }, () => connect(linked.listen, "127.0.0.1"));
    it.after(() => {
      for (const socket of downloads) socket.destroy();
    });
    await Promise.all(downloads.map(downloadSlowly));
    while (watched.others < QUEUED_BYTES / 2) await nextTurn();
    watched.waited.length = 0;
    for (let byte = 1; byte <= BYTES; byte++) {
      modest.socket.write("x");
      await modest.has(1 + byte);
    }
    assert.equal(linked.wire.connections, 1);
    const most = Math.max(...watched.waited);
    const bytesMax = DOWNLOADS * SHARE_BYTES + ROOM_BYTES + ON_THE_WAY_BYTES;
    assert.ok(most > ROOM_BYTES, `${most} bytes: the connection is full`);
    assert.ok(most <= bytesMax, `${most} bytes of others before its own, at most ${bytesMax}`);
    assertNobodyNoticed(linked);
  });
});
