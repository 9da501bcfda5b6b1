/**
 * `holdfast envoy verify --from-cluster`: whether a cluster has what its Services ask of Istio, and whether the Envoy of each pod that it is for
 * has come to it.
 */
import { isDeepStrictEqual } from "node:util";
import { type DumpedProxy, type JsonObject, objectAt, ROOT_NAMESPACE } from "#envoy/config-dump.ts";
import type { Reach } from "#envoy/default-sidecar.ts";
import { render } from "#envoy/generate/render.ts";
import type { Mark, Resource } from "#envoy/generate/resource.ts";
import type { Policy } from "#envoy/policy.ts";
import type { Asked } from "#envoy/verify/marks.ts";
import { type Reason, type Result, resultOf } from "#envoy/verify/result.ts";
import { verify } from "#envoy/verify/verify.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { EXIT } from "../api/exit-status.ts";
import { ISTIO_STATUS, MESH_ANNOTATION } from "../api/mesh.ts";
import { isCode, type KubernetesApi } from "../kubernetes/client/api.ts";
import {
  isActive,
  isSelected,
  type KubernetesObject,
  type Pod,
  type Service,
} from "../kubernetes/client/objects.ts";
import { type Kind, pathOf, type Where } from "../kubernetes/client/paths.ts";
import { MESH_KINDS } from "../kubernetes/mesh/keep.ts";
import { isAllApplied, policiesInCluster, resultsText, shownOf } from "./envoy.ts";
import { plain, type Terminal } from "./terminal.ts";

/** each has a kubectl of its own meanwhile */
const PODS_AT_ONCE = 4;

/** What a pod's Envoy says of itself. @throws Error: it is not reached */
export type AskPod = (pod: Pod) => Promise<DumpedProxy>;

export interface ClusterRequest {
  namespace: string;
  /** of these; none: of all */
  services: readonly string[];
  mode: "sidecar" | "envoyfilter";
}

interface SeenService {
  service: string;
  /** a part each: is it there, and as it is asked for */
  cluster: Result[];
  pods: SeenPod[];
}

interface SeenPod {
  pod: string;
  /** as the Envoy calls itself; null: it was not reached */
  proxy: object | null;
  error: string | null;
  results: Result[];
}

/** What of the cluster is for its pods' Envoys. */
interface Applied {
  results: Result[];
  objects: JsonObject[];
  asked: Asked;
  /** of somebody else */
  others: JsonObject[];
}

/** @throws HoldfastError of the client and of {@link policiesInCluster}; `CONFIG_INVALID`: it cannot be had in that mode */
export async function verifyCluster(
  api: KubernetesApi,
  ask: AskPod,
  { namespace, services, mode }: ClusterRequest,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const found = await policiesInCluster(api, { namespace, services, mode }, terminal);
  const { policies, leftOut, pods: there } = found;
  const meshed = there.filter(
    (pod) => isActive(pod) && pod.metadata.annotations?.[ISTIO_STATUS] !== undefined,
  );
  const all = await rivalsIn(api, namespace);
  const seen: SeenService[] = [];
  for (const policy of policies) {
    const applied = await appliedOf(api, policy, mode, all, found.isReachKnown);
    applied.results.push(...labelledOf(policy, applied.asked.marks, found.services));
    const pods = await inTurn(
      meshed.filter((pod) => isFor(policy, pod)),
      (pod) => look(pod, ask, applied),
    );
    seen.push({ service: policy.service ?? policy.name, cluster: applied.results, pods });
  }
  // others are left out for what they are, and have asked for nothing
  const unmet = leftOut.filter(
    ({ service }) => service.metadata.annotations?.[MESH_ANNOTATION] !== undefined,
  );
  const told = unmet.map(({ service, reason, message }) => ({
    service: service.metadata.name,
    reason,
    message,
  }));
  terminal.out.write(
    json ? `${JSON.stringify({ services: seen, leftOut: told })}\n` : seen.map(textOf).join("\n"),
  );
  return told.length === 0 && seen.every(isGood) ? EXIT.ok : EXIT.failed;
}

/** What the policy comes to, as the cluster has it: that is what istiod tells, whether it is as it is asked for or not. */
async function appliedOf(
  api: KubernetesApi,
  policy: Policy,
  mode: ClusterRequest["mode"],
  all: readonly JsonObject[],
  isReachKnown: boolean,
): Promise<Applied> {
  const { documents, marks } = render(policy, mode);
  const applied: Applied = { results: [], objects: [], asked: { policy, marks }, others: [] };
  for (const document of documents) {
    const { kind, metadata, spec } = JSON.parse(JSON.stringify(document.object)) as Resource;
    const found = await api.find<KubernetesObject & { spec?: object }>(
      pathOf(MESH_KINDS[kind] as Kind, metadata),
    );
    const of = (reason: Reason | null, why: string | null): void =>
      void applied.results.push(
        resultOf(`${kind} ${metadata.namespace}/${metadata.name}`, "spec", { what: kind, reason, why }),
      );
    if (found === null) of("not-in-cluster", "there is none of that name");
    else {
      applied.objects.push({ ...(found as unknown as JsonObject), kind });
      const [has, wanted] = [found.spec, spec].map((one) => (isReachKnown ? one : withoutReach(one)));
      if (isDeepStrictEqual(has, wanted)) of(null, null);
      else of("not-as-asked", "it is not what the Service and its pods ask for now");
    }
  }
  const ours = new Set(applied.objects.map(uidOf));
  applied.others = all.filter((one) => !ours.has(uidOf(one)));
  return applied;
}

