/** What `kubectl describe` shows beneath a Migration and its pod: one Event a change of phase or reason. */
import { createHash } from "node:crypto";
import { API_VERSION, type Migration, type MigrationStatus } from "../../api/resources.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import { pathOf } from "../client/paths.ts";

const MESSAGE_MAX = 1_024;
const BAD = new Set(["Failed", "Aborted"]);

/** @param next what has been written @returns none: nothing that people want to know of has changed */
export function eventsOf(
  { metadata, spec, status }: Migration,
  next: MigrationStatus,
  nowMs: number,
): object[] {
  const { phase = "Pending", reason = phase, message = "" } = next;
  if (status.phase === next.phase && status.reason === next.reason) return [];
  const time = new Date(nowMs).toISOString();
  const about = [
    { apiVersion: API_VERSION, kind: "Migration", name: metadata.name, uid: metadata.uid },
    { apiVersion: "v1", kind: "Pod", name: spec.pod, uid: next.source?.podUid ?? spec.podUid },
  ];
  return about.map((object) => ({
    apiVersion: "v1",
    kind: "Event",
    metadata: {
      name: nameOf(object.name, `${metadata.uid}/${object.kind}/${phase}/${reason}/${time}`),
      namespace: metadata.namespace,
    },
    involvedObject: { ...object, namespace: metadata.namespace },
    type: BAD.has(phase) ? "Warning" : "Normal",
    reason: `Migration${phase}`,
    message: `${object.kind === "Pod" ? `Migration ${metadata.name}: ` : ""}${reason}: ${message}`.slice(
      0,
      MESSAGE_MAX,
    ),
    source: { component: "holdfast-controller" },
    firstTimestamp: time,
    lastTimestamp: time,
    count: 1,
  }));
}

/** Never fails: they are for people, and what matters is in the status. */
export async function report(
  api: Pick<KubernetesApi, "create">,
  events: object[],
  onProblem: (error: unknown) => void,
): Promise<void> {
  for (const event of events) {
    const { namespace } = (event as { metadata: { namespace: string } }).metadata;
    try {
      await api.create(pathOf("events", { namespace }), event);
    } catch (error) {
      if (!isCode(error, "KUBERNETES_EXISTS")) onProblem(error);
    }
  }
}

function nameOf(object: string, text: string): string {
  return `${object.slice(0, 200)}.${createHash("sha256").update(text).digest("hex").slice(0, 16)}`;
}
