/** What `kubectl describe` shows beneath a Migration and its pod: one Event a change of phase or reason. */
import { API_VERSION, type Migration, type MigrationStatus } from "../../api/resources.ts";
import { eventOf } from "../client/events.ts";

const BAD = new Set(["Failed", "Aborted"]);

/** @param next what has been written @returns none: nothing that people want to know of has changed */
export function eventsOf(
  { metadata, spec, status }: Migration,
  next: MigrationStatus,
  nowMs: number,
): object[] {
  const { phase = "Pending", reason = phase, message = "" } = next;
  if (status.phase === next.phase && status.reason === next.reason) return [];
  const about = [
    { apiVersion: API_VERSION, kind: "Migration", name: metadata.name, uid: metadata.uid },
    { apiVersion: "v1", kind: "Pod", name: spec.pod, uid: next.source?.podUid ?? spec.podUid },
  ];
  return about.map((object) =>
    eventOf({
      object: { ...object, namespace: metadata.namespace },
      type: BAD.has(phase) ? "Warning" : "Normal",
      reason: `Migration${phase}`,
      message: `${object.kind === "Pod" ? `Migration ${metadata.name}: ` : ""}${reason}: ${message}`,
      key: `${metadata.uid}/${object.kind}/${phase}/${reason}/${new Date(nowMs).toISOString()}`,
      nowMs,
    }),
  );
}
