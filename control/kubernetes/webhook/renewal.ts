/**
 * Renews the certificate of a webhook in its Secret before it expires, so that at each moment the API server trusts what is shown to it.
 * Whoever of several webhooks comes by does what is next, and each step can be the last before an end:
 *
 *   prepare  the next certificate and its key go into the Secret beside those in use, and its authority into the bundle, before the
 *            authority until then. Conditional: one of several does it.
 *   trust    each webhook configuration that is there gets the bundle of the Secret. Also where somebody else has put another one there. Conditional.
 *   use      the next certificate takes the place of the one in use. Conditional. kubelet brings it to each webhook, in its time.
 */
import { X509Certificate } from "node:crypto";
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { RenewalConfig } from "../../config/webhook.ts";
import { isCode } from "../client/api.ts";
import { issueCertificate } from "./issue.ts";

/** What of the API server it needs. `replace` and `patch` are done to what was read, or fail with `KUBERNETES_CONFLICT`. */
export interface RenewalApi {
  get(path: string, signal: AbortSignal): Promise<unknown>;
  replace(path: string, body: object, signal: AbortSignal): Promise<unknown>;
  /** strategic: items of lists are found by name */
  patch(path: string, body: object, signal: AbortSignal): Promise<unknown>;
}

export interface Kept {
  /** the Secret's authorities, the newest first */
  bundle: string;
  /** PEM */
  cert: string;
  /** PEM of the one that comes after it; null: there is none yet */
  next: string | null;
  /** authorities that the API server trusts for each webhook of each configuration */
  trusted: string[];
}

export type Step = "prepare" | "trust" | "use";

/** how often it is looked whether a certificate is to be renewed */
const LOOK_MS = 3_600_000;
/** … after a look that failed, and twice as long after each that fails then */
const RETRY_MS = 10_000;

/** of its time left */
const RENEWED_AT = 1 / 3;
const STEPS_MAX = 8;
const NEXT = { cert: "next.crt", key: "next.key" };

const secretSchema = z.looseObject({
  metadata: z.looseObject({ resourceVersion: z.string() }),
  data: z.record(z.string(), z.string()),
});
const configurationSchema = z.looseObject({
  metadata: z.looseObject({ resourceVersion: z.string() }),
  webhooks: z.array(
    z.looseObject({
      name: z.string(),
      clientConfig: z.looseObject({ caBundle: z.string().default("") }),
    }),
  ),
});
type Secret = z.infer<typeof secretSchema>;
type Configuration = z.infer<typeof configurationSchema>;

/** How long to wait for the next look, after so many in a row that failed. */
export function nextLookMs(failures: number): number {
  return failures === 0 ? LOOK_MS : Math.min(RETRY_MS * 2 ** (failures - 1), LOOK_MS);
}

/** What is to be done next; null: nothing. @param nowMs Unix time */
export function nextStep({ bundle, cert, next, trusted }: Kept, nowMs: number): Step | null {
  if (trusted.some((one) => one !== bundle)) return "trust";
  if (next !== null) return "use";
  const { validFrom, validTo } = new X509Certificate(cert);
  const [from, to] = [Date.parse(validFrom), Date.parse(validTo)];
  return to - nowMs < (to - from) * RENEWED_AT ? "prepare" : null;
}

/**
 * Everything that is to be done now; the steps that were done.
 * @throws HoldfastError `KUBERNETES_UNREACHABLE`, `KUBERNETES_FORBIDDEN`, `CONFIG_INVALID`: the Secret is not what it is to be
 */
