/**
 * Ends sessions that pass nothing for `idleMsMax` of their port. By looking at byte counts now and then: a timer for each session would
 * have to be set again with every chunk. A session may so stay up to a quarter longer.
 */

import type { PortConfig } from "#proxy/contract/commands.ts";
import type { Role } from "#proxy/session/role.ts";
import type { LiveSession } from "./live-session.ts";

const LOOKS_A_LIMIT = 4;
const LOOK_MS_MAX = 10_000;

/** Whose sessions they are. */
export interface IdleSessionsHost {
  readonly config: { readonly node: string; readonly ports: readonly PortConfig[] };
  readonly role: Role;
  readonly sessions: ReadonlyMap<string, LiveSession>;
  readonly counters: { sessionsIdle: number };
  portOf(session: LiveSession): PortConfig;
}

export class IdleSessions {
  readonly #proxy: IdleSessionsHost;
  #timer: NodeJS.Timeout | null = null;

  constructor(proxy: IdleSessionsHost) {
    this.#proxy = proxy;
  }

  /** Does nothing where no port has a limit. */
  start(): void {
    const limits = this.#proxy.config.ports.map(({ idleMsMax }) => idleMsMax).filter((ms) => ms > 0);
    if (limits.length === 0) return;
    const lookMs = Math.min(LOOK_MS_MAX, Math.min(...limits) / LOOKS_A_LIMIT);
    this.#timer ??= setInterval(() => this.#look(), lookMs).unref();
  }

  stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  #look(): void {
    const { role, sessions } = this.#proxy;
    // A client that is held cannot be blamed for its silence, and is given all its time again.
    const isServed = role === "owner" || role === "anchor";
    const nowMs = performance.now();
    for (const session of sessions.values()) session.guard(() => this.#lookAt(session, isServed, nowMs));
  }

  #lookAt(session: LiveSession, isServed: boolean, nowMs: number): void {
    const { idleMsMax } = this.#proxy.portOf(session);
    // In forward mode, where the client's socket is.
    if (idleMsMax === 0 || session.anchor !== this.#proxy.config.node) return;
    const bytes = session.inbound.bytes + session.outbound.bytes;
    if (!isServed || session.state !== "open" || bytes !== session.idleBytes) {
      session.idleBytes = bytes;
      session.idleSinceMs = nowMs;
    } else if (nowMs - session.idleSinceMs >= idleMsMax) {
      this.#proxy.counters.sessionsIdle++;
      session.idleSinceMs = nowMs;
      session.endIdle();
    }
  }
}
