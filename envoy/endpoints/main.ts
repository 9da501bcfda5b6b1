/** The process of `holdfast envoy endpoints`: the store, what is told of it to Envoys, probes and metrics, its end. */
import { once } from "node:events";
import { Counter, Gauge, Registry } from "@prometheus-io/client";
import { type Logger, pino } from "pino";
import { listenAt } from "#control/kubernetes/serving.ts";
import { createAdmin } from "#proxy/contract/admin-http.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { openStore } from "#proxy/store/open.ts";
import type { Store } from "#proxy/store/store.ts";
import { AdsServer } from "./ads-server.ts";
import type { Assignment } from "./assignment.ts";
import type { EndpointsFile } from "./config.ts";
import { EndpointFiles } from "./files.ts";
import { OwnerPlaces } from "./owners.ts";

export interface RunningEndpoints {
  /** where ADS is asked; null: nowhere */
  adsPort: number | null;
  close(): Promise<void>;
}

/** Runs until SIGTERM or SIGINT. Envoys then go on with what they were told last. */
export async function runEndpoints(config: EndpointsFile, options: { logLevel: string }): Promise<void> {
  const log = pino({ level: options.logLevel, base: { role: "endpoints" } }, pino.destination(2));
  const store = openStore(config.store, {
    onDown: (reason) =>
      log.warn({ reason: messageOf(reason) }, "the store is out of reach; Envoys go on with what they know"),
    onUp: () => log.info("the store is back"),
  });
  try {
    const told = Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
    const running = await startEndpoints(config, store, log);
    const [signal] = await told;
    log.info({ signal }, "told to end");
    await running.close();
  } finally {
    await store.close();
  }
}

/** @throws HoldfastError `LISTEN_FAILED`; the system's error where the folder cannot be written to */
export async function startEndpoints(
  { folder, ads, admin, clusters }: Omit<EndpointsFile, "store">,
  store: Pick<Store, "link" | "watchLinks">,
  log: Logger,
): Promise<RunningEndpoints> {
  const files =
    folder === null
      ? null
      : new EndpointFiles(
          folder,
          clusters.map(({ cluster }) => cluster),
        );
  const server = ads === null ? null : new AdsServer(log);
  const counts = { changes: 0, failures: 0 };
  const unwritten = new Map<string, Assignment>();
  const write = (assignment: Assignment): void => {
    try {
      files?.write(assignment);
      unwritten.delete(assignment.cluster);
    } catch (error) {
      counts.failures += 1;
      unwritten.set(assignment.cluster, assignment);
      log.error(
        { cluster: assignment.cluster, reason: messageOf(error) },
        "endpoints were not written; again soon",
      );
    }
  };
  const owners = new OwnerPlaces({
    store,
    clusters,
    log,
    onChange: (assignment) => {
      counts.changes += 1;
      server?.push(assignment);
      write(assignment);
    },
  });
  const again = setInterval(() => {
    for (const assignment of unwritten.values()) write(assignment);
  }, WRITE_AGAIN_MS).unref();
  const http = createAdmin({
    metrics: metricsOf(owners, server, counts),
    health: () => ({ role: "endpoints", unknown: owners.unknown }),
    ready: () =>
      owners.unknown.length === 0
        ? { ready: true }
        : { ready: false, reason: `nobody has told where clients of ${owners.unknown.join(", ")} come` },
  });
  const close = async (): Promise<void> => {
    clearInterval(again);
    owners.close();
    server?.close();
    http.close();
    http.closeAllConnections();
  };
  try {
    const adsPort = ads === null ? null : ((await server?.listen(ads)) ?? null);
    if (admin !== null)
      await listenAt(http, admin, (err) => log.error({ err }, "an admin connection was not accepted"));
    owners.open();
    log.info({ folder, adsPort }, "endpoints are told");
    return { adsPort, close };
  } catch (error) {
    await close();
    throw error;
  }
}

const WRITE_AGAIN_MS = 1_000;

function metricsOf(
  owners: OwnerPlaces,
  server: AdsServer | null,
  counts: { changes: number; failures: number },
): Registry {
  const registry = new Registry();
  const registers = [registry];
  const gauge = (name: string, help: string, read: () => number): void => {
    new Gauge({
      name: `holdfast_endpoints_${name}`,
      help,
      registers,
      collect() {
        this.set(read());
      },
    });
  };
  const counter = (name: string, help: string, read: () => number): void => {
    new Counter({
      name: `holdfast_endpoints_${name}_total`,
      help,
      registers,
      collect() {
        this.reset();
        this.inc(read());
      },
    });
  };
  gauge(
    "workloads_unknown",
    "Workloads of which nobody has told where clients come.",
    () => owners.unknown.length,
  );
  gauge("envoys", "Envoys that ask over gRPC.", () => server?.subscribers ?? 0);
  counter("changes", "Clusters whose endpoints have become others.", () => counts.changes);
  counter("write_failures", "Files that could not be written.", () => counts.failures);
  counter("refused", "Updates that an Envoy has refused.", () => server?.refused ?? 0);
  return registry;
}
