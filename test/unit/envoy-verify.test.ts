/**
 * Whether a proxy has what resources say, and if not why: each kind of patch that istiod or Envoy drops, as it was seen with istiod 1.31
 * and Envoy 1.40 in a laboratory (envoy/README.md, "What was run"). The proxies here are made up.
 */
import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { describe, it } from "node:test";
import fc from "fast-check";
import { readPolicy } from "#control/cli/envoy.ts";
import { askEnvoy, type JsonObject, readDump } from "#envoy/config-dump.ts";
import { render } from "#envoy/generate/render.ts";
import { type Mark, PROXY_V2_SOCKET } from "#envoy/generate/resource.ts";
import { policySchema } from "#envoy/policy.ts";
import { differences } from "#envoy/verify/contains.ts";
import type { Result } from "#envoy/verify/result.ts";
import { verify } from "#envoy/verify/verify.ts";
import {
  bootstrapListener,
  dumpOf,
  httpChain,
  inboundCluster,
  type MadeUpDump,
  outboundCluster,
  outboundListener,
  pinnedCluster,
  tcpChain,
  virtualInbound,
} from "#test/support/envoy-dump.ts";

const HOST = "chat.demo.svc.cluster.local";
const BUFFER = { name: "envoy.filters.http.buffer", typed_config: { max_request_bytes: 1_000_001 } };
const HCM = "envoy.filters.network.http_connection_manager";
const TCP_PROXY = "envoy.filters.network.tcp_proxy";
const SELF = { selector: { app: "chat" }, priority: 10 };

function filter(
  configPatch: object,
  { selector, priority }: { selector?: object; priority?: number } = SELF,
): JsonObject {
  return {
    kind: "EnvoyFilter",
    metadata: { name: "one", namespace: "demo" },
    spec: {
      ...(priority === undefined ? {} : { priority }),
      ...(selector === undefined ? {} : { workloadSelector: { labels: selector } }),
      configPatches: [configPatch],
    },
  } as JsonObject;
}

function clusterPatch(value: object, context = "SIDECAR_INBOUND", portNumber = 9000): object {
  return {
    applyTo: "CLUSTER",
    match: { context, cluster: { portNumber } },
    patch: { operation: "MERGE", value },
  };
}

function httpPatch(operation: string, named: object, chain: object = {}, value: object = BUFFER): object {
  return {
    applyTo: "HTTP_FILTER",
    match: {
      context: "SIDECAR_OUTBOUND",
      listener: {
        portNumber: 8080,
        filterChain: {
          filter: { name: "envoy.filters.network.http_connection_manager", ...named },
          ...chain,
        },
      },
    },
    patch: { operation, value },
  };
}

function one(dump: MadeUpDump, object: JsonObject): Result {
  const results = verify(readDump(dumpOf(dump), "dump"), [object]);
  assert.equal(results.length, 1, JSON.stringify(results));
  return results[0] as Result;
}

const STATIC = {
  type: "STATIC",
  load_assignment: {
    cluster_name: "inbound|9000||",
    endpoints: [
      {
        lb_endpoints: [
          { endpoint: { address: { socket_address: { address: "127.0.0.1", port_value: 15_901 } } } },
        ],
      },
    ],
  },
};

