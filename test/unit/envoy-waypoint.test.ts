/** What a policy patches at a waypoint: as istiod 1.31 compares it (listener_patch.go), and as verify finds it there. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type JsonObject, readDump } from "#envoy/config-dump.ts";
import { render } from "#envoy/generate/render.ts";
import { policySchema } from "#envoy/policy.ts";
import { verify } from "#envoy/verify/verify.ts";
import { dumpOf, httpChain, tcpChain } from "#test/support/envoy-dump.ts";

const HOST = "web.demo.svc.cluster.local";
const HCM = "envoy.filters.network.http_connection_manager";

interface Patch {
  match: object;
  patch: { value: object };
}

describe("stickiness by address at a waypoint", () => {
  const policy = policySchema.parse({
    ...{ name: "a", namespace: "demo", service: "web", selector: { app: "a" }, waypoint: "way" },
    ports: [
      { port: 8080, servicePort: 80, protocol: "http" },
      { port: 9000, protocol: "tcp" },
      { port: 9090, protocol: "h2" },
    ],
    stickiness: { cookie: "a", key: "address" },
  });
  const filter = render(policy, "ambient").documents[1]?.object as unknown as JsonObject;
  const patches = (filter.spec as unknown as { configPatches: Patch[] }).configPatches;

  it("is by the names of its chains, of an inbound listener without a port", () => {
    assert.deepEqual(
      patches.map(({ match }) => match),
      [80, 9090].map((port) => ({
        context: "SIDECAR_INBOUND",
        listener: {
          name: "main_internal",
          filterChain: { name: `inbound-vip|${port}|http|${HOST}`, filter: { name: HCM } },
        },
      })),
    );
  });

  /** As a waypoint of istiod 1.31 has it, of the policy's Service. */
  const statesAt = (filters: object[]): (string | null)[] => {
    const listener = {
      name: "main_internal",
      internal_listener: {},
      filter_chains: [
        httpChain(filters, { name: `inbound-vip|80|http|${HOST}` }),
        tcpChain({}, { name: `inbound-vip|9000|tcp|${HOST}` }),
        httpChain(filters, { name: `inbound-vip|9090|http|${HOST}` }),
      ],
    };
    const node = {
      id: "waypoint~10.77.0.3~way.demo~demo.svc.cluster.local",
      metadata: { LABELS: { "gateway.networking.k8s.io/gateway-name": "way" } },
    };
    const proxy = readDump(dumpOf({ node, listeners: [listener] }), "made up");
    return verify(proxy, [filter]).map(({ state, reason }) => reason ?? state);
  };

  it("is found there by verify, where it is", () => {
    const [{ patch } = assert.fail()] = patches;
    assert.deepEqual(statesAt([patch.value]), ["applied", "applied"]);
    assert.deepEqual(statesAt([]), ["not-pushed", "not-pushed"]);
  });
});
