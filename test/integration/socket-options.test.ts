/** Options of sockets as the audit tells of them, with real ones. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { emptyFacts, type Facts } from "#control/audit/fingerprint.ts";
import { optionsOf, readOptions, socketOption } from "#control/audit/socket-options.ts";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as sock from "#proxy/kernel/socket.ts";

const ofIPv4 = (facts: Facts): Facts =>
  Object.fromEntries(Object.entries(facts).filter(([name]) => name.startsWith("IP_")));

for (const [what, type, protocol] of [
  ["TCP", sock.SOCK_STREAM, sock.IPPROTO_TCP],
  ["UDP", sock.SOCK_DGRAM, sock.IPPROTO_UDP],
] as const)
  test(`a socket of IPv6 tells of IPv4 what was set, switched off or on, and nothing else: ${what}`, () => {
    const fd = sock.socket(ipText.AF_INET6, type, protocol);
    try {
      const facts = (): Facts => {
        const found = emptyFacts();
        readOptions(fd, optionsOf(ipText.AF_INET6, type, protocol), found);
        return ofIPv4(found);
      };
      assert.deepEqual(facts(), {});
      const set = { IP_TOS: 16, IP_TTL: 70, IP_MTU_DISCOVER: 0, IP_MULTICAST_LOOP: 0 };
      for (const [name, value] of Object.entries(set))
        sock.setsockoptInt(fd, sock.IPPROTO_IP, socketOption(name)?.option ?? -1, value);
      assert.deepEqual(facts(), { IP_TOS: "16", IP_TTL: "70", IP_MTU_DISCOVER: "0", IP_MULTICAST_LOOP: "0" });
    } finally {
      descriptor.close(fd);
    }
  });
