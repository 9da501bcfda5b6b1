/** The pod that waits for an application: the source's, pinned elsewhere, and invisible to whatever selects pods by labels. */
import { createHash } from "node:crypto";
import { ANNOTATION, DELETION_COST, MIGRATION_LABEL, type Migration, SERVING } from "../../api/resources.ts";
import {
  type Affinity,
  controllerOf,
  type NodeSelectorRequirement,
  type OwnerReference,
  type Pod,
  type PodSpec,
} from "../client/objects.ts";
import { withoutSidecar } from "../inject/inject.ts";

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

/** of pods made anew */
const TRIES_ON_TARGET = 2;
/** of one pod of a StatefulSet alone, or of one template */
const OWN_LABELS = new Set([
  "statefulset.kubernetes.io/pod-name",
  "apps.kubernetes.io/pod-index",
  "controller-revision-hash",
  MIGRATION_LABEL,
]);
/** among equally ready pods the last that a ReplicaSet deletes */
const COST_MOST = "2147483647";
/** Kubernetes' own for generated names (apimachinery, pkg/util/rand): no vowels, so no words */
const ALPHABET = "bcdfghjklmnpqrstvwxz2456789";
const SUFFIX = 5;
const NAME_MAX = 253;
const LABEL_MAX = 63;
/**
 * Of the pod that was: by the network (what it has given to it), by kubectl, by who asked for its eviction, or by the controller. What a pod
 * asks of the network is its own, but for an address that the other pod has until the end.
 */
const NOT_COPIED = new Set([
  "holdfast.dev/evicted",
  ANNOTATION.unseen,
  ANNOTATION.silent,
  "kubectl.kubernetes.io/last-applied-configuration",
  DELETION_COST,
  // Multus; the second is its older name
  "k8s.v1.cni.cncf.io/network-status",
  "k8s.v1.cni.cncf.io/networks-status",
  "k8s.ovn.org/pod-networks",
  "cni.projectcalico.org/podIP",
  "cni.projectcalico.org/podIPs",
  "cni.projectcalico.org/containerID",
  "cni.projectcalico.org/ipAddrs",
  "cni.projectcalico.org/ipAddrsNoIpam",
]);
/** … by its kubelet: where a static pod is from */
const KUBELETS = "kubernetes.io/config.";

/** The same for the same Migration and serial: a controller that died after it made the pod finds it by this name. */
export function standbyName({ metadata, spec, status }: Migration, owner: OwnerReference | null): string {
  const digest = createHash("sha256")
    .update(`${metadata.uid}/${status.serial ?? 1}`)
    .digest();
  const suffix = [...digest.subarray(0, SUFFIX)].map((byte) => ALPHABET[byte % ALPHABET.length]).join("");
  // one that goes on to a pod of the source's name has that in its own
  const kept = owner === null || isStatefulSet(owner) ? stemOf(spec.pod) : owner.name;
  const stem = kept.slice(0, NAME_MAX - SUFFIX - 1);
  return `${stem.replace(/[-.]+$/, "")}-${suffix}`;
}

/** So that the name of a pod that moves often does not grow. */
function stemOf(pod: string): string {
  return pod.replace(new RegExp(`-[${ALPHABET}]{${SUFFIX}}$`), "") || pod;
}

export function isStatefulSet({ apiVersion, kind }: OwnerReference): boolean {
  return kind === "StatefulSet" && apiVersion.startsWith("apps/");
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
  const kept = Object.entries(annotations).filter(
    ([key]) => !NOT_COPIED.has(key) && !key.startsWith(KUBELETS),
  );
  const scheduling = schedulingOf(source);
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      name: standbyName(migration, owner),
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
        ...(owner !== null && isStatefulSet(owner) ? { [ANNOTATION.between]: "true" } : {}),
      },
    },
    spec: {
      ...spec,
      ...hostnameOf(source),
      ...placed(scheduling, pinOf(migration, source, owner)),
      readinessGates: gated(spec),
    },
  };
}

