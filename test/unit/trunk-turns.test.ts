/** Who of a trunk's channels says how much when, against a connection that takes as much as a test lets it. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { FRAME, FrameDecoder, type FrameType, frame } from "#proxy/link/link-codec.ts";
import { type ConnectionSink, type Gone, NOBODY } from "#proxy/link/link-connection.ts";
import { Trunk, type TrunkConnection } from "#proxy/link/trunk.ts";
import type { Channel } from "#proxy/link/trunk-channel.ts";

const SHARE_BYTES = 16 * 1024;
const ROOM_BYTES = 256 * 1024;
const WAITING_BYTES_MAX = 32 * 1024 * 1024;
const WINDOW_BYTES = 256 * 1024;
const HEADERS_BYTES = 8;

class FakeConnection implements TrunkConnection {
  sink: ConnectionSink = NOBODY;
  progress = 0;
  fd = -1;
  queuedBytes = 0;
  isDestroyed = false;
  isEnded = false;
  /** what it was given and has not taken, a write each */
  readonly writes: Buffer[] = [];
  readonly onWrite: (bytes: Buffer) => void;
  constructor(onWrite: (bytes: Buffer) => void) {
    this.onWrite = onWrite;
  }
  greeted(): void {}
  carryChannels(): void {}
  writeAll(parts: readonly Buffer[]): void {
    const bytes = Buffer.concat(parts);
    this.writes.push(bytes);
    this.queuedBytes += bytes.length;
    this.onWrite(bytes);
  }
  async flushed(): Promise<void> {}
  end(): void {
    this.isEnded = true;
  }
  destroy(): void {
    this.isDestroyed = true;
  }
  /** The kernel takes the oldest write. */
  take(): void {
    const bytes = this.writes.shift();
    if (bytes === undefined) return;
    this.queuedBytes -= bytes.length;
    this.sink.onWritten();
  }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A sender, and what has come out of it. */
class Sender {
  readonly channel: Channel;
  /** DATA that it has written, and has seen go out */
  writtenBytes = 0;
  passedBytes = 0;
  readonly controls: FrameType[] = [];
  readonly passedControls: FrameType[] = [];
  isClosed = false;
  /** writes this much whenever there is room */
  greedyBytes = 0;
  /** of each other, what it had said when this one spoke last, or began to wait */
  readonly #before = new Map<Sender, number>();
  readonly #all: readonly Sender[];

  constructor(trunk: Trunk, all: readonly Sender[]) {
    this.#all = all;
    this.channel = trunk.open({ ...NOBODY, onWritten: () => this.refill() });
    this.channel.greeted();
  }
  get waits(): boolean {
    return this.channel.queue !== null && !this.isClosed;
  }
  write(bytes: number): void {
    if (this.isClosed) return;
    if (!this.waits) this.#remember((other) => other.framedBytes);
    const chunk = Buffer.alloc(bytes);
    for (let at = 0; at < bytes; at += 997) chunk[at] = (this.writtenBytes + at) & 0xff;
    this.writtenBytes += bytes;
    this.channel.writeData(chunk);
  }
  /** DATA that the trunk has taken up; it goes out in this order */
  get framedBytes(): number {
    const queued = (this.channel.queue ?? []).filter(({ isData }) => isData);
    return this.writtenBytes - queued.reduce((sum, { bytes }) => sum + bytes.length, 0);
  }
  #remember(bytesOf: (other: Sender) => number): void {
    for (const other of this.#all)
      this.#before.set(other, Math.max(bytesOf(other), this.#before.get(other) ?? 0));
  }
  /** @returns the most that any other has said meanwhile */
  passed(bytes: number): number {
    const most = Math.max(
      ...this.#all.map((other) => (other === this ? 0 : other.passedBytes - (this.#before.get(other) ?? 0))),
    );
    this.passedBytes += bytes;
    this.#remember((other) => other.passedBytes);
    return most;
  }
  refill(): void {
    while (this.greedyBytes > 0 && !this.isClosed && !this.channel.isFull) this.write(this.greedyBytes);
  }
  control(type: FrameType): void {
    if (this.isClosed) return;
    this.controls.push(type);
    this.channel.write(frame(type));
  }
}

class Stage {
  readonly connection: FakeConnection;
  readonly trunk: Trunk;
  readonly senders: Sender[] = [];
  gone: Gone | null = null;
  passedBytes = 0;
  /** most that another channel has said while one waited for its turn */
  mostMeanwhile = 0;
  readonly #decoder: FrameDecoder;
  readonly #numbers = new Map<number, Sender>();

  constructor() {
    this.#decoder = new FrameDecoder(
      {
        onData: (part, number) => this.#data(number, part),
        onControl: (type, _, number) => this.#control(number, type),
      },
      true,
    );
    this.connection = new FakeConnection((bytes) => {
      this.passedBytes += bytes.length;
      assert.ok(this.#decoder.feed(bytes), String(this.#decoder.error));
    });
    this.trunk = new Trunk(
      (sink) => {
        this.connection.sink = sink;
        return this.connection;
      },
      {
        channelsMax: 1_000,
        onOpen: null,
        onEmpty: () => {},
        onGone: (why) => {
          this.gone = why;
        },
        onBroken: (error) => {
          throw error;
        },
      },
    );
    this.trunk.ready();
  }

  open(): Sender {
    const sender = new Sender(this.trunk, this.senders);
    this.senders.push(sender);
    this.#numbers.set(sender.channel.number, sender);
    return sender;
  }

