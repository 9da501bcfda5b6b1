/** The gateway's file: what it means, and every mistake as one line. */
import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { parse, stringify } from "yaml";
import { loadGatewayConfig, parseGatewayConfig } from "#control/config/gateway.ts";
import { linkKeyLines } from "#control/config/link-key-file.ts";
import { linkKeysOf, type SharedKeys } from "#proxy/contract/shared-keys.ts";

const folder = mkdtempSync(join(tmpdir(), "holdfast-gateway-config-"));
const key = Buffer.alloc(32, 5);
writeFileSync(join(folder, "key"), key, { mode: 0o600 });
const file = join(folder, "g1.yaml");
after(() => rmSync(folder, { recursive: true, force: true }));

const good = `
gateway: g1
store: redis://10.99.0.1:6379
key: file:key
listen:
  - { address: "10.99.0.9:8080", workload: chat }
  - address: "10.99.0.9:443"
    sendProxyProtocol: true
    sessionsMax: 10
    routes:
      - { sni: [chat.example, "*.chat.example"], workload: chat, port: 8443 }
      - { host: [api.example], path: /v1, workload: api, port: 80 }
      - { session: { cookie: sid, issue: true }, workloads: [c0, c1] }
      - { workload: rest }
admin: 10.99.0.9:9400
limits: { drainMsMax: 1000, linkResumeMsMax: 20000, trunkSessionsMax: 1000 }
`;

// biome-ignore lint/suspicious/noExplicitAny: tests break the file in every possible place.
type Raw = any;

const BOUNDS = { keepAliveMs: 15_000, userTimeoutMs: 120_000, idleMsMax: 0, proxyProtocol: null };
const ANY = { sni: null, host: null, path: null, session: null };

