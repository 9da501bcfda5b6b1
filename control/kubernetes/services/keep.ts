/**
 * Keeps gateways, and Services whose clients come to them, in line with the pods there are. Level-triggered: each round compares all there is
 * with the plan, and what cannot be done now is tried again. A controller alone does it, the one that leads; two at a time do no harm: the
 * table is written at the version that was read.
 *
 *   the table first   a gateway listens before clients come
 *   then the slices   …
 *   then what Kubernetes had made for the Service's selector
 */
import { isDeepStrictEqual } from "node:util";
import { GATEWAY_ENABLED, GATEWAY_LABEL, TABLE_LABEL } from "../../api/gateway-table.ts";
import { aborted } from "../client/aborted.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import {
  type ConfigMap,
  type EndpointSlice,
  identityOf,
  type KubernetesObject,
  type Pod,
  type Service,
} from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import type { Watched } from "../client/reflector.ts";
import { Rounds } from "../client/rounds.ts";
import { Watches, type WatchesOptions } from "../client/watches.ts";
import { ServiceFindings, TELL_AGAIN_MS } from "./findings.ts";
import { keyOf, planServices, type ServicesPlan } from "./plan.ts";
import {
  MANAGED_BY,
  MANAGED_BY_KUBERNETES,
  MANAGED_BY_LABEL,
  SERVICE_NAME_LABEL,
  type SliceManifest,
} from "./slices.ts";

const AGAIN_MS = 2_000;

export interface ServicesOptions extends WatchesOptions {
  /** all of the cluster */
  pods: Watched<Pod>;
  /** of gateways and their table */
  namespace: string;
  /** name of the ConfigMap; the gateways' pods have it in label {@link TABLE_LABEL} */
  table: string;
  /** each round's, before it is carried out */
  onPlan?(plan: ServicesPlan): void;
}

/** Works until the signal is aborted. */
export async function keepServices(options: ServicesOptions, signal: AbortSignal): Promise<void> {
  const { api, pods, namespace, table, onPlan, onProblem } = options;
  const watches = new Watches(options);
  const events = new ServiceFindings(api, onProblem);
  const rounds = new Rounds(round, signal);
  const onChange = (): void => rounds.soon();
  const services = watches.open<Service>("services of gateways", {
    path: pathOf("services"),
    query: { labelSelector: `${GATEWAY_LABEL}=${GATEWAY_ENABLED}` },
    onChange,
  });
  const slices = watches.open<EndpointSlice>("endpointslices", {
    path: pathOf("endpointslices"),
    keep: ownOrNamed,
    onChange,
  });
  const tables = watches.open<ConfigMap>("tables of gateways", {
    path: pathOf("configmaps", { namespace }),
    query: { fieldSelector: `metadata.name=${table}` },
    onChange,
  });
  const unfollow = pods.follow(onChange);
  const ended = aborted(signal);

  async function round(): Promise<void> {
    try {
      const known = Promise.all([services, pods, slices, tables].map(({ synced }) => synced));
      await Promise.race([known, ended]);
      if (signal.aborted) return;
      const there = tables.get(table, namespace);
      if (there === null) throw new Error(`there is no ConfigMap ${table} in namespace ${namespace}`);
      const gateways = [...pods.objects.values()].filter(
        ({ metadata }) => metadata.namespace === namespace && metadata.labels?.[TABLE_LABEL] === table,
      );
      const plan = planServices({
        services: [...services.objects.values()].filter(
          ({ metadata }) => metadata.deletionTimestamp === undefined,
        ),
        pods: [...pods.objects.values()],
        gateways,
        table: there.data ?? {},
      });
      onPlan?.(plan);
      await writeTable(api, there, plan.table);
      await writeSlices(api, plan, [...slices.objects.values()]);
      await events.tell(plan.findings);
    } catch (error) {
      if (signal.aborted) return;
      if (!isCode(error, "KUBERNETES_CONFLICT"))
        onProblem("Services of gateways are not as they are to be", error);
      rounds.later(AGAIN_MS);
    }
  }

  const again = setInterval(onChange, TELL_AGAIN_MS).unref();
  await ended;
  clearInterval(again);
  unfollow();
  await Promise.all([rounds.end(), watches.close()]);
}

