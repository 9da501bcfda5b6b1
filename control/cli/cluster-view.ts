/** What commands about a whole cluster look at, read once. Nothing of it is written. */
import {
  ANNOTATION,
  MIGRATION_LABEL,
  type Migration,
  MOVABLE,
  migrationsIn,
  SERVING,
} from "../api/resources.ts";
import { isCode, type KubernetesApi, type Query } from "../kubernetes/client/api.ts";
import {
  conditionOf,
  isActive,
  isTrue,
  type KubernetesObject,
  type Node,
  type Pod,
} from "../kubernetes/client/objects.ts";
import { type Kind, pathOf } from "../kubernetes/client/paths.ts";
import { isAskedFor, verdictOf } from "../kubernetes/controller/injection.ts";
import { INJECT_LABEL } from "../kubernetes/inject/names.ts";
import { nameOf } from "../kubernetes/node/injected-pod.ts";

const NAME_LABEL = "app.kubernetes.io/name";
const COMPONENT = "app.kubernetes.io/component";

/** A pod of Holdfast's own. */
export interface Part {
  component: string;
  namespace: string;
  pod: string;
  node: string;
  isReady: boolean;
}

/** A pod that is injected, or is to be. */
export interface SeenPod {
  namespace: string;
  pod: string;
  node: string;
  workload: string;
  injection: "injected" | "missed" | "refused";
  /** why it is not injected; "" */
  message: string;
  isStandby: boolean;
  isServing: boolean;
  /** null: nobody has said yet */
  movable: { isMovable: boolean; message: string } | null;
  /** name of the one that has to do with it; null: none */
  migration: string | null;
}

export interface ClusterView {
  version: string;
  /** where Holdfast is; null: it is not */
  namespace: string | null;
  nodes: Node[];
  parts: Part[];
  pods: SeenPod[];
  migrations: Migration[];
}

/** Of one namespace's pods, or of all. @throws HoldfastError of the client */
export async function viewCluster(api: KubernetesApi, namespace: string | null): Promise<ClusterView> {
  const [version, nodes, all, namespaces, migrations] = await Promise.all([
    api.get<{ gitVersion: string }>("/version"),
    api.list<Node>(pathOf("nodes")),
    api.list<Pod>(pathOf("pods")),
    api.list<KubernetesObject>(pathOf("namespaces")),
    orNone(api, "migrations", {}),
  ]);
  const parts = all.items.filter(
    ({ metadata }) => metadata.labels?.[NAME_LABEL] === "holdfast" && metadata.labels[COMPONENT],
  );
  const own = parts[0]?.metadata.namespace ?? null;
  const labels = new Map(
    namespaces.items.map(({ metadata }) => [metadata.name, metadata.labels?.[INJECT_LABEL]]),
  );
  const parsed = migrationsIn(migrations);
  const isShown = (one: KubernetesObject): boolean =>
    namespace === null || one.metadata.namespace === namespace;
  return {
    version: version.gitVersion,
    namespace: own,
    nodes: nodes.items,
    parts: parts.filter(isActive).map(partOf),
    pods: all.items
      .filter((pod) => isActive(pod) && isShown(pod))
      .flatMap((pod) => seenPod(pod, labels, own ?? "", parsed)),
    migrations: parsed.filter((one) => namespace === null || one.metadata.namespace === namespace),
  };
}

/** Where the kind is not known, there are none. */
async function orNone(api: KubernetesApi, kind: Kind, query: Query): Promise<KubernetesObject[]> {
  try {
    return (await api.list<KubernetesObject>(pathOf(kind), query)).items;
  } catch (error) {
    if (isCode(error, "KUBERNETES_NOT_FOUND")) return [];
    throw error;
  }
}

function partOf(pod: Pod): Part {
  const { name, namespace = "", labels } = pod.metadata;
  return {
    component: labels?.[COMPONENT] ?? "",
    namespace,
    pod: name,
    node: pod.spec.nodeName ?? "",
    isReady: isTrue(pod, "Ready"),
  };
}

function seenPod(
  pod: Pod,
  labels: ReadonlyMap<string, string | undefined>,
  own: string,
  migrations: Migration[],
): SeenPod[] {
  const { name, namespace = "", annotations = {}, labels: ownLabels } = pod.metadata;
  const { injection, message } = verdictOf(pod);
  if (injection === "left") return [];
  if (injection !== "injected" && !isAskedFor(pod.metadata, labels.get(namespace), own)) return [];
  const movable = conditionOf(pod, MOVABLE);
  const uid = ownLabels?.[MIGRATION_LABEL];
  return [
    {
      namespace,
      pod: name,
      node: pod.spec.nodeName ?? "",
      workload: workloadOf(pod),
      injection,
      message,
      isStandby: annotations[ANNOTATION.standby] === "true" && !isTrue(pod, SERVING),
      isServing: isTrue(pod, SERVING),
      movable:
        movable === null ? null : { isMovable: movable.status === "True", message: movable.message ?? "" },
      migration: migrations.find(({ metadata }) => metadata.uid === uid)?.metadata.name ?? null,
    },
  ];
}

/** The name that agents know it by. */
export function workloadOf({ metadata: { name, namespace = "", annotations } }: Pod): string {
  const workload = annotations?.[ANNOTATION.workload];
  return nameOf({ namespace, name, annotations: workload === undefined ? {} : { workload } });
}
