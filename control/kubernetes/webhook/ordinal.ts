/**
 * Answers the API server's question about a pod that a StatefulSet is making: where a Migration has its application in another pod
 * meanwhile, it is made as the standby of that, on the node that the Migration wants. Every other pod is let through as it is, but that
 * of a dry run by which the controller finds out whether the API server asks here at all: it comes back marked.
 *
 * Apart from what injects, which decides by the pod alone: this looks Migrations up.
 */
import * as z from "zod";
import { ANNOTATION, isFinal, migrationsIn } from "../../api/resources.ts";
import type { KubernetesApi } from "../client/api.ts";
import type { KubernetesObject, Pod } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import { isStandby, isStatefulSet, ordinalPod } from "../controller/standby-pod.ts";
import { type Answer, answerOf, parseReview, patchTo } from "./review.ts";

/** As much of a pod as this needs; the rest is Kubernetes' and passes through. */
const podSchema = z.looseObject({
  metadata: z.looseObject({
    name: z.string().optional(),
    labels: z.record(z.string(), z.string()).optional(),
    annotations: z.record(z.string(), z.string()).optional(),
    ownerReferences: z
      .array(
        z.looseObject({
          apiVersion: z.string(),
          kind: z.string(),
          name: z.string(),
          controller: z.boolean().optional(),
        }),
      )
      .optional(),
  }),
  spec: z.looseObject({}),
});

/**
 * @param body the AdmissionReview
 * @throws HoldfastError `REQUEST_INVALID`: it is none; or of the client, so that the webhook's failurePolicy decides
 */
export async function answerOrdinal(
  api: Pick<KubernetesApi, "list" | "find">,
  body: string,
): Promise<Answer> {
  const { request } = parseReview(body);
  const { namespace, object } = request;
  const asItIs = (reason: string): Answer => answerOf(request, "unchanged", reason, {});
  const parsed = podSchema.safeParse(object);
  if (!parsed.success) return asItIs("it is no pod with metadata and a spec");
  const pod = object as Pod;
  const owner = pod.metadata.ownerReferences?.find(({ controller }) => controller === true);
  if (owner === undefined || !isStatefulSet(owner)) return asItIs("it is no StatefulSet's");
  if (isStandby(pod)) return asItIs("it is a standby already");
  if (pod.metadata.annotations?.[ANNOTATION.seen] === "false") {
    const annotations = { ...pod.metadata.annotations, [ANNOTATION.seen]: "true" };
    const seen = { ...pod, metadata: { ...pod.metadata, annotations } };
    return answerOf(request, "unchanged", "the controller asks whether it is seen", patchTo(object, seen));
  }
  const { items } = await api.list<KubernetesObject>(pathOf("migrations", { namespace }));
  const found = migrationsIn(items).find(
    ({ status }) => status.origin?.pod === pod.metadata.name && !isFinal(status.phase),
  );
  if (found === undefined) return asItIs("no application waits for it");
  const name = found.status.source?.pod;
  const waiting = name === undefined ? null : await api.find<Pod>(pathOf("pods", { namespace, name }));
  return answerOf(request, "injected", null, patchTo(object, ordinalPod(pod, found, waiting)));
}