function ownOrNamed(slice: EndpointSlice): EndpointSlice {
  if (isOwn(slice)) return slice;
  return { metadata: identityOf(slice.metadata), addressType: slice.addressType };
}

async function writeTable(
  api: KubernetesApi,
  there: ConfigMap,
  wanted: Record<string, string>,
): Promise<void> {
  const data: Record<string, string | null> = {};
  for (const [key, text] of Object.entries(wanted)) if (there.data?.[key] !== text) data[key] = text;
  for (const key of Object.keys(there.data ?? {})) if (!Object.hasOwn(wanted, key)) data[key] = null;
  if (Object.keys(data).length === 0) return;
  const { name, namespace = "", resourceVersion } = there.metadata;
  await api.patch(pathOf("configmaps", { namespace, name }), { metadata: { resourceVersion }, data });
}

async function writeSlices(
  api: KubernetesApi,
  { slices }: ServicesPlan,
  there: EndpointSlice[],
): Promise<void> {
  const own = new Map(
    there.filter(isOwn).map((slice) => [`${slice.metadata.namespace}/${slice.metadata.name}`, slice]),
  );
  for (const wanted of slices) {
    const { namespace, name } = wanted.metadata;
    const key = `${namespace}/${name}`;
    const found = own.get(key);
    own.delete(key);
    if (found === undefined) await api.create(pathOf("endpointslices", { namespace }), wanted);
    else if (!isAsWanted(found, wanted)) {
      const { resourceVersion } = found.metadata;
      const path = pathOf("endpointslices", { namespace, name });
      if (found.addressType === wanted.addressType)
        await api.replace(path, { ...wanted, metadata: { ...wanted.metadata, resourceVersion } });
      else await api.delete(path); // it cannot be changed; made anew in the next round
    }
  }
  // of Services that have gone, or say so no more
  for (const { metadata } of own.values()) await remove(api, metadata);
  const ours = new Set(
    slices.map(({ metadata }) => keyOf({ metadata: { ...metadata, name: serviceOf(metadata) } })),
  );
  for (const { metadata } of there) {
    const by = metadata.labels?.[MANAGED_BY_LABEL] ?? "";
    if (!MANAGED_BY_KUBERNETES.includes(by)) continue;
    const name = serviceOf(metadata);
    const { namespace = "" } = metadata;
    if (!ours.has(keyOf({ metadata: { namespace, name } }))) continue;
    // another controller would make slices of it
    await api.delete(pathOf("endpoints", { namespace, name }));
    await remove(api, metadata);
  }
}

function serviceOf({ labels = {} }: { labels?: Record<string, string> }): string {
  return labels[SERVICE_NAME_LABEL] ?? "";
}

function isOwn({ metadata }: EndpointSlice): boolean {
  return metadata.labels?.[MANAGED_BY_LABEL] === MANAGED_BY;
}

/** The API server adds nothing that is not in it but defaults of what we leave out. */
function isAsWanted(found: EndpointSlice, wanted: SliceManifest): boolean {
  const { metadata, addressType } = found;
  // null: the API server's way to say none
  const [endpoints, ports] = [found.endpoints ?? [], found.ports ?? []];
  return (
    addressType === wanted.addressType &&
    isDeepStrictEqual(endpoints, wanted.endpoints) &&
    isDeepStrictEqual(ports, wanted.ports) &&
    metadata.labels?.[SERVICE_NAME_LABEL] === wanted.metadata.labels[SERVICE_NAME_LABEL] &&
    (metadata.ownerReferences?.[0]?.uid ?? "") === (wanted.metadata.ownerReferences[0] as { uid: string }).uid
  );
}

async function remove(
  api: KubernetesApi,
  { namespace = "", name, uid }: KubernetesObject["metadata"],
): Promise<void> {
  await api.delete(pathOf("endpointslices", { namespace, name }), { preconditions: { uid } });
}
