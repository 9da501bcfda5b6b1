/**
 * Where clients of a cluster's Services come, and whom they are led to, as the controller tells it in a ConfigMap: at once, and again
 * whenever it changes. While the API server is away a gateway goes by what it knows.
 */
import type { Logger } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import type { GatewayListener } from "#proxy/contract/gateway.ts";
import { serviceEntry } from "../api/gateway-table.ts";
import { listenersOf, type ServicesSource } from "../config/gateway.ts";
import { findAccess } from "../kubernetes/client/access.ts";
import { KubernetesApi } from "../kubernetes/client/api.ts";
import type { ConfigMap } from "../kubernetes/client/objects.ts";
import { pathOf } from "../kubernetes/client/paths.ts";
import { Reflector } from "../kubernetes/client/reflector.ts";

export interface ServicesOptions extends ServicesSource {
  /** Never throws: what cannot be done now is its business. */
  lead(listeners: GatewayListener[]): void;
  log: Logger;
}

export function followServices(
  { configMap, address, lead, log }: ServicesOptions,
  env: Record<string, string | undefined>,
): { close(): Promise<void> } {
  const access = findAccess(env);
  const api = new KubernetesApi(access, "holdfast-gateway");
  const table = new ServiceTable(address, (service, reason) =>
    log.error({ service, reason }, "clients of a Service are not led"),
  );
  const reflector = new Reflector<ConfigMap>({
    api,
    path: pathOf("configmaps", { namespace: access.namespace }),
    // by name: RBAC then lets it see no other
    query: { fieldSelector: `metadata.name=${configMap}` },
    onAll: ([found]) => {
      // one that is deleted says nothing of whom clients are to be led to
      if (found !== undefined) lead(table.read(found.data ?? {}));
    },
    onProblem: (error) =>
      log.warn({ reason: messageOf(error) }, "Services are not seen; clients are led as before"),
  });
  return {
    async close() {
      await reflector.close();
      api.close();
    },
  };
}

/** The listeners that entries come to. What is not understood is left out, and told once. */
export class ServiceTable {
  readonly #address: string;
  readonly #onRefused: (service: string, reason: string) => void;
  #known = new Map<string, { text: string; listeners: GatewayListener[] }>();

  constructor(address: string, onRefused: (service: string, reason: string) => void) {
    this.#address = address;
    this.#onRefused = onRefused;
  }

  read(data: Readonly<Record<string, string>>): GatewayListener[] {
    const known = new Map<string, { text: string; listeners: GatewayListener[] }>();
    const taken = new Set<number>();
    for (const [service, text] of Object.entries(data)) {
      const before = this.#known.get(service);
      const one = before?.text === text ? before : { text, listeners: this.#listenersOf(service, text) };
      known.set(service, one);
      for (const { at } of one.listeners) {
        if (taken.has(at.port)) this.#onRefused(service, `another Service has its port ${at.port}`);
        taken.add(at.port);
      }
    }
    this.#known = known;
    const free = new Set(taken);
    return [...known.values()].flatMap(({ listeners }) => listeners).filter(({ at }) => free.delete(at.port));
  }

  #listenersOf(service: string, text: string): GatewayListener[] {
    try {
      return listenersOf(serviceEntry.parse(JSON.parse(text)), this.#address, `Service ${service}`);
    } catch (error) {
      this.#onRefused(service, messageOf(error));
      return [];
    }
  }
}
