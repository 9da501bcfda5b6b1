/**
 * Sessions whose both sides have ended, and whose last bytes the kernel has not delivered yet: their legs are closed when those are
 * acknowledged, or after a while. There is no event for "acknowledged": it is looked at, but only while somebody lingers.
 */
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { LiveSession } from "./live-session.ts";

const LINGER_CHECK_MS = 20;

export class Linger {
  readonly #msMax: number;
  readonly #onTimeout: () => void;
  readonly #sessions = new Set<LiveSession>();
  #timer: NodeJS.Timeout | null = null;

  /** @param onTimeout one was closed with bytes that nobody has acknowledged */
  constructor(msMax: number, onTimeout: () => void) {
    this.#msMax = msMax;
    this.#onTimeout = onTimeout;
  }

  add(session: LiveSession): void {
    session.lingerSinceMs = performance.now();
    this.#sessions.add(session);
    this.#timer ??= setTimeout(() => this.#look(), 0);
  }

  remove(session: LiveSession): void {
    this.#sessions.delete(session);
  }

  stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
  }

  #look(): void {
    this.#timer = null;
    const deadlineMs = performance.now() - this.#msMax;
    for (const session of this.#sessions) {
      if (session.state === "lingering") session.guard(() => this.#lookAt(session, deadlineMs));
      else this.#sessions.delete(session);
    }
    if (this.#sessions.size > 0) this.#timer = setTimeout(() => this.#look(), LINGER_CHECK_MS);
  }

  #lookAt(session: LiveSession, deadlineMs: number): void {
    const legs = [session.downstream, session.upstream];
    const acked = legs.every(
      (leg) => !(leg instanceof TcpLeg) || leg.unackedBytes() === 0 || leg.isClosedInKernel(),
    );
    const late = session.lingerSinceMs < deadlineMs;
    if (late && !acked) this.#onTimeout();
    if (acked || late) session.close();
  }
}
