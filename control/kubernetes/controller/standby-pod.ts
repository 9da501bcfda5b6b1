/** The pod that waits for an application: the source's, pinned elsewhere, and invisible to whatever selects pods by labels. */
import { createHash } from "node:crypto";
import {
  ANNOTATION,
  DELETION_COST,
  MIGRATION_LABEL,
  type Migration,
  type MigrationSpec,
  SERVING,
} from "../../api/resources.ts";
import {
  type Affinity,
  controllerOf,
  type NodeSelectorRequirement,
  type OwnerReference,
  type Pod,
  type PodSpec,
} from "../client/objects.ts";

export interface PodManifest {
  apiVersion: "v1";
  kind: "Pod";
  metadata: {
    name: string;
    namespace: string;
    labels: Record<string, string>;
    annotations: Record<string, string>;
  };
  spec: PodSpec;
}

/** What a standby gets with the application. */
export interface Becomes {
  labels: Record<string, string>;
  /** null: a pod of its own */
  owner: OwnerReference | null;
}

/** among equally ready pods the last that a ReplicaSet deletes */
const COST_MOST = "2147483647";
/** Kubernetes' own for generated names (apimachinery, pkg/util/rand): no vowels, so no words */
const ALPHABET = "bcdfghjklmnpqrstvwxz2456789";
const SUFFIX = 5;
const NAME_MAX = 253;
/** of the pod that was, by the network or by kubectl */
const NOT_COPIED =
  /^(kubectl\.kubernetes\.io\/last-applied-configuration|controller\.kubernetes\.io\/pod-deletion-cost|kubernetes\.io\/config\..*|([\w-]+\.)*(cni\.projectcalico\.org|cni\.cncf\.io|ovn\.org)\/.*)$/;

/** The same for the same Migration and serial: a controller that died after it made the pod finds it by this name. */
export function standbyName({ metadata, spec, status }: Migration, ownerName: string | null): string {
  const digest = createHash("sha256")
    .update(`${metadata.uid}/${status.serial ?? 1}`)
    .digest();
  const suffix = [...digest.subarray(0, SUFFIX)].map((byte) => ALPHABET[byte % ALPHABET.length]).join("");
  const stem = (ownerName ?? stemOf(spec.pod)).slice(0, NAME_MAX - SUFFIX - 1);
  return `${stem.replace(/[-.]+$/, "")}-${suffix}`;
}

/** So that the name of a pod that moves often does not grow. */
function stemOf(pod: string): string {
  return pod.replace(new RegExp(`-[${ALPHABET}]{${SUFFIX}}$`), "") || pod;
}

export function workloadOf({ metadata }: Pod): string {
  return metadata.annotations?.[ANNOTATION.workload] ?? `${metadata.namespace ?? "default"}.${metadata.name}`;
}

export function isStandby({ metadata }: Pod): boolean {
  return metadata.annotations?.[ANNOTATION.standby] === "true";
}

export function becomesOf({ metadata }: Pod): Becomes | null {
  const text = metadata.annotations?.[ANNOTATION.becomes];
  if (text === undefined) return null;
  try {
    const { labels = {}, owner = null } = JSON.parse(text) as Partial<Becomes>;
    return { labels, owner };
  } catch {
    return null;
  }
}

export function standbyPod(source: Pod, migration: Migration): PodManifest {
  const { namespace = "default", labels = {}, annotations = {} } = source.metadata;
  const { nodeName, schedulingGates, ephemeralContainers, nodeSelector, affinity, ...spec } = source.spec;
  const { [MIGRATION_LABEL]: _, ...becomesLabels } = labels;
  const owner = controllerOf(source);
  const becomes: Becomes = { labels: becomesLabels, owner };
  const kept = Object.entries(annotations).filter(([key]) => !NOT_COPIED.test(key));
  const gates = source.spec.readinessGates ?? [];
  const scheduling = schedulingOf(source);
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      name: standbyName(migration, owner?.name ?? null),
      namespace,
      // no label of the source: neither its ReplicaSet nor a Service or a budget may count it
      labels: { [MIGRATION_LABEL]: migration.metadata.uid },
      annotations: {
        ...Object.fromEntries(kept),
        [ANNOTATION.standby]: "true",
        [ANNOTATION.workload]: workloadOf(source),
        [ANNOTATION.becomes]: JSON.stringify(becomes),
        [ANNOTATION.scheduling]: JSON.stringify(scheduling),
        [DELETION_COST]: COST_MOST,
      },
    },
    spec: {
      ...spec,
      ...selectorOf(scheduling, migration.spec),
      affinity: pinned(scheduling.affinity ?? {}, nodeName ?? "", migration.spec.target?.node),
      readinessGates: gates.some(({ conditionType }) => conditionType === SERVING)
        ? gates
        : [...gates, { conditionType: SERVING }],
    },
  };
}

type Scheduling = Pick<PodSpec, "nodeSelector" | "affinity">;

/** As somebody has written it: a pod that was moved before is pinned to where it went. */
function schedulingOf({ metadata, spec: { nodeSelector, affinity } }: Pod): Scheduling {
  const kept = metadata.annotations?.[ANNOTATION.scheduling];
  if (kept !== undefined) {
    try {
      return JSON.parse(kept) as Scheduling;
    } catch {
      // somebody has changed it: what there is, then
    }
  }
  return {
    ...(nodeSelector === undefined ? {} : { nodeSelector }),
    ...(affinity === undefined ? {} : { affinity }),
  };
}

function selectorOf({ nodeSelector }: Scheduling, { target }: MigrationSpec): Pick<PodSpec, "nodeSelector"> {
  const merged = { ...nodeSelector, ...target?.nodeSelector };
  return Object.keys(merged).length === 0 ? {} : { nodeSelector: merged };
}

/** On the target, or anywhere but where the source is. By affinity, so that the scheduler still looks at everything else. */
function pinned(affinity: Affinity, sourceNode: string, targetNode: string | undefined): Affinity {
  const pin: NodeSelectorRequirement =
    targetNode === undefined
      ? { key: "metadata.name", operator: "NotIn", values: [sourceNode] }
      : { key: "metadata.name", operator: "In", values: [targetNode] };
  const { nodeAffinity = {} } = affinity;
  const terms = nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution?.nodeSelectorTerms ?? [];
  // one of the terms has to hold, so each gets it
  const next = (terms.length === 0 ? [{}] : terms).map((term) => ({
    ...term,
    matchFields: [...(term.matchFields ?? []), pin],
  }));
  return {
    ...affinity,
    nodeAffinity: {
      ...nodeAffinity,
      requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: next },
    },
  };
}
