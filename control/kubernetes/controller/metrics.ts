/** The controller's Prometheus metrics. */
import { Counter, Gauge, Histogram, Registry } from "@prometheus-io/client";
import { isFinal, type Migration, type MigrationStatus } from "../../api/resources.ts";

export interface Watched {
  /** e.g. "migrations" */
  objects: string;
  silentSeconds(): number;
}

export class ControllerMetrics {
  readonly registry = new Registry();
  readonly #ended: Counter<"outcome" | "reason">;
  readonly #phase: Histogram<"phase">;
  readonly #pause: Histogram;
  readonly #failures: Counter;
  readonly #leads: Gauge;
  /** those of the time it leads */
  watched: Watched[] = [];
  /** by phase */
  count: () => ReadonlyMap<string, number> = () => new Map();

  constructor() {
    const registers = [this.registry];
    this.#ended = new Counter({
      name: "holdfast_controller_migrations_ended_total",
      help: "Migrations that have ended.",
      labelNames: ["outcome", "reason"] as const,
      registers,
    });
    this.#phase = new Histogram({
      name: "holdfast_controller_phase_seconds",
      help: "How long Migrations were in each phase.",
      labelNames: ["phase"] as const,
      buckets: [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
      registers,
    });
    this.#pause = new Histogram({
      name: "holdfast_controller_pause_seconds",
      help: "How long clients waited in Migrations that succeeded.",
      buckets: [0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10],
      registers,
    });
    this.#failures = new Counter({
      name: "holdfast_controller_reconcile_errors_total",
      help: "Looks at a Migration that failed, and are tried again.",
      registers,
    });
    this.#leads = new Gauge({
      name: "holdfast_controller_leader",
      help: "Whether this controller works; another does otherwise.",
      registers,
    });
    this.#leads.set(0);
    const self = this;
    new Gauge({
      name: "holdfast_controller_migrations",
      help: "Migrations by phase.",
      labelNames: ["phase"] as const,
      registers,
      collect() {
        this.reset();
        for (const [phase, count] of self.count()) this.set({ phase }, count);
      },
    });
    new Gauge({
      name: "holdfast_controller_kubernetes_silent_seconds",
      help: "Since the API server was last heard of what is watched; it is heard every minute.",
      labelNames: ["objects"] as const,
      registers,
      collect() {
        this.reset();
        for (const { objects, silentSeconds } of self.watched) this.set({ objects }, silentSeconds());
      },
    });
  }

  leads(does: boolean): void {
    this.#leads.set(does ? 1 : 0);
  }

  failed(): void {
    this.#failures.inc();
  }

  /** @param next what has been written to its status */
  changed({ status, metadata }: Migration, next: MigrationStatus, nowMs: number): void {
    if (status.phase === next.phase || next.phase === undefined) return;
    const since = status.phaseTransitionTimestamps?.at(-1)?.timestamp ?? metadata.creationTimestamp;
    this.#phase.observe({ phase: status.phase ?? "Pending" }, Math.max(0, nowMs - Date.parse(since)) / 1_000);
    if (!isFinal(next.phase)) return;
    this.#ended.inc({ outcome: next.phase, reason: next.reason ?? "" });
    if (next.phase === "Succeeded" && next.move?.pauseMs !== undefined)
      this.#pause.observe(next.move.pauseMs / 1_000);
  }
}
