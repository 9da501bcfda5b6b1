/** Answers the API server's question about an eviction: CREATE of pods/eviction, whose object is the Eviction and not the pod. */
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { migrationsIn, policiesIn, policyOf } from "../../api/resources.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import type { KubernetesObject, Node, Pod } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import { manifestOf } from "../triggers/caused.ts";
import { decideEviction, EVICTED, type EvictionDecision } from "./decision.ts";

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
  api: Pick<KubernetesApi, "find" | "list" | "create" | "patch">,
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

  const found = await api.find<Pod>(pathOf("pods", { namespace, name }));
  const meant = object?.deleteOptions?.preconditions?.uid;
  const evicted = meant === undefined || found?.metadata.uid === meant ? found : null;
  const migrations = await api.list<KubernetesObject>(pathOf("migrations", { namespace }));
  const policies = await api.list<KubernetesObject>(pathOf("continuitypolicies", { namespace }));
  const nodeName = evicted?.spec.nodeName;
  const decision = decideEviction(
    {
      pod: evicted,
      isByUid: meant !== undefined,
      migrations: migrationsIn(migrations.items),
      policy: policyOf(policiesIn(policies.items)),
      node: nodeName === undefined ? null : await api.find<Node>(pathOf("nodes", { name: nodeName })),
    },
    nowMs,
  );
  if (!decision.isAllowed && !decision.isGone && !dryRun && evicted !== null)
    await carryOut(api, evicted, decision);
  return answer(decision);
}

async function carryOut(
  api: Pick<KubernetesApi, "create" | "patch">,
  { metadata: { namespace = "default", name, uid } }: Pod,
  { migration, evicted }: EvictionDecision & { isAllowed: false },
): Promise<void> {
  await api
    .patch(pathOf("pods", { namespace, name }), { metadata: { uid, annotations: { [EVICTED]: evicted } } })
    // it has gone, or is another: the next question finds that out
    .catch((error: unknown) => ignoring(error, "KUBERNETES_NOT_FOUND", "KUBERNETES_CONFLICT"));
  if (migration === null) return;
  await api
    .create(pathOf("migrations", { namespace }), manifestOf(migration))
    // asked twice at once
    .catch((error: unknown) => ignoring(error, "KUBERNETES_EXISTS"));
}

function ignoring(error: unknown, ...codes: string[]): void {
  if (!isCode(error, ...codes)) throw error;
}
