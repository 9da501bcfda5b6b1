/** Two ends of a trunk, without links: channels, their turns, and peers that break the rules. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { afterEach, describe, it } from "node:test";
import { FRAME, frame } from "#proxy/link/link-codec.ts";
import { type ConnectionSink, type Gone, NOBODY, SocketConnection } from "#proxy/link/link-connection.ts";
import { Trunk, type TrunkOptions } from "#proxy/link/trunk.ts";
import type { Channel } from "#proxy/link/trunk-channel.ts";
import { within } from "#test/support/raw-ends.ts";

const CHANNELS_MAX = 8;
const LOTS = 4 * 1024 * 1024;
const SMALL = 10;
const GREETING_MS_MAX = 5_000;

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

async function until(what: string, done: () => boolean): Promise<void> {
  const turns = async (): Promise<void> => {
    while (!done()) await new Promise((resolve) => setImmediate(resolve));
  };
  await within(what, turns());
}

async function socketPair(): Promise<[dialled: Socket, accepted: Socket]> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const dialled = connect((server.address() as AddressInfo).port, "127.0.0.1").on("error", () => {});
  const [accepted] = (await once(server, "connection")) as [Socket];
  server.close();
  closers.push(
    () => dialled.destroy(),
    () => accepted.destroy(),
  );
  return [dialled, accepted];
}

/** What an end has seen of a channel. */
class Seen {
  bytes = 0;
  frames: number[] = [];
  gone: Gone | null = null;
  written = 0;
  readonly sink: ConnectionSink = {
    ...NOBODY,
    onData: (part) => {
      this.bytes += part.length;
    },
    onFrame: (type) => this.frames.push(type),
    onWritten: () => {
      this.written++;
    },
    onGone: (why) => {
      this.gone = why;
    },
    onThrown: (error) => {
      throw error;
    },
  };
}

interface End {
  trunk: Trunk;
  /** acceptor: in the order of OPEN */
  channels: Channel[];
  seen: Seen[];
  gone: Gone | null;
}

/** @param onChannel in place of a sink that keeps what comes */
function trunkOn(socket: Socket, isAcceptor: boolean, onChannel?: (channel: Channel) => void): End {
  const end: Omit<End, "trunk"> = { channels: [], seen: [], gone: null };
  const onOpen = (channel: Channel): void => {
    const seen = new Seen();
    channel.sink = seen.sink;
    channel.greeted();
    end.channels.push(channel);
    end.seen.push(seen);
  };
  const options: TrunkOptions = {
    channelsMax: CHANNELS_MAX,
    onOpen: isAcceptor ? (onChannel ?? onOpen) : null,
    onEmpty: () => {},
    onGone: (why) => {
      end.gone = why;
    },
    onBroken: (error) => {
      throw error;
    },
  };
  const trunk = new Trunk((sink) => SocketConnection.accept(socket, sink, null), options);
  trunk.ready();
  return Object.assign(end, { trunk });
}

async function trunkPair(): Promise<{ dialler: End; acceptor: End; sockets: [Socket, Socket] }> {
  const sockets = await socketPair();
  return { dialler: trunkOn(sockets[0], false), acceptor: trunkOn(sockets[1], true), sockets };
}

function open({ trunk }: End): { channel: Channel; seen: Seen } {
  const seen = new Seen();
  const channel = trunk.open(seen.sink);
  channel.greeted();
  return { channel, seen };
}

