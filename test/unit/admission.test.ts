/** Who may come in: the bounds of a port, of a client's address, of descriptors, and what is said of those that may not. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pino } from "pino";
import type { PortConfig } from "#proxy/contract/commands.ts";
import { Admission, clientKey } from "#proxy/workload/admission.ts";

const CLIENT = "192.0.2.1:1000";
const OTHER = "192.0.2.2:1000";

function admission(port: Partial<PortConfig>, process = { used: 10, most: 1_000 }) {
  const lines: Record<string, unknown>[] = [];
  const log = pino({}, { write: (line) => lines.push(JSON.parse(line)) });
  const bounds = { listen: 80, sessionsMax: 100, sessionsPerClientMax: 100, ...port } as PortConfig;
  const made = new Admission({
    ports: [bounds],
    process: { lowestFreeDescriptor: () => process.used, descriptorsMax: () => process.most },
    log,
  });
  return { made, lines };
}

describe("admission of clients", () => {
  it("counts the sessions of a port, and admits again when one has left", () => {
    const { made } = admission({ sessionsMax: 2 });
    for (const expected of [null, null, "sessionsMax"]) {
      assert.equal(made.refuses(0, CLIENT, 10), expected);
      if (expected === null) made.enter(0);
    }
    made.leave(0);
    assert.equal(made.refuses(0, CLIENT, 10), null);
  });

  it("counts those of one address apart from those of others, whatever their ports", () => {
    const { made } = admission({ sessionsPerClientMax: 1 });
    const key = made.clientEnters(0, CLIENT);
    assert.equal(made.refuses(0, "192.0.2.1:2000", 10), "sessionsPerClientMax");
    assert.equal(made.refuses(0, OTHER, 10), null);
    made.clientLeaves(0, key);
    assert.equal(made.refuses(0, CLIENT, 10), null);
  });

  it("keeps descriptors back, and looks at the limit as it is now", () => {
    const process = { used: 935, most: 1_000 };
    const { made } = admission({}, process);
    assert.equal(made.refuses(0, CLIENT, null), null);
    process.used = 936;
    assert.equal(made.refuses(0, CLIENT, null), "descriptors");
    process.most = 2_000;
    assert.equal(made.refuses(0, CLIENT, null), null);
    process.used = -24;
    assert.equal(made.refuses(0, CLIENT, null), "descriptors", "none is free");
  });

  it("keeps back no more than a part of a small limit", () => {
    const { made } = admission({}, { used: 55, most: 64 });
    assert.equal(made.refuses(0, CLIENT, null), null);
    assert.equal(made.refuses(0, CLIENT, 54), null);
    assert.equal(made.refuses(0, CLIENT, 55), "descriptors", "its connection to the application would be 56");
  });

  it("says it once for all that are refused within a while, with the cure", () => {
    const { made, lines } = admission({ sessionsMax: 0 });
    for (let count = 0; count < 50; count++) made.refuses(0, CLIENT, 10);
    assert.equal(lines.length, 1);
    assert.equal(lines[0]?.reason, "sessionsMax");
    assert.match(String(lines[0]?.cure), /sessionsMax/);
  });
});

describe("the address a client is counted by", () => {
  for (const [client, expected] of [
    ["192.0.2.1:80", "192.0.2.1"],
    ["[2001:db8:1:2:3:4:5:6]:80", "2001:db8:1:2"],
    ["[2001:db8:1:2::9]:80", "2001:db8:1:2"],
    ["[2001:db8::9]:80", "2001:db8:0:0"],
    ["[::1]:80", "0:0:0:0"],
    ["[fe80::1%eth0]:80", "fe80:0:0:0"],
    ["[::ffff:192.0.2.1]:80", "0:0:0:0"],
    ["", ""],
  ] as const) {
    it(`of ${JSON.stringify(client)} is ${JSON.stringify(expected)}`, () =>
      assert.equal(clientKey(client), expected));
  }
});
