/** Subsets of a DestinationRule and routes of a VirtualService, looked for in a sidecar's Envoy. The proxies here are made up. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type DumpedProxy, type JsonObject, readDump } from "#envoy/config-dump.ts";
import { render } from "#envoy/generate/render.ts";
import { policySchema } from "#envoy/policy.ts";
import { verify } from "#envoy/verify/verify.ts";
import { dumpOf, outboundCluster } from "../support/envoy-dump.ts";

const HOST = "chat.demo.svc.cluster.local";
const NAMES = ["chat-0", "chat-1"];
const CLUSTERS = NAMES.map((name) => `outbound|8080|${name}|${HOST}`);
const [FIRST, SECOND] = CLUSTERS as [string, string];

const policy = policySchema.parse({
  name: "chat",
  namespace: "demo",
  selector: { app: "chat" },
  ports: [{ port: 8080, protocol: "http" }],
  stickiness: { cookie: "hf", workloads: NAMES.map((name) => ({ name, labels: { app: name } })) },
});
const [RULE, ROUTES] = render(policy, "sidecar")
  .documents.map(({ object }) => JSON.parse(JSON.stringify(object)) as JsonObject)
  .filter(({ kind }) => kind !== "Sidecar") as [JsonObject, JsonObject];

interface MadeUp {
  /** by their names; default: those of both subsets */
  clusters?: string[];
  /** by its name, the clusters that each leads to */
  routes?: Record<string, string[]>;
  /** that the routes are of, as istiod made them */
  cookie?: string;
  /** of the clusters of the route for whoever has none */
  weights?: number[];
  /** updates of routes */
  refused?: number;
  endpoints?: Record<string, number>;
  id?: string;
}

const ALL = { "chat-0-8080": [FIRST], "chat-1-8080": [SECOND], "new-8080": [FIRST, SECOND] };

function proxy({ clusters = CLUSTERS, routes = ALL, endpoints, id, ...more }: MadeUp = {}): DumpedProxy {
  const { cookie = "hf", weights = [50, 50], refused } = more;
  const whole = { name: `outbound|8080||${HOST}` };
  const named = clusters.map((name) => ({ ...outboundCluster(8080, HOST), name }));
  const dump = readDump(
    dumpOf({ clusters: [whole, ...named], ...(id === undefined ? {} : { node: { id } }) }),
    "dump",
  );
  const added = (cluster: string) => {
    const value = `${cookie}=${cluster.split("|")[2]}; Path=/; HttpOnly`;
    return { response_headers_to_add: [{ header: { key: "set-cookie", value } }] };
  };
  // as istiod 1.31 tells them
  const led = Object.entries(routes).map(([name, to]) => {
    const regex = `(.*; *)?${cookie}=${name.replace(/-8080$/, "")}(;.*)?`;
    const headers = [{ name: "cookie", string_match: { safe_regex: { regex } } }];
    const shares = to.map((one, index) => ({ name: one, weight: weights[index], ...added(one) }));
    return {
      name,
      match: { prefix: "/", ...(name.startsWith("new-") ? {} : { headers }) },
      route: to.length === 1 ? { cluster: to[0] } : { weighted_clusters: { clusters: shares } },
    };
  });
  const virtual_hosts = [{ domains: [HOST, `${HOST}:8080`], routes: led }];
  return {
    ...dump,
    routes: [{ name: "8080", virtual_hosts }] as unknown as JsonObject[],
    endpoints: endpoints === undefined ? null : new Map(Object.entries(endpoints)),
    rejected: refused === undefined ? null : { clusters: 0, listeners: 0, routes: refused },
  };
}

function shown(of: DumpedProxy, object: JsonObject): string[] {
  return verify(of, [object]).map(
    ({ part, state, reason }) => `${part} ${state}${reason === null ? "" : ` ${reason}`}`,
  );
}

/** The same with other keys in its spec. */
function withSpec(object: JsonObject, more: JsonObject): JsonObject {
  return { ...object, spec: { ...(object.spec as JsonObject), ...more } };
}

