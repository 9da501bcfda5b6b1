/** CRIU's files.img, by bytes written by hand after images/fdinfo.proto and images/sk-inet.proto. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { inetSockets, rewriteInetSockets } from "#control/criu/socket-images.ts";

const head = Buffer.from("1943 5654 3831 3056".replaceAll(" ", ""), "hex");
const tcpClose = 7;

function field(number: number, value: number | Buffer): Buffer {
  const varint = (rest: number): number[] =>
    rest < 128 ? [rest] : [(rest % 128) | 128, ...varint(Math.floor(rest / 128))];
  return typeof value === "number"
    ? Buffer.from([...varint(number * 8), ...varint(value)])
    : Buffer.concat([Buffer.from([...varint(number * 8 + 2), ...varint(value.length)]), value]);
}

function entry(...fields: Buffer[]): Buffer {
  const message = Buffer.concat(fields);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(message.length);
  return Buffer.concat([length, message]);
}

/** 10.99.0.2:40000 to 10.99.0.100:5432 as this machine's numbers, and fields that nobody here knows */
const socket = (from: number[], to: number[], family = 2): Buffer =>
  Buffer.concat([
    field(1, 9),
    field(2, 4_000_000_001),
    field(3, family),
    field(4, 1),
    field(5, 6),
    field(6, 1),
    field(7, 40_000),
    field(8, 5432),
    field(9, 2),
    field(10, 0),
    ...from.map((word) => field(11, word)),
    ...to.map((word) => field(12, word)),
    field(13, Buffer.from([8, 0])),
    field(14, Buffer.concat([field(1, 1), field(7, 1)])),
    field(19, 3),
    field(99, Buffer.from("unknown")),
  ]);
const v4 = socket([0x0200630a], [0x6400630a]);
const v6 = socket([0x99fd, 0, 0, 0x02000000], [0x99fd, 0, 0, 0x00010000], 10);
const regular = entry(field(1, 1), field(2, 5), field(3, Buffer.from("a file")));
const image = Buffer.concat([
  head,
  regular,
  entry(field(1, 4), field(2, 9), field(4, v4)),
  entry(field(1, 4), field(2, 10), field(4, v6)),
]);

describe("files.img", () => {
  it("is read", () => {
    assert.deepEqual(inetSockets(image), [
      {
        inode: 4_000_000_001,
        type: 1,
        protocol: 6,
        state: 1,
        local: { address: "10.99.0.2", port: 40_000 },
        remote: { address: "10.99.0.100", port: 5432 },
        reuseAddress: true,
      },
      {
        inode: 4_000_000_001,
        type: 1,
        protocol: 6,
        state: 1,
        local: { address: "fd99::2", port: 40_000 },
        remote: { address: "fd99::100", port: 5432 },
        reuseAddress: true,
      },
    ]);
  });

  it("is the same byte for byte where nothing changes", () => {
    assert.ok(rewriteInetSockets(image, () => null).equals(image));
  });

  it("has the sockets that are wanted, and everything else as it was", () => {
    const change = {
      local: { address: "10.99.0.3", port: 1 },
      remote: { address: "0.0.0.0", port: 0 },
      state: tcpClose,
      keepShutdown: false,
    };
    const written = rewriteInetSockets(image, ({ local }) => (local.address === "10.99.0.2" ? change : null));
    const [changed, same] = inetSockets(written);
    assert.deepEqual(
      { local: changed?.local, remote: changed?.remote, state: changed?.state, reuse: changed?.reuseAddress },
      { local: change.local, remote: change.remote, state: tcpClose, reuse: true },
    );
    assert.equal(same?.local.address, "fd99::2");
    assert.ok(written.includes(regular) && written.includes("unknown"));
    assert.ok(
      !written.subarray(0, written.indexOf("unknown")).includes(field(19, 3)),
      "it is shut down still",
    );
  });

  it("that is damaged is refused", () => {
    for (const damaged of [
      Buffer.alloc(0),
      image.subarray(0, image.length - 1),
      Buffer.concat([Buffer.alloc(8), image.subarray(8)]),
      Buffer.concat([head, entry(field(4, Buffer.from([0x0a, 0x7f])))]),
    ])
      assert.throws(() => rewriteInetSockets(damaged, () => null), { code: /^CRIU_/ });
  });
});
