/**
 * A link whose connection is torn at every byte of what passes, in each direction, and again while it goes on: what one end was given
 * the other gets, once and in order, and so it is with FIN, HOLD and COUNT.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { before, describe, it } from "node:test";
import { encodeRejoin, secretOf } from "#proxy/link/link-auth.ts";
import { FRAME, FrameDecoder, type FrameType, frame, RST_CODE } from "#proxy/link/link-codec.ts";
import { type AcceptOptions, acceptLink, acceptLinkOn, dialLink } from "#proxy/link/link-greeting.ts";
import type { LinkLeg, LinkListener } from "#proxy/link/link-leg.ts";
import { LinkWatch } from "#proxy/link/link-watch.ts";
import { Trunk } from "#proxy/link/trunk.ts";
import { Trunks } from "#proxy/link/trunks.ts";
import { within } from "#test/support/raw-ends.ts";
import { type Direction, Wire } from "#test/support/wire.ts";

const key = Buffer.alloc(32, 7);
const LOOK_MS = 5;
const RESUME_MS = 5_000;
const AT_A_TIME = 16;
const SESSION = "0123456789abcdef01234567";
const greeting = {
  session: SESSION,
  port: 0,
  epoch: 2,
  anchor: "a",
  client: "10.99.0.100:40000",
  acceptedAtMs: 1,
  fresh: false,
};
/** what each end sends, in chunks of these sizes */
const SIZES = [1, 30, 7, 64];
const TOTAL = SIZES.reduce((sum, size) => sum + size, 0);

/** One end, which sends all it has and keeps what it gets. */
class End {
  link: LinkLeg | null = null;
  got: number[] = [];
  fins = 0;
  over: number | null = null;
  holds = 0;
  counts = 0;
  interruptions = 0;
  isHeld = false;
  /** bytes that came although HELD had */
  afterHeld = 0;
  #sent = 0;
  #chunks = [...SIZES];
  #first: number;

  constructor(first: number) {
    this.#first = first;
  }

  listener(more: Partial<LinkListener> = {}): LinkListener {
    return {
      onActive: () => {},
      onHold: () => {
        this.holds++;
      },
      onResume: () => {},
      onHeld: (link) => {
        if (link.heldByAnchor) this.isHeld = true;
      },
      onCount: (link) => {
        this.counts++;
        link.sendCounted(this.got.length);
      },
      onInterrupted: () => {
        this.interruptions++;
      },
      onOver: (_, code) => {
        this.over = code;
      },
      onBroken: (_, error) => {
        throw error;
      },
      ...more,
    };
  }

  begin(link: LinkLeg): void {
    this.link = link;
    link.listener = {
      onData: (part) => {
        this.got.push(...part);
        if (this.isHeld) this.afterHeld += part.length;
        link.consumed(part.length);
      },
      onFin: () => this.fins++,
      onDrain: () => this.send(),
      onReset: () => {},
      onBroken: (error) => {
        throw error;
      },
    };
    link.startDelivering();
    this.send();
  }

