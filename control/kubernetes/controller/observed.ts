/** Everything that the plan for one Migration is made of, as it was read: `gather.ts` reads it. */
import { MIGRATION_LABEL, type Migration, type Policy } from "../../api/resources.ts";
import type {
  Deployment,
  Node,
  OwnerReference,
  PersistentVolume,
  PersistentVolumeClaim,
  Pod,
  ReplicaSet,
  StatefulSet,
} from "../client/objects.ts";

/** What made the source, and would make another in its place. */
export type Owner =
  | { kind: "none" }
  | {
      kind: "replica-set";
      reference: OwnerReference;
      /** null: it has gone */
      replicaSet: ReplicaSet | null;
      /** null: the ReplicaSet is nobody's */
      deployment: Deployment | null;
      /** its pods, the source among them */
      pods: Pod[];
    }
  | {
      kind: "stateful-set";
      reference: OwnerReference;
      /** null: it has gone */
      statefulSet: StatefulSet | null;
      /** its pods, without one that has the application while its own is made anew */
      pods: Pod[];
      /** a pod that it makes now gets what Holdfast needs in it; null: not asked, or not known */
      isInjected: boolean | null;
      /** … and `/ordinal` is asked about it; null as above */
      isSeen: boolean | null;
    }
  | { kind: "other"; reference: OwnerReference };

export interface Claim extends PersistentVolumeClaim {
  /** that it is bound to, where it is */
  volume?: PersistentVolume | null;
}

export interface Observed {
  migration: Migration;
  policy: Policy;
  /** that `status.source` names, or `spec.pod`; of another uid than `status.source` it is not the one that moves */
  source: Pod | null;
  /** that is to get the application, or has it; without our label it is somebody else's that has its name */
  standby: Pod | null;
  /** with our label, and neither of the two: a call that arrived late made it */
  strays: Pod[];
  /** that has the name of `status.origin`, be it the one that was there or one made anew */
  ordinal: Pod | null;
  owner: Owner;
  /** those that source, target and standby name and that are there; all, where the owner is a StatefulSet */
  nodes: ReadonlyMap<string, Node>;
  /** of the source's volumes, by name; null: it is not there */
  claims: ReadonlyMap<string, Claim | null>;
  /** of the namespace, without this one; read after the source, whose label says who claims it */
  others: Migration[];
  /** how many are under way in other namespaces; read as long as this one has not begun */
  elsewhere: number;
  /** its pods have a budget that allows no eviction; false as long as it is under way, when nobody asks */
  isGuarded: boolean;
  /** an EvictionRequest had asked for it, and nobody asks any more */
  isWithdrawn: boolean;
}

/** For a status and for people. */
export interface Reason {
  /** CamelCase */
  reason: string;
  message: string;
}

/** Its application is in a pod of another name, and the pod that it was in is made anew. */
export function isReturning({ status }: Migration): boolean {
  return status.origin !== undefined;
}

/** The source, as long as it is the pod that was there in the beginning. */
export function sourceOf({ migration, source }: Observed): Pod | null {
  const uid = migration.status.source?.podUid;
  return uid === undefined || source?.metadata.uid === uid ? source : null;
}

/** The standby, where it is ours. */
export function standbyOf({ migration, standby }: Observed): Pod | null {
  return standby !== null && isClaimedBy(standby, migration) ? standby : null;
}

export function isClaimedBy({ metadata }: Pod, { metadata: { uid } }: Migration): boolean {
  return metadata.labels?.[MIGRATION_LABEL] === uid;
}
