/**
 * All pods of the cluster, watched once for every part of the controller that looks at them. There may be thousands: a kilobyte of each is
 * kept, and what is decided by the whole of a pod is decided when it is read.
 */

import { ISTIO_STATUS } from "../../api/mesh.ts";
import { identityOf, type Pod } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import type { Reflector } from "../client/reflector.ts";
import type { Watches } from "../client/watches.ts";
import { INJECT_LABEL, MADE, SETTINGS } from "../inject/names.ts";
import { type InjectionVerdict, verdictOf } from "./injection.ts";

/** A pod, as far as it is kept. */
export interface SeenPod extends Pod {
  /** the same object for as long as it is the same verdict */
  verdict: InjectionVerdict;
}

/** and not what injection notes of the application, which may be long */
const KEPT = new Set<string>([...Object.values(SETTINGS), MADE.injected, ISTIO_STATUS]);

export function watchAllPods(watches: Watches): Reflector<SeenPod, Pod> {
  return watches.open<SeenPod, Pod>("all pods", { path: pathOf("pods"), keep: seen });
}

/** What is decided of a pod stays, as long as it is that pod with that label. */
function seen(pod: Pod, before: SeenPod | null): SeenPod {
  const { metadata, spec, status } = pod;
  const isSame =
    before?.metadata.uid === metadata.uid &&
    before.metadata.labels?.[INJECT_LABEL] === metadata.labels?.[INJECT_LABEL] &&
    !/^(Succeeded|Failed)$/.test(status?.phase ?? "");
  const ours = Object.entries(metadata.annotations ?? {}).filter(([key]) => KEPT.has(key));
  return {
    metadata: { ...identityOf(metadata), annotations: Object.fromEntries(ours) },
    spec: {
      ...(spec.nodeName === undefined ? {} : { nodeName: spec.nodeName }),
      containers: spec.containers.map(({ name, ports }) =>
        ports === undefined ? { name } : { name, ports },
      ),
    },
    status: {
      ...(status?.phase === undefined ? {} : { phase: status.phase }),
      ...(status?.podIP === undefined ? {} : { podIP: status.podIP }),
      conditions: (status?.conditions ?? []).filter(({ type }) => type === "Ready"),
    },
    verdict: isSame ? before.verdict : verdictOf(pod),
  };
}