describe("channels of a trunk", { timeout: 30_000 }, () => {
  it("end at the other end when one ends them, with what was written before", async () => {
    const { dialler, acceptor } = await trunkPair();
    const { channel } = open(dialler);
    channel.writeData(Buffer.alloc(LOTS / 16));
    channel.writeData(Buffer.alloc(LOTS / 16));
    channel.write(frame(FRAME.fin));
    channel.end();
    await until("its end", () => acceptor.seen[0]?.gone === "broken");
    assert.deepEqual([acceptor.seen[0]?.bytes, acceptor.seen[0]?.frames], [LOTS / 8, [FRAME.fin]]);
    assert.equal(dialler.gone, null);
  });

  it("have a number of their own until both ends have closed it", async () => {
    const { dialler, acceptor, sockets } = await trunkPair();
    const [first, second] = [open(dialler), open(dialler)];
    await until("both", () => acceptor.channels.length === 2);
    assert.deepEqual([first.channel.number, second.channel.number], [0, 1]);
    sockets[1].pause();
    first.channel.destroy();
    assert.equal(open(dialler).channel.number, 2, "the other end has not closed it");
    sockets[1].resume();
    await until("its end", () => acceptor.seen[0]?.gone === "broken");
    await until("a third", () => acceptor.channels.length === 3);
    await dialler.trunk.flushed(second.channel);
    await until("the number is free", () => {
      const { channel } = open(dialler);
      const { number } = channel;
      if (number !== 0) channel.destroy();
      return number === 0;
    });
    assert.deepEqual([dialler.gone, acceptor.gone], [null, null]);
  });

  it("are served in turn: one with much to say keeps none that has little from saying it", async () => {
    const { dialler, acceptor, sockets } = await trunkPair();
    const all = Array.from({ length: CHANNELS_MAX }, () => open(dialler));
    await until("all", () => acceptor.channels.length === CHANNELS_MAX);
    const [greedy, ...modest] = all as [(typeof all)[0], ...typeof all];
    sockets[1].pause();
    // much more than the kernel's queues take
    for (let sent = 0; sent < 8 * LOTS; sent += 65_536) greedy.channel.writeData(Buffer.alloc(65_536));
    assert.ok(greedy.channel.isFull);
    for (const { channel } of modest) {
      channel.writeData(Buffer.alloc(SMALL));
      assert.ok(!channel.isFull, "it has nothing to wait for");
    }
    let atGreedy = -1;
    sockets[1].resume();
    await until("every small one", () => {
      const isThere = acceptor.seen.slice(1).every(({ bytes }) => bytes === SMALL);
      if (isThere && atGreedy < 0) atGreedy = acceptor.seen[0]?.bytes ?? 0;
      return isThere;
    });
    assert.ok(atGreedy < 8 * LOTS, `${atGreedy} of the other's came before`);
    await until("the rest", () => acceptor.seen[0]?.bytes === 8 * LOTS);
    assert.ok(greedy.seen.written > 0, "it is told that there is room");
    assert.ok(!greedy.channel.isFull);
  });

  it("keep the order of what each has written, whatever waits", async () => {
    const { dialler, acceptor, sockets } = await trunkPair();
    const [first, second] = [open(dialler), open(dialler)];
    await until("both", () => acceptor.channels.length === 2);
    sockets[1].pause();
    for (let sent = 0; sent < 2 * LOTS; sent += 65_536) first.channel.writeData(Buffer.alloc(65_536));
    first.channel.write(frame(FRAME.held));
    second.channel.write(frame(FRAME.held));
    sockets[1].resume();
    await until("the second's", () => acceptor.seen[1]?.frames.length === 1);
    await until("the first's", () => acceptor.seen[0]?.frames.length === 1);
    assert.equal(acceptor.seen[0]?.bytes, 2 * LOTS, "no DATA follows HELD");
  });

  it("have been flushed when the kernel has all of it, or the trunk is no more", async () => {
    const { dialler, acceptor, sockets } = await trunkPair();
    const [first, second] = [open(dialler), open(dialler)];
    await until("both", () => acceptor.channels.length === 2);
    sockets[1].pause();
    for (let sent = 0; sent < 8 * LOTS; sent += 65_536) first.channel.writeData(Buffer.alloc(65_536));
    second.channel.write(frame(FRAME.held));
    let isFlushed = false;
    const flushed = first.channel.flushed().then(() => {
      isFlushed = true;
    });
    await second.channel.flushed();
    assert.ok(!isFlushed, "most of it waits in this process");
    sockets[1].resume();
    await within("flushed", flushed);
    assert.equal(first.channel.isFull, false);
    sockets[1].pause();
    for (let sent = 0; sent < 8 * LOTS; sent += 65_536) first.channel.writeData(Buffer.alloc(65_536));
    const waiting = first.channel.flushed();
    sockets[0].destroy();
    await within("flushed", waiting);
    assert.equal(first.seen.gone, "broken");
  });

  it("wait for a number when all are taken, and end with the trunk", async () => {
    const { dialler, acceptor } = await trunkPair();
    const all = Array.from({ length: CHANNELS_MAX }, () => open(dialler));
    assert.ok(!dialler.trunk.hasRoom);
    await until("all", () => acceptor.channels.length === CHANNELS_MAX);
    acceptor.trunk.destroy();
    await until("their end", () => all.every(({ seen }) => seen.gone === "broken"));
    assert.ok(acceptor.seen.every(({ gone }) => gone === "broken"));
  });
});

