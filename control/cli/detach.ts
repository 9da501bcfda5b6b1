/** `holdfast detach`: nothing is left that needs Holdfast, before it is taken away. */
import { EXIT } from "../api/exit-status.ts";
import type { Unmeshed } from "../api/mesh.ts";
import { ANNOTATION } from "../api/resources.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import { isActive, type Pod } from "../kubernetes/client/objects.ts";
import { pathOf } from "../kubernetes/client/paths.ts";
import { endMigrations } from "../kubernetes/controller/end-migrations.ts";
import { detachMesh } from "../kubernetes/mesh/detach.ts";
import { detachServices } from "../kubernetes/services/detach.ts";
import { plain, type Terminal } from "./terminal.ts";

export interface DetachRequest {
  /** null: of all */
  namespace: string | null;
  /** Migrations are ended first */
  migrations: boolean;
  /** Services of gateways lead to their pods again */
  gateways: boolean;
  /** what Services ask of Istio goes, and of these the annotation; null: it stays */
  mesh: Unmeshed | null;
  /** pods that were injected are named */
  injected: boolean;
}

const NAMED_MAX = 10;

/** @throws HoldfastError of the client; `KUBERNETES_BUSY`: not in time */
export async function detach(
  api: KubernetesApi,
  { namespace, migrations, gateways, mesh, injected }: DetachRequest,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const aborted: string[] = [];
  const detached: string[] = [];
  const left: string[] = [];
  const unmeshed: string[] = [];
  const line = (text: string): void => {
    if (!json) terminal.out.write(`${plain(text)}\n`);
  };
  if (migrations)
    await endMigrations(api, {
      namespace,
      onAborted: (migration) => {
        aborted.push(migration);
        line(`migration ${migration}: asked to end`);
      },
    });
  if (gateways)
    await detachServices(api, {
      namespace,
      onDetached: (service) => {
        detached.push(service);
        line(`service ${service}: clients come to its pods`);
      },
      onLeft: (service) => {
        left.push(service);
        line(`service ${service}: left as it is; nothing says which pods it is for`);
      },
    });
  if (mesh !== null)
    await detachMesh(api, {
      namespace,
      of: mesh,
      onDetached: (service) => {
        unmeshed.push(service);
        line(`service ${service}: asks nothing of the mesh any more`);
      },
    });
  const pods = injected ? await injectedPods(api, namespace) : [];
  for (const text of toldOf(pods)) line(text);
  const more = {
    ...(migrations ? { aborted } : {}),
    ...(mesh === null ? {} : { unmeshed }),
    ...(injected ? { injected: pods } : {}),
  };
  if (json) terminal.out.write(`${JSON.stringify({ detached, left, ...more })}\n`);
  else if (gateways && detached.length + left.length === 0) line("no Service leads clients to gateways");
  return EXIT.ok;
}

/** As "games/chat-0". */
async function injectedPods(api: Pick<KubernetesApi, "list">, namespace: string | null): Promise<string[]> {
  const { items } = await api.list<Pod>(pathOf("pods", { namespace }));
  return items
    .filter((pod) => pod.metadata.annotations?.[ANNOTATION.injected] === "1" && isActive(pod))
    .map(({ metadata }) => `${metadata.namespace ?? "default"}/${metadata.name}`);
}

/** The first process of such a container is one that waits, and its liveness probe was taken out: nobody else sees its application end. */
function toldOf(pods: readonly string[]): string[] {
  if (pods.length === 0) return [];
  const named = pods.slice(0, NAMED_MAX).map((pod) => `pod ${pod}: stays as it was injected`);
  const more = pods.length - NAMED_MAX;
  return [
    ...named,
    ...(more > 0 ? [`and ${more} more pods`] : []),
    "without agents nobody starts the application of such a pod again when it ends: take the label holdfast.dev/inject off their namespaces and templates, and kubectl rollout restart what made them",
  ];
}
