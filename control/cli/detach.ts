/** `holdfast detach`: nothing is left that needs Holdfast, before it is taken away. */
import { EXIT } from "../api/exit-status.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import { endMigrations } from "../kubernetes/controller/end-migrations.ts";
import { detachServices } from "../kubernetes/services/detach.ts";
import { plain, type Terminal } from "./terminal.ts";

export interface DetachRequest {
  /** null: of all */
  namespace: string | null;
  /** Migrations are ended first */
  migrations: boolean;
}

/** @throws HoldfastError of the client; `KUBERNETES_BUSY`: not in time */
export async function detach(
  api: KubernetesApi,
  { namespace, migrations }: DetachRequest,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const aborted: string[] = [];
  const detached: string[] = [];
  const left: string[] = [];
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
  if (json) terminal.out.write(`${JSON.stringify({ detached, left, ...(migrations ? { aborted } : {}) })}\n`);
  else if (detached.length + left.length === 0) line("no Service leads clients to gateways");
  return EXIT.ok;
}