describe("stickiness by workload, in a client's Envoy", () => {
  it("is applied where each subset has a cluster, and each route leads to what it says", () => {
    assert.deepEqual(shown(proxy(), RULE), ["subsets[0] applied", "subsets[1] applied"]);
    assert.deepEqual(shown(proxy(), ROUTES), ["http[0] applied", "http[1] applied", "http[2] applied"]);
  });

  it("is missing where a subset has no cluster, or a route is not there or leads elsewhere", () => {
    assert.deepEqual(shown(proxy({ clusters: [FIRST] }), RULE), [
      "subsets[0] applied",
      "subsets[1] missing not-pushed",
    ]);
    const routes = { "chat-1-8080": [FIRST], "new-8080": [FIRST] };
    assert.deepEqual(shown(proxy({ routes }), ROUTES), [
      "http[0] missing not-pushed",
      "http[1] missing other-value",
      "http[2] missing other-value",
    ]);
  });

  it("is missing where the routes are still of another cookie or other shares", () => {
    const whys = (of: DumpedProxy): string[] => verify(of, [ROUTES]).map(({ why }) => why ?? "");
    const old = proxy({ cookie: "old" });
    assert.deepEqual(shown(old, ROUTES), [
      "http[0] missing other-value",
      "http[1] missing other-value",
      "http[2] missing other-value",
    ]);
    assert.match(whys(old)[0] ?? "", /headers .*old=chat-0/);
    assert.match(whys(old)[2] ?? "", /adds .*old=chat-0; Path=/);
    const shares = proxy({ weights: [90, 10] });
    assert.deepEqual(shown(shares, ROUTES), [
      "http[0] applied",
      "http[1] applied",
      "http[2] missing other-value",
    ]);
    assert.match(whys(shares)[2] ?? "", /^90 of it go to outbound\|8080\|chat-0\|/);
  });

  it("is said to be refused where Envoy has refused routes", () => {
    for (const [made, reason] of [
      [{ cookie: "old", refused: 2 }, "rejected"],
      [{ cookie: "old", refused: 0 }, "other-value"],
      [{ routes: {}, refused: 2 }, "rejected"],
    ] as const)
      assert.equal(verify(proxy(made), [ROUTES])[0]?.reason, reason, JSON.stringify(made));
    assert.equal(verify(proxy({ refused: 2 }), [ROUTES])[0]?.state, "applied");
  });

  it("says what of a route it does not compare, and wants each of its matches", () => {
    const [first] = (ROUTES.spec as { http: JsonObject[] }).http as [JsonObject];
    const timed = withSpec(ROUTES, { http: [{ ...first, timeout: "5s" }] });
    const [result] = verify(proxy(), [timed]);
    assert.deepEqual([result?.state, result?.warnings], ["applied", ["timeout of it is not looked at"]]);
    const more = { port: 8080, headers: { other: { exact: "1" } } };
    const of = (match: object[]): string[] =>
      shown(
        proxy(),
        withSpec(ROUTES, {
          http: [{ ...first, match: [...(first.match as object[]), ...match] } as JsonObject],
        }),
      );
    assert.deepEqual(of([more]), ["http[0] missing other-value"]);
    // of which this proxy has none: a port without such routes, and other clients
    assert.deepEqual(
      of([
        { ...more, port: 9000 },
        { ...more, sourceLabels: { app: "web" } },
      ]),
      ["http[0] applied"],
    );
  });

  it("is missing in the Service's own pods where its host is called otherwise, and elsewhere in others", () => {
    const corp = readDump(
      dumpOf({ clusters: [outboundCluster(8080, "chat.demo.svc.corp.example")] }),
      "dump",
    );
    const results = (of: DumpedProxy) => verify(of, [RULE, ROUTES], { policy, marks: [] });
    for (const { state, reason, why } of results(corp)) {
      assert.deepEqual([state, reason], ["missing", "no-target"]);
      assert.match(
        why ?? "",
        /no cluster of chat\.demo\.svc\.cluster\.local: it knows .* as chat\.demo\.svc\.corp\.example$/,
      );
    }
    for (const other of [
      { ...corp, labels: { app: "web" } },
      { ...corp, namespace: "shop" },
    ])
      assert.deepEqual(new Set(results(other).map(({ state }) => state)), new Set(["elsewhere"]));
    const theirs = withSpec(RULE, { host: "web.demo.svc.cluster.local" });
    assert.equal(verify(corp, [theirs], { policy, marks: [] })[0]?.state, "elsewhere");
  });

  it("is warned of where no pod has the labels of a subset", () => {
    const [, second] = verify(proxy({ endpoints: { [FIRST]: 1, [SECOND]: 0 } }), [RULE]);
    assert.deepEqual([second?.state, second?.warnings.length], ["applied", 1]);
    assert.match(second?.warnings[0] ?? "", /\|chat-1\|.* has no endpoints/);
  });

  it("is not looked for in an Envoy that does not know the Service, in a gateway's routes, or in one that is none of istiod's", () => {
    const other = readDump(dumpOf({}), "dump");
    assert.deepEqual(shown(other, RULE), ["subsets[0] elsewhere", "subsets[1] elsewhere"]);
    for (const one of [
      other,
      proxy({ id: "router~10.0.0.1~a.demo~demo.svc.cluster.local" }),
      proxy({ id: "mine" }),
    ])
      assert.deepEqual(new Set(shown(one, ROUTES).map((text) => text.split(" ")[1])), new Set(["elsewhere"]));
  });

  it("is said not to be looked at where names are short, routes have none, or somebody restricts who gets it", () => {
    const unknown = (object: JsonObject): boolean =>
      verify(proxy(), [object]).every(({ state, why }) => state === "unknown" && why !== null);
    assert.ok(unknown(withSpec(RULE, { host: "chat" })));
    assert.ok(unknown(withSpec(RULE, { exportTo: ["."] })));
    assert.ok(unknown(withSpec(RULE, { subsets: [] })));
    assert.ok(unknown(withSpec(ROUTES, { gateways: ["games/edge"] })));
    assert.ok(unknown(withSpec(ROUTES, { hosts: ["*.games.example"] })));
    assert.ok(unknown(withSpec(ROUTES, { http: [{ route: [{ destination: { host: HOST } }] }] })));
  });
});
