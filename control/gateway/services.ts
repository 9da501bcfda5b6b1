/**
 * Where clients of a cluster's Services come, and whom they are led to, as the controller tells it in a ConfigMap: at once, and again
 * whenever it changes. While the API server is away a gateway goes by what it knows. Clients of a Service that leaves the table are led for
 * some seconds more: kube-proxies hear of its other endpoints no sooner than the gateway does.
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

/** kube-proxy writes its rules a second apart (minSyncPeriod of its configuration): as long as a gateway that ends waits for it, by the preStop of the chart */
const LEAVING_MS = 5_000;

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
  let timer: NodeJS.Timeout | undefined;
  function leadBy(data: Readonly<Record<string, string>>): void {
    clearTimeout(timer);
    lead(table.read(data));
    if (table.hasLeaving) timer = setTimeout(() => leadBy(data), LEAVING_MS).unref();
  }
  const reflector = new Reflector<ConfigMap>({
    api,
    path: pathOf("configmaps", { namespace: access.namespace }),
    // by name: RBAC then lets it see no other
    query: { fieldSelector: `metadata.name=${configMap}` },
    onAll: ([found]) => {
      // one that is deleted says nothing of whom clients are to be led to
      if (found !== undefined) leadBy(found.data ?? {});
    },
    onProblem: (error) =>
      log.warn({ reason: messageOf(error) }, "Services are not seen; clients are led as before"),
  });
  return {
    async close() {
      await reflector.close();
      clearTimeout(timer);
      api.close();
    },
  };
}

interface Entry {
  text: string;
  listeners: GatewayListener[];
}

/** The listeners that entries come to. What is not understood is left out, and told once. */
export class ServiceTable {
  readonly #address: string;
  readonly #onRefused: (service: string, reason: string) => void;
  #known = new Map<string, Entry>();
  readonly #leaving = new Map<string, Entry & { untilMs: number }>();

  constructor(address: string, onRefused: (service: string, reason: string) => void) {
    this.#address = address;
    this.#onRefused = onRefused;
  }

  /** Entries that are not in the table any more have listeners yet: it is to be read again, in {@link LEAVING_MS}. */
  get hasLeaving(): boolean {
    return this.#leaving.size > 0;
  }

  /** @param nowMs of a clock that never goes back. @returns a port number once: of a Service that leaves only while nobody else has it */
  read(data: Readonly<Record<string, string>>, nowMs = performance.now()): GatewayListener[] {
    const known = new Map<string, Entry>();
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
    for (const [service, entry] of this.#known)
      this.#leaving.set(service, { ...entry, untilMs: nowMs + LEAVING_MS });
    for (const [service, { untilMs }] of this.#leaving)
      if (known.has(service) || untilMs <= nowMs) this.#leaving.delete(service);
    this.#known = known;
    const open = new Set<number>();
    return [...known.values(), ...this.#leaving.values()]
      .flatMap(({ listeners }) => listeners)
      .filter(({ at }) => !open.has(at.port) && open.add(at.port));
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