describe("the gateway's configuration", () => {
  test("the documented file, with its defaults", () => {
    writeFileSync(file, good);
    const { listeners, ...rest } = loadGatewayConfig(file);
    assert.deepEqual(rest, {
      name: "g1",
      store: "redis://10.99.0.1:6379",
      keySource: { kind: "key", path: join(folder, "key") },
      services: null,
      linkKeys: new Map(["chat", "api", "c0", "c1", "rest"].map((name) => [name, linkKeysOf([key], name)])),
      links: "encrypted",
      admin: { address: "10.99.0.9", port: 9400 },
      heldSessionsMax: 1_024,
      ownerMsMax: 30_000,
      drainMsMax: 1_000,
      linkResumeMsMax: 20_000,
      trunkSessionsMax: 1_000,
    });
    assert.deepEqual(listeners, [
      {
        at: { address: "10.99.0.9", port: 8080 },
        ...BOUNDS,
        sendProxyProtocol: false,
        sessionsMax: 50_000,
        sessionsPerClientMax: 25_000,
        routes: [{ ...ANY, workloads: ["chat"], port: 8080 }],
      },
      {
        at: { address: "10.99.0.9", port: 443 },
        ...BOUNDS,
        sendProxyProtocol: true,
        sessionsMax: 10,
        sessionsPerClientMax: 5,
        routes: [
          { ...ANY, sni: ["chat.example", "*.chat.example"], workloads: ["chat"], port: 8443 },
          { ...ANY, host: ["api.example"], path: "/v1", workloads: ["api"], port: 80 },
          {
            ...ANY,
            session: { from: "cookie", name: "sid", issue: true },
            workloads: ["c0", "c1"],
            port: 443,
          },
          { ...ANY, workloads: ["rest"], port: 443 },
        ],
      },
    ]);
  });

  test("keys of links alone, as `holdfast keys links` prints them", () => {
    const workloads = ["chat", "api", "c0", "c1", "rest"];
    const ring: SharedKeys = [key, Buffer.alloc(32, 6)];
    const path = join(folder, "links");
    writeFileSync(path, `# of the nodes\n${linkKeyLines(ring, workloads)}other ${"0".repeat(64)}\n`, {
      mode: 0o600,
    });
    const raw: Raw = parse(good);
    delete raw.key;
    raw.linkKeys = "file:links";
    const { linkKeys, keySource } = parseGatewayConfig(stringify(raw), file);
    assert.deepEqual(keySource, { kind: "linkKeys", path });
    assert.deepEqual(linkKeys, new Map(workloads.map((name) => [name, linkKeysOf(ring, name)])));
    const refuses = (text: string, message: RegExp): void => {
      writeFileSync(path, text);
      assert.throws(() => parseGatewayConfig(stringify(raw), file), { code: "CONFIG_INVALID", message });
    };
    refuses(
      linkKeyLines(ring, workloads.slice(1)),
      /: linkKeys: expected a key of workload chat, .*holdfast keys links chat/,
    );
    refuses("chat 00", /: linkKeys: expected lines `WORKLOAD HEX` with 64 hex digits, line 1 of /);
    chmodSync(path, 0o644);
    refuses("", /: linkKeys: expected a file only its owner can read, got mode 644 /);
  });

  test("in a cluster: Services in place of addresses, and what is each pod's own in its environment", () => {
    const raw: Raw = parse(good);
    delete raw.listen;
    delete raw.gateway;
    raw.services = { configMap: "holdfast-gateway" };
    const env = { HOLDFAST_GATEWAY: "holdfast-gateway-6d5f-x2x4z", HOLDFAST_ADDRESS: "10.244.3.2" };
    const { name, services, listeners } = parseGatewayConfig(stringify(raw), file, env);
    assert.equal(name, env.HOLDFAST_GATEWAY);
    assert.deepEqual(services, { configMap: "holdfast-gateway", address: "10.244.3.2" });
    assert.deepEqual(listeners, []);
    delete raw.key;
    raw.linkKeys = "file:links";
    assert.throws(() => parseGatewayConfig(stringify(raw), file, env), {
      message: /: linkKeys: expected key with services/,
    });
  });

  test("several workloads of one address, of which a client gets the one with the fewest", () => {
    const raw: Raw = parse(good);
    raw.listen[0] = { address: "10.99.0.9:8080", routes: [{ workloads: ["chat", "api"] }] };
    assert.deepEqual(parseGatewayConfig(stringify(raw), file).listeners[0]?.routes, [
      { ...ANY, workloads: ["chat", "api"], port: 8080 },
    ]);
  });

  test("what a file says nothing of is as in a workload's limits", () => {
    const limitsOf = (change: (raw: Raw) => void): Record<string, number> => {
      const raw: Raw = parse(good);
      change(raw);
      const { heldSessionsMax, ownerMsMax, linkResumeMsMax, trunkSessionsMax } = parseGatewayConfig(
        stringify(raw),
        file,
      );
      return { heldSessionsMax, ownerMsMax, linkResumeMsMax, trunkSessionsMax };
    };
    const usual = {
      heldSessionsMax: 1_024,
      ownerMsMax: 30_000,
      linkResumeMsMax: 15_000,
      trunkSessionsMax: 65_536,
    };
    assert.deepEqual(
      limitsOf((raw) => delete raw.limits),
      usual,
    );
    assert.deepEqual(
      limitsOf((raw) => (raw.limits = { drainMsMax: 0 })),
      usual,
    );
    assert.deepEqual(
      limitsOf((raw) => (raw.limits = { linkResumeMsMax: 0, trunkSessionsMax: 0 })),
      { ...usual, linkResumeMsMax: 0, trunkSessionsMax: 0 },
    );
  });

  const route = (raw: Raw, index: number): Raw => raw.listen[1].routes[index];
  for (const [change, expected] of [
    [(raw: Raw) => delete raw.gateway, /: gateway: expected a name .*, got nothing$/],
    [
      (raw: Raw) => (raw.store = "memory:"),
      /: store: expected the Redis that the nodes .* use, got memory:$/,
    ],
    [(raw: Raw) => (raw.key = "file:absent"), /: key: expected a file that can be read: ENOENT/],
    [(raw: Raw) => delete raw.key, /: key: expected the nodes' .*, got neither$/],
    [(raw: Raw) => (raw.linkKeys = "file:links"), /: key: expected the nodes' .*, got both$/],
    [(raw: Raw) => delete raw.listen, /: listen: expected exactly one of listen and services, got neither$/],
    [
      (raw: Raw) => (raw.services = { configMap: "table", address: "10.244.3.2" }),
      /: listen: expected exactly one of listen and services, got both$/,
    ],
    [
      (raw: Raw) => (raw.services = { configMap: "Table", address: "10.244.3.2" }),
      /: services\.configMap: expected the name of a ConfigMap, got "Table"$/,
    ],
    [(raw: Raw) => (raw.nodes = []), /: nodes: unknown key$/],
    [
      (raw: Raw) => (raw.listen = []),
      /: listen: expected a list of 1-10000 addresses .*, got an empty list$/,
    ],
    [
      (raw: Raw) => (raw.listen[0].address = "here:80"),
      /: listen\[0\]\.address: expected IP:PORT .*, got "here:80"$/,
    ],
    [
      (raw: Raw) => (raw.listen[0].port = 0),
      /: listen\[0\]\.port: expected the port of the workload .* 1-65535, got 0$/,
    ],
    [
      (raw: Raw) => delete raw.listen[0].workload,
      /: listen\[0\]: expected exactly one of workload and routes, got neither$/,
    ],
    [
      (raw: Raw) => (raw.listen[1].workload = "chat"),
      /: listen\[1\]: expected exactly one of workload and routes, got both$/,
    ],
    [(raw: Raw) => (raw.listen[1].port = 80), /: listen\[1\]\.port: expected it in each of routes, got 80$/],
    [
      (raw: Raw) => (raw.listen[1].address = "10.99.0.9:8080"),
      /: listen\[1\]\.address: expected an address of its own, got 10\.99\.0\.9:8080, which listen\[0\]\.address has$/,
    ],
    [
      (raw: Raw) => (raw.limits.trunkSessionsMax = 65_537),
      /: limits\.trunkSessionsMax: expected a number of sessions .*0-65536, got 65537$/,
    ],
    [
      (raw: Raw) => (raw.limits.linkResumeMsMax = -1),
      /: limits\.linkResumeMsMax: expected milliseconds .*0-3600000, got -1$/,
    ],
    [(raw: Raw) => (raw.admin = "10.99.0.9:443"), /: admin: expected an address of its own, /],
    [
      (raw: Raw) => (route(raw, 0).host = ["a"]),
      /: listen\[1\]\.routes\[0\]\.sni: expected it without host, path and session/,
    ],
    [
      (raw: Raw) => (route(raw, 0).sni = ["UPPER"]),
      /: listen\[1\]\.routes\[0\]\.sni\[0\]: expected a name of a host in small letters.*, got "UPPER"$/,
    ],
    [
      (raw: Raw) => (route(raw, 1).path = "v1"),
      /: listen\[1\]\.routes\[1\]\.path: expected the beginning of a path, as \/ws, got "v1"$/,
    ],
    [
      (raw: Raw) => delete route(raw, 1).workload,
      /: listen\[1\]\.routes\[1\]: expected exactly one of workload and workloads, got neither$/,
    ],
    [
      (raw: Raw) => delete route(raw, 2).session,
      /: listen\[1\]\.routes\[2\]: expected a route that names nothing at the end/,
    ],
    [
      (raw: Raw) => (route(raw, 2).session = { header: "a", cookie: "b" }),
      /: listen\[1\]\.routes\[2\]\.session: expected exactly one of /,
    ],
    [
      (raw: Raw) => (route(raw, 2).session = { header: "a", issue: true }),
      /: listen\[1\]\.routes\[2\]\.session\.issue: expected it with a cookie only/,
    ],
    [
      (raw: Raw) => raw.listen[1].routes.unshift({ workload: "first" }),
      /: listen\[1\]\.routes\[0\]: expected a route that names nothing at the end/,
    ],
    [
      (raw: Raw) => (raw.limits.ownerMsMax = 0),
      /: limits\.ownerMsMax: expected milliseconds 1-3600000, got 0$/,
    ],
  ] as [(raw: Raw) => unknown, RegExp][])
    test(`refuses: ${expected.source}`, () => {
      const raw: Raw = parse(good);
      change(raw);
      assert.throws(() => parseGatewayConfig(stringify(raw), file), {
        code: "CONFIG_INVALID",
        message: expected,
      });
    });
});
