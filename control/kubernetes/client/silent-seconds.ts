/** Metric `PREFIX_kubernetes_silent_seconds` of a process that watches the API server. */
import { Gauge, type Registry } from "@prometheus-io/client";

export class SilentSeconds {
  readonly #secondsOf = new Map<string, () => number>();

  constructor(prefix: string, registry: Registry) {
    const secondsOf = this.#secondsOf;
    new Gauge({
      name: `${prefix}_kubernetes_silent_seconds`,
      help: "Since the API server was last heard of what is watched; it is heard every minute.",
      labelNames: ["objects"] as const,
      registers: [registry],
      collect() {
        this.reset();
        for (const [objects, seconds] of secondsOf) this.set({ objects }, seconds());
      },
    });
  }

  /** @param objects what is watched: no label names an object @returns what ends it */
  add(objects: string, seconds: () => number): () => void {
    this.#secondsOf.set(objects, seconds);
    return () => void this.#secondsOf.delete(objects);
  }
}