/** The application goes on with the name that it has asked for once (gethostname(2)): by the pod's, without another. */
function hostnameOf({ metadata, spec }: Pod): Pick<PodSpec, "hostname"> {
  const name = spec.hostname ?? metadata.name;
  // kubelet's own rule for long ones; a name with dots is no label, and cannot be asked for
  const hostname = name.slice(0, LABEL_MAX).replace(/[-.]+$/, "");
  return hostname.includes(".") ? {} : { hostname };
}

/** What is asked for of the node, beside what the pod asks for itself. */
interface Pin {
  /** all of them */
  names: NodeSelectorRequirement[];
  labels: Record<string, string>;
  /** not where a pod with these labels is; null: wherever others are */
  apartFrom: Record<string, string> | null;
}

/**
 * On the target, or anywhere but where the source is. One that only keeps the application until its own pod is made anew leaves the
 * target to that.
 */
function pinOf(
  { spec: { target = {} } }: Migration,
  { metadata, spec: { nodeName = "" } }: Pod,
  owner: OwnerReference | null,
): Pin {
  const { node, nodeSelector = {} } = target;
  if (owner !== null && isStatefulSet(owner))
    return { names: notOn(nodeName, node), labels: {}, apartFrom: siblingsOf(metadata) };
  const names = node === undefined ? notOn(nodeName) : on(node);
  return { names, labels: nodeSelector, apartFrom: null };
}

function on(node: string): NodeSelectorRequirement[] {
  return [{ key: "metadata.name", operator: "In", values: [node] }];
}

/** One each: the API server takes no more than one value of a field. */
function notOn(...nodes: (string | undefined)[]): NodeSelectorRequirement[] {
  return nodes
    .filter((node) => node !== undefined)
    .map((node) => ({ key: "metadata.name", operator: "NotIn", values: [node] }));
}

/** As much of a pod that is about to be made as is changed in it. */
export interface PodDraft {
  metadata: Partial<
    Pick<Pod["metadata"], "name" | "namespace" | "labels" | "annotations" | "ownerReferences">
  >;
  spec: PodSpec;
}

/**
 * A pod that a StatefulSet makes anew, as the standby of the application that is in another pod meanwhile. Where it could not be had on
 * the target, it may be on any other node: an application that waits is not there for good.
 * @param waiting the pod that has the application; null: it has gone
 */
export function ordinalPod<Draft extends PodDraft>(
  draft: Draft,
  migration: Migration,
  waiting: Pod | null,
): Draft {
  const { metadata, spec } = followed(draft, waiting);
  const { origin, source, attempt = 1 } = migration.status;
  const { node, nodeSelector = {} } = migration.spec.target ?? {};
  const isInVain = attempt - (origin?.attempt ?? attempt) >= TRIES_ON_TARGET;
  const apartFrom = siblingsOf(metadata);
  let pin: Pin = { names: notOn(source?.node, origin?.node), labels: nodeSelector, apartFrom };
  if (node !== undefined) pin = { names: on(node), labels: {}, apartFrom };
  if (isInVain) pin = { names: notOn(source?.node), labels: {}, apartFrom };
  const scheduling = asWritten(spec);
  return {
    ...draft,
    metadata: {
      ...metadata,
      labels: { ...metadata.labels, [MIGRATION_LABEL]: migration.metadata.uid },
      annotations: {
        ...metadata.annotations,
        [ANNOTATION.standby]: "true",
        [ANNOTATION.scheduling]: JSON.stringify(scheduling),
      },
    },
    spec: { ...spec, ...placed(scheduling, pin), readinessGates: gated(spec) },
  };
}

/**
 * Who holds clients' sockets stays as it is, whatever is decided of pods that are made today: they are held already. So does where the proxy
 * is: in forward mode a sidecar has clients at the pod's address, and not at the node's; in gateway mode gateways would need a way into
 * the pod that a NetworkPolicy of before does not give.
 */
