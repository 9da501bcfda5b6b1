/** The agent's Prometheus metrics. The proxies have their own, on their own sockets. */
import { Counter, Gauge, Histogram, Registry } from "@prometheus-io/client";
import type { MoveResult } from "../api/migration.ts";
import { SilentSeconds } from "../kubernetes/client/silent-seconds.ts";
import type { Workload } from "../workload/workload.ts";

export interface AssessedPod {
  namespace: string;
  pod: string;
  isMovable: boolean;
}

export class AgentMetrics {
  readonly registry = new Registry();
  #moves: Counter<"outcome" | "downstream">;
  #hold: Histogram<"downstream">;
  #phase: Histogram<"phase">;
  #predicted: Gauge<"workload">;
  #dirty: Gauge<"workload">;
  #precopied: Counter<"workload">;
  #rounds: Histogram;
  #storeUp: Gauge;
  #restarts: Counter<"workload" | "reason">;
  #stepsDown: Counter<"workload">;
  readonly silent = new SilentSeconds("holdfast_agent", this.registry);
  #assessed: () => Iterable<AssessedPod> = () => [];

  constructor(workloads: Map<string, Workload>) {
    const registers = [this.registry];
    this.#moves = new Counter({
      name: "holdfast_agent_moves_total",
      help: "Moves away from this node that have ended.",
      labelNames: ["outcome", "downstream"] as const,
      registers,
    });
    this.#hold = new Histogram({
      name: "holdfast_agent_hold_seconds",
      help: "From the first held client to the release, of moves that succeeded.",
      labelNames: ["downstream"] as const,
      buckets: [0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10],
      registers,
    });
    this.#phase = new Histogram({
      name: "holdfast_agent_phase_seconds",
      help: "Each phase of moves away from this node.",
      labelNames: ["phase"] as const,
      buckets: [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5],
      registers,
    });
    this.#predicted = new Gauge({
      name: "holdfast_agent_predicted_pause_seconds",
      help: "How long clients were likely to wait, as predicted before the hold, in the last move of each workload away from this node.",
      labelNames: ["workload"] as const,
      registers,
    });
    this.#dirty = new Gauge({
      name: "holdfast_agent_dirty_bytes_per_second",
      help: "How fast the application wrote to memory that was at the target already, in the last round of copies of its last move.",
      labelNames: ["workload"] as const,
      registers,
    });
    this.#precopied = new Counter({
      name: "holdfast_agent_precopy_bytes_total",
      help: "Memory sent before anybody was held.",
      labelNames: ["workload"] as const,
      registers,
    });
    this.#rounds = new Histogram({
      name: "holdfast_agent_precopy_rounds",
      help: "Rounds in which memory was sent before the hold, of moves that came so far.",
      buckets: [1, 2, 3, 4, 5, 6, 7, 8],
      registers,
    });
    this.#storeUp = new Gauge({
      name: "holdfast_agent_store_up",
      help: "Whether the store answered last.",
      registers,
    });
    this.#storeUp.set(1);
    this.#restarts = new Counter({
      name: "holdfast_application_restarts_total",
      help: "Applications started again: on command, or after an end by status, by signal, or that nobody saw.",
      labelNames: ["workload", "reason"] as const,
      registers,
    });
    this.#stepsDown = new Counter({
      name: "holdfast_agent_stepped_down_total",
      help: "Workloads ended here because another node owned them at a higher epoch.",
      labelNames: ["workload"] as const,
      registers,
    });
    const assessed = (): Iterable<AssessedPod> => this.#assessed();
    new Gauge({
      name: "holdfast_agent_pod_movable",
      help: "Whether the application of an injected pod of this node could move now (1), by its condition holdfast.dev/movable.",
      labelNames: ["namespace", "pod"] as const,
      registers,
      collect() {
        this.reset();
        for (const { namespace, pod, isMovable } of assessed())
          this.set({ namespace, pod }, isMovable ? 1 : 0);
      },
    });
    new Gauge({
      name: "holdfast_agent_workloads",
      help: "Workloads of this node by what it is to them.",
      labelNames: ["role"] as const,
      registers,
      collect() {
        this.reset();
        for (const workload of workloads.values()) this.inc({ role: workload.journal.role });
      },
    });
  }

  /** @param assessed pods that have been looked at */
  assesses(assessed: () => Iterable<AssessedPod>): void {
    this.#assessed = assessed;
  }

  storeUp(up: boolean): void {
    this.#storeUp.set(up ? 1 : 0);
  }

  restarted(workload: string, reason: "command" | "status" | "signal" | "unknown"): void {
    this.#restarts.inc({ workload, reason });
  }

  steppedDown(workload: string): void {
    this.#stepsDown.inc({ workload });
  }

  moved(move: MoveResult): void {
    this.#moves.inc({ outcome: move.outcome, downstream: move.downstream });
    if (move.outcome === "moved") this.#hold.observe({ downstream: move.downstream }, move.holdMs / 1000);
    const { workload, prediction, dirtyBytesPerSecond, precopyRounds } = move;
    if (prediction !== undefined) this.#predicted.set({ workload }, prediction.pauseMs.likely / 1000);
    if (dirtyBytesPerSecond !== null) this.#dirty.set({ workload }, dirtyBytesPerSecond);
    this.#precopied.inc({ workload }, move.precopyBytes);
    if (precopyRounds.length > 0) this.#rounds.observe(precopyRounds.length);
    for (const [phase, ms] of Object.entries(move.phasesMs)) this.#phase.observe({ phase }, ms / 1000);
  }
}
