/**
 * Pods that are to be injected and were not: made before their namespace was labelled, or while the webhook was away, which lets them pass
 * (`failurePolicy: Ignore`). They run, and are lost with their node like any other: an Event on each says so, and a metric how many.
 */
import { aborted } from "../client/aborted.ts";
import { eventOf, report } from "../client/events.ts";
import { identityOf, type KubernetesObject } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import type { Watched } from "../client/reflector.ts";
import { Watches, type WatchesOptions } from "../client/watches.ts";
import { INJECT_LABEL } from "../inject/names.ts";
import type { SeenPod } from "./all-pods.ts";
import { INJECTIONS, type Injection, isAskedFor } from "./injection.ts";
import type { ControllerMetrics } from "./metrics.ts";

export interface MissedPodsOptions extends Omit<WatchesOptions, "silent"> {
  metrics: ControllerMetrics;
  /** all of the cluster */
  pods: Watched<SeenPod>;
  /** this chart's own namespace */
  namespace: string;
}

/** Works until the signal is aborted. */
export async function reportMissedPods(options: MissedPodsOptions, signal: AbortSignal): Promise<void> {
  const { api, metrics, pods, namespace: own, onProblem } = options;
  const watches = new Watches({ api, silent: metrics.silent, onProblem });
  let telling: Promise<void> = Promise.resolve();
  const isDue = (pod: SeenPod): boolean =>
    isAskedFor(
      pod.metadata,
      namespaces.get(pod.metadata.namespace ?? "")?.metadata.labels?.[INJECT_LABEL],
      own,
    );
  const tell = (pod: SeenPod): void => {
    const { injection } = pod.verdict;
    if ((injection !== "missed" && injection !== "refused") || !namespaces.isSynced || !isDue(pod)) return;
    // one after the other: there may be thousands
    telling = telling.then(() =>
      signal.aborted
        ? undefined
        : report(api, [warningOf(pod)], (error) => onProblem("an Event is not written", error)),
    );
  };
  const namespaces = watches.open<KubernetesObject>("namespaces", {
    path: pathOf("namespaces"),
    query: { labelSelector: INJECT_LABEL },
    keep: ({ metadata }) => ({ metadata: identityOf(metadata) }),
    onChange: (now, before) => {
      const label = now?.metadata.labels?.[INJECT_LABEL];
      if (now === null || label === before?.metadata.labels?.[INJECT_LABEL]) return;
      for (const pod of pods.objects.values()) if (pod.metadata.namespace === now.metadata.name) tell(pod);
    },
  });
  await Promise.race([namespaces.synced.catch(() => {}), aborted(signal)]);
  const unfollow = pods.follow((now, before) => {
    const isAsBefore = before?.metadata.uid === now?.metadata.uid && before?.verdict === now?.verdict;
    if (now !== null && !isAsBefore) tell(now);
  });
  metrics.injections = () => {
    const counts = new Map<Injection, number>(INJECTIONS.map((one) => [one, 0]));
    for (const pod of pods.objects.values()) {
      const { injection } = pod.verdict;
      const counted = injection === "injected" || isDue(pod) ? injection : "left";
      counts.set(counted, (counts.get(counted) ?? 0) + 1);
    }
    return counts;
  };
  await aborted(signal);
  metrics.injections = () => new Map();
  unfollow();
  await Promise.all([watches.close(), telling]);
}

function warningOf({ metadata, verdict: { injection, message } }: SeenPod): object {
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
