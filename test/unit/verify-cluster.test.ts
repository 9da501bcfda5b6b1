/** What a cluster's Services ask of Istio, looked for in the cluster and in the Envoys of its pods: what is said, and when it is a failure. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { verifyCluster } from "#control/cli/verify-cluster.ts";
import type { Pod } from "#control/kubernetes/client/objects.ts";
import { type DumpedProxy, readDump } from "#envoy/config-dump.ts";
import { render } from "#envoy/generate/render.ts";
import type { Resource } from "#envoy/generate/resource.ts";
import { policySchema } from "#envoy/policy.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { ApiInMemory, type Raw } from "../support/api-in-memory.ts";
import { dumpOf, inboundCluster, outboundCluster, pinnedCluster } from "../support/envoy-dump.ts";

const NAMESPACE = "demo";
const SERVICE = `/api/v1/namespaces/${NAMESPACE}/services/chat`;
const SIDECAR = `/apis/networking.istio.io/v1/namespaces/${NAMESPACE}/sidecars/chat-holdfast`;
const PORTS = [{ port: 9000, proxy: 15_900, protocol: "http", servicePort: 9000 }];
const PINNED = readDump(dumpOf({ clusters: [pinnedCluster(9000, 15_900)] }), "dump");
const NOT_PUSHED = readDump(dumpOf({ clusters: [inboundCluster(9000)] }), "dump");
const CLIENTS = { stickiness: { cookie: "hf", key: "address", clients: { app: "client" } } };
const REQUEST = { namespace: NAMESPACE, services: [], mode: "sidecar" } as const;

interface Said {
  status: number;
  services: { service: string; cluster: Raw[]; pods: Raw[] }[];
  leftOut: Raw[];
  text: string;
  asked: string[];
}

describe("verify of a cluster", () => {
  /** A Service of one port, whose pods "chat-0" and "chat-1" are, and a client's. @param mesh its annotation */
  function cluster(mesh: string | null = "{}"): ApiInMemory {
    const api = new ApiInMemory();
    const annotations = mesh === null ? {} : { "holdfast.dev/mesh": mesh };
    api.put(SERVICE, {
      metadata: { annotations },
      spec: { selector: { app: "chat" }, ports: [{ port: 9000 }] },
    });
    for (const name of ["chat-0", "chat-1"]) putPod(api, name, "chat", { "holdfast.dev/injected": "1" });
    putPod(api, "client", "client");
    return api;
  }

  function putPod(api: ApiInMemory, name: string, app: string, ours: Record<string, string> = {}): void {
    const told = { "holdfast.dev/ports": "9000/http", "holdfast.dev/proxy": "sidecar" };
    const annotations = { ...told, ...ours, "sidecar.istio.io/status": "{}" };
    api.put(`/api/v1/namespaces/${NAMESPACE}/pods/${name}`, {
      metadata: { labels: { app }, annotations },
      spec: { containers: [{ name: "app" }] },
      status: { phase: "Running" },
    });
  }

  /** What the controller makes of the Service. */
  function make(api: ApiInMemory, more: object = {}, mode: "sidecar" | "envoyfilter" = "sidecar"): void {
    const policy = { name: "chat", namespace: NAMESPACE, selector: { app: "chat" }, ports: PORTS, ...more };
    for (const { object } of render(policySchema.parse(policy), mode).documents) {
      const { apiVersion, kind, metadata, spec } = object as Resource;
      const path = `/apis/${apiVersion}/namespaces/${NAMESPACE}/${kind.toLowerCase()}s/${metadata.name}`;
      // a list's items have no kind
      api.put(path, { metadata, spec: JSON.parse(JSON.stringify(spec)) });
    }
  }

  async function verified(
    api: ApiInMemory,
    ask: (pod: string) => DumpedProxy,
    request: Partial<Parameters<typeof verifyCluster>[2]> = {},
  ): Promise<Said> {
    const asked: string[] = [];
    const run = async (json: boolean): Promise<{ status: number; out: string; err: string }> => {
      let [out, err] = ["", ""];
      const terminal = {
        out: { write: (text: string) => (out += text) },
        err: { write: (text: string) => (err += text) },
      };
      const askPod = async ({ metadata: { name } }: Pod): Promise<DumpedProxy> => {
        asked.push(name);
        return ask(name);
      };
      const status = await verifyCluster(api.api, askPod, { ...REQUEST, ...request }, json, terminal);
      return { status, out, err };
    };
    const { status, out } = await run(true);
    const pods = [...asked];
    const text = await run(false);
    assert.equal(text.status, status);
    return {
      status,
      ...(JSON.parse(out) as Pick<Said, "services" | "leftOut">),
      text: text.out,
      asked: pods,
    };
  }

  const shown = (results: Raw[]): string[] =>
    results.map(({ part, state, reason }) => `${part} ${state}${reason === null ? "" : ` ${reason}`}`);

  it("is well where each pod's Envoy has what the cluster has, and asks no pod that it is not for", async () => {
    const api = cluster();
    make(api);
    const { status, services, asked } = await verified(api, () => PINNED);
    assert.deepEqual(
      services.map(({ service, cluster: there, pods }) => [service, shown(there), pods.length]),
      [["chat", ["spec applied"], 2]],
    );
    assert.deepEqual(shown(services[0]?.pods[0].results), ["ingress[0] applied"]);
    assert.deepEqual([status, asked], [0, ["chat-0", "chat-1"]]);
  });

  it("asks clients' pods too, where their sidecars are patched", async () => {
    const api = cluster(JSON.stringify(CLIENTS));
    make(api, CLIENTS);
    const { asked } = await verified(api, () => PINNED);
    assert.deepEqual(asked, ["chat-0", "chat-1", "client"]);
  });

  it("says which pod has not got it, and which is not reached, and looks at the others all the same", async () => {
    const api = cluster();
    make(api);
    const { status, services, text } = await verified(api, (pod) => {
      if (pod === "chat-0") throw fail("ENVOY_UNREACHABLE", "no port of it");
      return NOT_PUSHED;
    });
    const [none, old] = services[0]?.pods ?? [];
    assert.deepEqual([none.error, none.results], ["no port of it", []]);
    assert.equal(old.results[0].state, "missing");
    assert.match(text, /^pod chat-0: not looked at: no port of it$/m);
    assert.match(text, /^pod chat-1\nRESOURCE /m);
    assert.equal(status, 1);
  });

  it("says what is not in the cluster, and what is not as it is asked for", async () => {
    const api = cluster();
    const none = await verified(api, () => NOT_PUSHED);
    assert.deepEqual(
      [none.status, shown(none.services[0]?.cluster ?? [])],
      [1, ["spec missing not-in-cluster"]],
    );
    make(api, { ports: [{ ...PORTS[0], proxy: 15_901 }] });
    const other = await verified(api, () => PINNED);
    assert.deepEqual(
      [other.status, shown(other.services[0]?.cluster ?? [])],
      [1, ["spec missing not-as-asked"]],
    );
    // what istiod tells is what the cluster has
    assert.match(other.services[0]?.pods[0].results[0].why, /leads to 127\.0\.0\.1:15900/);
    api.remove(SIDECAR);
    assert.equal((await verified(api, () => PINNED)).status, 1);
  });

  describe("beside resources of somebody else", () => {
    const THEIRS = SIDECAR.replace("chat-holdfast", "a-sidecar");
    const older = {
      metadata: { creationTimestamp: "2026-01-01T00:00:00Z" },
      spec: { workloadSelector: { labels: { app: "chat" } }, egress: [{ hosts: ["./*"] }] },
    };

    it("names the Sidecar that holds in the place of ours, and the EnvoyFilter, of istiod's namespace too", async () => {
      const api = cluster();
      make(api);
      api.put(SIDECAR, {
        ...api.objects.get(SIDECAR),
        metadata: { creationTimestamp: "2026-02-01T00:00:00Z" },
      });
      const why = async (proxy = NOT_PUSHED): Promise<string> => {
        const { status, services } = await verified(api, () => proxy);
        assert.equal(status, 1);
        return services[0]?.pods[0].results[0].why;
      };
      assert.match(await why(), /no Sidecar holds/);
      api.put(THEIRS, older);
      assert.match(await why(), /: Sidecar demo\/a-sidecar holds$/);
      api.remove(THEIRS);
      const match = { context: "SIDECAR_INBOUND", cluster: { portNumber: 9000 } };
      api.put("/apis/networking.istio.io/v1alpha3/namespaces/istio-system/envoyfilters/all", {
        spec: { configPatches: [{ applyTo: "CLUSTER", match, patch: { operation: "REMOVE" } }] },
      });
      assert.match(await why(readDump(dumpOf({}), "dump")), /: EnvoyFilter istio-system\/all takes it away$/);
    });

    it("takes none of ours for that", async () => {
      const api = cluster();
      make(api, {}, "envoyfilter");
      const refused = { clusters: 1, listeners: 0, routes: 0 };
      const least = readDump(
        dumpOf({ clusters: [pinnedCluster(9000, 15_900, { lb_policy: "LEAST_REQUEST" })] }),
        "dump",
      );
      const { status, services } = await verified(api, () => ({ ...least, rejected: refused }), {
        mode: "envoyfilter",
      });
      assert.deepEqual([status, services[0]?.pods[0].results[0].warnings], [0, []]);
    });

    it("names nobody where one may not look", async () => {
      const api = cluster();
      make(api);
      api.put(THEIRS, older);
      const whole = api.api;
      const list: typeof whole.list = async (path, ...more) => {
        if (path.endsWith("/sidecars")) throw fail("KUBERNETES_FORBIDDEN", "not yours");
        return whole.list(path, ...more);
      };
      const forbidden = { api: { ...whole, list } } as unknown as ApiInMemory;
      const { services } = await verified(forbidden, () => NOT_PUSHED);
      assert.match(services[0]?.pods[0].results[0].why, /no Sidecar holds/);
    });
  });

  it("does not blame our Sidecar for what one restricts that may not be read", async () => {
    for (const isWrong of [false, true]) {
      const api = cluster();
      // as the controller writes it, with that of the root namespace
      make(api, {
        egress: [{ hosts: ["./*"] }],
        outboundTrafficPolicy: { mode: "REGISTRY_ONLY" },
        ...(isWrong ? { ports: PORTS.map((port) => ({ ...port, proxy: 15_901 })) } : {}),
      });
      const whole = api.api;
      const list: typeof whole.list = async (path, ...more) => {
        if (path.endsWith("/istio-system/sidecars")) throw fail("KUBERNETES_FORBIDDEN", "not yours");
        return whole.list(path, ...more);
      };
      const forbidden = { api: { ...whole, list } } as unknown as ApiInMemory;
      const { status, services } = await verified(forbidden, () => PINNED);
      assert.deepEqual(shown(services[0]?.cluster ?? []), [
        isWrong ? "spec missing not-as-asked" : "spec applied",
      ]);
      assert.equal(status, isWrong ? 1 : 0);
    }
  });

  it("fails where a Service that asks is left out, not where one is that does not", async () => {
    const other = SERVICE.replace(/chat$/, "other");
    for (const isAsked of [true, false]) {
      const api = cluster();
      make(api);
      const annotations = isAsked ? { "holdfast.dev/mesh": "{}" } : {};
      api.put(other, { metadata: { annotations }, spec: { selector: { app: "client" }, ports: [] } });
      const { status, leftOut } = await verified(api, () => PINNED);
      assert.deepEqual(
        [status, leftOut.map(({ service, reason }) => `${service} ${reason}`)],
        isAsked ? [1, ["other NotInjected"]] : [0, []],
      );
    }
  });

  it("looks at the Service's own label, where istiod makes the sessions: another Service may have the same cookie", async () => {
    const more = { stickiness: { cookie: "hf", key: "address" }, istio: { persistentSessions: true } };
    const api = cluster(JSON.stringify(more));
    make(api, more);
    const host = `chat.${NAMESPACE}.svc.cluster.local`;
    const cookie = { stateful_session: { session_state: { typed_config: { cookie: { name: "hf" } } } } };
    const typed_per_filter_config = { "envoy.filters.http.stateful_session": cookie };
    const has = readDump(
      dumpOf({
        clusters: [pinnedCluster(9000, 15_900), outboundCluster(9000, host)],
        routes: [{ name: "9000", virtual_hosts: [{ domains: [host], typed_per_filter_config }] }],
      }),
      "dump",
    );
    const said = async (): Promise<[number, string[]]> => {
      const { status, services } = await verified(api, () => has);
      return [status, shown(services[0]?.cluster ?? [])];
    };
    const label = "istio.io/persistent-session";
    assert.deepEqual(await said(), [1, ["spec applied", `${label} missing not-labelled`]]);
    const service = api.objects.get(SERVICE) as Raw;
    api.put(SERVICE, { ...service, metadata: { ...service.metadata, labels: { [label]: "hf" } } });
    assert.deepEqual(await said(), [0, ["spec applied", `${label} applied`]]);
  });

  it("ends where kubectl is missing, which would lead to none of the others either", async () => {
    const api = cluster();
    make(api);
    const ask = (): never => {
      throw fail("KUBECTL_MISSING", "install it");
    };
    await assert.rejects(verified(api, ask), { code: "KUBECTL_MISSING" });
  });
});
