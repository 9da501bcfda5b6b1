/** `holdfast detach`: nothing is left that needs Holdfast, before it is taken away. */
import { EXIT } from "../api/exit-status.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
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
  /** what Services ask of Istio goes */
  mesh: boolean;
}

/** @throws HoldfastError of the client; `KUBERNETES_BUSY`: not in time */
export async function detach(
  api: KubernetesApi,
  { namespace, migrations, gateways, mesh }: DetachRequest,
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
  if (mesh)
    await detachMesh(api, {
      namespace,
      onDetached: (service) => {
        unmeshed.push(service);
        line(`service ${service}: asks nothing of the mesh any more`);
      },
    });
  const more = { ...(migrations ? { aborted } : {}), ...(mesh ? { unmeshed } : {}) };
  if (json) terminal.out.write(`${JSON.stringify({ detached, left, ...more })}\n`);
  else if (gateways && detached.length + left.length === 0) line("no Service leads clients to gateways");
  return EXIT.ok;
}
