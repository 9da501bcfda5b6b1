/**
 * What Services ask of Istio is taken away, for good: before the controller that keeps it goes. A Sidecar that stays would lead clients of pods
 * that are made from then on to where nobody listens. It needs no controller, and does not mind one.
 *
 *   annotation off     a controller makes nothing any more; where no controller is known to keep it, only of Services that one has made
 *                      something for: others may have it for who renders their policies by hand
 *   ours away          routes before the subsets that they lead to
 */
import { setTimeout as delay } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import { MESH_ANNOTATION, type Unmeshed } from "../../api/mesh.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import type { KubernetesObject, Service } from "../client/objects.ts";
import { type Kind, pathOf } from "../client/paths.ts";
import { MADE_BY_US } from "./keep.ts";
import { SETTLE_MS } from "./subsets.ts";

const POLL_MS = 200;
/** somebody may write such a Service all the time */
const MS_MAX = 60_000;
/** a controller may be at work on what it saw before */
const LOOKS = 3;
const ROUTES: readonly Kind[] = ["virtualservices", "envoyfilters", "sidecars"];
const RULES: readonly Kind[] = ["destinationrules"];

export interface DetachMeshOptions {
  /** null: of all */
  namespace: string | null;
  of: Unmeshed;
  /** default: {@link SETTLE_MS} */
  settleMs?: number;
  /** it asks for nothing any more, as "games/chat" */
  onDetached(service: string): void;
}

type Api = Pick<KubernetesApi, "list" | "patch" | "delete">;

/** @throws HoldfastError of the client; `KUBERNETES_BUSY`: something is there yet after a minute */
export async function detachMesh(
  api: Api,
  { namespace, of, settleMs = SETTLE_MS, onDetached }: DetachMeshOptions,
): Promise<void> {
  const lateMs = performance.now() + MS_MAX;
  let routesGone = Number.NEGATIVE_INFINITY;
  let looks = 0;

  /** @returns how many there may be yet */
  async function takeAway(): Promise<number> {
    const routes = await remove(api, ROUTES, namespace);
    if (routes > 0) routesGone = performance.now();
    // what istiod hears at once it tells at once, clusters before routes
    if (performance.now() - routesGone < settleMs) return 1;
    return routes + (await remove(api, RULES, namespace));
  }

  while (looks < LOOKS) {
    if (performance.now() > lateMs)
      throw fail(
        "KUBERNETES_BUSY",
        `what Services ask of the mesh is not gone after ${MS_MAX / 1_000} s; do others write them?`,
      );
    const asking = await askingIn(api, namespace, of);
    for (const service of asking) if (await stopAsking(api, service)) onDetached(nameOf(service));
    // a controller makes anew what goes while somebody asks
    const there = asking.length > 0 ? asking.length : await takeAway();
    looks = there === 0 ? looks + 1 : 0;
    if (looks < LOOKS) await delay(POLL_MS);
  }
}

async function askingIn(api: Api, namespace: string | null, of: Unmeshed): Promise<Service[]> {
  const { items } = await api.list<Service>(pathOf("services", { namespace }));
  const asking = items.filter(({ metadata }) => metadata.annotations?.[MESH_ANNOTATION] !== undefined);
  if (of === "all" || asking.length === 0) return asking;
  const owners = await ownersIn(api, namespace);
  return asking.filter((service) => owners.has(nameOf(service)));
}

/** Services that something was made for, be they others of that name by now. */
async function ownersIn(api: Api, namespace: string | null): Promise<Set<string>> {
  const owners = new Set<string>();
  for (const kind of [...ROUTES, ...RULES])
    for (const { metadata } of await madeOf(api, kind, namespace))
      for (const { name } of metadata.ownerReferences ?? [])
        owners.add(nameOf({ metadata: { ...metadata, name } }));
  return owners;
}

/** False: it has changed, or gone, since it was read */
async function stopAsking(api: Api, { metadata }: Service): Promise<boolean> {
  const { name, namespace = "default", resourceVersion } = metadata;
  try {
    await api.patch(pathOf("services", { namespace, name }), {
      metadata: { resourceVersion, annotations: { [MESH_ANNOTATION]: null } },
    });
    return true;
  } catch (error) {
    if (!isCode(error, "KUBERNETES_CONFLICT", "KUBERNETES_NOT_FOUND")) throw error;
    return false;
  }
}

/** @returns how many there were */
async function remove(api: Api, kinds: readonly Kind[], namespace: string | null): Promise<number> {
  let count = 0;
  for (const kind of kinds) {
    for (const { metadata } of await madeOf(api, kind, namespace)) {
      const { name, namespace: its = "default", uid } = metadata;
      count += 1;
      await api
        .delete(pathOf(kind, { namespace: its, name }), { preconditions: { uid } })
        .catch((error: unknown) => {
          if (!isCode(error, "KUBERNETES_CONFLICT", "KUBERNETES_NOT_FOUND")) throw error;
        });
    }
  }
  return count;
}

async function madeOf(api: Api, kind: Kind, namespace: string | null): Promise<KubernetesObject[]> {
  try {
    return (await api.list<KubernetesObject>(pathOf(kind, { namespace }), MADE_BY_US)).items;
  } catch (error) {
    // Istio is not there, or not any more
    if (isCode(error, "KUBERNETES_NOT_FOUND")) return [];
    throw error;
  }
}

function nameOf({ metadata: { namespace = "default", name } }: KubernetesObject): string {
  return `${namespace}/${name}`;
}
