/** Images of TCP connections whose both ends are the application's. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { encodeImage, firstOfImage } from "#control/criu/image-file.ts";
import { innerConnections, withoutUnsent } from "#control/criu/inner-connections.ts";
import { encodeFields } from "#control/criu/protobuf.ts";
import type { InetSocketImage } from "#control/criu/socket-images.ts";

const [ESTABLISHED, CLOSE, LISTEN, TCP, UDP] = [1, 7, 10, 6, 17];
const [address, port] = ["127.0.0.1", 5_000];

function socket(inode: number, more: Partial<InetSocketImage>): InetSocketImage {
  const end = { address, port };
  const plain = { inode, type: 1, protocol: TCP, state: ESTABLISHED, local: end, remote: end };
  return { ...plain, reuseAddress: false, ...more };
}

describe("connections with oneself", () => {
  it("are those whose both ends are there, by whichever name of an address", () => {
    const server = { address, port };
    const client = { address: "::ffff:127.0.0.1", port: 40_000 };
    const sockets = [
      socket(1, { local: server, remote: { ...client, address } }),
      socket(2, { local: client, remote: { ...server, address: "::ffff:127.0.0.1" } }),
      socket(3, { local: server, remote: { address: "10.0.0.1", port: 40_000 } }),
      socket(4, { state: LISTEN, local: server, remote: { address: "0.0.0.0", port: 0 } }),
    ];
    assert.deepEqual(innerConnections(sockets), [1, 2]);
    assert.deepEqual(innerConnections(sockets.slice(1)), []);
    const other = (more: Partial<InetSocketImage>) => sockets.map((one) => ({ ...one, ...more }));
    assert.deepEqual(innerConnections(other({ state: CLOSE })), []);
    assert.deepEqual(innerConnections(other({ protocol: UDP })), []);
  });

  it("have all their bytes as sent, and otherwise what they had", () => {
    const before = encodeFields([
      [3, 3_000],
      [4, 77],
    ]);
    const after = encodeFields([[13, 5]]);
    const bytes = Buffer.from("what waits, of any kind");
    const image = (unsent: number): Buffer =>
      Buffer.concat([
        encodeImage("tcpStream", [Buffer.concat([before, encodeFields([[12, unsent]]), after])]),
        bytes,
      ]);
    const { message, rest } = firstOfImage("tcpStream", withoutUnsent(image(785)) as Buffer);
    assert.deepEqual([message, rest], [Buffer.concat([before, encodeFields([[12, 0]]), after]), bytes]);
    assert.equal(withoutUnsent(image(0)), null);
    assert.throws(() => withoutUnsent(bytes), { code: "CRIU_IMAGE" });
    assert.throws(() => withoutUnsent(image(785).subarray(0, 14)), { code: "CRIU_IMAGE" });
  });
});
