import assert from "node:assert/strict";
import { test } from "node:test";
import { gratuitousArp, unsolicitedAdvertisement } from "#control/network/announce.ts";
import { addressBytes } from "#proxy/kernel/address-text.ts";

const mac = Buffer.from("020000000001", "hex");

test("a gratuitous ARP is a broadcast request for the sender's own address (RFC 5227)", () => {
  const frame = gratuitousArp(mac, addressBytes("10.99.0.50"));
  assert.equal(frame.length, 60, "the shortest Ethernet frame");
  assert.equal(
    frame.subarray(0, 42).toString("hex"),
    [
      "ffffffffffff",
      "020000000001",
      "0806",
      "0001080006040001",
      "020000000001",
      "0a630032",
      "000000000000",
      "0a630032",
    ].join(""),
  );
});

test("an unsolicited advertisement overrides, goes to all nodes, and its checksum is right (RFC 4861, RFC 4443)", () => {
  const address = addressBytes("fd99::50");
  const frame = unsolicitedAdvertisement(mac, address);
  assert.equal(frame.subarray(0, 14).toString("hex"), "33330000000102000000000186dd");
  assert.equal(frame[21], 255, "hop limit");
  const message = frame.subarray(54);
  assert.equal(message[0], 136);
  assert.equal(message[4], 0x20, "override, not solicited");
  assert.ok(message.subarray(8, 24).equals(address));
  assert.equal(message.subarray(24).toString("hex"), "0201020000000001");
  // RFC 1071: the sum over pseudo header and message, checksum included, is all ones
  const pseudo = Buffer.concat([
    frame.subarray(22, 54),
    Buffer.from([0, 0, 0, message.length, 0, 0, 0, 58]),
    message,
  ]);
  let sum = 0;
  for (let at = 0; at < pseudo.length; at += 2) sum += pseudo.readUInt16BE(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  assert.equal(sum, 0xffff);
});
