/** Answers the API server's question about an eviction: CREATE of pods/eviction, whose object is the Eviction and not the pod. */
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { ask, carryOut, type EvictionCalls, unguard } from "./ask.ts";
import type { EvictionDecision } from "./decision.ts";

const TOO_MANY_REQUESTS = { code: 429, reason: "TooManyRequests" };
const NOT_FOUND = { code: 404, reason: "NotFound" };

const reviewSchema = z.looseObject({
  apiVersion: z.literal("admission.k8s.io/v1"),
  kind: z.literal("AdmissionReview"),
  request: z.looseObject({
    uid: z.string().min(1),
    operation: z.string(),
    subResource: z.string().optional(),
    namespace: z.string().min(1),
    name: z.string().min(1),
    dryRun: z.boolean().optional(),
    object: z
      .looseObject({
        deleteOptions: z
          .looseObject({ preconditions: z.looseObject({ uid: z.string().optional() }).optional() })
          .optional(),
      })
      .nullish(),
  }),
});

export interface EvictionAnswer {
  /** NAMESPACE/NAME, for the log */
  pod: string;
  decision: EvictionDecision;
  review: object;
}

/**
 * @param raw the AdmissionReview, parsed
 * @throws HoldfastError `REQUEST_INVALID`: it is none; or of the client, so that the webhook's failurePolicy decides
 */
export async function answerEviction(
  api: EvictionCalls,
  raw: unknown,
  nowMs = Date.now(),
): Promise<EvictionAnswer> {
  const parsed = reviewSchema.safeParse(raw);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    const at = issue === undefined || issue.path.length === 0 ? "" : `${issue.path.join(".")}: `;
    throw fail("REQUEST_INVALID", `expected an AdmissionReview of an eviction: ${at}${issue?.message}`);
  }
  const { uid, operation, subResource, namespace, name, dryRun = false, object } = parsed.data.request;
  const pod = `${namespace}/${name}`;
  const answer = (decision: EvictionDecision): EvictionAnswer => ({
    pod,
    decision,
    review: {
      apiVersion: "admission.k8s.io/v1",
      kind: "AdmissionReview",
      response: decision.isAllowed
        ? { uid, allowed: true }
        : {
            uid,
            allowed: false,
            status: {
              ...(decision.isGone ? NOT_FOUND : TOO_MANY_REQUESTS),
              message: `holdfast: ${decision.message}`,
            },
          },
    },
  });
  if (operation !== "CREATE" || subResource !== "eviction")
    return answer({ isAllowed: true, reason: "the rules of the webhook are to be CREATE of pods/eviction" });

  const asked = { namespace, name, request: null, ...uidOf(object?.deleteOptions?.preconditions?.uid) };
  const { evicted, decision } = await ask(api, asked, nowMs);
  if (evicted !== null && !dryRun) {
    if (decision.isAllowed) await unguard(api, evicted);
    else if (!decision.isGone) await carryOut(api, evicted, decision);
  }
  return answer(decision);
}

function uidOf(uid: string | undefined): { uid?: string } {
  return uid === undefined ? {} : { uid };
}
