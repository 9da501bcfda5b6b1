/**
 * Connects sessions to the application where it is on this node. One that cannot be connected now waits where its port's continuity
 * allows it (`replay`): for the application to come back, or for the node to have what a connection takes.
 */
import type { Logger } from "pino";
import type { Configure, PortConfig } from "#proxy/contract/commands.ts";
import type { Role } from "#proxy/session/role.ts";
import type { SocketKernel } from "#proxy/stream/socket-kernel.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { Counters } from "./counters.ts";
import type { LiveSession } from "./live-session.ts";

/** until a session that the node has nothing left for is dialled again */
const SHORTAGE_MS = 500;
const SHORTAGE_LOG_MS = 60_000;
/** What a dial fails with although the application is there: descriptors, memory, local ports (socket(2), connect(2)). */
const SHORTAGES: ReadonlySet<string> = new Set([
  "EMFILE",
  "ENFILE",
  "ENOBUFS",
  "ENOMEM",
  "ENOSPC",
  "EADDRNOTAVAIL",
  "EAGAIN",
]);

/** Whose application it is. */
export interface DiallerHost {
  readonly config: Pick<Configure, "ports" | "limits">;
  readonly kernel: SocketKernel;
  readonly log: Logger;
  readonly counters: Pick<Counters, "dialFailures" | "dialShortages">;
  readonly role: Role;
  /** a descriptor of that number leaves the reserve alone */
  readonly admission: { hasRoom(fd: number): boolean };
  readonly availabilities: readonly Availability[];
  readonly filters: { attach(session: LiveSession, saved: null): void };
  /** Gives a waiting session its upstream, where that is possible now: it may be at another node by then. */
  start(session: LiveSession): void;
}

/** Of the application on one port. */
interface Availability {
  readonly isAbsent: boolean;
  readonly isGivenUp: boolean;
  lost(): void;
}

export class ApplicationDialler {
  readonly #host: DiallerHost;
  #shortageToldAtMs = Number.NEGATIVE_INFINITY;

  constructor(host: DiallerHost) {
    this.#host = host;
  }

  /** Of a session that waits, now or when the application is back. Only where this proxy owns the workload. */
  connect(session: LiveSession): void {
    session.peek?.giveBack();
    this.#host.filters.attach(session, null);
    // What was given back may have led here already.
    if (session.state !== "waiting") return;
    const replay = session.filter?.replay ?? null;
    if (replay === null) {
      this.#dial(session);
      return;
    }
    const availability = this.#host.availabilities[session.port] as Availability;
    if (availability.isGivenUp) replay.giveUp();
    else if ((session.dialShortage?.dialNotBeforeMs ?? 0) > performance.now()) return;
    else if (availability.isAbsent) replay.waits();
    else if (replay.comeBack()) this.#dial(session);
  }

  /** The application has not come back in time. */
  giveUp(session: LiveSession): void {
    // It is told when it has said who it is.
    if (session.header !== null) return;
    session.peek?.giveBack();
    this.#host.filters.attach(session, null);
    const replay = session.filter?.replay ?? null;
    if (replay === null) session.reset("the application is unavailable");
    else {
      // A SYN that a full accept queue has dropped is sent again for minutes: whoever takes it must not get what is refused here.
      if (session.state === "dialling") abort(session);
      replay.giveUp();
    }
  }

  #dial(session: LiveSession): void {
    const { kernel, config, log, admission } = this.#host;
    session.step("dial");
    const replay = session.filter?.replay ?? null;
    const { upstream } = config.ports[session.port] as PortConfig;
    const leg = TcpLeg.dial(kernel, upstream, {
      onConnect: () => {
        session.dialShortage = null;
        if (replay === null) this.#attach(session, leg);
        else {
          replay.shakeHands(leg, (why) => {
            if (why === null) this.#attach(session, leg);
            else {
              log.info({ session: session.id, reason: why }, "a WebSocket could not be dialled again");
              if (session.dialling === leg) abort(session);
              else leg.reset();
            }
          });
        }
      },
      onError: (code) => {
        session.guard(() => this.#failed(session, code));
      },
      onBroken: (error) => session.onBroken(error),
    });
    session.dialling = leg;
    // Of a descriptor that exists, the reserve may not be used up.
    if (leg.fd >= 0 && !admission.hasRoom(leg.fd)) {
      leg.close();
      this.#failed(session, "EMFILE");
    }
  }

  #failed(session: LiveSession, code: string): void {
    const replay = session.filter?.replay ?? null;
    this.#host.counters.dialFailures++;
    session.dialling = null;
    if (replay === null) {
      session.reset(`upstream dial ${code}`);
      return;
    }
    session.step("abort");
    if (SHORTAGES.has(code)) {
      this.#dialLater(session, code);
      return;
    }
    this.#host.availabilities[session.port]?.lost();
    replay.waits();
  }

  /** The node lacks what a connection needs, which says nothing of the application. */
  #dialLater(session: LiveSession, code: string): void {
    const { counters, config, log } = this.#host;
    counters.dialShortages++;
    const nowMs = performance.now();
    if (nowMs - this.#shortageToldAtMs >= SHORTAGE_LOG_MS) {
      this.#shortageToldAtMs = nowMs;
      const { dialShortages } = counters;
      log.error({ code, dialShortages }, "the node lacks what a connection to the application needs");
    }
    const shortage = {
      sinceMs: session.dialShortage?.sinceMs ?? nowMs,
      dialNotBeforeMs: nowMs + SHORTAGE_MS,
    };
    session.dialShortage = shortage;
    setTimeout(() => {
      shortage.dialNotBeforeMs = 0;
      session.guard(() => this.#host.start(session));
    }, SHORTAGE_MS).unref();
    // A client that has just come is better told at once; one whose state is worth it waits.
    const isLate = nowMs - shortage.sinceMs >= config.limits.unavailableMsMax;
    if (!session.wasConnected || isLate) this.giveUp(session);
    else session.filter?.replay?.waits();
  }

  #attach(session: LiveSession, leg: TcpLeg): void {
    session.dialling = null;
    if (this.#host.role === "paused") {
      // It is the instance of the application that is about to end.
      leg.reset();
      session.step("abort");
      return;
    }
    session.filter?.replay?.beforeAttach();
    session.step("dialled");
    session.setUpstream(leg);
    if (session.upstream === leg) session.filter?.replay?.attached();
  }
}

/** It waits again, as if it had not been dialled. */
function abort(session: LiveSession): void {
  session.dialling?.reset();
  session.dialling = null;
  session.step("abort");
}
