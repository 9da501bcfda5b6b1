/** Everything that the plan for one Migration is made of, as it was read: `gather.ts` reads it. */
import { MIGRATION_LABEL, type Migration, type Policy } from "../../api/resources.ts";
import type {
  Deployment,
  Node,
  OwnerReference,
  PersistentVolumeClaim,
  Pod,
  ReplicaSet,
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
  | { kind: "other"; reference: OwnerReference };

export interface Observed {
  migration: Migration;
  policy: Policy;
  /** that `spec.pod` names; of another uid than `status.source` it is not the one that moves */
  source: Pod | null;
  /** that is to get the application, or has it; without our label it is somebody else's that has its name */
  standby: Pod | null;
  /** with our label, and neither of the two: a call that arrived late made it */
  strays: Pod[];
  owner: Owner;
  /** those that source, target and standby name and that are there */
  nodes: ReadonlyMap<string, Node>;
  /** of the source's volumes, by name; null: it is not there */
  claims: ReadonlyMap<string, PersistentVolumeClaim | null>;
  /** of the namespace, without this one; read after the source, whose label says who claims it */
  others: Migration[];
  /** how many are under way in other namespaces; read as long as this one has not begun */
  elsewhere: number;
}

/** For a status and for people. */
export interface Reason {
  /** CamelCase */
  reason: string;
  message: string;
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