describe("verify", () => {
  it("finds all of a policy in a proxy that has it", () => {
    const policy = policySchema.parse({
      name: "chat",
      namespace: "demo",
      selector: { app: "chat" },
      ports: [
        { port: 8080, protocol: "http" },
        { port: 9000, protocol: "tcp", identity: "proxy-v2" },
      ],
      idleSeconds: 86_400,
    });
    const { documents, marks } = render(policy, "sidecar");
    const dump = dumpOf({
      node: { metadata: { IDLE_TIMEOUT: "86400s" } },
      clusters: [
        pinnedCluster(8080, 15_900),
        pinnedCluster(9000, 15_901, { transport_socket: PROXY_V2_SOCKET }),
      ],
    });
    const objects = documents.map(({ object }) => object as JsonObject);
    const results = verify(readDump(dump, "dump"), objects, { policy, marks });
    assert.deepEqual(
      results.map(({ part, state }) => [part, state]),
      [
        ["ingress[0]", "applied"],
        ["ingress[1]", "applied"],
        ["configPatches[0]", "applied"],
        ["proxy.istio.io/config", "applied"],
      ],
    );
  });

  const wrong: [what: string, reason: string, dump: MadeUpDump, object: JsonObject][] = [
    [
      "a STATIC cluster without lb_policy, which Envoy refused",
      "lb-policy",
      { clusters: [inboundCluster(9000)] },
      filter(clusterPatch(STATIC)),
    ],
    [
      "one with ROUND_ROBIN, which is never merged",
      "lb-policy",
      { clusters: [inboundCluster(9000)] },
      filter(clusterPatch({ ...STATIC, lb_policy: "ROUND_ROBIN" })),
    ],
    [
      "an enum of 0 that is to take the place of another",
      "enum-zero",
      { clusters: [pinnedCluster(9000, 15_901, { lb_policy: "LEAST_REQUEST" })] },
      filter(clusterPatch({ lb_policy: "ROUND_ROBIN" })),
    ],
    [
      "what stands beside a transport_socket",
      "beside-transport-socket",
      { clusters: [pinnedCluster(9000, 15_901, { transport_socket: PROXY_V2_SOCKET })] },
      filter(clusterPatch({ connect_timeout: "7s", transport_socket: PROXY_V2_SOCKET })),
    ],
    [
      "a transport_socket at a cluster with automatic mTLS",
      "auto-mtls",
      { clusters: [outboundCluster(9000, HOST)] },
      filter(clusterPatch({ transport_socket: PROXY_V2_SOCKET }, "SIDECAR_OUTBOUND")),
    ],
    [
      "a port that is not there",
      "no-target",
      { clusters: [inboundCluster(8080)] },
      filter(clusterPatch({ connect_timeout: "7s" })),
    ],
    [
      "a place beside a filter that is not there",
      "relative",
      { listeners: [outboundListener(8080, httpChain([]))] },
      filter(httpPatch("INSERT_BEFORE", { subFilter: { name: "istio.metadata_exchange" } })),
    ],
    [
      "a filter by its old name",
      "old-name",
      { listeners: [outboundListener(8080, httpChain([]))] },
      filter(httpPatch("INSERT_FIRST", { name: "envoy.http_connection_manager" })),
    ],
    [
      "a chain by a name that a Sidecar's chains do not have",
      "chain-name",
      { listeners: [virtualInbound({ 9000: tcpChain({}, { name: "10.77.0.3_9000" }) })] },
      filter({
        applyTo: "NETWORK_FILTER",
        match: {
          context: "SIDECAR_INBOUND",
          listener: { filterChain: { name: "0.0.0.0_9000", filter: { name: TCP_PROXY } } },
        },
        patch: { operation: "MERGE", value: { name: TCP_PROXY, typed_config: { idle_timeout: "0s" } } },
      }),
    ],
    [
      "a listener that Envoy refused",
      "rejected",
      {
        listeners: [outboundListener(8080, httpChain([]))],
        errors: { "0.0.0.0_8080": "Didn't find a registered implementation for 'no.such.filter'" },
      },
      filter(httpPatch("INSERT_FIRST", {}, {}, { name: "no.such.filter" })),
    ],
    [
      "HTTP where the port has TCP",
      "no-listener",
      { listeners: [outboundListener(8080, tcpChain({}))] },
      filter(httpPatch("INSERT_FIRST", {})),
    ],
    [
      "what istiod has not pushed",
      "not-pushed",
      { listeners: [outboundListener(8080, httpChain([]))] },
      filter(httpPatch("INSERT_FIRST", {})),
    ],
    [
      "a Sidecar of which the proxy knows nothing",
      "not-pushed",
      { clusters: [inboundCluster(9000)] },
      sidecar("127.0.0.1:15901"),
    ],
    [
      "a Sidecar beside an older one",
      "other-value",
      { clusters: [pinnedCluster(9000, 1)] },
      sidecar("127.0.0.1:15901"),
    ],
    [
      "an EnvoyFilter that selects, at a waypoint",
      "waypoint-selector",
      { node: { id: "waypoint~10.77.0.3~way.demo~demo.svc.cluster.local" } },
      filter(clusterPatch(STATIC)),
    ],
  ];
  for (const [what, reason, dump, object] of wrong)
    it(`finds ${what} missing, and says why`, () => {
      const result = one(dump, object);
      assert.equal(result.state, "missing");
      assert.equal(result.reason, reason, result.why ?? "");
      assert.ok((result.cure ?? "").length > 20 && (result.why ?? "") !== "");
    });

  const right: [what: string, dump: MadeUpDump, object: JsonObject][] = [
    [
      "a STATIC cluster with LEAST_REQUEST",
      { clusters: [pinnedCluster(9000, 15_901, { lb_policy: "LEAST_REQUEST" })] },
      filter(clusterPatch({ ...STATIC, lb_policy: "LEAST_REQUEST" })),
    ],
    [
      "a filter at the beginning",
      { listeners: [outboundListener(8080, httpChain([BUFFER]))] },
      filter(httpPatch("INSERT_FIRST", {})),
    ],
    [
      "an idle_timeout of every tcp_proxy",
      { listeners: [virtualInbound({ 9000: tcpChain({ idle_timeout: "0s" }) })] },
      filter({
        applyTo: "NETWORK_FILTER",
        match: { context: "SIDECAR_INBOUND", listener: { filterChain: { filter: { name: TCP_PROXY } } } },
        patch: { operation: "MERGE", value: { name: TCP_PROXY, typed_config: { idle_timeout: "0s" } } },
      }),
    ],
  ];
  const GATEWAY = { id: "router~10.77.0.3~edge-1.demo~demo.svc.cluster.local" };
  const STATS = [bootstrapListener(15_090), bootstrapListener(15_021)];
  const anyChain = (context: string): object => ({
    ...httpPatch("INSERT_FIRST", {}),
    match: { context, listener: { filterChain: { filter: { name: HCM } } } },
  });
  const merge = (chain: object, value: object = { idle_timeout: "0s" }): JsonObject =>
    filter({
      applyTo: "NETWORK_FILTER",
      match: {
        context: "SIDECAR_INBOUND",
        listener: { filterChain: { ...chain, filter: { name: TCP_PROXY } } },
      },
      patch: { operation: "MERGE", value: { name: TCP_PROXY, typed_config: value } },
    });
  const twoPorts = (match: object): MadeUpDump => ({
    listeners: [
      virtualInbound({
        9000: tcpChain({ idle_timeout: "0s" }, { filter_chain_match: match }),
        9001: tcpChain({}),
      }),
    ],
  });
  const other = { name: BUFFER.name, typed_config: { max_request_bytes: 7 } };
  right.push(
    [
      "a filter of a gateway, beside pilot-agent's own listeners",
      {
        node: GATEWAY,
        listeners: [outboundListener(8080, httpChain([BUFFER]))],
        staticListeners: STATS,
      },
      filter(anyChain("GATEWAY")),
    ],
    [
      "a filter of every listener, beside those",
      { listeners: [outboundListener(8080, httpChain([BUFFER]))], staticListeners: STATS },
      filter(anyChain("ANY")),
    ],
    ["a patch of one port's chain", twoPorts({ destination_port: 9000 }), merge({ destinationPort: 9000 })],
    [
      "a patch of one name's chain",
      twoPorts({ server_names: ["a.example", "b.example"] }),
      merge({ sni: "b.example" }),
    ],
    [
      "a patch of chains with TLS",
      twoPorts({ transport_protocol: "tls" }),
      merge({ transportProtocol: "tls" }),
    ],
    [
      "a patch of chains by their protocols",
      twoPorts({ application_protocols: ["istio", "h2", "http/1.1"] }),
      merge({ applicationProtocols: "http/1.1,istio" }),
    ],
    [
      "a filter after another of that name, which is somebody else's",
      { listeners: [outboundListener(8080, httpChain([other, BUFFER]))] },
      filter(httpPatch("INSERT_FIRST", {})),
    ],
    [
      "a merge that leaves the filter's name out",
      { listeners: [outboundListener(8080, httpChain([BUFFER]))] },
      filter(
        httpPatch("MERGE", { subFilter: { name: BUFFER.name } }, {}, { typed_config: BUFFER.typed_config }),
      ),
    ],
  );
  for (const [what, dump, object] of right)
    it(`finds ${what}`, () => {
      const { state, why } = one(dump, object);
      assert.equal(state, "applied", why ?? "");
    });

  it("finds a patch missing of which no chain, or no filter of its name, is as it says", () => {
    for (const [chain, match] of [
      [{ destinationPort: 9002 }, { destination_port: 9000 }],
      [{ sni: "c.example" }, { server_names: ["a.example"] }],
      [{ transportProtocol: "tls" }, {}],
      [{ applicationProtocols: "h2,istio" }, { application_protocols: ["h2"] }],
    ] as const)
      assert.equal(one(twoPorts(match), merge(chain)).reason, "no-listener", JSON.stringify(chain));
    assert.equal(one(twoPorts({}), merge({ destinationPort: 9001 })).reason, "not-pushed");
    const two = { listeners: [outboundListener(8080, httpChain([other, other]))] };
    assert.equal(one(two, filter(httpPatch("INSERT_FIRST", {}))).reason, "not-pushed");
  });

  describe("istiod's own persistent sessions", () => {
    const policy = policySchema.parse({
      name: "chat",
      namespace: "demo",
      selector: { app: "chat" },
      ports: [{ port: 8080, protocol: "http" }],
    });
    const mark: Mark = {
      on: "service",
      name: "chat",
      labels: { "istio.io/persistent-session": "hf" },
      why: "",
    };
    const session = (cookie: string) => ({
      typed_per_filter_config: {
        "envoy.filters.http.stateful_session": {
          stateful_session: { session_state: { typed_config: { cookie: { name: cookie, path: "/" } } } },
        },
      },
    });
    /** @param hosts by their names: what their virtual host has, and what its routes have */
    function look(hosts: Record<string, [ofHost: object, ofRoute: object]>, labels = { app: "web" }) {
      const tables = Object.entries(hosts).map(([host, [ofHost, ofRoute]]) => ({
        ...{ domains: [host, `${host}:8080`], ...ofHost },
        routes: [{ route: { cluster: `outbound|8080||${host}` }, ...ofRoute }],
      }));
      const dump = dumpOf({
        node: { metadata: { LABELS: labels } },
        clusters: Object.keys(hosts).map((host) => outboundCluster(8080, host)),
        routes: [{ name: "8080", virtual_hosts: tables }],
      });
      const [result] = verify(readDump(dump, "dump"), [], { policy, marks: [mark] });
      return [result?.state, result?.reason];
    }

    it("are looked for in the Service's own virtual host and routes", () => {
      const without: [object, object] = [{}, {}];
      assert.deepEqual(look({ [HOST]: [session("hf"), {}] }), ["applied", null]);
      assert.deepEqual(look({ [HOST]: [{}, session("hf")] }), ["applied", null]);
      assert.deepEqual(look({ "chat.demo.svc.corp.example": [session("hf"), {}] }), ["applied", null]);
      assert.deepEqual(look({ [HOST]: [session("old"), {}] }), ["missing", "no-sessions"]);
      // of another Service with the same cookie, and of one of that name in another namespace
      for (const host of ["game.demo.svc.cluster.local", "chat.shop.svc.cluster.local"]) {
        const theirs: [object, object] = [session("hf"), session("hf")];
        assert.deepEqual(look({ [HOST]: without, [host]: theirs }), ["missing", "no-sessions"], host);
        assert.deepEqual(look({ [host]: theirs }), ["elsewhere", null], host);
      }
    });

    it("are missing in its own pods where they do not know it", () => {
      assert.deepEqual(look({}, { app: "chat" }), ["missing", "no-target"]);
    });
  });

  it("reads what Envoy has refused: clusters, listeners, and each table of routes", async () => {
    const stats = [
      "cluster_manager.cds.update_rejected: 1",
      "http.outbound_0.0.0.0_8080;.rds.8080.update_rejected: 2",
      "http.outbound_0.0.0.0_9000;.rds.9000.update_rejected: 3",
      "listener_manager.lds.update_rejected: 4",
    ];
    const server = createServer(({ url }, response) => {
      const answer = url?.startsWith("/stats") ? `${stats.join("\n")}\n` : JSON.stringify(dumpOf({}));
      response.end(answer);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const { rejected } = await askEnvoy(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
      assert.deepEqual(rejected, { clusters: 1, listeners: 4, routes: 5 });
    } finally {
      server.close();
    }
  });

  describe("beside resources of somebody else", () => {
    const LED = { ...STATIC, lb_policy: "LEAST_REQUEST" };
    const ours = filter(clusterPatch(LED));
    const place = (port: number) => ({
      lb_endpoints: [
        { endpoint: { address: { socket_address: { address: "127.0.0.1", port_value: port } } } },
      ],
    });
    const theirs = (value: object, operation = "MERGE", more: object = {}): JsonObject => ({
      ...filter({ ...clusterPatch(value), patch: { operation, value }, ...more }),
      metadata: { name: "theirs", namespace: "demo", creationTimestamp: "2026-11-29T10:00:00Z" },
    });
    const elsewhere = { load_assignment: { cluster_name: "inbound|9000||", endpoints: [place(9)] } };
    const pinned = (more: object = {}) =>
      pinnedCluster(9000, 15_901, { lb_policy: "LEAST_REQUEST", ...more });
    const ledTo = (...ports: number[]) =>
      pinned({ load_assignment: { cluster_name: "inbound|9000||", endpoints: ports.map(place) } });

    /** @param refused updates of clusters */
    function look(cluster: object | null, object: JsonObject, other: JsonObject | null, refused = 0): Result {
      const clusters = [inboundCluster(8080), ...(cluster === null ? [] : [cluster])];
      const proxy = {
        ...readDump(dumpOf({ clusters }), "dump"),
        rejected: { clusters: refused, listeners: 0, routes: 0 },
      };
      const results = verify(proxy, [object], null, other === null ? [] : [other]);
      assert.equal(results.length, 1, JSON.stringify(results));
      return results[0] as Result;
    }

    const undone: [what: string, cluster: object | null, other: JsonObject, why: RegExp][] = [
      [
        "another value",
        pinned({ lb_policy: "RANDOM" }),
        theirs({ lb_policy: "RANDOM" }),
        /RANDOM.*theirs sets it$/,
      ],
      [
        "another place as well",
        ledTo(15_901, 9),
        theirs(elsewhere),
        /also leads to 127\.0\.0\.1:9: .*theirs sets it$/,
      ],
      ["another place alone", ledTo(9), theirs(elsewhere, "MERGE_AND_REPLACE_LIST"), /theirs sets it$/],
      ["no cluster", null, theirs({}, "REMOVE"), /theirs takes it away$/],
    ];
    for (const [what, cluster, other, why] of undone)
      it(`says whose patch it is that there is ${what}`, () => {
        const result = look(cluster, ours, other, 3);
        assert.equal(result.reason, "other-value", result.why ?? "");
        assert.match(result.why ?? "", why);
      });

    it("names nobody whose patch is for another cluster, pod or side, or says another value", () => {
      const cluster = pinned({ lb_policy: "RANDOM" });
      for (const other of [
        theirs({ lb_policy: "MAGLEV" }),
        theirs({ lb_policy: "RANDOM" }, "MERGE", clusterPatch({}, "SIDECAR_OUTBOUND")),
        theirs({ lb_policy: "RANDOM" }, "MERGE", { match: { cluster: { portNumber: 8080 } } }),
        { ...theirs({ lb_policy: "RANDOM" }), kind: "Sidecar" },
        { ...filter(clusterPatch({ lb_policy: "RANDOM" }), { ...SELF, selector: { app: "web" } }) },
      ]) {
        const { reason, why } = look(cluster, ours, other);
        assert.deepEqual([reason, why], ["not-pushed", "lb_policy is not as the patch has it"]);
      }
      assert.equal(
        look(null, ours, theirs({}, "REMOVE", { match: { cluster: { portNumber: 8080 } } })).reason,
        "no-target",
      );
    });

    it("never says applied of a cluster that leads elsewhere as well, whoever has said so", () => {
      for (const object of [ours, sidecar("127.0.0.1:15901")]) {
        const { reason, why } = look(ledTo(15_901, 9), object, null);
        assert.deepEqual([reason, why], ["other-value", "inbound|9000|| also leads to 127.0.0.1:9"]);
      }
      // of a cluster of istiod's own that gets one more
      assert.equal(look(ledTo(15_901, 9), filter(clusterPatch(elsewhere)), null).state, "applied");
    });

    it("says that Envoy may have refused a cluster before it had another, and so has none", () => {
      const { reason, why } = look(null, ours, null, 2);
      assert.equal(reason, "rejected");
      assert.match(
        why ?? "",
        /^no cluster matches .* Envoy has refused 2 updates of clusters .* one of those$/,
      );
    });

    it("never says applied of a patch that Envoy has refused, though the cluster that it keeps has all of it", () => {
      const bare = filter(clusterPatch(STATIC));
      assert.equal(look(pinned(), bare, null, 0).state, "applied");
      assert.equal(look(pinned(), bare, null, 1).reason, "lb-policy");
      // somebody else's patch has made it so
      assert.equal(look(pinned(), bare, theirs({ lb_policy: "LEAST_REQUEST" }), 1).state, "applied");
      // as istiod makes it of a Sidecar
      assert.equal(look(pinnedCluster(9000, 15_901), bare, null, 1).state, "applied");
    });

    it("warns where Envoy has refused something, and somebody else has a patch for the cluster", () => {
      const other = theirs({ lb_policy: "CLUSTER_PROVIDED" });
      for (const object of [ours, sidecar("127.0.0.1:15901")]) {
        const warnings = look(pinned(), object, other, 2).warnings.join();
        assert.match(
          warnings,
          /^Envoy has refused 2 updates .*, and EnvoyFilter demo\/theirs is for this one, too/,
        );
        assert.deepEqual(look(pinned(), object, other, 0).warnings, []);
        assert.deepEqual(look(pinned(), object, null, 2).warnings, []);
      }
    });

    it("says which Sidecar holds, where one was made before that selects the pod", () => {
      const made = (name: string, creationTimestamp: string, app = "chat"): JsonObject => ({
        kind: "Sidecar",
        metadata: { name, namespace: "demo", creationTimestamp },
        spec: { workloadSelector: { labels: { app } }, egress: [{ hosts: ["./*"] }] },
      });
      const mine = sidecar("127.0.0.1:15901");
      (mine.metadata as JsonObject).creationTimestamp = "2026-11-29T10:00:00Z";
      const none = inboundCluster(9000);
      for (const other of [made("z", "2026-11-29T09:59:59Z"), made("a", "2026-11-29T10:00:00Z")]) {
        const { reason, why } = look(none, mine, other);
        assert.equal(reason, "other-value");
        assert.match(why ?? "", /: Sidecar demo\/[az] holds$/);
        assert.match(
          look(ledTo(9), mine, other).why ?? "",
          /leads to 127\.0\.0\.1:9: Sidecar demo\/[az] holds$/,
        );
      }
      const namespaceWide = made("a", "2026-11-29T09:00:00Z");
      delete (namespaceWide.spec as JsonObject).workloadSelector;
      for (const other of [
        made("z", "2026-11-29T10:00:00Z"),
        made("a", "2026-11-29T10:00:01Z"),
        made("a", "2026-11-29T09:00:00Z", "web"),
        namespaceWide,
      ])
        assert.match(look(none, mine, other).why ?? "", /: no Sidecar holds$/);
    });
  });

  it("leaves out what is for other proxies", () => {
    const other = { ...SELF, selector: { app: "web" } };
    assert.match(
      one({}, filter(clusterPatch(STATIC), other)).why ?? "",
      /selects app=web, this pod has chat/,
    );
    const elsewhere = filter(clusterPatch(STATIC));
    (elsewhere.metadata as JsonObject).namespace = "shop";
    assert.equal(one({}, elsewhere).state, "elsewhere");
    delete (elsewhere.metadata as JsonObject).namespace;
    assert.match(one({}, elsewhere).why ?? "", /it is of namespace default, this proxy of demo/);
    assert.equal(one({}, filter(clusterPatch(STATIC, "GATEWAY"))).state, "elsewhere");
  });

  it("leaves out patches for proxies of another version or with other metadata", () => {
    const patched = (proxy: object): JsonObject => {
      const patch = clusterPatch({ connect_timeout: "7s" }) as { match: object };
      return filter({ ...patch, match: { ...patch.match, proxy } });
    };
    const dump = {
      node: { metadata: { ISTIO_VERSION: "1.31.2", MESH_ID: "a" } },
      clusters: [inboundCluster(9000)],
    };
    const states = [
      [{ proxyVersion: "^1\\.20.*" }, "elsewhere"],
      [{ proxyVersion: "^1\\.31.*" }, "missing"],
      [{ metadata: { MESH_ID: "b" } }, "elsewhere"],
      [{ metadata: { MESH_ID: "a" } }, "missing"],
      [{ proxyVersion: "(?P<a>1)" }, "unknown"],
    ] as const;
    for (const [proxy, state] of states)
      assert.equal(one(dump, patched(proxy)).state, state, JSON.stringify(proxy));
    // and nobody's rival
    const whose = (proxyVersion: string) => {
      const cluster = inboundCluster(9000, { connect_timeout: "7s" });
      const theirs = patched({ proxyVersion });
      (theirs.metadata as JsonObject).name = "theirs";
      const proxy = readDump(dumpOf({ ...dump, clusters: [cluster] }), "dump");
      return verify(proxy, [filter(clusterPatch({ connect_timeout: "1s" }))], null, [theirs])[0]?.reason;
    };
    assert.deepEqual([whose("^1\\.31"), whose("^1\\.20")], ["other-value", "not-pushed"]);
  });

  it("leaves out what is attached to Gateways that this proxy is not of", () => {
    const attached = (kind: string, name: string): JsonObject => {
      const object = filter(clusterPatch({ connect_timeout: "7s" }, "ANY"), { priority: 10 });
      (object.spec as JsonObject).targetRefs = [{ kind, name }];
      return object;
    };
    const clusters = [outboundCluster(9000, HOST)];
    const LABELS = { "gateway.networking.k8s.io/gateway-name": "edge" };
    const gateway = { clusters, node: { ...GATEWAY, metadata: { LABELS } } };
    const waypoint = {
      clusters,
      node: { id: "waypoint~10.77.0.3~way.demo~demo.svc.cluster.local", metadata: { LABELS } },
    };
    for (const [dump, kind, name, state] of [
      [{ clusters }, "Gateway", "edge", "elsewhere"],
      [gateway, "Gateway", "edge", "missing"],
      [gateway, "Gateway", "other", "elsewhere"],
      [gateway, "Service", "chat", "elsewhere"],
      [waypoint, "Gateway", "edge", "missing"],
      [waypoint, "Service", "chat", "unknown"],
    ] as const)
      assert.equal(one(dump, attached(kind, name)).state, state, `${kind} ${name}`);
  });

  it("says of kinds that it does not look at that it does not", () => {
    const route = {
      applyTo: "HTTP_ROUTE",
      match: { context: "SIDECAR_INBOUND" },
      patch: { operation: "MERGE" },
    };
    assert.equal(one({}, filter(route)).state, "unknown");
    // of stickiness by workload: its routes
    const service = { kind: "VirtualService", metadata: { name: "one" }, spec: {} };
    assert.equal(one({}, service).state, "unknown");
  });

  it("warns of what holds by luck: no selector, no priority, a place beside another", () => {
    const named = { subFilter: { name: BUFFER.name } };
    const dump = { listeners: [outboundListener(8080, httpChain([BUFFER, { name: "lua" }]))] };
    const { warnings } = one(dump, filter(httpPatch("INSERT_AFTER", named, {}, { name: "lua" }), {}));
    assert.deepEqual(
      warnings.map((text) => text.split(":")[0]),
      ["no priority", "no workloadSelector", "its place is beside envoy.filters.http.buffer"],
    );
  });

  for (const base of ["127.0.0.1:15000", "localhost:15000", "http://", "file:///dump.json"])
    it(`asks no Envoy at ${base}`, async () => {
      await assert.rejects(askEnvoy(base), /expected the URL of Envoy's admin interface, as http:/);
    });

  it("refuses what is no config_dump", () => {
    assert.throws(() => readDump({ configs: 1 }, "x.json"), /x\.json: expected what Envoy answers/);
  });

  it("never finds whole what lacks a field of a patch", () => {
    const { documents } = render(readPolicy(join(import.meta.dirname, "../policies/chat.yaml")), "plain");
    const bootstrap = JSON.parse(JSON.stringify(documents[0]?.object)) as JsonObject;
    const leaves = pathsOf(bootstrap);
    fc.assert(
      fc.property(fc.constantFrom(...leaves), (path) => {
        const copy = structuredClone(bootstrap);
        const parent = path.slice(0, -1).reduce((at, key) => (at as never)[key], copy as unknown) as never;
        (parent as Record<string, unknown>)[path.at(-1) as string] = "another";
        assert.notDeepEqual(differences(bootstrap, copy), []);
        assert.deepEqual(differences(bootstrap, bootstrap), []);
      }),
      { numRuns: 50 },
    );
  });
});

function sidecar(defaultEndpoint: string): JsonObject {
  return {
    kind: "Sidecar",
    metadata: { name: "one", namespace: "demo" },
    spec: {
      workloadSelector: { labels: { app: "chat" } },
      ingress: [{ port: { number: 9000, protocol: "TCP", name: "tcp" }, defaultEndpoint }],
    },
  };
}

function pathsOf(value: unknown, path: string[] = []): string[][] {
  if (typeof value !== "object" || value === null) return [path];
  return Object.entries(value).flatMap(([key, inner]) => pathsOf(inner, [...path, key]));
}
