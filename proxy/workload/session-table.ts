/** The sessions that are on this node, from the first moment of each to its last, and what is counted of both. */
import type { Logger } from "pino";
import type { Configure } from "#proxy/contract/commands.ts";
import type { Role } from "#proxy/session/role.ts";
import type { Admission } from "./admission.ts";
import type { Counters } from "./counters.ts";
import { closeDetached } from "./detached-legs.ts";
import { Linger } from "./linger.ts";
import { LiveSession, type SessionEvents, type SessionOptions } from "./live-session.ts";

/** Whose sessions they are. */
export interface TableHost {
  readonly config: Pick<Configure, "limits">;
  readonly kernel: { close(fd: number): void };
  readonly log: Logger;
  readonly role: Role;
  readonly counters: Pick<
    Counters,
    "bytesIn" | "bytesOut" | "sessionsEnded" | "sessionsReset" | "sessionsBroken" | "lingerTimeouts"
  >;
  readonly admission: Pick<Admission, "enter" | "leave" | "clientEnters" | "clientLeaves">;
}

export class SessionTable implements SessionEvents {
  readonly #host: TableHost;
  readonly #byId = new Map<string, LiveSession>();
  readonly #waiting = new Set<LiveSession>();
  readonly #linger: Linger;
  #made = 0;

  constructor(host: TableHost) {
    this.#host = host;
    this.#linger = new Linger(host.config.limits.lingerMsMax, () => host.counters.lingerTimeouts++);
  }

  /** in the order in which they came */
  get byId(): ReadonlyMap<string, LiveSession> {
    return this.#byId;
  }
  /** those in state `waiting`, who has waited for longest first */
  get waiting(): ReadonlySet<LiveSession> {
    return this.#waiting;
  }

  create(options: Omit<SessionOptions, "events" | "number">): LiveSession {
    const session = new LiveSession({ ...options, number: ++this.#made, events: this });
    this.#byId.set(session.id, session);
    if (session.state === "waiting") this.onWaits(session, true);
    this.#host.admission.enter(session.port);
    return session;
  }

  /** Its client's socket is here, and counts for that address. */
  countClient(session: LiveSession): void {
    session.countedAs ??= this.#host.admission.clientEnters(session.port, session.client);
  }

  /** Every session is reset; legs that lie captured or adopted are closed silently. @param stays those that nothing is done about */
  resetAll(stays: (session: LiveSession) => boolean): void {
    for (const session of [...this.#byId.values()]) {
      if (stays(session)) continue;
      closeDetached(this.#host.kernel, session);
      session.reset("stopped");
    }
  }

  /** Sessions that linger stay until they are ended otherwise. */
  stopLooking(): void {
    this.#linger.stop();
  }

  // ---- SessionEvents

  get lingerMsMax(): number {
    return this.#host.config.limits.lingerMsMax;
  }
  get isMoving(): boolean {
    const { role } = this.#host;
    return role !== "owner" && role !== "paused";
  }

  onOver(session: LiveSession, reason: string | null): void {
    const { admission, kernel, counters, log } = this.#host;
    if (this.#byId.get(session.id) === session) {
      this.#byId.delete(session.id);
      admission.leave(session.port);
    }
    if (session.countedAs !== null) admission.clientLeaves(session.port, session.countedAs);
    session.countedAs = null;
    closeDetached(kernel, session);
    this.#waiting.delete(session);
    this.#linger.remove(session);
    counters.bytesIn += session.inbound.bytes;
    counters.bytesOut += session.outbound.bytes;
    if (reason === null) counters.sessionsEnded++;
    else {
      counters.sessionsReset++;
      log.debug({ session: session.id, reason }, "session reset");
    }
  }

  onBroken(session: LiveSession, error: unknown): void {
    const { log, counters } = this.#host;
    if (session.state === "closed") {
      log.debug({ session: session.id, err: error }, "an ended session's code has thrown");
      return;
    }
    counters.sessionsBroken++;
    log.error({ session: session.id, client: session.client, err: error }, "a session has broken");
    try {
      session.breakOff();
    } catch (again) {
      log.error({ session: session.id, err: again }, "… and could not be reset: it is let go as it is");
      this.onOver(session, "broken");
    }
  }

  onWaits(session: LiveSession, waits: boolean): void {
    this.#waiting.delete(session);
    if (!waits) return;
    session.waitingSinceMs = performance.now();
    this.#waiting.add(session);
  }

  onLingering(session: LiveSession): void {
    this.#linger.add(session);
  }
}