  #data(number: number, part: Buffer): void {
    const sender = this.#numbers.get(number) as Sender;
    // pieces of one frame come apart: what was filled in is looked at where it is
    for (let at = 0; at < part.length; at++) {
      const byte = part[at] as number;
      if (byte !== 0) assert.equal(byte, (sender.passedBytes + at) & 0xff, "in order, once");
    }
    this.mostMeanwhile = Math.max(this.mostMeanwhile, sender.passed(part.length));
  }

  #control(number: number, type: FrameType): void {
    if (type === FRAME.open || type === FRAME.close) return;
    const sender = this.#numbers.get(number) as Sender;
    sender.passedControls.push(type);
  }

  /** What is written in this turn goes out, as far as there is room. */
  async turn(): Promise<void> {
    await turn();
    if (this.senders.some(({ waits }) => waits))
      assert.ok(this.connection.queuedBytes >= ROOM_BYTES, "nobody waits while there is room");
  }

  async drain(): Promise<void> {
    await this.turn();
    while (this.connection.writes.length > 0) {
      this.connection.take();
      await this.turn();
    }
  }
}

describe("turns of a trunk's channels", { timeout: 60_000 }, () => {
  const op = fc.oneof(
    { weight: 6, arbitrary: fc.tuple(fc.constant("data"), fc.nat(7), fc.integer({ min: 1, max: 200_000 })) },
    { weight: 4, arbitrary: fc.tuple(fc.constant("data"), fc.nat(7), fc.integer({ min: 1, max: 20 })) },
    { weight: 2, arbitrary: fc.tuple(fc.constant("control"), fc.nat(7), fc.constant(0)) },
    { weight: 1, arbitrary: fc.tuple(fc.constant("end"), fc.nat(7), fc.constant(0)) },
    { weight: 5, arbitrary: fc.tuple(fc.constant("take"), fc.constant(0), fc.constant(0)) },
    { weight: 3, arbitrary: fc.tuple(fc.constant("turn"), fc.constant(0), fc.constant(0)) },
  );

  it("whatever is written, taken and ended: each byte in order, once, and nobody speaks twice before one who waits", async () => {
    let most = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(op, { maxLength: 120 }), async (ops) => {
        const stage = new Stage();
        for (let count = 0; count < 8; count++) stage.open();
        for (const [what, index, bytes] of ops) {
          const sender = stage.senders[index] as Sender;
          if (what === "data") sender.write(bytes);
          else if (what === "control") sender.control(FRAME.ask);
          else if (what === "take") stage.connection.take();
          else if (what === "turn") await stage.turn();
          else {
            sender.channel.end();
            sender.isClosed = true;
          }
        }
        await stage.drain();
        for (const { passedBytes, writtenBytes, passedControls, controls, channel } of stage.senders) {
          assert.equal(passedBytes, writtenBytes);
          assert.deepEqual(passedControls, controls);
          assert.ok(channel.queue === null && channel.queuedBytes === 0);
        }
        most = Math.max(most, stage.mostMeanwhile);
      }),
      { numRuns: 200 },
    );
    assert.ok(most > 0, "some have waited");
    assert.ok(most <= SHARE_BYTES, `${most} bytes of one went out while another waited`);
  });

  it("one that says a byte now and then among 99 that never stop has to let each of them say one share at most", async () => {
    const stage = new Stage();
    const greedy = Array.from({ length: 99 }, () => stage.open());
    for (const sender of greedy) {
      sender.greedyBytes = 64 * 1024;
      sender.refill();
    }
    const modest = stage.open();
    await stage.turn();
    const waited: number[] = [];
    for (let round = 0; round < 50; round++) {
      const before = stage.passedBytes;
      modest.write(1);
      await stage.turn();
      while (modest.passedBytes < modest.writtenBytes) {
        assert.ok(stage.connection.writes.length > 0, "it is waited for");
        stage.connection.take();
        await stage.turn();
      }
      waited.push(stage.passedBytes - before);
      // not in step with the others
      for (let more = 0; more < round % 5; more++) {
        stage.connection.take();
        await stage.turn();
      }
    }
    const round = greedy.length * (SHARE_BYTES + HEADERS_BYTES);
    assert.ok(Math.max(...waited) <= round + ROOM_BYTES, `${Math.max(...waited)} bytes before its own`);
    const least = Math.min(...greedy.map(({ passedBytes }) => passedBytes));
    const most = Math.max(...greedy.map(({ passedBytes }) => passedBytes));
    assert.ok(
      most - least <= ROOM_BYTES + 2 * SHARE_BYTES,
      `${least} and ${most} bytes of two who never stop`,
    );
  });
});

describe("a trunk whose other end asks and does not read", () => {
  it("is closed when too much waits for it, and not in the middle of what is written", async () => {
    const stage = new Stage();
    const sender = stage.open();
    await stage.turn();
    const answer = frame(FRAME.resumed, Buffer.alloc(17));
    for (let bytes = 0; bytes <= WAITING_BYTES_MAX + ROOM_BYTES; bytes += answer.length)
      sender.channel.write(answer);
    assert.deepEqual([stage.gone, stage.connection.isDestroyed], [null, false]);
    await stage.turn();
    assert.deepEqual([stage.gone, stage.connection.isDestroyed], ["fault", true]);
  });

  it("is closed, too, when it waits behind what a channel has queued", async () => {
    const stage = new Stage();
    const sender = stage.open();
    for (let count = 0; count < 8; count++) sender.write(WINDOW_BYTES / 4);
    await stage.turn();
    assert.ok(sender.waits);
    const answer = frame(FRAME.resumed, Buffer.alloc(17));
    for (let bytes = 0; bytes <= WAITING_BYTES_MAX; bytes += answer.length) sender.channel.write(answer);
    await stage.turn();
    assert.equal(stage.gone, "fault");
  });
});
