/** The controller's Prometheus metrics. */
import { Counter, Gauge, Histogram, Registry } from "@prometheus-io/client";
import { isFinal, type Migration, type MigrationPhase, type MigrationStatus } from "../../api/resources.ts";
import type { KubernetesObject } from "../client/objects.ts";
import { SilentSeconds } from "../client/silent-seconds.ts";

export class ControllerMetrics {
  readonly registry = new Registry();
  readonly #ended: Counter<"outcome" | "reason">;
  readonly #phase: Histogram<"phase">;
  readonly #pause: Histogram;
  readonly #failures: Counter;
  readonly #leads: Gauge;
  readonly silent = new SilentSeconds("holdfast_controller", this.registry);
  /** all that there are */
  migrations: () => Iterable<KubernetesObject> = () => [];
  /** bytes of the table that gateways follow, and how many of their Services are led where; null: this one does not keep them */
  services: { tableBytes: number; leads: Readonly<Record<string, number>> } | null = null;
  /** how many pods there are of each */
  injections: () => ReadonlyMap<string, number> = () => new Map();

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
        for (const object of self.migrations()) this.inc({ phase: phaseOf(object).phase });
      },
    });
    new Gauge({
      name: "holdfast_controller_oldest_seconds",
      help: "For how long the Migration that has been in its phase the longest is in it; of those that have not ended.",
      labelNames: ["phase"] as const,
      registers,
      collect() {
        this.reset();
        const oldest = new Map<string, number>();
        for (const { phase, sinceMs } of [...self.migrations()].map(phaseOf))
          if (!isFinal(phase)) oldest.set(phase, Math.min(oldest.get(phase) ?? Infinity, sinceMs));
        for (const [phase, ms] of oldest) this.set({ phase }, Math.max(0, Date.now() - ms) / 1_000);
      },
    });
    new Gauge({
      name: "holdfast_controller_pods",
      help: "Pods by what became of their injection: missed could be injected and are not; left are those that nobody asks for.",
      labelNames: ["injection"] as const,
      registers,
      collect() {
        this.reset();
        for (const [injection, count] of self.injections()) this.set({ injection }, count);
      },
    });
    new Gauge({
      name: "holdfast_controller_services",
      help: "Services of gateways by where their clients are led: to gateways, to pods themselves, or nowhere.",
      labelNames: ["leads"] as const,
      registers,
      collect() {
        this.reset();
        for (const [leads, count] of Object.entries(self.services?.leads ?? {})) this.set({ leads }, count);
      },
    });
    new Gauge({
      name: "holdfast_controller_gateway_table_bytes",
      help: "What gateways are told of Services and their pods; at most 1,000,000.",
      registers,
      collect() {
        this.set(self.services?.tableBytes ?? 0);
      },
    });
    new Gauge({
      name: "holdfast_controller_resident_memory_bytes",
      help: "Resident memory of the process.",
      registers,
      collect() {
        this.set(process.memoryUsage.rss());
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

/** As far as it can be read: another version may have made it. */
function phaseOf(object: KubernetesObject): { phase: MigrationPhase; sinceMs: number } {
  const { phase = "Pending", phaseTransitionTimestamps = [] } =
    (object as { status?: MigrationStatus }).status ?? {};
  const since = phaseTransitionTimestamps.at(-1)?.timestamp ?? object.metadata.creationTimestamp;
  return { phase, sinceMs: Date.parse(since) };
}
