/**
 * One question of the API server and its answer (AdmissionReview of admission.k8s.io/v1,
 * https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/). Decides by what it is given alone.
 */
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { type InjectOptions, inject } from "../inject/inject.ts";
import { patchOf } from "../inject/json-patch.ts";
import { type Pod, podSchema } from "../inject/pod.ts";
import { type AdmittedService, adopt } from "../services/adopt.ts";

export const VERDICTS = [
  "injected",
  "unchanged",
  "refused",
  "denied",
  "evicted",
  "kept",
  "adopted",
  "returned",
] as const;
/** adopted: a Service of gateways; returned: it is one no more; refused: admitted as it is, with a warning; denied: not admitted; evicted: goes; kept: its eviction is denied */
export type Verdict = (typeof VERDICTS)[number];

export interface Answer {
  verdict: Verdict;
  /** which it is, for the log */
  pod: string;
  /** why it is not injected */
  reason: string | null;
  review: object;
}

const HTTP_FORBIDDEN = 403;
const reviewSchema = z.looseObject({
  apiVersion: z.literal("admission.k8s.io/v1"),
  kind: z.literal("AdmissionReview"),
  request: z.looseObject({
    uid: z.string().min(1),
    kind: z.looseObject({ group: z.string().default(""), version: z.string(), kind: z.string() }),
    subResource: z.string().optional(),
    operation: z.string(),
    namespace: z.string().default(""),
    name: z.string().default(""),
    object: z.unknown(),
    oldObject: z.unknown().optional(),
  }),
});

export interface ReviewOptions
  extends Pick<InjectOptions, "image" | "imagePullPolicy" | "proxy" | "evictionRequests"> {
  /** of the cluster; `select`: one of that namespace's Services whose clients come to them is for pods with these labels. Absent: there are none */
  gateways?: { select(namespace: string, labels: Record<string, string>): boolean } | null;
}

/**
 * @param enforce a pod that is to be injected and cannot be is not admitted
 * @throws HoldfastError `REQUEST_INVALID`: it is no AdmissionReview
 */
export function answerReview(body: string, options: ReviewOptions, enforce: boolean): Answer {
  const { request } = parseReview(body);
  const { kind, operation, object } = request;
  const answer = (verdict: Verdict, reason: string | null, more: object): Answer =>
    answerOf(request, verdict, reason, more);
  const asked = `${operation} of ${kind.kind}${request.subResource ? `/${request.subResource}` : ""}`;
  if (asked !== "CREATE of Pod" || kind.group !== "") {
    const reason = `${asked} is none of its business: the rules of the webhook configuration are to be CREATE of pods`;
    return answer("unchanged", reason, { warnings: [`holdfast: ${reason}`] });
  }
  const refuse = (problem: string): Answer => {
    const message = `holdfast: not injected: ${problem}`;
    return enforce
      ? answer("denied", problem, { status: { code: HTTP_FORBIDDEN, reason: "Forbidden", message } })
      : answer("refused", problem, { warnings: [message] });
  };
  const parsed = podSchema.safeParse(object);
  if (!parsed.success) {
    const { path, message } = parsed.error.issues[0] as z.core.$ZodIssue;
    return refuse(`${path.join(".")}: ${message}`);
  }
  const { image, imagePullPolicy, proxy, evictionRequests, gateways = null } = options;
  const outcome = inject(object as Pod, {
    image,
    imagePullPolicy,
    proxy,
    evictionRequests,
    gateways: gateways && { isSelected: (labels) => gateways.select(request.namespace, labels) },
  });
  if (outcome.kind === "unchanged") return answer("unchanged", outcome.reason, {});
  if (outcome.kind === "refused") return refuse(`${outcome.problem.at}: ${outcome.problem.message}`);
  return answer("injected", null, {
    ...patchTo(object, outcome.pod),
    ...(outcome.warnings.length === 0 ? {} : { warnings: outcome.warnings.map((one) => `holdfast: ${one}`) }),
  });
}

/**
 * About a Service that says, or has said, that its clients come to gateways.
 * @throws HoldfastError `REQUEST_INVALID`: it is no AdmissionReview
 */
export function answerService(body: string): Answer {
  const { request } = parseReview(body);
  const { kind, object, oldObject } = request;
  if (kind.kind !== "Service" || kind.group !== "") return answerOf(request, "unchanged", null, {});
  const adopted = adopt(object as AdmittedService, (oldObject ?? null) as AdmittedService | null);
  if (adopted === null) return answerOf(request, "unchanged", null, {});
  const isOf = adopted.spec?.selector === undefined;
  return answerOf(request, isOf ? "adopted" : "returned", null, patchTo(object, adopted));
}

type ReviewRequest = z.infer<typeof reviewSchema>["request"];

/** @param more of the response, beside whether it is allowed */
export function answerOf(
  { uid, namespace, name, object }: Pick<ReviewRequest, "uid" | "namespace" | "name" | "object">,
  verdict: Verdict,
  reason: string | null,
  more: object,
): Answer {
  return {
    verdict,
    pod: whoIs(namespace, name, object),
    reason,
    review: {
      apiVersion: "admission.k8s.io/v1",
      kind: "AdmissionReview",
      response: { uid, allowed: verdict !== "denied", ...more },
    },
  };
}

/** What makes one of the other, as a response has it. */
export function patchTo(from: unknown, made: object): object {
  return {
    patchType: "JSONPatch",
    patch: Buffer.from(JSON.stringify(patchOf(from, made))).toString("base64"),
  };
}

/** @throws HoldfastError `REQUEST_INVALID`: it is no AdmissionReview */
export function parseReview(body: string): z.infer<typeof reviewSchema> {
  let raw: unknown;
  try {
    raw = JSON.parse(body);
  } catch (error) {
    throw fail("REQUEST_INVALID", `expected an AdmissionReview as JSON: ${messageOf(error)}`);
  }
  const parsed = reviewSchema.safeParse(raw);
  if (parsed.success) return parsed.data;
  const { path, message } = parsed.error.issues[0] as z.core.$ZodIssue;
  throw fail(
    "REQUEST_INVALID",
    `expected an AdmissionReview of admission.k8s.io/v1: ${path.length === 0 ? "" : `${path.join(".")}: `}${message}`,
  );
}

/** Many pods are named by the API server only after they are admitted. */
function whoIs(namespace: string, name: string, object: unknown): string {
  const metadata = (object as { metadata?: { name?: unknown; generateName?: unknown } } | null)?.metadata;
  const known = name || metadata?.name || `${metadata?.generateName ?? ""}*`;
  return `${namespace}/${known}`;
}