describe("a trunk that is in doubt", { timeout: 30_000 }, () => {
  it("takes no more links, serves those that it has, and ends with the last of them", async () => {
    const { dialler, acceptor } = await trunkPair();
    const [first, second] = [open(dialler), open(dialler)];
    await until("both", () => acceptor.channels.length === 2);
    first.channel.doubt();
    assert.ok(!dialler.trunk.hasRoom);
    first.channel.end();
    second.channel.writeData(Buffer.alloc(SMALL));
    await until("the other's", () => acceptor.seen[1]?.bytes === SMALL);
    acceptor.channels[1]?.writeData(Buffer.alloc(SMALL));
    await until("its answer", () => second.seen.bytes === SMALL);
    assert.deepEqual([dialler.gone, acceptor.gone, second.seen.gone], [null, null, null]);
    second.channel.writeData(Buffer.alloc(LOTS));
    second.channel.end();
    await until("its end, here", () => dialler.gone !== null);
    await until("and there", () => acceptor.gone !== null);
    assert.equal(acceptor.seen[1]?.bytes, SMALL + LOTS, "with all that was written");
  });

  it("is one on which a channel was not greeted in time", async (it) => {
    it.mock.timers.enable({ apis: ["setTimeout"] });
    const { dialler, acceptor } = await trunkPair();
    const slow = new Seen();
    dialler.trunk.open(slow.sink);
    const { seen } = open(dialler);
    await until("both", () => acceptor.channels.length === 2);
    it.mock.timers.tick(GREETING_MS_MAX);
    assert.deepEqual([slow.gone, seen.gone, dialler.gone], ["broken", null, null]);
    assert.ok(!dialler.trunk.hasRoom);
  });

  it("is not what an acceptor makes of a dialler that does not greet: the channel ends, and the next is served", async (it) => {
    it.mock.timers.enable({ apis: ["setTimeout"] });
    const [near, far] = await socketPair();
    const dialler = trunkOn(near, false);
    const silent: Channel[] = [];
    const acceptor = trunkOn(far, true, (channel) => silent.push(channel));
    const { seen } = open(dialler);
    await until("it", () => silent.length === 1);
    it.mock.timers.tick(GREETING_MS_MAX);
    await until("its end", () => seen.gone === "broken");
    open(dialler);
    await until("the next", () => silent.length === 2);
    assert.ok(silent[1]?.isOpen);
    assert.deepEqual([dialler.gone, acceptor.gone], [null, null]);
  });

  it("that has ended with its last is flushed when the kernel has all of it", async () => {
    const { dialler, acceptor, sockets } = await trunkPair();
    const { channel } = open(dialler);
    await until("it", () => acceptor.channels.length === 1);
    sockets[1].pause();
    let sent = 0;
    // until the kernel takes no more
    for (; sockets[0].writableLength === 0; sent += 65_536) {
      channel.writeData(Buffer.alloc(65_536));
      await new Promise((resolve) => setImmediate(resolve));
    }
    dialler.trunk.retire();
    channel.end();
    assert.ok(!dialler.trunk.isOpen, "nothing of it waits for its turn");
    let isFlushed = false;
    const flushed = channel.flushed().then(() => {
      isFlushed = true;
    });
    for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setImmediate(resolve));
    assert.ok(!isFlushed, "some waits for the kernel");
    sockets[1].resume();
    await within("flushed", flushed);
    await until("all of it", () => acceptor.seen[0]?.bytes === sent);
  });
});

