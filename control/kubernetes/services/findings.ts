/** What is said of Services in Events: each finding once, and every half hour again for as long as it is so. */
import type { KubernetesApi } from "../client/api.ts";
import { eventOf, report } from "../client/events.ts";
import type { Service } from "../client/objects.ts";

/** Events are kept for an hour (kube-apiserver, --event-ttl): what is so still is told again before */
export const TELL_AGAIN_MS = 1_800_000;

export interface ServiceFinding {
  service: Service;
  /** default: Warning */
  type?: "Normal" | "Warning";
  /** CamelCase */
  reason: string;
  message: string;
}

export class ServiceFindings {
  readonly #api: Pick<KubernetesApi, "create">;
  readonly #onProblem: (what: string, error: unknown) => void;
  readonly #told = new Map<string, { message: string; atMs: number }>();

  constructor(api: Pick<KubernetesApi, "create">, onProblem: (what: string, error: unknown) => void) {
    this.#api = api;
    this.#onProblem = onProblem;
  }

  /** @param findings all that there are now */
  async tell(findings: readonly ServiceFinding[]): Promise<void> {
    const now = new Map(findings.map((one) => [`${one.service.metadata.uid}/${one.reason}`, one]));
    for (const key of this.#told.keys()) if (!now.has(key)) this.#told.delete(key);
    for (const [key, finding] of now) {
      const { message, atMs = 0 } = this.#told.get(key) ?? {};
      if (message === finding.message && performance.now() - atMs < TELL_AGAIN_MS) continue;
      this.#told.set(key, { message: finding.message, atMs: performance.now() });
      await report(this.#api, [eventFor(finding)], (error) =>
        this.#onProblem("an Event is not written", error),
      );
    }
  }
}

function eventFor({ service: { metadata }, type = "Warning", reason, message }: ServiceFinding): object {
  const { name, namespace = "", uid } = metadata;
  const nowMs = Date.now();
  return eventOf({
    object: { apiVersion: "v1", kind: "Service", name, namespace, uid },
    type,
    reason,
    message,
    key: `${uid}/${reason}/${new Date(nowMs).toISOString()}`,
    nowMs,
  });
}
