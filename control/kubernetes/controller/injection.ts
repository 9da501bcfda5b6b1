/** What became of a pod's injection, told by the pod as it is now, and whether somebody asked for it. Pure. */
import type { Pod } from "../client/objects.ts";
import { inject } from "../inject/inject.ts";
import { INJECT_LABEL, MADE } from "../inject/names.ts";
import { podSchema } from "../inject/pod.ts";

/** injected; missed: it could be, and is not; refused: it cannot be, as said to who made it; left: nobody asks for it */
export const INJECTIONS = ["injected", "missed", "refused", "left"] as const;
export type Injection = (typeof INJECTIONS)[number];

/** What the webhook never looks at, whatever labels say; beside this chart's own namespace. */
const SYSTEM = ["kube-system", "kube-node-lease"];
/** the injector wants names of images, and here nothing is made of it */
const OPTIONS = { image: "none", imagePullPolicy: null, proxy: { image: "none", default: "node" } } as const;
const CURE =
  "it was made before its namespace was labelled, or while the webhook could not be reached; delete it, and what made it makes it anew, injected";

/** of the pod alone; what its namespace asks for is another matter */
export interface InjectionVerdict {
  injection: Injection;
  message: string;
}

/** What is true of a pod if it is asked for. */
export function verdictOf(pod: Pod): InjectionVerdict {
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
