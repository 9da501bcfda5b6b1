/**
 * Leads clients of Services of gateways to their pods again, for good: what has to be done before gateways are taken away. It needs neither
 * controller nor webhook, and does not mind them.
 *
 *   selector back, label off     Kubernetes makes endpoints of the pods
 *   they are there               …
 *   ours away                    new clients come to pods alone
 */
import { setTimeout as delay } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import { GATEWAY_ENABLED, GATEWAY_LABEL, SELECTOR_ANNOTATION } from "../../api/gateway-table.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import type { EndpointSlice, Service } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import { parseSelector } from "./adopt.ts";
import { MANAGED_BY, MANAGED_BY_KUBERNETES, MANAGED_BY_LABEL, SERVICE_NAME_LABEL } from "./slices.ts";

const POLL_MS = 200;
/** Kubernetes takes milliseconds; somebody may write such a Service all the time */
const MS_MAX = 60_000;
/** a controller may be at work on what it saw before */
const LOOKS = 3;

export interface DetachOptions {
  /** null: of all */
  namespace: string | null;
  /** what it has done to a Service, as "games/chat" */
  onDetached(service: string): void;
  /** it says which pods it is for nowhere, so nothing can be done for it */
  onLeft(service: string): void;
}

/** @throws HoldfastError of the client; `KUBERNETES_BUSY`: not all are led to their pods in a minute */
export async function detachServices(
  api: Pick<KubernetesApi, "list" | "patch" | "delete">,
  { namespace, onDetached, onLeft }: DetachOptions,
): Promise<void> {
  const lateMs = performance.now() + MS_MAX;
  const left = new Set<string>();
  let looks = 0;
  while (looks < LOOKS) {
    if (performance.now() > lateMs)
      throw fail(
        "KUBERNETES_BUSY",
        `not all Services lead to their pods after ${MS_MAX / 1_000} s; do others write them?`,
      );
    const query = { labelSelector: `${GATEWAY_LABEL}=${GATEWAY_ENABLED}` };
    const { items } = await api.list<Service>(pathOf("services", { namespace }), query);
    const labelled = items.filter((service) => !left.has(nameOf(service)));
    for (const service of labelled) {
      const name = nameOf(service);
      const outcome = await detach(api, service);
      if (outcome === "done") onDetached(name);
      if (outcome === "left") left.add(name);
      if (outcome === "left") onLeft(name);
    }
    const isDone = await removeSlices(api, namespace, left);
    looks = isDone && labelled.length === 0 ? looks + 1 : 0;
    if (looks < LOOKS) await delay(POLL_MS);
  }
}

/** again: it has changed, or gone, since it was read */
async function detach(
  api: Pick<KubernetesApi, "patch">,
  service: Service,
): Promise<"done" | "again" | "left"> {
  const { name, namespace, resourceVersion, annotations } = service.metadata;
  const own = Object.keys(service.spec.selector ?? {}).length > 0;
  const text = annotations?.[SELECTOR_ANNOTATION];
  const selector = text === undefined ? null : parseSelector(text);
  if (!own && selector === null) return "left";
  try {
    await api.patch(pathOf("services", { namespace: namespace ?? "default", name }), {
      metadata: {
        resourceVersion,
        labels: { [GATEWAY_LABEL]: null },
        annotations: { [SELECTOR_ANNOTATION]: null },
      },
      ...(own ? {} : { spec: { selector } }),
    });
  } catch (error) {
    if (!isCode(error, "KUBERNETES_CONFLICT") && !isCode(error, "KUBERNETES_NOT_FOUND")) throw error;
    return "again";
  }
  return "done";
}

/** Ours, of Services that have those of Kubernetes again; also what an earlier try has left. False: some are there yet. */
async function removeSlices(
  api: Pick<KubernetesApi, "list" | "delete">,
  namespace: string | null,
  left: ReadonlySet<string>,
): Promise<boolean> {
  const { items } = await api.list<EndpointSlice>(pathOf("endpointslices", { namespace }), {
    labelSelector: SERVICE_NAME_LABEL,
  });
  const managed = (by: readonly string[]): EndpointSlice[] =>
    items.filter(({ metadata }) => by.includes(metadata.labels?.[MANAGED_BY_LABEL] ?? ""));
  const theirs = new Set(managed(MANAGED_BY_KUBERNETES).map(serviceOf));
  const ours = managed([MANAGED_BY]).filter((slice) => !left.has(serviceOf(slice)));
  for (const slice of ours) {
    if (!theirs.has(serviceOf(slice))) continue;
    const { name, namespace: its = "default", uid } = slice.metadata;
    await api
      .delete(pathOf("endpointslices", { namespace: its, name }), { preconditions: { uid } })
      // a controller has made it anew: the next look finds that one
      .catch((error: unknown) => {
        if (!isCode(error, "KUBERNETES_CONFLICT")) throw error;
      });
  }
  return ours.length === 0;
}

function nameOf({ metadata: { namespace = "default", name } }: Service): string {
  return `${namespace}/${name}`;
}

function serviceOf({ metadata: { namespace = "default", labels } }: EndpointSlice): string {
  return `${namespace}/${labels?.[SERVICE_NAME_LABEL] ?? ""}`;
}
