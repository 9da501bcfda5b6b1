/** The process of the webhook: its servers, its certificate that is renewed, its end. */
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { pino } from "pino";
import { createAdmin } from "#proxy/contract/admin-http.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { logDestination } from "#proxy/contract/log-destination.ts";
import { ChangeWatch } from "../../config/change-watch.ts";
import { formatEndpoint } from "../../config/endpoint.ts";
import type { RenewalConfig, WebhookFile } from "../../config/webhook.ts";
import { findAccess, inCluster } from "../client/access.ts";
import { KubernetesApi } from "../client/api.ts";
import { answerEviction } from "../eviction/review.ts";
import { GatewayServices } from "../services/selected.ts";
import { listenAt, readiness } from "../serving.ts";
import { isSameCertificate, readCertificate } from "./certificate.ts";
import { WebhookMetrics } from "./metrics.ts";
import { answerOrdinal } from "./ordinal.ts";
import { nextLookMs, type RenewalApi, renew } from "./renewal.ts";
import { createWebhookServer } from "./server.ts";

/** Runs until SIGTERM or SIGINT; then it is not ready, answers for `drainMs` more, and ends. @throws HoldfastError `CONFIG_INVALID`, `LISTEN_FAILED`, `KUBERNETES_CONFIG` */
export async function runWebhook(config: WebhookFile, options: { logLevel: string }): Promise<void> {
  const log = pino(
    { level: options.logLevel, base: { webhook: formatEndpoint(config.listen) } },
    logDestination(),
  );
  let certificate = readCertificate(config);
  let problem: string | null = null;
  let ending = false;
  const metrics = new WebhookMetrics(() => certificate.validToMs);
  const { image, imagePullPolicy, proxy, evictionRequests } = config;
  const access = process.env.KUBECONFIG ? findAccess(process.env) : inCluster(process.env);
  const api = access === null ? null : new KubernetesApi(access, "holdfast-webhook");
  if (api === null) log.warn("not in a pod, and without KUBECONFIG: evictions are not looked at");
  if (config.gateways && api === null)
    throw fail(
      "KUBERNETES_CONFIG",
      "gateways: this process runs in no pod, whose ServiceAccount it would have",
    );
  const gateways =
    config.gateways && api !== null
      ? new GatewayServices({
          api,
          silent: metrics.silent,
          onProblem: (what, error) => log.warn({ reason: messageOf(error) }, `${what}; what is known holds`),
        })
      : null;
  const server = createWebhookServer({
    inject: { image, imagePullPolicy, proxy, evictionRequests, gateways },
    certificate,
    metrics,
    log,
    evict: api === null ? null : (review) => answerEviction(api, review),
    ordinal: api === null ? null : (review) => answerOrdinal(api, review),
  });
  /** Files that do not fit together, as when only one is renewed yet, change nothing, and are told once. */
  const readAgain = (): void => {
    try {
      const next = readCertificate(config);
      problem = null;
      if (isSameCertificate(certificate, next)) return;
      certificate = next;
      server.setSecureContext({ cert: next.cert, key: next.key, minVersion: "TLSv1.2" });
      log.info({ validTo: new Date(next.validToMs).toISOString() }, "the certificate was read again");
    } catch (error) {
      const now = `the certificate before is used still: ${messageOf(error)}`;
      if (now !== problem) log.error(now);
      problem = now;
    }
  };
  const notReady = (): string | null => {
    if (ending) return "it was told to end";
    if (gateways?.isKnown === false) return "Services of gateways have not been seen yet";
    const { validFromMs, validToMs } = certificate;
    if (Date.now() < validFromMs) return "the certificate is not valid yet";
    return Date.now() > validToMs ? "the certificate has expired" : null;
  };
  const admin = createAdmin({
    metrics: metrics.registry,
    health: () => ({ role: "webhook" }),
    ready: () => readiness(notReady()),
  });
  const closing = new AbortController();
  let renewalProblem: string | null = null;
  let renewalFailures = 0;
  const renewAgain = async (renewal: RenewalConfig, of: RenewalApi): Promise<void> => {
    try {
      const steps = await renew(of, renewal, closing.signal);
      renewalProblem = null;
      renewalFailures = 0;
      if (steps.length > 0) log.info({ steps }, "the certificate is renewed");
    } catch (error) {
      const now = `the certificate cannot be renewed: ${messageOf(error)}`;
      if (now !== renewalProblem && !ending) log.error(now);
      renewalProblem = now;
      renewalFailures++;
    }
  };
  const lookAfter = async (what: RenewalConfig, by: KubernetesApi): Promise<void> => {
    const of: RenewalApi = {
      get: (path) => by.get(path),
      replace: (path, body) => by.replace(path, body),
      patch: (path, body) => by.patch(path, body, "strategic"),
    };
    while (!closing.signal.aborted) {
      await renewAgain(what, of);
      const wait = { signal: closing.signal, ref: false };
      await delay(nextLookMs(renewalFailures), undefined, wait).catch(() => {});
    }
  };
  const notAccepted = (err: Error): void => log.error({ err }, "a connection was not accepted");
  const watch = new ChangeWatch([config.certificate, config.key], readAgain);
  // before anybody can know that it runs, or it would end without answering those who still ask
  const told = Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
  try {
    await listenAt(server, config.listen, notAccepted);
    if (config.admin !== null) await listenAt(admin, config.admin, notAccepted);
    readAgain(); // what has changed since the start
    process.on("SIGHUP", readAgain);
    if (config.renewal !== null) {
      if (api === null)
        throw fail(
          "KUBERNETES_CONFIG",
          "renewal: this process runs in no pod, whose ServiceAccount it would have",
        );
      void lookAfter(config.renewal, api);
    }
    log.info("asked from now on");
    const [signal] = await told;
    ending = true;
    log.info({ signal }, "told to end");
    await delay(config.drainMs);
  } finally {
    process.off("SIGHUP", readAgain);
    closing.abort();
    watch.close();
    for (const one of [server, admin]) one.close();
    server.closeIdleConnections();
    admin.closeAllConnections();
    await gateways?.close();
    api?.close();
  }
}
