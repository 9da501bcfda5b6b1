/** `holdfast detach`: Services of gateways lead to their pods again, before gateways are taken away. */
import { EXIT } from "../api/exit-status.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import { detachServices } from "../kubernetes/services/detach.ts";
import { plain, type Terminal } from "./terminal.ts";

/** @param namespace null: of all. @throws HoldfastError of the client */
export async function detach(
  api: KubernetesApi,
  namespace: string | null,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const detached: string[] = [];
  const left: string[] = [];
  const line = (text: string): void => {
    if (!json) terminal.out.write(`${plain(text)}\n`);
  };
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
  if (json) terminal.out.write(`${JSON.stringify({ detached, left })}\n`);
  else if (detached.length + left.length === 0) line("no Service leads clients to gateways");
  return EXIT.ok;
}
