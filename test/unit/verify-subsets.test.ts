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
  endpoints?: Record<string, number>;
  id?: string;
}

const ALL = { "chat-0-8080": [FIRST], "chat-1-8080": [SECOND], "new-8080": [FIRST, SECOND] };

function proxy({ clusters = CLUSTERS, routes = ALL, endpoints, id }: MadeUp = {}): DumpedProxy {
  const whole = { name: `outbound|8080||${HOST}` };
  const named = clusters.map((name) => ({ ...outboundCluster(8080, HOST), name }));
  const dump = readDump(
    dumpOf({ clusters: [whole, ...named], ...(id === undefined ? {} : { node: { id } }) }),
    "dump",
  );
  const led = Object.entries(routes).map(([name, to]) => ({
    name,
    route:
      to.length === 1
        ? { cluster: to[0] }
        : { weighted_clusters: { clusters: to.map((one) => ({ name: one })) } },
  }));
  const virtual_hosts = [{ domains: [HOST, `${HOST}:8080`], routes: led }];
  return {
    ...dump,
    routes: [{ name: "8080", virtual_hosts }] as unknown as JsonObject[],
    endpoints: endpoints === undefined ? null : new Map(Object.entries(endpoints)),
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
