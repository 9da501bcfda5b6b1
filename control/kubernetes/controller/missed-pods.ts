/**
 * Pods that are to be injected and were not: made before their namespace was labelled, or while the webhook was away, which lets them pass
 * (`failurePolicy: Ignore`). They run, and are lost with their node like any other: an Event on each says so, and a metric how many.
 *
 * Every pod of the cluster is watched, and a hundred bytes of each are kept.
 */
import { aborted } from "../client/aborted.ts";
import type { KubernetesApi } from "../client/api.ts";
import { eventOf, report } from "../client/events.ts";
import { identityOf, type KubernetesObject, type Pod } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import { Reflector } from "../client/reflector.ts";
import { inject } from "../inject/inject.ts";
import { INJECT_LABEL, MADE } from "../inject/names.ts";
import { podSchema } from "../inject/pod.ts";
import type { ControllerMetrics } from "./metrics.ts";

/** injected; missed: it could be, and is not; refused: it cannot be, as said to who made it; left: nobody asks for it */
export const INJECTIONS = ["injected", "missed", "refused", "left"] as const;
export type Injection = (typeof INJECTIONS)[number];

/** What the webhook never looks at, whatever labels say; beside this chart's own namespace. */
const SYSTEM = ["kube-system", "kube-node-lease"];
/** the injector wants names of images, and here nothing is made of it */
const OPTIONS = { image: "none", imagePullPolicy: null, proxy: { image: "none", default: "node" } } as const;
const CURE =
  "it was made before its namespace was labelled, or while the webhook could not be reached; delete it, and what made it makes it anew, injected";

/** A pod, as far as it is kept. */
interface Seen extends KubernetesObject {
  /** of the pod alone; what the namespace asks for is another matter */
  verdict: { injection: "injected" | "missed" | "refused" | "left"; message: string };
}

export interface MissedPodsOptions {
  api: KubernetesApi;
  metrics: ControllerMetrics;
  /** this chart's own namespace */
  namespace: string;
  onProblem(what: string, error: unknown): void;
}

/** What is true of a pod if it is asked for. */
export function verdictOf(pod: Pod): Seen["verdict"] {
  const { metadata, status } = pod;
  if (metadata.annotations?.[MADE.injected] !== undefined) return { injection: "injected", message: "" };
  if (status?.phase === "Succeeded" || status?.phase === "Failed") return { injection: "left", message: "" };
  const parsed = podSchema.safeParse(pod);
  // of a later version
  if (!parsed.success) return { injection: "left", message: "" };
  const outcome = inject(parsed.data, OPTIONS);
  if (outcome.kind === "injected") return { injection: "missed", message: CURE };
  if (outcome.kind === "unchanged") return { injection: "left", message: "" };
  return { injection: "refused", message: `${outcome.problem.at}: ${outcome.problem.message}` };
}

/** Does somebody ask for it: as the webhook configuration's selectors (charts/holdfast/templates/admission.yaml). */
export function isAskedFor(
  { namespace = "", labels = {} }: { namespace?: string; labels?: Record<string, string> },
  namespaceLabel: string | undefined,
  own: string,
): boolean {
  if ([...SYSTEM, own].includes(namespace)) return false;
  const label = labels[INJECT_LABEL];
  return namespaceLabel === "enabled"
    ? label !== "disabled"
    : namespaceLabel !== "disabled" && label === "enabled";
}

/** Works until the signal is aborted. */
export async function reportMissedPods(options: MissedPodsOptions, signal: AbortSignal): Promise<void> {
  const { api, metrics, namespace: own, onProblem } = options;
  let telling: Promise<void> = Promise.resolve();
  let pods: Reflector<Seen, Pod> | null = null;
  const isDue = (pod: Seen): boolean =>
    isAskedFor(
      pod.metadata,
      namespaces.get(pod.metadata.namespace ?? "")?.metadata.labels?.[INJECT_LABEL],
      own,
    );
  const tell = (pod: Seen): void => {
    const { injection } = pod.verdict;
    if ((injection !== "missed" && injection !== "refused") || !namespaces.isSynced || !isDue(pod)) return;
    // one after the other: there may be thousands
    telling = telling.then(() =>
      signal.aborted
        ? undefined
        : report(api, [warningOf(pod)], (error) => onProblem("an Event is not written", error)),
    );
  };
  const namespaces = new Reflector<KubernetesObject>({
    api,
    path: pathOf("namespaces"),
    query: { labelSelector: INJECT_LABEL },
    keep: ({ metadata }) => ({ metadata: identityOf(metadata) }),
    onChange: (now, before) => {
      const label = now?.metadata.labels?.[INJECT_LABEL];
      if (now === null || label === before?.metadata.labels?.[INJECT_LABEL]) return;
      for (const pod of pods?.objects.values() ?? [])
        if (pod.metadata.namespace === now.metadata.name) tell(pod);
    },
    onProblem: (error) => onProblem("namespaces are not seen", error),
  });
  await Promise.race([namespaces.synced.catch(() => {}), aborted(signal)]);
  const all = new Reflector<Seen, Pod>({
    api,
    path: pathOf("pods"),
    keep: seen,
    onChange: (now, before) => {
      const isAsBefore = before?.metadata.uid === now?.metadata.uid && before?.verdict === now?.verdict;
      if (now !== null && !isAsBefore) tell(now);
    },
    onProblem: (error) => onProblem("pods are not seen", error),
  });
  pods = all;
  const stops = [
    metrics.watches("namespaces", () => namespaces.secondsSinceLastEvent()),
    metrics.watches("all pods", () => all.secondsSinceLastEvent()),
  ];
  metrics.injections = () => {
    const counts = new Map<Injection, number>(INJECTIONS.map((one) => [one, 0]));
    for (const pod of all.objects.values()) {
      const { injection } = pod.verdict;
      const counted = injection === "injected" || isDue(pod) ? injection : "left";
      counts.set(counted, (counts.get(counted) ?? 0) + 1);
    }
    return counts;
  };
  await aborted(signal);
  metrics.injections = () => new Map();
  for (const stop of stops) stop();
  await Promise.all([namespaces.close(), all.close(), telling]);
}

/** What is decided of a pod stays, as long as it is that pod with that label. */
function seen(pod: Pod, before: Seen | null): Seen {
  const { labels, ...metadata } = identityOf(pod.metadata);
  const label = labels?.[INJECT_LABEL];
  const isSame =
    before?.metadata.uid === metadata.uid &&
    before.metadata.labels?.[INJECT_LABEL] === label &&
    !/^(Succeeded|Failed)$/.test(pod.status?.phase ?? "");
  return {
    metadata: { ...metadata, ...(label === undefined ? {} : { labels: { [INJECT_LABEL]: label } }) },
    verdict: isSame ? before.verdict : verdictOf(pod),
  };
}

function warningOf({ metadata, verdict: { injection, message } }: Seen): object {
  const { name, namespace = "", uid } = metadata;
  return eventOf({
    object: { apiVersion: "v1", kind: "Pod", name, namespace, uid },
    type: "Warning",
    reason: injection === "missed" ? "HoldfastInjectionMissed" : "HoldfastInjectionRefused",
    message: `not injected, so it does not move: ${message}`,
    key: `${uid}/${injection}/${message}`,
    nowMs: Date.now(),
  });
}
