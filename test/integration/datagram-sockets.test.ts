/** What CRIU drops of a datagram socket, given to another one in its place. Real sockets on the loopback device. */
import assert from "node:assert/strict";
import { afterEach, describe, it } from "node:test";
import { deviceGroups, join, membershipsOf } from "#control/migration/group-memberships.ts";
import { hasArrived } from "#control/migration/over-loopback.ts";
import { receiveAgain, receivedBytes, unreadDatagramsOf } from "#control/migration/unread-datagrams.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as sock from "#proxy/kernel/socket.ts";

const skip = process.getuid?.() === 0 ? false : "needs root: raw sockets";
const unreadMax = 1 << 20;
let opened: number[] = [];
afterEach(() => {
  for (const fd of opened) descriptor.close(fd);
  opened = [];
});

function udp(local: Endpoint): number {
  const domain = local.address.includes(":") ? ipText.AF_INET6 : ipText.AF_INET;
  const fd = sock.socket(domain, sock.SOCK_DGRAM | sock.SOCK_NONBLOCK | sock.SOCK_CLOEXEC, 0);
  opened.push(fd);
  sock.bind(fd, local);
  return fd;
}

function read(fd: number): [string, Endpoint] | null {
  const into = Buffer.alloc(65_536);
  const got = sock.tryRecvFrom(fd, into, sock.MSG_DONTWAIT);
  return got === null ? null : [into.toString("latin1", 0, got.length), got.from];
}

/** … and waits until `to` has it. */
function deliver(sender: number, text: string, at: Endpoint, to: number): void {
  const before = receivedBytes(to);
  sock.sendto(sender, Buffer.from(text), 0, at);
  assert.ok(hasArrived(() => receivedBytes(to) > before));
}

describe("datagrams that were not read", { skip }, () => {
  for (const [bound, from, to] of [
    ["127.0.0.1", "127.0.0.1", "127.0.0.1"],
    ["0.0.0.0", "127.0.0.2", "127.0.0.1"],
    ["::1", "::1", "::1"],
    ["::", "::1", "::1"],
    ["::", "127.0.0.1", "127.0.0.1"],
  ] as const)
    it(`are read by another socket as they would have been: bound to ${bound}, from ${from}`, () => {
      const first = udp({ address: bound, port: 0 });
      const { port } = sock.getsockname(first);
      const sender = udp({ address: from, port: 0 });
      const texts = ["first", "", "x".repeat(40_000), "odd", "last"];
      for (const text of texts) deliver(sender, text, { address: to, port }, first);
      const seen = unreadDatagramsOf(first, unreadMax);
      const wanted = texts.map(() => read(first));
      assert.deepEqual(
        wanted.map((one) => one?.[0]),
        texts,
      );
      const second = udp({ address: bound, port: 0 });
      receiveAgain(second, seen);
      assert.deepEqual([...texts.map(() => read(second)), read(second)], [...wanted, null]);
    });

  it("of a connected socket are its peer's", () => {
    const first = udp({ address: "127.0.0.1", port: 0 });
    const sender = udp({ address: "127.0.0.1", port: 0 });
    sock.connect(first, sock.getsockname(sender));
    deliver(sender, "for you", sock.getsockname(first), first);
    const seen = unreadDatagramsOf(first, unreadMax);
    const second = udp({ address: "127.0.0.1", port: 0 });
    sock.connect(second, sock.getsockname(sender));
    receiveAgain(second, seen);
    assert.deepEqual(read(second), ["for you", sock.getsockname(sender)]);
  });

  it("that the kernel has joined are read one by one, as it may have left them (UDP_GRO)", () => {
    const first = udp({ address: "127.0.0.1", port: 0 });
    const sender = udp({ address: "127.0.0.1", port: 0 });
    for (const [fd, option, value] of [
      [first, sock.UDP_GRO, 1],
      [sender, sock.UDP_SEGMENT, 100],
    ] as const)
      sock.setsockoptInt(fd, sock.IPPROTO_UDP, option, value);
    const text = ["a", "b", "c"].map((letter) => letter.repeat(100)).join("");
    for (const each of [`${text}end`, "alone"]) deliver(sender, each, sock.getsockname(first), first);
    const seen = unreadDatagramsOf(first, unreadMax);
    assert.equal(read(first)?.[0], `${text}end`, "the kernel joins what it may");
    const second = udp({ address: "127.0.0.1", port: 0 });
    receiveAgain(second, seen);
    assert.deepEqual(
      Array.from({ length: 6 }, () => read(second)?.[0]),
      ["a".repeat(100), "b".repeat(100), "c".repeat(100), "end", "alone", undefined],
    );
  });

  it("that cannot be given again are told", () => {
    const first = udp({ address: "127.0.0.1", port: 0 });
    const sender = udp({ address: "127.0.0.1", port: 0 });
    deliver(sender, "x", sock.getsockname(first), first);
    const second = udp({ address: "127.0.0.1", port: 0 });
    sock.connect(second, sock.getsockname(first)); // takes nothing from the sender
    assert.throws(() => receiveAgain(second, unreadDatagramsOf(first, unreadMax)), {
      code: "DATAGRAMS_LOST",
    });
  });
});

describe("multicast groups", { skip }, () => {
  const device = deviceGroups().find(({ device }) => device !== "lo");
  const none = device === undefined ? "this machine has no device that can do multicast" : false;
  it("that one socket is in, another can be in, with the same sources", { skip: none }, () => {
    const { device: name = "", index = 0 } = device ?? {};
    const first = udp({ address: "::", port: 0 });
    const second = udp({ address: "::", port: 0 });
    const wanted = [
      { device: name, group: "239.7.7.1", mode: 0, sources: [] },
      { device: name, group: "232.7.7.2", mode: 1, sources: ["192.0.2.1", "192.0.2.2"] },
      { device: name, group: "ff15::7:7", mode: 0, sources: ["2001:db8::1"] },
    ];
    for (const one of wanted) join(first, one, [{ device: name, index, group: "224.0.0.1" }]);
    const groups = deviceGroups();
    const found = membershipsOf(first, groups);
    const sorted = (list: typeof found): typeof found =>
      list.toSorted((a, b) => (a.group < b.group ? -1 : 1));
    assert.deepEqual(sorted(found), sorted(wanted));
    assert.deepEqual(membershipsOf(second, groups), []);
    for (const one of found) join(second, one, groups);
    assert.deepEqual(sorted(membershipsOf(second, groups)), sorted(wanted));
  });

  it("on a device that is not here are told", () => {
    const fd = udp({ address: "0.0.0.0", port: 0 });
    const membership = { device: "nowhere0", group: "239.7.7.1", mode: 0, sources: [] };
    assert.throws(() => join(fd, membership, deviceGroups()), { code: "GROUP_DEVICE" });
  });
});
