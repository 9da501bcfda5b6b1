/**
 * Keeps gateways, and Services whose clients come to them, in line with the pods there are. Level-triggered: each round compares all there is
 * with the plan, and what cannot be done now is tried again. A controller alone does it, the one that leads; two at a time do no harm: the
 * table is written at the version that was read.
 *
 *   the table first   a gateway listens before clients come
 *   then the slices   …; of a Service first those that lead somewhere
 *   then what Kubernetes had made for the Service's selector
 *
 * A Service that is none of gateways any more goes the other way: when Kubernetes leads its clients, our slices go, and then its entry.
 */
import { isDeepStrictEqual } from "node:util";
import {
  GATEWAY_ENABLED,
  GATEWAY_LABEL,
  LAST_PORT_ANNOTATION,
  TABLE_LABEL,
} from "../../api/gateway-table.ts";
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

/** those of gateways' and of Kubernetes, by the key of their Service */
type SlicesOfServices = ReadonlyMap<string, EndpointSlice[]>;

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
      const labelled = [...services.objects.values()].filter(
        ({ metadata }) => metadata.deletionTimestamp === undefined,
      );
      const made = Map.groupBy(slices.objects.values(), serviceOf);
      const leaving = leavingOf(labelled, made);
      const plan = planServices({
        services: labelled,
        pods: [...pods.objects.values()],
        gateways,
        table: there.data ?? {},
        lastPort: there.metadata.annotations?.[LAST_PORT_ANNOTATION],
        leaving,
      });
      onPlan?.(plan);
      let staying: ReadonlySet<string> = new Set();
      const refused = await refusalOf(async () => {
        await writeTable(api, there, plan);
        staying = await stayingOf(api, leaving, made);
        return writeSlices(api, plan, made, staying);
      });
      await events.tell(plan.findings);
      if (refused !== null) throw refused;
      if (staying.size > 0) rounds.later(AGAIN_MS);
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

/** @returns why not all of it is done; null: it is. @throws HoldfastError `KUBERNETES_UNREACHABLE`: nor would Events be written */
async function refusalOf(work: () => Promise<unknown>): Promise<unknown> {
  try {
    return await work();
  } catch (error) {
    if (isCode(error, "KUBERNETES_UNREACHABLE")) throw error;
    return error;
  }
}

function ownOrNamed(slice: EndpointSlice): EndpointSlice {
  if (isOwn(slice)) return slice;
  return { metadata: identityOf(slice.metadata), addressType: slice.addressType };
}

/** In one write: a number is given out and remembered, or neither. */
async function writeTable(
  api: KubernetesApi,
  there: ConfigMap,
  { table: wanted, lastPort }: ServicesPlan,
): Promise<void> {
  const data: Record<string, string | null> = {};
  for (const [key, text] of Object.entries(wanted)) if (there.data?.[key] !== text) data[key] = text;
  for (const key of Object.keys(there.data ?? {})) if (!Object.hasOwn(wanted, key)) data[key] = null;
  const { name, namespace = "", resourceVersion } = there.metadata;
  const annotations =
    lastPort === null || there.metadata.annotations?.[LAST_PORT_ANNOTATION] === `${lastPort}`
      ? {}
      : { [LAST_PORT_ANNOTATION]: `${lastPort}` };
  if (Object.keys(data).length === 0 && Object.keys(annotations).length === 0) return;
  await api.patch(pathOf("configmaps", { namespace, name }), {
    metadata: { resourceVersion, annotations },
    data,
  });
}

/** Services that are none of gateways any more, where slices lead clients to gateways yet: their keys. */
function leavingOf(services: readonly Service[], made: SlicesOfServices): Set<string> {
  const ours = new Set(services.filter(({ spec }) => !hasSelector(spec)).map(keyOf));
  return new Set(
    [...made].filter(([key, slices]) => !ours.has(key) && slices.some(isOwn)).map(([key]) => key),
  );
}

