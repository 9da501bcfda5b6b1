/**
 * Ends every Migration that is under way, by its controller: what has to be done before that is taken away. With nobody left to take its
 * finalizer off a Migration stays for ever, and so does its namespace; and so may a standby.
 */
import { setTimeout as delay } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import { FINALIZER, isFinal, type Migration, migrationsIn } from "../../api/resources.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import { pathOf } from "../client/paths.ts";

const POLL_MS = 500;
const MS_MAX = 180_000;
/** evictions may ask for more until the end */
const LOOKS = 3;

export interface EndMigrationsOptions {
  /** null: of all */
  namespace: string | null;
  /** one is asked to end, named as "games/chat": its application stays where it is, or has moved already */
  onAborted(migration: string): void;
  msMax?: number;
}

/** @throws HoldfastError of the client; `KUBERNETES_BUSY`: not all have ended in time */
export async function endMigrations(
  api: Pick<KubernetesApi, "list" | "patch">,
  { namespace, onAborted, msMax = MS_MAX }: EndMigrationsOptions,
): Promise<void> {
  const lateMs = performance.now() + msMax;
  let looks = 0;
  while (looks < LOOKS) {
    const left = await unfinished(api, namespace);
    if (left.length > 0 && performance.now() > lateMs) throw tooLong(left, msMax);
    for (const one of left) if (await abort(api, one)) onAborted(nameOf(one));
    looks = left.length === 0 ? looks + 1 : 0;
    if (looks < LOOKS) await delay(POLL_MS);
  }
}

async function unfinished(api: Pick<KubernetesApi, "list">, namespace: string | null): Promise<Migration[]> {
  const found = await api.list(pathOf("migrations", { namespace })).catch((error: unknown) => {
    if (isCode(error, "KUBERNETES_NOT_FOUND")) return { items: [] }; // nor is there that kind of object
    throw error;
  });
  return migrationsIn(found.items).filter(({ metadata }) => metadata.finalizers.includes(FINALIZER));
}

/** Its application stays where it is, unless it has moved already. @throws HoldfastError `KUBERNETES_NOT_FOUND` and others */
export async function askToEnd(
  api: Pick<KubernetesApi, "patch">,
  namespace: string,
  name: string,
): Promise<void> {
  await api.patch(pathOf("migrations", { namespace, name }), { spec: { abort: true } });
}

/** Whether it was asked now. */
async function abort(
  api: Pick<KubernetesApi, "patch">,
  { metadata, spec, status }: Migration,
): Promise<boolean> {
  if (isFinal(status.phase) || spec.abort === true) return false;
  const { namespace, name } = metadata;
  try {
    await askToEnd(api, namespace, name);
    return true;
  } catch (error) {
    if (isCode(error, "KUBERNETES_NOT_FOUND")) return false;
    throw error;
  }
}

function tooLong(left: readonly Migration[], msMax: number): Error {
  const [first] = left as [Migration];
  const { namespace, name } = first.metadata;
  const command = `kubectl patch migration ${name} -n ${namespace} --type=merge -p '{"metadata":{"finalizers":null}}'`;
  return fail(
    "KUBERNETES_BUSY",
    `${left.length} Migrations have not ended after ${msMax / 1_000} s, ${nameOf(first)} among them: does the controller run? ` +
      `Without it, look for a standby of its pod and delete that, then: ${command} && kubectl delete migration ${name} -n ${namespace}`,
  );
}

function nameOf({ metadata: { namespace, name } }: Migration): string {
  return `${namespace}/${name}`;
}
