/**
 * Clients are not held for an agent that never comes back: a hold of which nothing has been captured ends by itself.
 *
 * That is safe only there. Nothing of the sessions is anywhere else yet, no target can come alive without a capture, and whoever
 * leads the move is refused the capture afterwards, so that it rolls back. From the capture on only the one who knows the outcome may
 * let go. An application that CRIU has frozen meanwhile gets its bytes when it goes on.
 */
import type { Logger } from "pino";
import type { Role } from "#proxy/session/role.ts";

export interface LetGoLimits {
  /** in the hold, without any agent: the next one may be on its way */
  agentGoneMs: number;
  /** in the hold, whoever is there */
  heldMs: number;
}

export const LET_GO: LetGoLimits = { agentGoneMs: 5_000, heldMs: 60_000 };
const LOOKS_A_LIMIT = 10;

export interface LetGoOptions {
  limits: LetGoLimits;
  log: Logger;
  /** runs `work` when no command does */
  inTurn(work: () => Promise<void>): void;
}

export class HoldWatch {
  readonly #options: LetGoOptions;
  #agents = 0;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: LetGoOptions) {
    this.#options = options;
  }

  /** @returns to be called when it has gone */
  agentCame(): () => void {
    this.#agents++;
    return () => {
      this.#agents--;
    };
  }

  /** From the hold's begin until it is no hold any more. @param letGo ends it */
  begin(held: { readonly role: Role }, letGo: () => Promise<void>): void {
    const { limits, log, inTurn } = this.#options;
    const heldAtMs = performance.now();
    let goneAtMs: number | null = null;
    this.end();
    const look = async (): Promise<void> => {
      if (held.role !== "held") {
        this.end();
        return;
      }
      const nowMs = performance.now();
      goneAtMs = this.#agents > 0 ? null : (goneAtMs ?? nowMs);
      const isGone = goneAtMs !== null && nowMs - goneAtMs >= limits.agentGoneMs;
      if (!isGone && nowMs - heldAtMs < limits.heldMs) return;
      this.end();
      const heldMs = Math.round(nowMs - heldAtMs);
      log.error(
        { heldMs, agents: this.#agents },
        isGone ? "the agent has died in the hold: letting go" : "held for too long: letting go",
      );
      await letGo();
    };
    const lookMs = Math.min(limits.agentGoneMs, limits.heldMs) / LOOKS_A_LIMIT;
    this.#timer = setInterval(() => inTurn(look), lookMs);
  }

  end(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }
}
