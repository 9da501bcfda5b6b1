/** What the replay of one session has of the session and of its workload's proxy. */
import type { ProxyLimits } from "#proxy/contract/limits.ts";
import type { Pump } from "#proxy/stream/pump.ts";
import type { HeldBudget } from "./held-bytes.ts";

/** The session, as its replay sees it. */
export interface Carrier {
  readonly inbound: Pump;
  readonly outbound: Pump;
  /** neither connected to the application nor to another proxy */
  readonly isWaiting: boolean;
  /** Lets go of the application's end without a word to the client; what waited for it is dropped. */
  detach(): void;
  /**
   * The last bytes for the client, then the FIN; what it still sends is read and thrown away, for a while. The application's end is
   * let go of. Nobody watches the session any more: calls `SessionReplay.stop`.
   */
  endAfter(bytes: Buffer): void;
  reset(reason: string): void;
  /** Runs what a timer is for; what it throws ends the session and nothing else. */
  guard(work: () => void): void;
  onBroken(error: unknown): void;
}

export interface ReplayCounters {
  sessionsUnavailable: number;
  requestsReplayed: number;
  requestsRefused: number;
  messagesReplayed: number;
  webSocketsRefused: number;
  heldRefused: number;
}

export interface ReplayHost {
  readonly limits: ProxyLimits;
  readonly budget: HeldBudget;
  readonly counters: ReplayCounters;
  /** a restart is under way: nothing new may reach the application */
  readonly isPaused: boolean;
  /** Held bytes could not be written to disk, or read from it: one client is refused or reset for it. */
  onSpillFailed(error: unknown): void;
  /** Which instance of the application would be connected to: another number is another instance; 0: there is none; -1: unknown. */
  instanceFor(carrier: Carrier): number;
  /** The session wants the application, as soon as it may be dialled. */
  want(carrier: Carrier): void;
}
