/** What somebody does to resources of Istio in a cluster, of each kind once: that `verify --from-cluster` finds, and by which reason at each pod. */
import { BUFFER, RAW_SOCKET } from "../envoy/wrong-patches.ts";
import type { KubeObject } from "./cluster.ts";

/** after ours, which has 10 */
const LATER = 20;

/** An edit of the EnvoyFilter that leads to Holdfast. */
export interface WrongFilter {
  what: string;
  /** @param patches of one port; changed in place */
  edit(patches: Patch[], port: number): void;
  /** at each pod */
  found: string;
  why: RegExp;
}

interface Patch {
  applyTo: string;
  match: object;
  patch: { operation: string; value: Record<string, unknown> };
}

const valueIn = ([first]: Patch[]): Record<string, unknown> => (first as Patch).patch.value;

function inbound(port: number, value: object, operation = "MERGE"): object {
  const match = { context: "SIDECAR_INBOUND", cluster: { portNumber: port } };
  return { applyTo: "CLUSTER", match, patch: { operation, value } };
}

/** While Envoy has none of it yet, first; others while it has what it was asked for. */
export const WRONG_FILTERS: WrongFilter[] = [
  {
    what: "an EnvoyFilter without lb_policy, whose cluster Envoy has refused",
    edit: (patches) => void delete valueIn(patches).lb_policy,
    found: "configPatches[0] lb-policy",
    why: /^it is still ORIGINAL_DST: Envoy refused /,
  },
  {
    what: "one whose patch has a transport_socket beside the rest",
    edit: (patches) => void Object.assign(valueIn(patches), { transport_socket: RAW_SOCKET }),
    found: "configPatches[0] beside-transport-socket",
    why: /^beside transport_socket istiod dropped lb_policy, load_assignment, type$/,
  },
  {
    what: "one that has a patch for what is 0",
    edit: (patches, port) => void patches.push(inbound(port, { lb_policy: "ROUND_ROBIN" }) as Patch),
    found: "configPatches[0] applied,configPatches[1] enum-zero",
    why: /lb_policy is "LEAST_REQUEST", not "ROUND_ROBIN"/,
  },
  {
    what: "one that has a place beside a filter that is not there",
    edit: (patches, port) =>
      void patches.push({
        applyTo: "HTTP_FILTER",
        match: {
          context: "SIDECAR_INBOUND",
          listener: {
            portNumber: port,
            filterChain: {
              filter: {
                name: "envoy.filters.network.http_connection_manager",
                subFilter: { name: "istio.metadata_exchange" },
              },
            },
          },
        },
        patch: { operation: "INSERT_BEFORE", value: BUFFER },
      }),
    found: "configPatches[0] applied,configPatches[1] relative",
    why: /there is no filter istio\.metadata_exchange/,
  },
];

/** … of which Envoy has refused each, and keeps the cluster that it was asked for before. */
export const REFUSED_FILTERS: WrongFilter[] = [
  {
    what: "an EnvoyFilter without lb_policy, for which Envoy keeps the cluster before",
    edit: (patches) => void delete valueIn(patches).lb_policy,
    found: "configPatches[0] lb-policy",
    why: /^its LEAST_REQUEST is not of this patch, and Envoy has refused [1-9]\d* updates of clusters /,
  },
  {
    what: "one with istiod's own lb_policy, which Envoy refuses of such a cluster",
    edit: (patches) => void Object.assign(valueIn(patches), { lb_policy: "CLUSTER_PROVIDED" }),
    found: "configPatches[0] rejected",
    why: /^lb_policy is not as the patch has it, and Envoy has refused [1-9]\d* updates since it started$/,
  },
];

/** Somebody else's EnvoyFilter for the same cluster, beside ours that is as it is asked for. */
export interface Foreign {
  what: string;
  /** @param port of the cluster */
  patch(port: number): object;
  why: RegExp;
}

const nowhere = (port: number) => ({
  load_assignment: {
    cluster_name: `inbound|${port}||`,
    endpoints: [
      {
        lb_endpoints: [
          { endpoint: { address: { socket_address: { address: "127.0.0.1", port_value: 9 } } } },
        ],
      },
    ],
  },
});

export const FOREIGN_NAME = "somebody-elses";
const THEIRS = `EnvoyFilter games/${FOREIGN_NAME}`;

export const ALSO_LEADS: Foreign = {
  what: "has Envoy lead elsewhere as well",
  patch: (port) => inbound(port, nowhere(port)),
  why: new RegExp(`^inbound\\|9000\\|\\| also leads to 127\\.0\\.0\\.1:9: ${THEIRS} sets it`),
};

export const FOREIGN: Foreign[] = [
  {
    what: "sets another value",
    patch: (port) => inbound(port, { lb_policy: "RANDOM" }),
    why: new RegExp(`^lb_policy is "RANDOM", not "LEAST_REQUEST": ${THEIRS} sets it`),
  },
  ALSO_LEADS,
  {
    what: "has Envoy lead elsewhere alone",
    patch: (port) => inbound(port, nowhere(port), "MERGE_AND_REPLACE_LIST"),
    why: new RegExp(`^load_assignment\\.endpoints is .*: ${THEIRS} sets it`),
  },
  {
    what: "takes the cluster away",
    patch: (port) => inbound(port, {}, "REMOVE"),
    why: new RegExp(`^no cluster matches .*: ${THEIRS} takes it away$`),
  },
];

/** @param app of the pods */
export function foreignFilter(app: string, patch: object, namespace: string): KubeObject {
  return {
    apiVersion: "networking.istio.io/v1alpha3",
    kind: "EnvoyFilter",
    metadata: { name: FOREIGN_NAME, namespace },
    spec: { workloadSelector: { labels: { app } }, priority: LATER, configPatches: [patch] },
  };
}

/** Of somebody who says what a workload may call, and nothing of what comes in. @param name before ours, for those of one second */
export function egressSidecar(name: string, app: string, namespace: string): KubeObject {
  return {
    apiVersion: "networking.istio.io/v1",
    kind: "Sidecar",
    metadata: { name, namespace },
    spec: { workloadSelector: { labels: { app } }, egress: [{ hosts: ["./*"] }] },
  };
}
