/** What looks at the bytes of one workload's sessions, and what all of these have together: held bytes, keys, health checks' answers. */
import { hkdfSync } from "node:crypto";
import type { Logger } from "pino";
import type { Configure, PortConfig } from "#proxy/contract/commands.ts";
import type { ProxyLimits } from "#proxy/contract/limits.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { PlainRequest } from "#proxy/protocol/stored-answer.ts";
import { HeldBudget } from "#proxy/replay/held-bytes.ts";
import { ProtocolFilter, type ProtocolFilterHost } from "#proxy/replay/protocol-filter.ts";
import type { Carrier } from "#proxy/replay/replay-host.ts";
import type { Role } from "#proxy/session/role.ts";
import type { Counters } from "./counters.ts";
import type { LegKernel } from "./leg-kernel.ts";
import { LiveSession } from "./live-session.ts";

/** Whose sessions they are. */
export interface FiltersHost {
  readonly config: Pick<Configure, "workload" | "ports" | "limits" | "spillDir">;
  readonly kernel: Pick<LegKernel, "punchHole">;
  readonly log: Logger;
  readonly counters: Counters;
  readonly role: Role;
  /** of the application, of each port: see {@link ProtocolFilterHost.instanceFor} */
  readonly availabilities: readonly { readonly instance: number }[];
  readonly probeAnswers: { remember(port: PortConfig, check: PlainRequest, answer: Buffer): void };
  /** Gives a waiting session its upstream, where that is possible now. */
  start(session: LiveSession): void;
}

export class SessionFilters implements ProtocolFilterHost {
  readonly budget: HeldBudget;
  /** how often bytes could not be named any more, by reason */
  readonly opaqueReasons = new Map<string, number>();
  readonly #host: FiltersHost;
  #cookieKeys: SharedKeys;

  /** @param keys of the workload's links */
  constructor(host: FiltersHost, keys: SharedKeys) {
    this.#host = host;
    this.#cookieKeys = cookieKeysOf(keys, host.config.workload);
    const { limits, spillDir } = host.config;
    const held = {
      sessionBytesMax: limits.heldSessionBytesMax,
      workloadBytesMax: limits.heldWorkloadBytesMax,
      spillBytesMax: limits.spillBytesMax,
      spillDir,
    };
    this.budget = new HeldBudget(held, host.kernel.punchHole);
  }

  set keys(keys: SharedKeys) {
    this.#cookieKeys = cookieKeysOf(keys, this.#host.config.workload);
  }

  /** @param saved of the node the session comes from. @throws HoldfastError `SNAPSHOT_INVALID` */
  attach(session: LiveSession, saved: Buffer | null): void {
    const port = this.#host.config.ports[session.port] as PortConfig;
    if (session.filter !== null || (port.protocol === "tcp" && port.continuity === "transplant")) return;
    const unobserved = saved === null ? session.inbound.takeBack() : null;
    session.filter = new ProtocolFilter({ carrier: session, host: this, port, saved });
    if (unobserved !== null && unobserved.length > 0) session.fromClient(unobserved);
  }

  // ---- ProtocolFilterHost

  get cookieKeys(): SharedKeys {
    return this.#cookieKeys;
  }
  get limits(): ProxyLimits {
    return this.#host.config.limits;
  }
  get counters(): Counters {
    return this.#host.counters;
  }
  get isPaused(): boolean {
    return this.#host.role !== "owner";
  }

  instanceFor(carrier: Carrier): number {
    return carrier instanceof LiveSession ? (this.#host.availabilities[carrier.port]?.instance ?? -1) : -1;
  }

  want(carrier: Carrier): void {
    if (carrier instanceof LiveSession) this.#host.start(carrier);
  }

  onSpillFailed(error: unknown): void {
    this.#host.log.warn({ err: error }, "held bytes and the disk: a client is refused or reset");
  }

  onOpaque(reason: string): void {
    this.#host.counters.sessionsOpaque++;
    this.opaqueReasons.set(reason, (this.opaqueReasons.get(reason) ?? 0) + 1);
  }

  onProbeAnswer(port: PortConfig, check: PlainRequest, answer: Buffer): void {
    this.#host.probeAnswers.remember(port, check, answer);
  }
}

function cookieKeysOf([first, ...others]: SharedKeys, workload: string): SharedKeys {
  const derive = (key: Buffer): Buffer =>
    Buffer.from(hkdfSync("sha256", key, "", `holdfast session cookie ${workload}`, 32));
  return [derive(first), ...others.map(derive)];
}
