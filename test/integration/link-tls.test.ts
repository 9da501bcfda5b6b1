/** What somebody between two proxies sees of a link, and can do to it. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { after, afterEach, before, describe, it } from "node:test";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import { FRAME, frame } from "#proxy/link/link-codec.ts";
import { acceptLink, dialLink } from "#proxy/link/link-greeting.ts";
import type { LinkLeg, LinkListener } from "#proxy/link/link-leg.ts";
import { LinkWatch } from "#proxy/link/link-watch.ts";

const [key, other] = [randomBytes(32), randomBytes(32)];
const BYTES = 3 * 1024 * 1024;
const greeting = {
  session: "0123456789abcdef01234567",
  port: 0,
  epoch: 2,
  anchor: "a",
  client: "10.99.0.100:40000",
  acceptedAtMs: 1,
  fresh: false,
};
type Direction = "dialler" | "acceptor";
type Tamper = (bytes: Buffer, from: Direction) => Buffer;
interface Side {
  keys?: SharedKeys;
  encrypted?: boolean;
  watch?: LinkWatch<LinkLeg>;
}

const sockets = new Set<Socket>();
const owner = createServer();
const between = createServer();
let seen: Buffer[] = [];
let tamper: Tamper = (bytes) => bytes;
/** of the acceptor's first bytes alone, its NONCE */
function tamperWithNonce(alter: (bytes: Buffer) => Buffer): void {
  let isFirst = true;
  tamper = (bytes, from) => {
    if (from !== "acceptor" || !isFirst) return bytes;
    isFirst = false;
    return alter(bytes);
  };
}

before(async () => {
  for (const server of [owner, between]) {
    server.on("connection", (socket: Socket) => sockets.add(socket.on("error", () => {})));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
  }
  between.on("connection", (near: Socket) => {
    const far = connect((owner.address() as AddressInfo).port, "127.0.0.1");
    sockets.add(far.on("error", () => {}));
    for (const [from, to, who] of [
      [near, far, "dialler"],
      [far, near, "acceptor"],
    ] as const) {
      from.on("data", (bytes: Buffer) => {
        seen.push(bytes);
        to.write(tamper(bytes, who));
      });
      from.on("close", () => to.destroy());
    }
  });
});
afterEach(() => {
  for (const socket of sockets) socket.destroy();
  sockets.clear();
  seen = [];
  tamper = (bytes) => bytes;
});
after(() => {
  owner.close();
  between.close();
});

function listener(over: () => void, more: Partial<LinkListener> = {}): LinkListener {
  const nothing = (): void => {};
  const onBroken = (_: LinkLeg, error: unknown): void => {
    throw error;
  };
  return {
    onActive: nothing,
    onHold: nothing,
    onResume: nothing,
    onHeld: nothing,
    onOver: over,
    onBroken,
    ...more,
  };
}

/** Sends all of `bytes`, gives all that comes until the FIN. */
function exchange(link: LinkLeg, bytes: Buffer): Promise<Buffer> {
  const got: Buffer[] = [];
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  let rest = bytes;
  const send = (): void => {
    while (rest.length > 0) {
      const part = rest.subarray(0, 100_000);
      rest = rest.subarray(part.length);
      if (!link.write(part)) return;
    }
    link.finish();
  };
  link.listener = {
    onData(part) {
      got.push(Buffer.from(part));
      link.consumed(part.length);
    },
    onFin: () => resolve(Buffer.concat(got)),
    onDrain: send,
    onReset: () => reject(new Error("reset")),
    onBroken: reject,
  };
  link.startDelivering();
  send();
  return promise;
}

interface Linked {
  dialled: LinkLeg;
  accepted: LinkLeg;
}

/** @returns both ends when the owner has said ACTIVE; or why the acceptor has refused, or "over" where the dialler has ended it */
async function link(dialler: Side = {}, acceptor: Side = {}): Promise<Linked | string> {
  const outcome = Promise.withResolvers<Linked | string>();
  const arrived = once(owner, "connection");
  const dialled = dialLink({
    keys: [key],
    ...dialler,
    to: { address: "127.0.0.1", port: (between.address() as AddressInfo).port },
    greeting,
    onReady: () => {},
    listener: listener(() => setImmediate(() => outcome.resolve("over")), {
      onActive: () => outcome.resolve({ dialled, accepted }),
    }),
  });
  const [socket] = (await arrived) as [Socket];
  const accepted = acceptLink(socket, {
    keys: [key],
    ...acceptor,
    onReady: (end) => end.sendActive({ epoch: 2, bytesIn: 0, bytesOut: 0 }),
    onRefused: (reason) => outcome.resolve(reason),
    listener: listener(() => {}),
  });
  return outcome.promise;
}

