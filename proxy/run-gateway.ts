/**
 * Composition root of a gateway: the kernel, the store, the gateway, its admin endpoint; ends in order when it is told to. Whose process
 * it is (`control/gateway/main.ts`) has read the file and keeps the keys.
 */
import { once } from "node:events";
import type { Logger } from "pino";
import { createAdmin } from "#proxy/admin/http.ts";
import { createMetrics } from "#proxy/admin/metrics.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { GatewayConfig } from "#proxy/contract/gateway.ts";
import { linkKeysOf, type SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { Gateway } from "#proxy/gateway/gateway.ts";
import { UpstreamNetwork } from "#proxy/kernel/network.ts";
import { openStore } from "#proxy/store/open.ts";
import { legKernelOf, reserveDescriptors } from "./process-kernel.ts";

export interface RunGatewayOptions {
  config: GatewayConfig;
  /** that nodes share */
  keys: SharedKeys;
  store: string;
  /** of `/healthz`, `/readyz` and `/metrics`; null: nowhere */
  admin: Endpoint | null;
  log: Logger;
}

export interface RunningGateway {
  useKeys(keys: SharedKeys): void;
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
    keysOf: (workload) => linkKeysOf(options.keys, workload),
    store,
    kernel: legKernelOf(new UpstreamNetwork()),
    log,
  });
  const admin = createAdmin({
    metrics: createMetrics(() => gateway.proxies, "holdfast_gateway"),
    health: () => ({ gateway: config.name, store: isStoreUp ? "up" : "down", workloads: gateway.view() }),
    ready: () =>
      gateway.isReady
        ? { ready: true }
        : {
            ready: false,
            reason: gateway.isDraining ? "draining" : "the store has not been asked for owners yet",
          },
  });
  try {
    gateway.open();
    if (options.admin !== null) await listen(admin, options.admin);
  } catch (error) {
    gateway.stop();
    await store.close();
    throw error;
  }
  log.info({ gateway: config.name, ports: gateway.ports }, "gateway ready");
  return {
    useKeys: (keys) => gateway.useKeys((workload) => linkKeysOf(keys, workload)),
    end: async () => {
      const { reset } = await gateway.drain();
      log.info({ reset }, "gateway ends");
      admin.close();
      admin.closeAllConnections();
      await store.close();
    },
  };
}

async function listen(server: ReturnType<typeof createAdmin>, { address, port }: Endpoint): Promise<void> {
  server.listen({ host: address, port });
  try {
    await once(server, "listening");
  } catch (cause) {
    throw fail(
      "PROXY_LISTEN",
      `cannot listen for admin requests on ${address}:${port}: ${messageOf(cause)}`,
      {
        cause,
      },
    );
  }
}
