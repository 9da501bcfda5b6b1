/** Carries out one action of a plan: each only if what it was decided by is still so. */
import { FINALIZER, type Migration } from "../../api/resources.ts";
import { isCode } from "../client/api.ts";
import type { KubernetesObject } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import { guardName, guardOf } from "../eviction/guard.ts";
import type { Calls } from "./gather.ts";
import type { Action } from "./next.ts";

/** What was done. @property object what was written to, as it is now; null: it has gone */
export interface Done {
  object: KubernetesObject | null;
}

/**
 * @returns null: something has changed since it was read, so it was not done: plan again
 * @throws HoldfastError of the client: try again later
 */
export async function act(api: Calls, migration: Migration, action: Action): Promise<Done | null> {
  const { metadata, status } = migration;
  const { namespace, name, uid, resourceVersion, finalizers } = metadata;
  const podPath = (pod: string): string => pathOf("pods", { namespace, name: pod });
  try {
    switch (action.do) {
      case "status":
        return {
          object: await api.patch(pathOf("migrations", { namespace, name, subresource: "status" }), {
            metadata: { resourceVersion },
            status: mergePatch(status, action.status),
          }),
        };
      case "finalizer": {
        const others = finalizers.filter((one) => one !== FINALIZER);
        return {
          object: await api.patch(pathOf("migrations", { namespace, name }), {
            metadata: { resourceVersion, finalizers: action.present ? [...others, FINALIZER] : others },
          }),
        };
      }
      case "create-guard":
        return {
          object: await api.create(pathOf("poddisruptionbudgets", { namespace }), guardOf(migration)),
        };
      case "delete-guard":
        await api.delete(pathOf("poddisruptionbudgets", { namespace, name: guardName(uid) }));
        return { object: null };
      case "create-standby":
        return { object: await api.create(pathOf("pods", { namespace }), action.pod) };
      case "delete-pod":
        await api.delete(podPath(action.pod.name), {
          preconditions: {
            uid: action.pod.uid,
            ...(action.isUnchanged ? { resourceVersion: action.pod.resourceVersion } : {}),
          },
          ...(action.isForced === true ? { gracePeriodSeconds: 0 } : {}),
        });
        return { object: null };
      case "patch-pod":
        return {
          object: await api.patch(podPath(action.pod.name), {
            metadata: { ...action.metadata, resourceVersion: action.pod.resourceVersion },
          }),
        };
      case "delete-migration":
        await api.delete(pathOf("migrations", { namespace, name }), { preconditions: { uid } });
        return { object: null };
    }
  } catch (error) {
    if (isCode(error, "KUBERNETES_CONFLICT", "KUBERNETES_NOT_FOUND", "KUBERNETES_EXISTS")) return null;
    throw error;
  }
}

/** RFC 7386: what makes `after` of `before`. */
export function mergePatch(before: object, after: object): object {
  const [old, next] = [before as Record<string, unknown>, after as Record<string, unknown>];
  const patch: Record<string, unknown> = {};
  for (const key of new Set([...Object.keys(old), ...Object.keys(next)])) {
    const [was, is] = [old[key], next[key]];
    if (is === undefined) {
      if (was !== undefined) patch[key] = null;
    } else if (isObject(was) && isObject(is)) {
      const inner = mergePatch(was, is);
      if (Object.keys(inner).length > 0) patch[key] = inner;
    } else if (JSON.stringify(was) !== JSON.stringify(is)) patch[key] = is;
  }
  return patch;
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
