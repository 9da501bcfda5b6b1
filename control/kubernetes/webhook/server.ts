/**
 * The HTTPS server that the API server asks. `POST /inject` admits what cannot be injected as it is, with a warning; `POST /enforce`
 * does not admit it; `POST /evict` answers evictions of pods (`eviction/`), `POST /ordinal` sees what StatefulSets make (`ordinal.ts`),
 * `POST /service` Services whose clients come to gateways (`services/`). Which namespaces ask where, the webhook configuration says.
 *
 * An error of ours is answered with 500, so that the configuration's failurePolicy decides about the pod.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Server } from "node:https";
import type { Logger } from "pino";
import { factsOf } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { EvictionAnswer } from "../eviction/review.ts";
import type { Certificate } from "./certificate.ts";
import type { WebhookMetrics } from "./metrics.ts";
import { type Answer, answerReview, answerService, type ReviewOptions } from "./review.ts";

// named in an import, node:https costs some 45 ms more of every start: its lazy exports are evaluated
const { createServer } = process.getBuiltinModule("node:https");

export interface ServerOptions {
  inject: ReviewOptions;
  certificate: Certificate;
  metrics: WebhookMetrics;
  log: Logger;
  /** null: this process cannot ask the API server about pods, so that evictions are not looked at */
  evict?: ((review: unknown) => Promise<EvictionAnswer>) | null;
  /** null: … about Migrations. @param review the AdmissionReview, as text */
  ordinal?: ((review: string) => Promise<Answer>) | null;
}

/** the API server takes objects of 3 MiB, and escapes them once more */
export const REVIEW_BYTES_MAX = 8_388_608;
const REQUEST_MS_MAX = 10_000;
/** longer than Go's client keeps a connection (90 s), so that none is closed just when it is used again */
const IDLE_MS_MAX = 120_000;
const CONNECTIONS_MAX = 512;
export function createWebhookServer({
  inject,
  certificate,
  metrics,
  log,
  evict = null,
  ordinal = null,
}: ServerOptions): Server {
  const answers: Record<string, (body: string) => Promise<Answer> | Answer> = {
    "/inject": (body) => answerReview(body, inject, false),
    "/enforce": (body) => answerReview(body, inject, true),
    "/service": (body) => answerService(body),
    ...(evict === null ? {} : { "/evict": async (body) => evictionAnswer(await evict(parseJson(body))) }),
    ...(ordinal === null ? {} : { "/ordinal": ordinal }),
  };
  const { cert, key } = certificate;
  const server = createServer({ cert, key, minVersion: "TLSv1.2" }, async (request, response) => {
    const [asked = ""] = request.url?.split("?") ?? [];
    const answer = Object.hasOwn(answers, asked) ? answers[asked] : undefined;
    if (answer === undefined) return refuse(response, 404, `expected ${Object.keys(answers).join(", ")}`);
    if (request.method !== "POST") {
      response.setHeader("allow", "POST");
      return refuse(response, 405, "expected POST");
    }
    if (!/^application\/json\b/.test(request.headers["content-type"] ?? ""))
      return refuse(response, 415, "expected application/json");
    const body = await readBody(request);
    if (body === null) {
      metrics.answered("malformed", 0);
      return refuse(response, 413, `expected at most ${REVIEW_BYTES_MAX} bytes`);
    }
    if (body === "gone") return;
    const since = performance.now();
    try {
      const { verdict, pod, reason, review } = await answer(body.text);
      const text = JSON.stringify(review);
      response.writeHead(200, { "content-type": "application/json" }).end(text);
      metrics.answered(verdict, performance.now() - since);
      log[verdict === "refused" || verdict === "denied" ? "warn" : "info"]({ pod, verdict, reason }, "asked");
    } catch (error) {
      const isTheirs = error instanceof HoldfastError && error.code === "REQUEST_INVALID";
      metrics.answered(isTheirs ? "malformed" : "failed", performance.now() - since);
      log[isTheirs ? "warn" : "error"]({ error: messageOf(error) }, "cannot be answered");
      refuse(response, (isTheirs ? factsOf("REQUEST_INVALID")?.http : undefined) ?? 500, messageOf(error));
    }
  });
  server.requestTimeout = REQUEST_MS_MAX;
  server.headersTimeout = REQUEST_MS_MAX;
  server.keepAliveTimeout = IDLE_MS_MAX;
  server.maxConnections = CONNECTIONS_MAX;
  // somebody who does not trust the certificate, or speaks no TLS: the API server logs why on its side
  server.on("tlsClientError", (error) => log.debug({ error: messageOf(error) }, "no TLS"));
  return server;
}

function evictionAnswer({ pod, decision, review }: EvictionAnswer): Answer {
  return decision.isAllowed
    ? { verdict: "evicted", pod, reason: decision.reason, review }
    : { verdict: "kept", pod, reason: decision.message, review };
}

/** undefined is no AdmissionReview, and said to be none */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** null: too long. "gone": nobody waits for an answer. */
async function readBody(request: IncomingMessage): Promise<{ text: string } | null | "gone"> {
  if (Number(request.headers["content-length"] ?? 0) > REVIEW_BYTES_MAX) return null;
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of request as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      if (bytes > REVIEW_BYTES_MAX) return null;
      chunks.push(chunk);
    }
  } catch {
    return "gone";
  }
  return { text: Buffer.concat(chunks).toString("utf8") };
}

/** What was not read of the request ends with its connection. */
function refuse(response: ServerResponse, status: number, message: string): void {
  response
    .writeHead(status, { "content-type": "text/plain; charset=utf-8", connection: "close" })
    .end(`${message}\n`);
}
