/** What we read of Kubernetes' own objects; the rest is carried along as it came. Names are Kubernetes'. */

export interface ObjectMeta {
  name: string;
  namespace?: string;
  uid: string;
  resourceVersion: string;
  generation?: number;
  creationTimestamp: string;
  deletionTimestamp?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences?: OwnerReference[];
  finalizers?: string[];
}

/** What is kept of an object of which there may be thousands. */
export function identityOf(metadata: ObjectMeta): ObjectMeta {
  const { name, namespace, uid, resourceVersion, creationTimestamp, deletionTimestamp, labels } = metadata;
  return {
    name,
    uid,
    resourceVersion,
    creationTimestamp,
    ...(namespace === undefined ? {} : { namespace }),
    ...(deletionTimestamp === undefined ? {} : { deletionTimestamp }),
    ...(labels === undefined ? {} : { labels }),
  };
}

export interface OwnerReference {
  apiVersion: string;
  kind: string;
  name: string;
  uid: string;
  controller?: boolean;
  blockOwnerDeletion?: boolean;
}

export interface KubernetesObject {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
}

export interface PodCondition {
  type: string;
  status: "True" | "False" | "Unknown";
  reason?: string;
  message?: string;
  lastTransitionTime?: string;
}

export interface ContainerStatus {
  name: string;
  ready?: boolean;
  started?: boolean;
  restartCount?: number;
  containerID?: string;
  state?: {
    waiting?: { reason?: string; message?: string };
    running?: { startedAt?: string };
    terminated?: { exitCode: number; reason?: string; message?: string };
  };
}

/** one of its keys says what it is: `emptyDir`, `configMap`, … */
export interface Volume {
  name: string;
  persistentVolumeClaim?: { claimName: string; readOnly?: boolean };
  [source: string]: unknown;
}

export interface Container {
  name: string;
  restartPolicy?: string;
  lifecycle?: { postStart?: unknown } | null;
  [field: string]: unknown;
}

export interface NodeSelectorRequirement {
  key: string;
  operator: string;
  values?: string[];
}

export interface NodeSelectorTerm {
  matchExpressions?: NodeSelectorRequirement[];
  matchFields?: NodeSelectorRequirement[];
}

export interface Affinity {
  nodeAffinity?: {
    requiredDuringSchedulingIgnoredDuringExecution?: { nodeSelectorTerms: NodeSelectorTerm[] };
    [field: string]: unknown;
  };
  podAntiAffinity?: {
    requiredDuringSchedulingIgnoredDuringExecution?: unknown[];
    [field: string]: unknown;
  };
  [field: string]: unknown;
}

export interface PodSpec {
  nodeName?: string;
  hostname?: string;
  nodeSelector?: Record<string, string>;
  affinity?: Affinity;
  hostNetwork?: boolean;
  containers: Container[];
  initContainers?: Container[];
  ephemeralContainers?: unknown[];
  volumes?: Volume[];
  readinessGates?: { conditionType: string }[];
  schedulingGates?: unknown[];
  tolerations?: Toleration[];
  [field: string]: unknown;
}

export interface Pod extends KubernetesObject {
  spec: PodSpec;
  status?: {
    phase?: string;
    reason?: string;
    message?: string;
    podIP?: string;
    conditions?: PodCondition[];
    containerStatuses?: ContainerStatus[];
    initContainerStatuses?: ContainerStatus[];
  };
}

export interface LabelSelector {
  matchLabels?: Record<string, string>;
  matchExpressions?: { key: string; operator: string; values?: string[] }[];
}

export interface ReplicaSet extends KubernetesObject {
  spec: { replicas?: number; selector: LabelSelector };
  status?: { replicas?: number; readyReplicas?: number; observedGeneration?: number };
}

export interface Deployment extends KubernetesObject {
  spec: { replicas?: number; paused?: boolean; selector: LabelSelector };
  status?: {
    observedGeneration?: number;
    replicas?: number;
    updatedReplicas?: number;
    readyReplicas?: number;
  };
}

export interface StatefulSet extends KubernetesObject {
  spec: {
    replicas?: number;
    ordinals?: { start?: number };
    selector: LabelSelector;
    podManagementPolicy?: "OrderedReady" | "Parallel";
    updateStrategy?: { type?: "RollingUpdate" | "OnDelete"; rollingUpdate?: { partition?: number } };
    template: {
      metadata?: { labels?: Record<string, string>; annotations?: Record<string, string> };
      spec: PodSpec;
    };
    volumeClaimTemplates?: { metadata: { name: string } }[];
  };
  status?: {
    observedGeneration?: number;
    replicas?: number;
    updatedReplicas?: number;
    currentRevision?: string;
    updateRevision?: string;
  };
}

export interface Taint {
  key: string;
  value?: string;
  effect: string;
}

export interface Toleration {
  key?: string;
  operator?: string;
  value?: string;
  effect?: string;
}

export interface Node extends KubernetesObject {
  spec: { unschedulable?: boolean; taints?: Taint[] };
  status?: { conditions?: PodCondition[] };
}

export interface PersistentVolume extends KubernetesObject {
  spec: { nodeAffinity?: { required?: { nodeSelectorTerms: NodeSelectorTerm[] } } };
}

export interface PersistentVolumeClaim extends KubernetesObject {
  spec: { accessModes?: string[]; volumeName?: string };
}

export interface Service extends KubernetesObject {
  spec: {
    selector?: Record<string, string>;
    ports?: {
      name?: string;
      port: number;
      protocol?: string;
      appProtocol?: string;
      targetPort?: number | string;
    }[];
    type?: string;
    clusterIP?: string;
  };
}

export interface EndpointSlice extends KubernetesObject {
  addressType: string;
  endpoints?: unknown[];
  ports?: unknown[];
}

export interface ConfigMap extends KubernetesObject {
  data?: Record<string, string>;
}

/** "True", "False", "Unknown", or null where nobody has written it */
export function conditionOf(
  object: { status?: { conditions?: PodCondition[] } } | null,
  type: string,
): PodCondition | null {
  return object?.status?.conditions?.find((condition) => condition.type === type) ?? null;
}

export function isTrue(object: { status?: { conditions?: PodCondition[] } } | null, type: string): boolean {
  return conditionOf(object, type)?.status === "True";
}

export function controllerOf({ metadata }: KubernetesObject): OwnerReference | null {
  return metadata.ownerReferences?.find(({ controller }) => controller === true) ?? null;
}

/** It has ended, or is about to: a ReplicaSet no longer counts it. */
export function isActive(pod: Pod): boolean {
  const phase = pod.status?.phase;
  return pod.metadata.deletionTimestamp === undefined && phase !== "Succeeded" && phase !== "Failed";
}

/** As `labels.Selector.Matches` (apimachinery, pkg/labels/selector.go). An empty selector selects everything. */
export function isSelected(selector: LabelSelector, labels: Record<string, string> = {}): boolean {
  const equal = Object.entries(selector.matchLabels ?? {}).every(([key, value]) => labels[key] === value);
  return (
    equal &&
    (selector.matchExpressions ?? []).every(({ key, operator, values = [] }) => {
      const has = Object.hasOwn(labels, key);
      const isIn = has && values.includes(labels[key] as string);
      if (operator === "In") return isIn;
      if (operator === "NotIn") return !isIn;
      return operator === "Exists" ? has : !has;
    })
  );
}