function onChannel(number: number, bytes: Buffer): Buffer {
  const prefix = Buffer.alloc(4);
  prefix.writeUInt32BE(number);
  return Buffer.concat([prefix, bytes]);
}
const OPEN = frame(FRAME.open);

describe("a trunk whose peer breaks the rules", { timeout: 30_000 }, () => {
  const hostile: [what: string, bytes: Buffer[]][] = [
    ["opens a number twice", [onChannel(0, OPEN), onChannel(0, OPEN)]],
    ["leaves a gap between numbers", [onChannel(1, OPEN)]],
    ["opens more than it may", Array.from({ length: CHANNELS_MAX + 1 }, (_, n) => onChannel(n, OPEN))],
    ["sends on a channel that is not open", [onChannel(0, OPEN), onChannel(1, frame(FRAME.hold))]],
    [
      "sends bytes on a channel that is not open",
      [onChannel(0, OPEN), onChannel(1, frame(FRAME.data, Buffer.alloc(1)))],
    ],
    ["closes a channel that is not open", [onChannel(0, OPEN), onChannel(1, frame(FRAME.close))]],
    ["opens with a payload", [onChannel(0, OPEN), onChannel(1, frame(FRAME.open, Buffer.alloc(1)))]],
    ["sends frames of no known type", [onChannel(0, OPEN), onChannel(0, Buffer.from([99, 0, 0, 0]))]],
    ["sends DATA without end", [onChannel(0, OPEN), onChannel(0, Buffer.from([FRAME.data, 255, 255, 255]))]],
  ];
  for (const [what, bytes] of hostile)
    it(`is closed, and its channels end, when it ${what}`, async () => {
      const [near, far] = await socketPair();
      const acceptor = trunkOn(far, true);
      for (const part of bytes) near.write(part);
      await until("the end", () => acceptor.gone === "fault");
      assert.ok(acceptor.seen.every(({ gone }) => gone === "broken"));
      await until("its connection's", () => far.destroyed);
    });

  it("is closed when an acceptor opens a channel", async () => {
    const [near, far] = await socketPair();
    const dialler = trunkOn(near, false);
    const { seen } = open(dialler);
    far.write(onChannel(1, OPEN));
    await until("the end", () => dialler.gone === "fault");
    assert.equal(seen.gone, "broken");
  });

  it("ends one channel alone when that one's sink throws", async () => {
    const { dialler, acceptor } = await trunkPair();
    const [first, second] = [open(dialler), open(dialler)];
    await until("both", () => acceptor.channels.length === 2);
    const thrown: unknown[] = [];
    (acceptor.channels[0] as Channel).sink = {
      ...NOBODY,
      onData: () => {
        throw new Error("a bug");
      },
      onThrown: (error) => thrown.push(error),
    };
    first.channel.writeData(Buffer.alloc(1));
    second.channel.writeData(Buffer.alloc(1));
    await until("the other's", () => acceptor.seen[1]?.bytes === 1);
    assert.equal(thrown.length, 1);
    assert.equal(acceptor.gone, null);
  });

  it("says nothing more on a number that it has closed, whatever comes on it", async () => {
    const [near, far] = await socketPair();
    const acceptor = trunkOn(far, true);
    near.write(onChannel(0, OPEN));
    await until("it", () => acceptor.channels.length === 1);
    (acceptor.channels[0] as Channel).destroy();
    near.write(onChannel(0, frame(FRAME.data, Buffer.alloc(100))));
    near.write(onChannel(0, frame(FRAME.hold)));
    near.write(onChannel(0, frame(FRAME.close)));
    near.write(onChannel(0, OPEN));
    await until("it is opened again", () => acceptor.channels.length === 2);
    assert.deepEqual([acceptor.seen[0]?.bytes, acceptor.seen[0]?.frames], [0, []]);
  });
});
