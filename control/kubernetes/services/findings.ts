/** What is said of Services in Events: each finding once, for as long as it is so and says the same. */
import type { KubernetesApi } from "../client/api.ts";
import { eventOf, report } from "../client/events.ts";
import type { Service } from "../client/objects.ts";

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
  readonly #told = new Map<string, string>();

  constructor(api: Pick<KubernetesApi, "create">, onProblem: (what: string, error: unknown) => void) {
    this.#api = api;
    this.#onProblem = onProblem;
  }

  /** @param findings all that there are now */
  async tell(findings: readonly ServiceFinding[]): Promise<void> {
    const now = new Map(findings.map((one) => [`${one.service.metadata.uid}/${one.reason}`, one]));
    for (const key of this.#told.keys()) if (!now.has(key)) this.#told.delete(key);
    for (const [key, finding] of now) {
      if (this.#told.get(key) === finding.message) continue;
      this.#told.set(key, finding.message);
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
