/** The process of the controller: the lease, the loop, probes and metrics, its end. */
import { hostname } from "node:os";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { pino } from "pino";
import { createAdmin } from "#proxy/contract/admin-http.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { logDestination } from "#proxy/contract/log-destination.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { findAccess } from "../client/access.ts";
import { KubernetesApi } from "../client/api.ts";
import { Watches } from "../client/watches.ts";
import { keepMesh } from "../mesh/keep.ts";
import { keepServices } from "../services/keep.ts";
import type { ServicesPlan } from "../services/plan.ts";
import { listenAt, readiness } from "../serving.ts";
import { watchAllPods } from "./all-pods.ts";
import { whileLeader } from "./lease.ts";
import { ControllerMetrics } from "./metrics.ts";
import { reportMissedPods } from "./missed-pods.ts";
import { reconcile } from "./reconcile.ts";

export interface ControllerConfig {
  kubeconfig: string | null;
  context: string | null;
  /** of the Lease; null: that of the pod or of the context */
  namespace: string | null;
  /** name of the ConfigMap that gateways follow, in that namespace; null: there are no gateways */
  gateways: string | null;
  /** EvictionRequests are answered, where the cluster serves them */
  evictionRequests: boolean;
  /** what Services ask of Istio is kept */
  mesh: boolean;
  /** `/healthz`, `/readyz`, `/metrics` */
  admin: Endpoint | null;
  logLevel: string;
}

const LEASE = "holdfast-controller";

/** Runs until SIGTERM or SIGINT. @throws HoldfastError `KUBERNETES_CONFIG`, `LISTEN_FAILED` */
export async function runController(
  config: ControllerConfig,
  env: Record<string, string | undefined>,
): Promise<void> {
  keepHeapSmall();
  const identity = `${env.HOSTNAME ?? hostname()}_${process.pid}_${Date.now().toString(36)}`;
  const log = pino({ level: config.logLevel, base: { controller: identity } }, logDestination());
  const access = findAccess(env, {
    ...(config.kubeconfig === null ? {} : { kubeconfig: config.kubeconfig }),
    ...(config.context === null ? {} : { context: config.context }),
  });
  const api = new KubernetesApi(access, "holdfast-controller");
  const metrics = new ControllerMetrics();
  const end = new AbortController();
  const admin = createAdmin({
    metrics: metrics.registry,
    health: () => ({ role: "controller" }),
    ready: () => readiness(end.signal.aborted ? "it was told to end" : null),
  });
  const notAccepted = (err: Error): void => log.error({ err }, "an admin connection was not accepted");
  if (config.admin !== null) await listenAt(admin, config.admin, notAccepted);
  const onSignal = (signal: NodeJS.Signals): void => {
    log.info({ signal }, "told to end");
    end.abort();
  };
  process.once("SIGTERM", onSignal).once("SIGINT", onSignal);
  log.info({ server: access.server }, "controller ready");
  const problem = (what: string, error: unknown): void => log.warn({ reason: messageOf(error) }, what);
  const namespace = config.namespace ?? access.namespace;
  await whileLeader(
    {
      api,
      namespace,
      name: LEASE,
      identity,
      onProblem: (error) => problem("the lease cannot be had", error),
    },
    end.signal,
    async (signal) => {
      log.info("leads");
      metrics.leads(true);
      const shared = { api, metrics, onProblem: problem };
      const { gateways: table } = config;
      const watches = new Watches({ api, silent: metrics.silent, onProblem: problem });
      const pods = watchAllPods(watches);
      const onPlan = ({ tableBytes, leads }: ServicesPlan): void => {
        metrics.services = { tableBytes, leads };
      };
      await Promise.all([
        reconcile(
          {
            ...shared,
            onTriggered: ({ namespace, name, trigger }) =>
              log.info({ migration: `${namespace}/${name}`, trigger }, "a node asks for it"),
            requests: config.evictionRequests
              ? {
                  onDone: ({ namespace, name, pod, message }) =>
                    log.info({ eviction: `${namespace}/${name}`, pod, message }, "an Eviction is answered"),
                }
              : null,
            onAction: ({ metadata: { namespace, name }, status }, action) =>
              log.info(
                { migration: `${namespace}/${name}`, phase: status.phase ?? "Pending", ...shown(action) },
                "done",
              ),
          },
          signal,
        ),
        reportMissedPods({ ...shared, pods, namespace }, signal),
        table === null
          ? null
          : keepServices(
              { api, silent: metrics.silent, onProblem: problem, onPlan, pods, namespace, table },
              signal,
            ),
        config.mesh ? keepMesh({ api, silent: metrics.silent, onProblem: problem, pods }, signal) : null,
      ]);
      metrics.services = null;
      await watches.close();
      metrics.leads(false);
      log.info("leads no more");
    },
  );
  process.off("SIGTERM", onSignal).off("SIGINT", onSignal);
  admin.close();
  admin.closeAllConnections();
  api.close();
}

/**
 * Else V8 lets garbage of what is watched come to 100 MB before it looks: with 5,000 pods 245 MB were resident, and 140 are with this. How far
 * the heap may grow before that is decided anew by a collection.
 */
function keepHeapSmall(): void {
  for (const flag of ["--optimize-for-size", "--expose-gc"]) setFlagsFromString(flag);
  (runInNewContext("gc") as () => void)();
}

/** An action in a line. */
function shown(action: object): object {
  const {
    do: what,
    pod,
    status,
  } = action as {
    do: string;
    pod?: { name?: string; metadata?: { name: string } };
    status?: { phase?: string; reason?: string };
  };
  const name = pod?.name ?? pod?.metadata?.name;
  return {
    action: what,
    ...(name === undefined ? {} : { pod: name }),
    ...(status === undefined ? {} : { to: status.phase, reason: status.reason }),
  };
}