/** The controller writes into ours what another Sidecar restricts: where that may not be read, nobody here knows what it is to be. */
function withoutReach(spec: object | undefined): object | undefined {
  if (spec === undefined) return undefined;
  const { egress: _, outboundTrafficPolicy: __, ...rest } = spec as Reach & object;
  return rest;
}

/** What nobody writes for a Service, its labels: what its clients' Envoys have may be of another that has the same. */
function labelledOf({ namespace }: Policy, marks: readonly Mark[], services: readonly Service[]): Result[] {
  return marks
    .filter(({ on }) => on === "service")
    .flatMap(({ name, labels = {} }) => {
      const has = services.find(({ metadata }) => metadata.name === name)?.metadata.labels ?? {};
      return Object.entries(labels).map(([key, value]) => {
        const isThere = has[key] === value;
        const why = isThere ? null : `the Service has ${has[key] === undefined ? "no such label" : has[key]}`;
        const reason = isThere ? null : "not-labelled";
        return resultOf(`Service ${namespace}/${name}`, key, { what: `${key}=${value}`, reason, why });
      });
    });
}

function uidOf(object: JsonObject): unknown {
  return objectAt(object, "metadata").uid;
}

/** What may be for the same pods: of the namespace, and of istiod's own. None where one may not look: then nobody is named. */
async function rivalsIn(api: KubernetesApi, namespace: string): Promise<JsonObject[]> {
  const read = async (kind: string, where: Where): Promise<JsonObject[]> => {
    try {
      const { items } = await api.list<KubernetesObject>(pathOf(MESH_KINDS[kind] as Kind, where));
      // a list's items have no kind
      return items.map((one) => ({ ...(one as unknown as JsonObject), kind }));
    } catch (error) {
      if (isCode(error, "KUBERNETES_FORBIDDEN", "KUBERNETES_NOT_FOUND")) return [];
      throw error;
    }
  };
  const found = await Promise.all([
    read("Sidecar", { namespace }),
    ...[...new Set([ROOT_NAMESPACE, namespace])].map((one) => read("EnvoyFilter", { namespace: one })),
  ]);
  return found.flat();
}

/** Of the application, or a client whose sidecar is patched. */
function isFor({ selector, stickiness }: Policy, { metadata: { labels } }: Pod): boolean {
  const clients = stickiness?.key === "address" ? stickiness.clients : undefined;
  return [selector, clients].some(
    (wanted) => wanted !== undefined && isSelected({ matchLabels: wanted }, labels),
  );
}

/** One that is not reached keeps no other from being looked at. */
async function look(pod: Pod, ask: AskPod, { objects, asked, others }: Applied): Promise<SeenPod> {
  const { name } = pod.metadata;
  try {
    const proxy = await ask(pod);
    return { pod: name, proxy: shownOf(proxy), error: null, results: verify(proxy, objects, asked, others) };
  } catch (error) {
    if (isCode(error, "KUBECTL_MISSING")) throw error;
    return { pod: name, proxy: null, error: messageOf(error), results: [] };
  }
}

async function inTurn<T, R>(all: readonly T[], work: (one: T) => Promise<R>): Promise<R[]> {
  const done = new Array<R>(all.length);
  const waiting = all.entries();
  const worker = async (): Promise<void> => {
    for (const [index, one] of waiting) done[index] = await work(one);
  };
  await Promise.all(Array.from({ length: PODS_AT_ONCE }, worker));
  return done;
}

/** A Service without pods has not come to anything. */
function isGood({ cluster, pods }: SeenService): boolean {
  return isAllApplied(cluster) && pods.length > 0 && pods.every(({ results }) => isAllApplied(results));
}

function textOf({ service, cluster, pods }: SeenService): string {
  const parts = pods.map(({ pod, error, results }) => {
    const here = results.filter(({ state }) => state !== "elsewhere");
    if (error !== null) return `\npod ${pod}: not looked at: ${plain(error)}\n`;
    if (here.length === 0) return `\npod ${pod}: nothing of it is for its Envoy\n`;
    return `\npod ${pod}\n${resultsText(here)}`;
  });
  if (pods.length === 0) parts.push("\nno pod has an Envoy of Istio's\n");
  return `Service ${service}, in the cluster\n${resultsText(cluster)}${parts.join("")}`;
}
