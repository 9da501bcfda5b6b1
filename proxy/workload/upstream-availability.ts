/**
 * Whether the application is there. It is asked for by looking for its listener (sock_diag), not by dialling it; and only
 * while somebody waits for it: from a refused dial, or a restart, until it listens.
 */
import type { Logger } from "pino";
import type { Configure, PortConfig } from "#proxy/contract/commands.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Role } from "#proxy/session/role.ts";
import type { LegKernel } from "./leg-kernel.ts";
import type { LiveSession } from "./live-session.ts";

/** at first, since a restart is a matter of milliseconds for whoever is held; then, since it is not */
const LOOK_MS = 2;
const LOOK_LATER_MS = 50;
const LOOK_OFTEN_MS_MAX = 5_000;
/** clients that are led back together, between two looks at the application's accept queue */
const BATCH = 64;

/** How the application is looked for. */
type ApplicationLook = Pick<LegKernel, "listenerOf" | "isListening" | "listenBacklog">;

/** Who waits for the application. */
export interface AvailabilityHost {
  readonly config: Pick<Configure, "ports" | "limits">;
  readonly role: Role;
  readonly kernel: ApplicationLook;
  readonly sessions: ReadonlyMap<string, LiveSession>;
  readonly log: Logger;
  /** what becomes of its sessions is counted from now on */
  readonly unavailable: { begin(): void };
  readonly dialler: { giveUp(session: LiveSession): void };
  start(session: LiveSession): void;
}

export class UpstreamAvailability {
  readonly #proxy: AvailabilityHost;
  readonly #port: number;
  #absentSinceMs = -1;
  #givenUp = false;
  #instance = -1;
  #instanceAtMs = Number.NEGATIVE_INFINITY;
  #timer: NodeJS.Timeout | null = null;
  /** sessions that are to be connected when the accept queue has room */
  #returning: LiveSession[] = [];

  constructor(proxy: AvailabilityHost, port: number) {
    this.#proxy = proxy;
    this.#port = port;
  }

  get isAbsent(): boolean {
    return this.#absentSinceMs >= 0;
  }
  get isGivenUp(): boolean {
    return this.#givenUp;
  }

  /**
   * Which instance of the application there is, as the inode of its listener. 0: none. -1: it cannot be told. Of one that is there it is
   * looked again after some milliseconds (a look takes 0.1 ms and more): all clients ask whose connections it has ended.
   */
  get instance(): number {
    const nowMs = performance.now();
    if (this.#instance !== 0 && nowMs - this.#instanceAtMs < LOOK_MS) return this.#instance;
    this.#instanceAtMs = nowMs;
    const { config, kernel } = this.#proxy;
    try {
      this.#instance = kernel.listenerOf((config.ports[this.#port] as PortConfig).upstream);
    } catch {
      this.#instance = -1; // no descriptor or memory to look with
    }
    return this.#instance;
  }

  /** The application ended, or does not listen. */
  lost(): void {
    if (this.isAbsent) return;
    this.#absentSinceMs = performance.now();
    this.#proxy.unavailable.begin();
    this.#look();
  }

  stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#returning = [];
  }

  /** Now, rather than when it is time. */
  look(): void {
    if (!this.isAbsent) return;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#look();
  }

  #look(): void {
    this.#timer = null;
    const { role, config, kernel } = this.#proxy;
    if (role !== "owner" && role !== "paused") {
      // A move has begun: where the application goes on, whoever waits is started anew.
      this.#absentSinceMs = -1;
      this.#givenUp = false;
      return;
    }
    let isBack = false;
    try {
      isBack = role === "owner" && kernel.isListening((config.ports[this.#port] as PortConfig).upstream);
    } catch (error) {
      // no descriptor or memory to look with: it is looked again
      this.#proxy.log.debug({ port: this.#port, err: error }, "the application cannot be looked for");
    }
    if (isBack) {
      this.#back();
      return;
    }
    const awayMs = performance.now() - this.#absentSinceMs;
    if (!this.#givenUp && awayMs >= config.limits.unavailableMsMax) {
      this.#givenUp = true;
      this.#proxy.log.warn(
        { port: this.#port, awayMs: Math.round(awayMs) },
        "the application is unavailable for too long",
      );
      for (const session of this.#sessions()) session.guard(() => this.#proxy.dialler.giveUp(session));
    }
    this.#timer = setTimeout(() => this.#look(), awayMs < LOOK_OFTEN_MS_MAX ? LOOK_MS : LOOK_LATER_MS);
    if (this.#proxy.sessions.size === 0) this.#timer.unref();
  }

  #sessions(): LiveSession[] {
    return [...this.#proxy.sessions.values()].filter(
      (session) => session.port === this.#port && session.isWaiting,
    );
  }

  #back(): void {
    this.#proxy.log.info(
      { port: this.#port, awayMs: Math.round(performance.now() - this.#absentSinceMs) },
      "the application is back",
    );
    this.#absentSinceMs = -1;
    this.#givenUp = false;
    this.#returning = this.#sessions();
    void this.#leadBack();
  }

  /** Not all at once: an accept queue that is full drops them, and they come again after a second. */
  async #leadBack(): Promise<void> {
    const { kernel, config } = this.#proxy;
    const { upstream } = config.ports[this.#port] as PortConfig;
    while (this.#returning.length > 0 && !this.isAbsent) {
      const waiting = this.#returning.length > BATCH ? await waitingAt(kernel, upstream) : 0;
      if (waiting < BATCH)
        for (const session of this.#returning.splice(0, BATCH - waiting))
          session.guard(() => this.#proxy.start(session));
      if (this.#returning.length > 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
}

/** In its accept queue. Where nobody can look (no descriptor left), almost as many as there may be: they go one at a time. */
async function waitingAt(kernel: ApplicationLook, upstream: Endpoint): Promise<number> {
  try {
    return await kernel.listenBacklog(upstream, "upstream");
  } catch {
    return BATCH - 1;
  }
}
