/** Events (v1): what `kubectl describe` shows beneath an object. */
import { createHash } from "node:crypto";
import { isCode, type KubernetesApi } from "./api.ts";
import { pathOf } from "./paths.ts";

/** as the API server has it */
const MESSAGE_MAX = 1_024;

export interface EventAbout {
  object: {
    apiVersion: string;
    kind: string;
    name: string;
    namespace: string | undefined;
    uid: string | undefined;
  };
  type: "Normal" | "Warning";
  /** one word, CamelCase */
  reason: string;
  message: string;
  /** its name follows from this: told twice it is one */
  key: string;
  nowMs: number;
}

export function eventOf({ object, type, reason, message, key, nowMs }: EventAbout): object {
  const time = new Date(nowMs).toISOString();
  const digest = createHash("sha256").update(key).digest("hex").slice(0, 16);
  return {
    apiVersion: "v1",
    kind: "Event",
    metadata: { name: `${object.name.slice(0, 200)}.${digest}`, namespace: object.namespace },
    involvedObject: object,
    type,
    reason,
    message: message.slice(0, MESSAGE_MAX),
    source: { component: "holdfast-controller" },
    firstTimestamp: time,
    lastTimestamp: time,
    count: 1,
  };
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