/** … and of these the ones that Kubernetes is to make slices of, and has not yet. */
async function stayingOf(
  api: KubernetesApi,
  leaving: ReadonlySet<string>,
  made: SlicesOfServices,
): Promise<Set<string>> {
  const staying = new Set<string>();
  for (const key of leaving) {
    const slices = made.get(key) ?? [];
    const { namespace, labels } = (slices[0] as EndpointSlice).metadata;
    if (slices.some(isOfKubernetes)) continue;
    const name = labels?.[SERVICE_NAME_LABEL] ?? "";
    const service = await api.find<Service>(pathOf("services", { namespace: namespace ?? "", name }));
    if (service !== null && hasSelector(service.spec) && service.spec.type !== "ExternalName")
      staying.add(key);
  }
  return staying;
}

function hasSelector({ selector = {} }: Service["spec"]): boolean {
  return Object.keys(selector).length > 0;
}

/** @param staying whose slices stay as they are @returns why those of a Service are not as they are to be: others are. null: all are */
async function writeSlices(
  api: KubernetesApi,
  { slices }: ServicesPlan,
  made: SlicesOfServices,
  staying: ReadonlySet<string>,
): Promise<unknown> {
  const wanted = Map.groupBy(slices, serviceOf);
  let refused: unknown = null;
  for (const key of new Set([...wanted.keys(), ...made.keys()])) {
    if (staying.has(key)) continue;
    // its namespace ends, has no room, or a slice of that name: others' are not
    const refusal = await refusalOf(() => writeSlicesOf(api, wanted.get(key) ?? [], made.get(key) ?? []));
    // a conflict is nothing to tell of
    if (refused === null || isCode(refused, "KUBERNETES_CONFLICT")) refused = refusal ?? refused;
  }
  return refused;
}

/** Of one Service. */
async function writeSlicesOf(
  api: KubernetesApi,
  slices: readonly SliceManifest[],
  made: readonly EndpointSlice[],
): Promise<void> {
  const own = new Map(made.filter(isOwn).map((slice) => [slice.metadata.name, slice]));
  const isEmpty = ({ endpoints = [] }: SliceManifest): boolean => endpoints.length === 0;
  for (const wanted of [...slices.filter((one) => !isEmpty(one)), ...slices.filter(isEmpty)]) {
    const { namespace, name } = wanted.metadata;
    const found = own.get(name);
    own.delete(name);
    if (found === undefined) await api.create(pathOf("endpointslices", { namespace }), wanted);
    else if (!isAsWanted(found, wanted)) {
      const { resourceVersion } = found.metadata;
      const path = pathOf("endpointslices", { namespace, name });
      if (found.addressType === wanted.addressType)
        await api.replace(path, { ...wanted, metadata: { ...wanted.metadata, resourceVersion } });
      else await api.delete(path); // it cannot be changed; made anew in the next round
    }
  }
  for (const { metadata } of own.values()) await remove(api, metadata);
  if (slices.length === 0) return;
  for (const { metadata } of made.filter(isOfKubernetes)) {
    const { namespace = "" } = metadata;
    // another controller would make slices of it
    await api.delete(pathOf("endpoints", { namespace, name: metadata.labels?.[SERVICE_NAME_LABEL] ?? "" }));
    await remove(api, metadata);
  }
}

/** Its key. */
function serviceOf({ metadata: { namespace, labels } }: EndpointSlice | SliceManifest): string {
  return keyOf({ metadata: { namespace, name: labels?.[SERVICE_NAME_LABEL] ?? "" } });
}

function isOwn({ metadata }: EndpointSlice): boolean {
  return metadata.labels?.[MANAGED_BY_LABEL] === MANAGED_BY;
}

function isOfKubernetes({ metadata }: EndpointSlice): boolean {
  return MANAGED_BY_KUBERNETES.includes(metadata.labels?.[MANAGED_BY_LABEL] ?? "");
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
    (metadata.ownerReferences?.[0]?.uid ?? "") === (wanted.metadata.ownerReferences[0] as { uid: string }).uid
  );
}

async function remove(
  api: KubernetesApi,
  { namespace = "", name, uid }: KubernetesObject["metadata"],
): Promise<void> {
  await api.delete(pathOf("endpointslices", { namespace, name }), { preconditions: { uid } });
}
