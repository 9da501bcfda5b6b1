/** What each kind of push would cut at a proxy that is made up, and what its configuration cuts already. Nothing is pushed here. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type Audit, audit } from "#envoy/audit/audit.ts";
import { type JsonObject, readDump } from "#envoy/config-dump.ts";
import {
  bootstrapListener,
  dumpOf,
  httpChain,
  inboundCluster,
  type MadeUpDump,
  outboundListener,
  pinnedCluster,
  tcpChain,
  virtualInbound,
} from "#test/support/envoy-dump.ts";

const LONG = { idle_timeout: "86400s" };
const INSPECTOR = {
  listener_filters: [
    { name: "envoy.filters.listener.http_inspector", filter_disabled: { destination_port_range: {} } },
  ],
};
const OF_SERVICE: MadeUpDump = {
  clusters: [inboundCluster(8080), inboundCluster(9000)],
  listeners: [
    virtualInbound(
      { 8080: httpChain([], { name: "0.0.0.0_8080" }), 9000: tcpChain({}, { name: "0.0.0.0_9000" }) },
      INSPECTOR,
    ),
  ],
};
const PINNED: MadeUpDump = {
  node: { metadata: { PROXY_CONFIG: { drainDuration: "86400s" } } },
  clusters: [pinnedCluster(8080, 15_900), pinnedCluster(9000, 15_901)],
  listeners: [
    virtualInbound(
      { 8080: httpChain([], { name: "10.77.0.3_8080" }), 9000: tcpChain(LONG, { name: "10.77.0.3_9000" }) },
      INSPECTOR,
    ),
  ],
};

function of(dump: MadeUpDump, objects: object[] = []): Audit {
  return audit(readDump(dumpOf(dump), "dump"), objects as JsonObject[]);
}

function sessionsAfter({ pushes }: Audit, id: string): object | undefined {
  return pushes.find((push) => push.id === id)?.sessions;
}

const kinds = ({ findings }: Audit): string[] => [...new Set(findings.map(({ id }) => id))];

describe("audit", () => {
  it("says that a port that is added ends sessions, unless a Sidecar pins the listener", () => {
    const loose = of(OF_SERVICE);
    assert.equal(loose.facts.isPinned, false);
    assert.equal(loose.facts.hasFilterDisabled, true);
    assert.deepEqual(sessionsAfter(loose, "port-added"), {
      tcp: "closed",
      websocket: "closed",
      http: "stays",
    });
    assert.ok(kinds(loose).includes("not-pinned"));
    const pinned = of(PINNED);
    assert.equal(pinned.facts.isPinned, true);
    assert.deepEqual(sessionsAfter(pinned, "port-added"), {
      tcp: "stays",
      websocket: "stays",
      http: "stays",
    });
    assert.deepEqual(
      pinned.facts.ports.map(({ port, endpoint, http, tcp }) => ({ port, endpoint, http, tcp })),
      [
        { port: 8080, endpoint: "127.0.0.1:15900", http: true, tcp: false },
        { port: 9000, endpoint: "127.0.0.1:15901", http: false, tcp: true },
      ],
    );
    assert.ok(!kinds(pinned).includes("not-pinned"));
  });

  it("does not take clusters that EnvoyFilters made STATIC for a Sidecar", () => {
    const patched = { clusters: [pinnedCluster(9000, 15_901, { lb_policy: "LEAST_REQUEST" })] };
    const listener = virtualInbound({ 9000: tcpChain({}, { name: "0.0.0.0_9000" }) }, INSPECTOR);
    assert.equal(of({ ...patched, listeners: [listener] }).facts.isPinned, false);
  });

  it("has a cure for each push that cuts, and none for those that cut nothing", () => {
    for (const { id, cuts, cure } of of(OF_SERVICE).pushes) if (cuts) assert.ok((cure ?? "").length > 20, id);
    const { pushes } = of(PINNED);
    const harmless = [
      "cluster-patch",
      "endpoints",
      "istiod-restart",
      "other-service",
      "port-added",
      "sidecar-first",
      "workload-entry-removed",
    ];
    for (const id of harmless) assert.equal(pushes.find((push) => push.id === id)?.cuts, false, id);
  });

  it("tells how long what is drained goes on, and what ends silent sessions", () => {
    const loose = of(OF_SERVICE);
    assert.deepEqual(kinds(loose), ["not-pinned", "drain-time", "tcp-idle", "stream-idle"]);
    assert.match(JSON.stringify(loose.findings), /ends 45 s later \(Istio's default/);
    assert.match(JSON.stringify(loose.findings), /virtualInbound: TCP sessions that are silent for 3600 s/);
    // of what PINNED has only the time-out of streams is Envoy's own
    assert.deepEqual(kinds(of(PINNED)), ["stream-idle"]);
  });

  it("does not tell of silence where nobody has a session", () => {
    const nowhere = tcpChain({ cluster: "BlackHoleCluster" }, { name: "virtualInbound-blackhole" });
    const { findings } = of({ listeners: [virtualInbound({ 15006: nowhere }, INSPECTOR)] });
    assert.ok(!findings.some(({ id }) => id === "tcp-idle"), JSON.stringify(findings));
  });

  it("does not tell of pilot-agent's own listeners, where nobody has a session; of an Envoy of one's own it does", () => {
    const staticListeners = [bootstrapListener(15_090), bootstrapListener(15_021)];
    const ofBootstrap = (node: MadeUpDump["node"] = {}) =>
      of({ ...PINNED, node: { ...PINNED.node, ...node }, staticListeners });
    const sidecar = ofBootstrap();
    assert.deepEqual(sidecar.findings, of(PINNED).findings);
    const mine = JSON.stringify(ofBootstrap({ id: "mine" }).findings);
    assert.match(mine, /0\.0\.0\.0_15090: WebSockets and streams/);
    assert.match(mine, /\/backend: an answer that takes longer than 15 s/);
    // what a listener that was pushed has in itself Envoy calls static, too
    const inbound = { name: "inbound|8080||", virtual_hosts: [{ name: "own", routes: [{ route: {} }] }] };
    const proxy = readDump(dumpOf({ staticListeners, routes: [inbound] }), "dump");
    assert.deepEqual(proxy.routes, [inbound]);
  });

  it("tells of time-outs that end sessions whatever passes, and of listeners that Envoy refuses", () => {
    const chain = tcpChain({ ...LONG, max_downstream_connection_duration: "600s" });
    const options = { http: { common_http_protocol_options: { max_connection_duration: "60s" } } };
    const found = of({
      ...PINNED,
      clusters: [pinnedCluster(8080, 15_900, { typed_extension_protocol_options: options })],
      listeners: [outboundListener(9000, chain)],
      errors: { "0.0.0.0_9000": "no" },
    });
    assert.deepEqual(kinds(found), ["refused", "connection-duration"]);
  });

  it("says which resources of the mesh are such pushes when they change, of those for this proxy", () => {
    const made = (kind: string, spec: object, namespace = "demo"): object => ({
      kind,
      metadata: { name: "one", namespace },
      spec,
    });
    const patch = (applyTo: string): object => ({ applyTo, patch: { operation: "MERGE" } });
    const { findings } = of(PINNED, [
      made("EnvoyFilter", { configPatches: [patch("HTTP_FILTER"), patch("CLUSTER")] }),
      made("EnvoyFilter", {
        workloadSelector: { labels: { app: "web" } },
        configPatches: [patch("LISTENER")],
      }),
      made("AuthorizationPolicy", { selector: { matchLabels: { app: "chat" } } }),
      made("AuthorizationPolicy", {}, "shop"),
      made("PeerAuthentication", {}, "istio-system"),
      made("DestinationRule", { trafficPolicy: { connectionPool: { tcp: { idleTimeout: "60s" } } } }),
      made("DestinationRule", {}),
    ]);
    assert.deepEqual(
      findings.filter(({ severity }) => severity === "info").map(({ id }) => id),
      ["envoy-filter", "authorization-policy", "peer-authentication", "destination-rule-tcp"],
    );
  });

  describe("says of resources what a change of each ends", () => {
    const made = (kind: string, spec: object): object => ({
      kind,
      metadata: { name: "one", namespace: "demo" },
      spec,
    });
    const told = (kind: string, spec: object, dump = PINNED): string[] =>
      of(dump, [made(kind, spec)])
        .findings.filter(({ severity }) => severity === "info")
        .map(({ id, what, cure }) => {
          assert.ok(what.startsWith(`${kind} demo/one: `) && cure.length > 20, `${what} ${cure}`);
          return id;
        });
    const idle = { connectionPool: { tcp: { idleTimeout: "60s" } } };
    const cases: [what: string, kind: string, spec: object, ids: string[]][] = [
      ["a Telemetry of access logs", "Telemetry", { accessLogging: [{}] }, ["access-log"]],
      ["a Telemetry of metrics", "Telemetry", { metrics: [{}] }, ["not-looked-at"]],
      ["a RequestAuthentication", "RequestAuthentication", { jwtRules: [] }, ["request-authentication"]],
      ["a WasmPlugin", "WasmPlugin", { url: "oci://x" }, ["wasm-plugin"]],
      ["a kind that is called as a property", "constructor", {}, ["not-looked-at"]],
      [
        "a DestinationRule of a longest duration",
        "DestinationRule",
        { trafficPolicy: { connectionPool: { tcp: { maxConnectionDuration: "60s" } } } },
        ["destination-rule-tcp"],
      ],
      [
        "one of a port",
        "DestinationRule",
        { trafficPolicy: { portLevelSettings: [{ port: { number: 9000 }, ...idle }] } },
        ["destination-rule-clusters"],
      ],
      [
        "one of a subset",
        "DestinationRule",
        { subsets: [{ name: "a", trafficPolicy: idle }] },
        ["destination-rule-clusters"],
      ],
      [
        "one of a subset's port",
        "DestinationRule",
        { subsets: [{ name: "a", trafficPolicy: { portLevelSettings: [idle] } }] },
        ["destination-rule-clusters"],
      ],
      [
        "an EnvoyFilter of routes",
        "EnvoyFilter",
        { configPatches: [{ applyTo: "HTTP_ROUTE" }, { applyTo: "CLUSTER" }] },
        ["not-looked-at"],
      ],
      [
        "an EnvoyFilter for gateways",
        "EnvoyFilter",
        { configPatches: [{ applyTo: "LISTENER", match: { context: "GATEWAY" } }] },
        [],
      ],
      [
        "an EnvoyFilter for another version",
        "EnvoyFilter",
        { configPatches: [{ applyTo: "LISTENER", match: { proxy: { proxyVersion: "^1\\.20" } } }] },
        [],
      ],
      [
        "what is attached to a Gateway",
        "AuthorizationPolicy",
        { targetRefs: [{ kind: "Gateway", name: "edge" }] },
        [],
      ],
      ["a Sidecar of hosts", "Sidecar", { egress: [{ hosts: ["./*"] }] }, ["not-looked-at"]],
      ["any other", "VirtualService", { http: [] }, ["not-looked-at"]],
    ];
    for (const [what, kind, spec, ids] of cases)
      it(`of ${what}`, () => {
        assert.deepEqual(told(kind, spec), ids);
      });

    it("of a Sidecar with an ingress: the first, and, where it holds, that it goes", () => {
      const spec = { workloadSelector: { labels: { app: "chat" } }, ingress: [{ port: { number: 9000 } }] };
      for (const [dump, when] of [
        [OF_SERVICE, /applied for the first time/],
        [PINNED, /taken away/],
      ] as const) {
        assert.deepEqual(told("Sidecar", spec, dump), ["sidecar-first"]);
        assert.match(of(dump, [made("Sidecar", spec)]).findings.at(-1)?.what ?? "", when);
      }
      assert.deepEqual(told("Sidecar", { ...spec, workloadSelector: { labels: { app: "web" } } }), []);
    });
  });
});
