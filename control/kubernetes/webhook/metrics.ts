/** What the webhook counts, for Prometheus. No label names a pod or a namespace. */
import { Counter, Gauge, Histogram, Registry } from "@prometheus-io/client";
import { SilentSeconds } from "../client/silent-seconds.ts";
import { VERDICTS, type Verdict } from "./review.ts";

const PREFIX = "holdfast_webhook";
/** the API server waits for an answer before it goes on: milliseconds count */
const BUCKETS_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1];
const OUTCOMES = [...VERDICTS, "malformed", "failed"] as const;

export class WebhookMetrics {
  readonly registry = new Registry();
  readonly silent = new SilentSeconds(PREFIX, this.registry);
  readonly #reviews: Counter<"outcome">;
  readonly #seconds: Histogram;

  /** @param validToMs of the certificate in use, Unix time */
  constructor(validToMs: () => number) {
    const registers = [this.registry];
    this.#reviews = new Counter({
      name: `${PREFIX}_reviews_total`,
      help: "Questions of the API server, by what came of them (a closed list).",
      labelNames: ["outcome"],
      registers,
    });
    for (const outcome of OUTCOMES) this.#reviews.inc({ outcome }, 0);
    this.#seconds = new Histogram({
      name: `${PREFIX}_review_seconds`,
      help: "From the whole question to its answer.",
      buckets: BUCKETS_SECONDS,
      registers,
    });
    const gauge = (name: string, help: string, read: () => number): void => {
      new Gauge({
        name: `${PREFIX}_${name}`,
        help,
        registers,
        collect() {
          this.set(read());
        },
      });
    };
    gauge("certificate_expires_seconds", "Unix time at which the certificate in use expires.", () =>
      Math.floor(validToMs() / 1_000),
    );
    gauge("resident_memory_bytes", "Resident memory of the process.", () => process.memoryUsage.rss());
  }

  answered(outcome: Verdict | "malformed" | "failed", ms: number): void {
    this.#reviews.inc({ outcome });
    this.#seconds.observe(ms / 1_000);
  }
}