async function linked(dialler: Side = {}, acceptor: Side = {}): Promise<Linked> {
  const both = await link(dialler, acceptor);
  assert.ok(typeof both !== "string", String(both));
  return both;
}

/** Looks for some runs of 16 bytes of it; at least one lies within one frame. */
function wasSeen(secret: Buffer): boolean {
  const all = Buffer.concat(seen);
  for (let at = 0; at + 16 <= secret.length; at += 64 * 1024)
    if (all.includes(secret.subarray(at, at + 16))) return true;
  return false;
}

async function carries({ dialled, accepted }: Linked): Promise<{ up: Buffer; down: Buffer }> {
  const [up, down] = [randomBytes(BYTES), randomBytes(BYTES)];
  const [gotUp, gotDown] = await Promise.all([exchange(accepted, down), exchange(dialled, up)]);
  assert.ok(gotUp.equals(up) && gotDown.equals(down), "every byte, in order");
  return { up, down };
}

describe("what passes between two proxies", { timeout: 60_000 }, () => {
  it("shows nothing of the session: not a byte of what it carries, nor whose it is", async () => {
    const { up, down } = await carries(await linked());
    assert.ok(Buffer.concat(seen).length > 2 * BYTES, "all of it went this way");
    assert.ok(!wasSeen(up) && !wasSeen(down));
    assert.ok(!Buffer.concat(seen).includes(greeting.session));
    assert.ok(!Buffer.concat(seen).includes(greeting.client));
  });

  it("is as it always was where one of the two speaks no TLS: the version before, or links: plain", async () => {
    for (const [dialler, acceptor] of [
      [false, false],
      [false, true],
      [true, false],
    ]) {
      seen = [];
      const both = await linked({ encrypted: dialler === true }, { encrypted: acceptor === true });
      const { up, down } = await carries(both);
      assert.ok(wasSeen(up) && wasSeen(down), "else the test above proves nothing");
    }
  });

  it("ends with its connection where one of the two cannot go on: the version before, or linkResumeMsMax: 0", async () => {
    const can = { watch: new LinkWatch<LinkLeg>([key], 5_000) };
    const off = { watch: new LinkWatch<LinkLeg>([key], 0) };
    for (const [dialler, acceptor] of [
      [can, {}],
      [{}, can],
      [can, off],
      [off, can],
    ] as const) {
      const both = await linked(dialler, acceptor);
      await carries(both);
      const second = await linked(dialler, acceptor);
      for (const socket of sockets) socket.destroy();
      while (second.dialled.isOpen || second.accepted.isOpen) await new Promise((done) => setImmediate(done));
    }
    assert.equal(can.watch.size, 0);
  });

  it("cannot be put into the clear by who alters what the acceptor says first", async () => {
    tamperWithNonce((bytes) => Buffer.concat([bytes.subarray(0, -4), Buffer.alloc(4)]));
    assert.match(String(await link()), /not signed with a link key|over/);
    assert.ok(!Buffer.concat(seen).includes(Buffer.from([FRAME.welcome, 0, 0, 32])), "nobody was let in");
  });

  it("takes no frame that somebody puts in front of TLS", async () => {
    tamperWithNonce((bytes) => Buffer.concat([bytes, frame(FRAME.welcome, Buffer.alloc(32))]));
    const both = await link();
    assert.ok(
      typeof both === "string" || both.dialled.isReady,
      "dropped with the rest that came in the clear",
    );
    if (typeof both !== "string") await carries(both);
  });

  it("ends the link when a byte of it is altered", async () => {
    const { dialled, accepted } = await linked();
    tamper = (bytes) => {
      const altered = Buffer.from(bytes);
      altered[altered.length - 1] = (altered.at(-1) ?? 0) ^ 1;
      return altered;
    };
    accepted.listener = { onData: () => assert.fail("it was passed on") } as never;
    accepted.startDelivering();
    dialled.write(Buffer.alloc(1_000));
    while (accepted.isOpen) await new Promise((resolve) => setImmediate(resolve));
  });
});

describe("link keys", { timeout: 60_000 }, () => {
  it("are all accepted, and the first is dialled with", async () => {
    await carries(await linked({ keys: [other, key] }, { keys: [key, other] }));
    await carries(await linked({ keys: [other, key], encrypted: false }, { keys: [key, other] }));
  });

  it("are refused when there is no such, with a line that says so", async () => {
    assert.match(
      String(await link({ keys: [other] })),
      /its link key [0-9a-f]{8} is none of this workload's/,
    );
    assert.match(String(await link({ keys: [other], encrypted: false })), /not signed with a link key/);
  });
});