  send(): void {
    const link = this.link as LinkLeg;
    for (;;) {
      const size = this.#chunks.shift();
      if (size === undefined) return;
      const chunk = Buffer.from(Array.from({ length: size }, () => (this.#first + this.#sent++) & 0xff));
      if (!link.write(chunk)) return;
    }
  }

  hasAll(first: number): boolean {
    assert.ok(this.fins <= 1, "one FIN");
    for (const [at, byte] of this.got.entries()) assert.equal(byte, (first + at) & 0xff, `byte ${at}`);
    assert.ok(this.got.length <= TOTAL, "no byte twice");
    return this.got.length === TOTAL;
  }
}

interface Cut {
  connection: number;
  direction: Direction;
  /** of what passes on that connection in that direction, this many bytes pass */
  at: number;
}

interface Stage {
  wire: Wire;
  dialler: End;
  acceptor: End;
  dial: LinkLeg;
  close(): void;
}

const owners = new Map<number, (socket: Socket) => void>();

/** What carries the link: a connection of its own, or a trunk. */
type Over = "own" | "trunk";

/** @param onReady the dialler's link is welcomed; nothing of ACTIVE has been looked at */
async function makeStage(
  cuts: Cut[] = [],
  over: Over = "own",
  onReady: (link: LinkLeg) => void = () => {},
): Promise<Stage> {
  const wire = await Wire.open();
  const server = createServer((socket) => owners.get((server.address() as AddressInfo).port)?.(socket));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  wire.to = { address: "127.0.0.1", port };
  const passed = new Map<string, number>();
  wire.tap = (bytes, direction, connection) => {
    const name = `${connection} ${direction}`;
    const before = passed.get(name) ?? 0;
    passed.set(name, before + bytes.length);
    for (const cut of cuts) {
      if (cut.connection !== connection || cut.direction !== direction) continue;
      if (before + bytes.length <= cut.at) continue;
      setImmediate(() => wire.cut());
      return bytes.subarray(0, Math.max(0, cut.at - before));
    }
    return bytes;
  };
  const dialler = new End(10);
  const acceptor = new End(100);
  const watches = [0, 1].map(() => new LinkWatch<LinkLeg>([key], RESUME_MS, LOOK_MS));
  const [dialling, accepting] = watches as [LinkWatch<LinkLeg>, LinkWatch<LinkLeg>];
  const onBroken = (error: unknown): void => {
    throw error;
  };
  const accept: AcceptOptions = {
    keys: [key],
    encrypted: false,
    watch: accepting,
    onReady: (link) => {
      link.sendActive({ epoch: 2, bytesIn: 0, bytesOut: 0 });
      acceptor.begin(link);
    },
    onRefused: () => {},
    listener: acceptor.listener(),
  };
  const trunks = new Trunks({ keys: [key], encrypted: false, linksMax: 10, onBroken, onFault: () => {} });
  if (over === "trunk")
    accept.onTrunk = (connection) =>
      new Trunk(() => connection, {
        channelsMax: 10,
        onOpen: (channel) => acceptLinkOn(channel, accept),
        onEmpty: () => {},
        onGone: () => {},
        onBroken,
      }).ready();
  owners.set(port, (socket) => acceptLink(socket, accept));
  const dial = dialLink({
    keys: [key],
    encrypted: false,
    ...(over === "trunk" && { trunks }),
    to: wire.at,
    greeting,
    watch: dialling,
    onReady,
    listener: dialler.listener({ onActive: (link) => dialler.begin(link) }),
  });
  return {
    wire,
    dialler,
    acceptor,
    dial,
    close: () => {
      owners.delete(port);
      for (const watch of watches) watch.stop();
      dial.reset();
      trunks.stop();
      wire.close();
      server.close();
    },
  };
}

async function until(what: string, done: () => boolean): Promise<void> {
  const turns = async (): Promise<void> => {
    while (!done()) await new Promise((resolve) => setImmediate(resolve));
  };
  await within(what, turns());
}

/** All that two ends of a link can say to each other. */
async function converse({ dialler, acceptor }: Stage): Promise<void> {
  const isOver = (): boolean => dialler.over !== null || acceptor.over !== null;
  const both = (): boolean => dialler.hasAll(100) && acceptor.hasAll(10);
  await until("ACTIVE", () => dialler.link !== null && acceptor.link !== null);
  const [near, far] = [dialler.link as LinkLeg, acceptor.link as LinkLeg];
  far.sendHold();
  await until("HELD", () => far.heldByAnchor || isOver());
  far.sendCount();
  await until("COUNTED", () => far.countedBytes === TOTAL || isOver());
  far.sendResume();
  await until("all bytes", () => both() || isOver());
  // as sessions do: an end that has the other's FIN lets go with its own
  far.finish();
  await until("a FIN", () => dialler.fins === 1 || isOver());
  near.finish();
  near.release();
  await until("the other FIN", () => acceptor.fins === 1 || isOver());
  far.release();
  await until("the end of both", () => !(near.isOpen && far.isOpen) || isOver());
  assert.ok(both());
  assert.equal(acceptor.afterHeld, 0, "no DATA follows HELD");
  assert.deepEqual([dialler.over, acceptor.over], [null, null], "it ends well");
}

/** @returns how often a connection was replaced */
async function withCuts(cuts: Cut[], over: Over): Promise<number> {
  const stage = await makeStage(cuts, over);
  try {
    await converse(stage);
    return stage.wire.connections - 1;
  } catch (error) {
    throw new Error(`${JSON.stringify(cuts)}: ${String(error)}`, { cause: error });
  } finally {
    stage.close();
  }
}

async function each(all: Cut[][], over: Over): Promise<number> {
  let replaced = 0;
  const waiting = all.values();
  const inTurn = async (): Promise<void> => {
    for (const cuts of waiting) {
      const count = await withCuts(cuts, over);
      replaced += count;
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, inTurn));
  return replaced;
}

/** How many bytes pass where nothing is cut, from ACTIVE on. */
async function lengths(over: Over): Promise<Record<Direction, { from: number; to: number }>> {
  const stage = await makeStage([], over);
  await converse(stage);
  const { passed } = stage.wire;
  stage.close();
  // a trunk is greeted first, and a channel's number is in front of each of the link's frames
  const [up, down] = over === "trunk" ? [4 + 49 + 8 + 4, 20 + 36 + 3 * 4] : [0, 0];
  const hello = up + 4 + 20 + 25 + 2 + 18 + 16 + 32;
  const welcomed = down + 20 + 36 + 28;
  return { up: { from: hello, to: passed.up }, down: { from: welcomed, to: passed.down } };
}

function range(from: number, to: number, step = 1): number[] {
  return Array.from({ length: Math.ceil((to - from) / step) }, (_, index) => from + index * step);
}

for (const over of ["own", "trunk"] as const)
  describe(`a link whose ${over === "own" ? "connection" : "trunk"} is torn`, { timeout: 60_000 }, () => {
    let span: Awaited<ReturnType<typeof lengths>>;
    before(async () => {
      span = await lengths(over);
    });

    for (const direction of ["up", "down"] as const)
      it(`after each byte that goes ${direction}, goes on where it was`, async () => {
        const { from, to } = span[direction];
        const all = range(from, to).map((at) => [{ connection: 1, direction, at }]);
        const replaced = await each(all, over);
        assert.ok(replaced >= all.length * 0.9, `${replaced} of ${all.length} were cut and went on`);
      });

    for (const direction of ["up", "down"] as const)
      it(`and once more, after each byte of its going on that goes ${direction}`, async () => {
        const { from, to } = span.up;
        const first = { connection: 1, direction: "up" as const, at: from + Math.round((to - from) / 2) };
        const all = range(0, over === "own" ? 240 : 320, over === "own" ? 1 : 2).map((at) => [
          first,
          { connection: 2, direction, at },
        ]);
        const replaced = await each(all, over);
        assert.ok(replaced > all.length, "some were cut twice");
      });
  });

for (const over of ["own", "trunk"] as const)
  describe(`a link on ${over === "own" ? "its own connection" : "a trunk"} that the dialler closes`, {
    timeout: 60_000,
  }, () => {
    for (const code of [RST_CODE.moved, RST_CODE.broken])
      it(`with RST ${code}, without having had the owner's ACTIVE, is to be dialled again`, async () => {
        const stage = await makeStage([], over, (link) => link.close(code));
        await until("it has come", () => stage.acceptor.interruptions === 1);
        const link = stage.acceptor.link as LinkLeg;
        assert.deepEqual([link.isOpen, link.isConnected, link.isUnproven], [true, false, true]);
        assert.deepEqual([stage.acceptor.over, stage.dialler.over], [null, null]);
        const kept = Buffer.concat([link.takeUnacknowledged(), link.takeUnsent()]);
        assert.equal(kept.length, TOTAL, "what was written on it is for the next");
        stage.close();
      });

    it("with its client's reset, as the owner says ACTIVE, is its session's end", async () => {
      const stage = await makeStage([], over, (link) => link.reset());
      await until("it has come", () => stage.acceptor.over === RST_CODE.reset);
      stage.close();
    });

    it("when it has had ACTIVE is over", async () => {
      const stage = await makeStage([], over);
      await until("ACTIVE", () => stage.dialler.link !== null);
      stage.dialler.link?.close(RST_CODE.moved);
      await until("it has come", () => stage.acceptor.over === RST_CODE.moved);
      assert.equal(stage.acceptor.interruptions, 0);
      stage.close();
    });
  });

/** Somebody who greets by hand. */
class Greeter {
  readonly frames: { type: FrameType; payload: Buffer }[] = [];
  nonce: Buffer = Buffer.alloc(0);
  isClosed = false;
  readonly #socket: Socket;

  private constructor(socket: Socket) {
    this.#socket = socket;
    const decoder = new FrameDecoder({
      onData: () => {},
      onControl: (type, payload) => this.frames.push({ type, payload: Buffer.from(payload) }),
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      this.isClosed = true;
    });
    socket.on("data", (bytes: Buffer) => void decoder.feed(bytes));
  }

  static async dial({ port }: { port: number }): Promise<Greeter> {
    const socket = connect(port, "127.0.0.1");
    const greeter = new Greeter(socket);
    await until("a NONCE", () => greeter.frames.length > 0);
    greeter.nonce = (greeter.frames.shift() as { payload: Buffer }).payload;
    return greeter;
  }

  rejoin(secret: Buffer, attempt: number, session = SESSION): Buffer {
    const said = encodeRejoin({ key, secret }, this.nonce, randomBytes(16), { session, attempt });
    this.say(frame(FRAME.rejoin, said));
    return said;
  }

  say(bytes: Buffer): void {
    this.#socket.write(bytes);
  }

  /** Refused, with a word; and it was not let in. */
  async isRefused(): Promise<void> {
    await until("the end of it", () => this.isClosed);
    assert.deepEqual(
      this.frames.map(({ type, payload }) => [type, payload[0]]),
      [[FRAME.rst, RST_CODE.unknownSession]],
    );
  }
}

describe("the secret of a link", { timeout: 60_000 }, () => {
  /** What its wire shows of a link in the clear to somebody who has the workload's key. */
  async function spied(): Promise<Stage & { hellos: Buffer[] }> {
    const hellos: Buffer[] = [];
    const stage = await makeStage();
    const decoders = new Map<number, FrameDecoder>();
    stage.wire.tap = (bytes, direction, connection) => {
      if (direction === "down") return bytes;
      const decoder =
        decoders.get(connection) ??
        new FrameDecoder({
          onData: () => {},
          onControl: (type, payload) => {
            if (type === FRAME.hello || type === FRAME.rejoin) hellos.push(Buffer.from(payload));
          },
        });
      decoders.set(connection, decoder);
      decoder.feed(Buffer.from(bytes));
      return bytes;
    };
    await until("ACTIVE", () => stage.dialler.link !== null && stage.acceptor.link !== null);
    return Object.assign(stage, { hellos });
  }
  const isCalm = (stage: Stage): boolean => stage.dialler.interruptions === 0;

  it("lets in nobody who has the workload's key and not the secret, and the link notices nothing", async () => {
    const stage = await spied();
    const stranger = await Greeter.dial(stage.wire.to);
    stranger.rejoin(randomBytes(32), 1);
    await stranger.isRefused();
    const lost = await Greeter.dial(stage.wire.to);
    lost.rejoin(secretOf(key, stage.hellos[0] as Buffer), 1, "another");
    await lost.isRefused();
    assert.ok(isCalm(stage));
    await converse(stage);
    stage.close();
  });

  it("is of use once: when the link has gone on, the one before is refused, and so is a number that was used", async () => {
    const stage = await spied();
    const [first] = stage.hellos as [Buffer];
    stage.wire.cut();
    await until(
      "it goes on",
      () => stage.hellos.length === 2 && (stage.acceptor.link as LinkLeg).isConnected,
    );
    const old = await Greeter.dial(stage.wire.to);
    old.rejoin(secretOf(key, first), 2);
    await old.isRefused();
    const used = await Greeter.dial(stage.wire.to);
    used.rejoin(secretOf(key, stage.hellos[1] as Buffer), 1);
    await used.isRefused();
    assert.equal(stage.dialler.interruptions, 1, "nothing has changed since");
    await converse(stage);
    stage.close();
  });

  it("of before is good while the dialler may not have heard of the next one", async () => {
    const stage = await spied();
    const [first] = stage.hellos as [Buffer];
    // accepted, and never goes on: a WELCOME that is lost
    const unheard = await Greeter.dial(stage.wire.to);
    unheard.rejoin(secretOf(key, first), 1);
    await until("its WELCOME", () => unheard.frames.some(({ type }) => type === FRAME.welcome));
    const again = await Greeter.dial(stage.wire.to);
    again.rejoin(secretOf(key, first), 2);
    await until("a second WELCOME", () => again.frames.some(({ type }) => type === FRAME.welcome));
    await until("the end of the first", () => unheard.isClosed);
    stage.close();
  });

  it("proves nothing when it was said to another NONCE", async () => {
    const stage = await spied();
    const greeter = await Greeter.dial(stage.wire.to);
    const secret = secretOf(key, stage.hellos[0] as Buffer);
    const said = encodeRejoin({ key, secret }, randomBytes(16), randomBytes(16), {
      session: SESSION,
      attempt: 1,
    });
    greeter.say(frame(FRAME.rejoin, said));
    await until("the end of it", () => greeter.isClosed);
    assert.deepEqual(greeter.frames, [], "one for another NONCE");
    assert.ok(isCalm(stage));
    stage.close();
  });
});