function followed({ metadata, spec }: PodDraft, waiting: Pod | null): PodDraft {
  if (waiting === null) return { metadata, spec };
  const { [ANNOTATION.mode]: mode = "forward", [ANNOTATION.proxy]: proxy = "node" } =
    waiting.metadata.annotations ?? {};
  const annotations = { ...metadata.annotations, [ANNOTATION.mode]: mode };
  if (proxy !== "node") return { metadata: { ...metadata, annotations }, spec };
  const initContainers = withoutSidecar(spec.initContainers ?? []);
  return {
    metadata: { ...metadata, annotations: { ...annotations, [ANNOTATION.proxy]: "node" } },
    spec: { ...spec, ...(spec.initContainers === undefined ? {} : { initContainers }) },
  };
}

/** Two of one template cannot be on one node: its ports are theirs. */
export function listensAtNode({ annotations = {} }: PodDraft["metadata"]): boolean {
  return annotations[ANNOTATION.mode] !== "gateway" && annotations[ANNOTATION.listen] !== "pod";
}

/** Labels of the pods that listen at the same ports of a node. null: they do not */
function siblingsOf({ labels = {}, annotations = {} }: PodDraft["metadata"]): Record<string, string> | null {
  if (!listensAtNode({ annotations })) return null;
  const shared = Object.entries(labels).filter(([key]) => !OWN_LABELS.has(key));
  return shared.length === 0 ? null : Object.fromEntries(shared);
}

function gated({ readinessGates = [] }: PodSpec): { conditionType: string }[] {
  return readinessGates.some(({ conditionType }) => conditionType === SERVING)
    ? readinessGates
    : [...readinessGates, { conditionType: SERVING }];
}

type Scheduling = Pick<PodSpec, "nodeSelector" | "affinity">;

/** As somebody has written it: a pod that was moved before is pinned to where it went. */
export function schedulingOf({ metadata, spec }: Pod): Scheduling {
  const kept = metadata.annotations?.[ANNOTATION.scheduling];
  if (kept !== undefined) {
    try {
      return JSON.parse(kept) as Scheduling;
    } catch {
      // somebody has changed it: what there is, then
    }
  }
  return asWritten(spec);
}

function asWritten({ nodeSelector, affinity }: PodSpec): Scheduling {
  return {
    ...(nodeSelector === undefined ? {} : { nodeSelector }),
    ...(affinity === undefined ? {} : { affinity }),
  };
}

/** By affinity, so that the scheduler still looks at everything else. */
function placed({ nodeSelector, affinity = {} }: Scheduling, { names, labels, apartFrom }: Pin): Scheduling {
  const merged = { ...nodeSelector, ...labels };
  const { nodeAffinity = {} } = affinity;
  const terms = nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution?.nodeSelectorTerms ?? [];
  // one of the terms has to hold, so each gets it
  const next = (terms.length === 0 ? [{}] : terms).map((term) => ({
    ...term,
    matchFields: [...(term.matchFields ?? []), ...names],
  }));
  return {
    ...(Object.keys(merged).length === 0 ? {} : { nodeSelector: merged }),
    affinity: {
      ...affinity,
      nodeAffinity: {
        ...nodeAffinity,
        requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: next },
      },
      ...(apartFrom === null ? {} : { podAntiAffinity: apart(affinity.podAntiAffinity ?? {}, apartFrom) }),
    },
  };
}

function apart(
  podAntiAffinity: NonNullable<Affinity["podAntiAffinity"]>,
  matchLabels: Record<string, string>,
): NonNullable<Affinity["podAntiAffinity"]> {
  const required = podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution ?? [];
  return {
    ...podAntiAffinity,
    requiredDuringSchedulingIgnoredDuringExecution: [
      ...required,
      { labelSelector: { matchLabels }, topologyKey: "kubernetes.io/hostname" },
    ],
  };
}
