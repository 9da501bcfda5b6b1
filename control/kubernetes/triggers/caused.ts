/**
 * Migrations that nobody makes by hand: why there are, how they are called, and in which order they go. Pure. What is here is said in labels and
 * annotations of the Migration, so that it can be looked at, and holds for whatever made it.
 *
 *   eviction   a pod was evicted
 *   drain      … on a node that was cordoned: over when it is uncordoned
 *   node       a taint or condition of its node asks for it: over when that has gone
 *   request    an EvictionRequest asks for it (lifecycle.k8s.io): over when all such are withdrawn
 */
import { API_VERSION, CAUSE_LABEL, GROUP, type Migration, type MigrationSpec } from "../../api/resources.ts";
import { parseQuantity } from "../../config/quantity.ts";
import type { Node, Pod } from "../client/objects.ts";
import { memoryOf } from "../node/movable-condition.ts";

export type CauseKind = "eviction" | "drain" | "node" | "request";

export interface Cause {
  kind: CauseKind;
  /** "": not known */
  node: string;
  /** of a node, e.g. "taint karpenter.sh/disrupted"; of a request, its Eviction's name; "" for the others */
  trigger: string;
  /** of the application, as its agent has said it, or as the pod asks for; null: not known, so it goes last */
  memoryBytes: number | null;
}

export interface NewMigration {
  namespace: string;
  name: string;
  spec: MigrationSpec;
  cause: Cause;
}

const KINDS: readonly CauseKind[] = ["eviction", "drain", "node", "request"];
const PREFIX: Record<CauseKind, string> = {
  eviction: "evict",
  drain: "evict",
  node: "node",
  request: "evict",
};
const DETAIL = {
  node: `${GROUP}/node`,
  trigger: `${GROUP}/trigger`,
  memoryBytes: `${GROUP}/memory-bytes`,
} as const;
const DAY_S = 86_400;
const NAME_MAX = 200;
/** after one that failed; and so much longer after each further one */
const AGAIN_MS = 30_000;
const AGAIN_MS_MAX = 3_600_000;

/** Of a pod that is evicted. @param node its own; null: not known @param request name of the Eviction that asks for it; null: none */
export function evictionCause(pod: Pod, node: Node | null, request: string | null): Cause {
  if (request !== null) return causeFor(pod, "request", request);
  return causeFor(pod, node?.spec.unschedulable === true ? "drain" : "eviction", "");
}

export function causeFor(pod: Pod, kind: CauseKind, trigger: string): Cause {
  return { kind, trigger, node: pod.spec.nodeName ?? "", memoryBytes: memoryOf(pod) ?? requestedBytes(pod) };
}

/** The highest number that a name of a pod's Migrations has, or how many they are: some may have been removed, and others not. Pure. */
export function highestNumber(
  { metadata: { uid } }: Pod,
  migrations: readonly { metadata: { name: string } }[],
): number {
  const own = `-${uid.slice(0, 8)}`;
  const numbers = migrations.map(({ metadata: { name } }) => {
    if (name.endsWith(own)) return 1;
    const [before = "", number = "0"] = name.split(/-(?=\d+$)/);
    return before.endsWith(own) ? Number(number) : 0;
  });
  return Math.max(migrations.length, ...numbers);
}

/** The same name for the same pod, so that it is made once however often is asked. @param before {@link highestNumber} until now */
export function newMigration(
  { metadata: { namespace = "default", name, uid } }: Pod,
  before: number,
  cause: Cause,
): NewMigration {
  const count = before === 0 ? "" : `-${before + 1}`;
  return {
    namespace,
    name: `${PREFIX[cause.kind]}-${name.slice(0, NAME_MAX)}-${uid.slice(0, 8)}${count}`,
    spec: { pod: name, podUid: uid, ttlSecondsAfterFinished: DAY_S },
    cause,
  };
}

/** As it is to be created. */
export function manifestOf({ namespace, name, spec, cause }: NewMigration): object {
  const { kind, node, trigger, memoryBytes } = cause;
  return {
    apiVersion: API_VERSION,
    kind: "Migration",
    metadata: {
      name,
      namespace,
      labels: { [CAUSE_LABEL]: kind },
      annotations: {
        ...(node === "" ? {} : { [DETAIL.node]: node }),
        ...(trigger === "" ? {} : { [DETAIL.trigger]: trigger }),
        ...(memoryBytes === null ? {} : { [DETAIL.memoryBytes]: String(memoryBytes) }),
      },
    },
    spec,
  };
}

/** null: somebody made it by hand */
export function causeOf({ metadata: { labels, annotations = {} } }: Migration): Cause | null {
  const kind = KINDS.find((one) => one === labels?.[CAUSE_LABEL]);
  if (kind === undefined) return null;
  const bytes = Number(annotations[DETAIL.memoryBytes] ?? Number.NaN);
  return {
    kind,
    node: annotations[DETAIL.node] ?? "",
    trigger: annotations[DETAIL.trigger] ?? "",
    memoryBytes: Number.isFinite(bytes) ? bytes : null,
  };
}

/** Small ones first: when time runs out, most have moved. 0: it does not matter */
export function bySize(one: { memoryBytes: number | null }, other: { memoryBytes: number | null }): number {
  const [a, b] = [one.memoryBytes ?? Number.MAX_SAFE_INTEGER, other.memoryBytes ?? Number.MAX_SAFE_INTEGER];
  return a - b;
}

export function isAbout({ spec, status }: Migration, { metadata: { name, uid } }: Pod): boolean {
  const meant = (status.origin ?? status.source)?.podUid ?? spec.podUid;
  return spec.pod === name && (meant === undefined || meant === uid);
}

export function createdMs({ metadata }: Migration): number {
  return Date.parse(metadata.creationTimestamp);
}

/** … or began to be what it is now */
export function endedMs({ status, metadata }: Migration): number {
  return Date.parse(status.phaseTransitionTimestamps?.at(-1)?.timestamp ?? metadata.creationTimestamp);
}

/** When another may be tried, after the last of so many that failed. */
export function againMs(last: Migration, failures: number): number {
  return endedMs(last) + Math.min(AGAIN_MS_MAX, AGAIN_MS * 2 ** Math.min(failures - 1, 20));
}

/** It was given up since what asked for it was over, and not because it could not be: asked for again, it is made again. */
export function isWithdrawn({ status: { phase, reason } }: Migration): boolean {
  return phase === "Aborted" && WITHDRAWN_REASONS.has(reason ?? "");
}
export const UNCORDONED = "Uncordoned";
export const TRIGGER_OVER = "TriggerOver";
export const WITHDRAWN = "Withdrawn";
const WITHDRAWN_REASONS: ReadonlySet<string> = new Set([UNCORDONED, TRIGGER_OVER, WITHDRAWN]);

/** What its containers ask for, together. */
function requestedBytes({ spec }: Pod): number | null {
  const quantities = spec.containers.map(({ resources }) => {
    const { requests, limits } = (resources ?? {}) as Record<
      "requests" | "limits",
      { memory?: string } | undefined
    >;
    return bytesOf(requests?.memory ?? limits?.memory);
  });
  const known = quantities.filter((bytes) => bytes !== null);
  return known.length === 0 ? null : known.reduce((sum, bytes) => sum + bytes, 0);
}

function bytesOf(text: string | undefined): number | null {
  const billionths = text === undefined ? null : parseQuantity(text);
  return billionths === null ? null : Number(billionths) / 1e9;
}
