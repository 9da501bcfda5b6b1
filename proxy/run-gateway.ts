/**
 * Composition root of a gateway: the kernel, the store, the gateway, its admin endpoint; ends in order when it is told to. Whose process
 * it is (`control/gateway/main.ts`) has read the file and keeps the keys.
 */
import { Counter, Gauge, type Registry } from "@prometheus-io/client";
import type { Logger } from "pino";
import { createMetrics } from "#proxy/admin/metrics.ts";
import { createAdmin } from "#proxy/contract/admin-http.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { GatewayConfig, GatewayListener } from "#proxy/contract/gateway.ts";
import { openServer } from "#proxy/contract/open-server.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { Gateway } from "#proxy/gateway/gateway.ts";
import { UpstreamNetwork } from "#proxy/kernel/network.ts";
import { openStore } from "#proxy/store/open.ts";
import { legKernelOf, reserveDescriptors } from "./process-kernel.ts";

export interface RunGatewayOptions {
  config: GatewayConfig;
  /** of links, of each workload that clients are led to */
  keysOf(workload: string): SharedKeys;
  /** it knows whom to lead clients to; otherwise it is not ready until it has been told (`use`) */
  isTold: boolean;
  store: string;
  /** of `/healthz`, `/readyz` and `/metrics`; null: nowhere */
  admin: Endpoint | null;
  log: Logger;
}

export interface RunningGateway {
  useKeys(keysOf: (workload: string) => SharedKeys): void;
  /** From now on clients come there, and are led so. */
  use(listeners: readonly GatewayListener[]): void;
  /** that clients are led to, or were and are there still */
  readonly workloads: string[];
  /** Accepts nobody, waits for sessions to end, resets the rest; resolves when nothing is left. */
  end(): Promise<void>;
}

/** Resolves when clients are accepted. @throws HoldfastError `PROXY_LISTEN` */
export async function startGateway(options: RunGatewayOptions): Promise<RunningGateway> {
  const { config, log } = options;
  reserveDescriptors();
  let isStoreUp = true;
  const store = openStore(options.store, {
    onDown: (reason) => {
      isStoreUp = false;
      log.warn(
        { reason: messageOf(reason) },
        "the store is out of reach; sessions go on, to the owners that are known",
      );
    },
    onUp: () => {
      isStoreUp = true;
      log.info("the store is back");
    },
  });
  const gateway = new Gateway({
    config,
    keysOf: (workload) => options.keysOf(workload),
    store,
    kernel: legKernelOf(new UpstreamNetwork()),
    log,
  });
  let { isTold } = options;
  const whyNot = (): string => {
    if (gateway.isDraining) return "draining";
    return isTold ? "the store has not been asked for owners yet" : "no Services have been told yet";
  };
  const metrics = createMetrics(() => gateway.proxies, "holdfast_gateway");
  addGatewayMetrics(metrics, gateway, () => isStoreUp);
  const admin = createAdmin({
    metrics,
    health: () => ({ gateway: config.name, store: isStoreUp ? "up" : "down", workloads: gateway.view() }),
    ready: () => (isTold && gateway.isReady ? { ready: true } : { ready: false, reason: whyNot() }),
  });
  try {
    gateway.open();
    if (options.admin !== null) await listen(admin, options.admin, log);
  } catch (error) {
    gateway.stop();
    await store.close();
    throw error;
  }
  log.info({ ports: gateway.ports }, "gateway ready");
  return {
    useKeys: (keysOf) => gateway.useKeys(keysOf),
    use: (listeners) => {
      isTold = true;
      gateway.use(listeners);
    },
    get workloads() {
      return gateway.view().map(({ workload }) => workload);
    },
    end: async () => {
      const { reset } = await gateway.drain();
      log.info({ reset }, "gateway ends");
      admin.close();
      admin.closeAllConnections();
      await store.close();
    },
  };
}

function addGatewayMetrics(registry: Registry, gateway: Gateway, isStoreUp: () => boolean): void {
  const registers = [registry];
  const gauge = (name: string, help: string, read: () => number): void => {
    new Gauge({
      name: `holdfast_gateway_${name}`,
      help,
      registers,
      collect() {
        this.set(read());
      },
    });
  };
  gauge("store_up", "1 while the store answers.", () => (isStoreUp() ? 1 : 0));
  gauge("workloads", "Workloads that clients are led to.", () => gateway.view().length);
  gauge(
    "workloads_without_owner",
    "Of these, how many have no owner that is known: their clients wait.",
    () => gateway.view().filter(({ owner }) => owner === null).length,
  );
  new Counter({
    name: "holdfast_gateway_unrouted_total",
    help: "Connections reset because no route was for them.",
    registers,
    collect() {
      this.reset();
      this.inc(gateway.unrouted);
    },
  });
}

async function listen(
  server: ReturnType<typeof createAdmin>,
  endpoint: Endpoint,
  log: Logger,
): Promise<void> {
  try {
    await openServer(server, endpoint, (err) => log.error({ err }, "an admin connection was not accepted"));
  } catch (cause) {
    const { address, port } = endpoint;
    throw fail(
      "PROXY_LISTEN",
      `cannot listen for admin requests on ${address}:${port}: ${messageOf(cause)}`,
      { cause },
    );
  }
}