export async function renew(
  api: RenewalApi,
  options: RenewalConfig,
  signal: AbortSignal,
  now: () => number = Date.now,
): Promise<Step[]> {
  const { namespace, secret: name, kinds, configuration } = options;
  const path = `/api/v1/namespaces/${namespace}/secrets/${name}`;
  const done: Step[] = [];
  for (let tries = 0; tries < STEPS_MAX; tries++) {
    // in this order: what is written to a configuration, if it has not changed since, is of a Secret that is as new
    const all: { at: string; hooks: Configuration }[] = [];
    for (const kind of kinds) {
      const at = `/apis/admissionregistration.k8s.io/v1/${kind.toLowerCase()}s/${configuration}`;
      const hooks = await configurationAt(api, at, signal);
      if (hooks !== null) all.push({ at, hooks });
    }
    const secret = secretSchema.parse(await api.get(path, signal));
    const trusted = all.flatMap(({ hooks }) => bundlesOf(hooks));
    const step = stepOf(secret, trusted, name, now());
    if (step === null) break;
    try {
      if (step === "trust") {
        for (const { at, hooks } of all)
          if (bundlesOf(hooks).some((bundle) => bundle !== secret.data["ca.crt"]))
            await api.patch(at, trusting(secret, hooks), signal);
      } else
        await api.replace(path, step === "use" ? using(secret) : prepared(secret, options, now()), signal);
      done.push(step);
    } catch (error) {
      // another webhook was here just before: what is next is seen in what it has left
      if (!(error instanceof HoldfastError && error.code === "KUBERNETES_CONFLICT")) throw error;
    }
  }
  return done;
}

/** null: it is not there (evictions are not asked about, say), and nobody is led here by it */
async function configurationAt(
  api: Pick<RenewalApi, "get">,
  at: string,
  signal: AbortSignal,
): Promise<Configuration | null> {
  try {
    return configurationSchema.parse(await api.get(at, signal));
  } catch (error) {
    if (isCode(error, "KUBERNETES_NOT_FOUND")) return null;
    throw error;
  }
}

function bundlesOf({ webhooks }: Configuration): string[] {
  return webhooks.map(({ clientConfig }) => clientConfig.caBundle);
}

function stepOf({ data }: Secret, trusted: string[], name: string, nowMs: number): Step | null {
  try {
    const kept: Kept = {
      bundle: data["ca.crt"] ?? "",
      cert: decoded(data["tls.crt"]),
      next: data[NEXT.cert] === undefined || data[NEXT.key] === undefined ? null : decoded(data[NEXT.cert]),
      trusted,
    };
    const own = new X509Certificate(kept.cert);
    if (!certificatesIn(decoded(kept.bundle)).some((pem) => own.verify(new X509Certificate(pem).publicKey)))
      throw new Error("ca.crt does not have its authority");
    return nextStep(kept, nowMs);
  } catch (cause) {
    throw fail(
      "CONFIG_INVALID",
      `Secret ${name}: expected a certificate (tls.crt) and its authority (ca.crt): ${messageOf(cause)}; uninstall and install the chart to have another made`,
      { cause },
    );
  }
}

function prepared(secret: Secret, { names, days }: RenewalConfig, nowMs: number): object {
  const { authority, cert, key } = issueCertificate(names, days, nowMs);
  const [before = ""] = certificatesIn(decoded(secret.data["ca.crt"]));
  const data = { "ca.crt": authority + before, [NEXT.cert]: cert, [NEXT.key]: key };
  return { ...secret, data: { ...secret.data, ...encoded(data) } };
}

function using(secret: Secret): object {
  const { [NEXT.cert]: cert, [NEXT.key]: key, ...rest } = secret.data;
  return { ...secret, data: { ...rest, "tls.crt": cert, "tls.key": key } };
}

function trusting({ data }: Secret, { metadata, webhooks }: Configuration): object {
  const { resourceVersion } = metadata;
  const trusted = webhooks.map(({ name }) => ({ name, clientConfig: { caBundle: data["ca.crt"] } }));
  return { metadata: { resourceVersion }, webhooks: trusted };
}

function certificatesIn(text: string): string[] {
  return text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\n?/g) ?? [];
}

function decoded(base64: string | undefined): string {
  return Buffer.from(base64 ?? "", "base64").toString("utf8");
}

function encoded(data: Record<string, string>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(data).map(([key, value]) => [key, Buffer.from(value).toString("base64")]),
  );
}
