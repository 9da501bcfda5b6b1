/**
 * Links as the owner of a workload has them: each becomes its session's way to the client. Until this proxy owns the workload, and knows
 * the session, a link waits parked.
 */
import type { Logger } from "pino";
import type { Configure } from "#proxy/contract/commands.ts";
import type { Greeting } from "#proxy/link/link-auth.ts";
import { type Destination, RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg, type LinkListener } from "#proxy/link/link-leg.ts";
import type { Role } from "#proxy/session/role.ts";
import type { Counters } from "./counters.ts";
import type { LinkUpkeep } from "./link-upkeep.ts";
import { endLinkWait } from "./link-wait.ts";
import type { LiveSession } from "./live-session.ts";
import type { SessionTable } from "./session-table.ts";

/** Whose sessions they carry. */
export interface OwnerHost {
  readonly config: Pick<Configure, "ports" | "limits">;
  readonly log: Logger;
  readonly counters: Pick<Counters, "sessionsAccepted" | "linkFailures">;
  readonly table: Pick<SessionTable, "create">;
  readonly sessions: ReadonlyMap<string, LiveSession>;
  readonly role: Role;
  readonly epoch: number;
  /** Gives a waiting session its upstream, where that is possible now. */
  start(session: LiveSession): void;
}

/** See {@link LinkUpkeep}. */
type Upkeep = Pick<LinkUpkeep, "watchOver" | "onInterrupted" | "onContinued" | "onLate">;

export class OwnerLinks {
  readonly #parked = new Map<string, LinkLeg>();
  /** of these the ones whose clients are new: so many wait here as of a node's own */
  readonly #fresh = new Set<LinkLeg>();
  /** gateway, source: where sessions of new links are to be prepared, too */
  movingTo: Destination | null = null;
  /** gateway, source: to be closed when everything is over here */
  readonly leaving: LinkLeg[] = [];
  /** whose sessions have ended, and whose last bytes the other end has not confirmed: they are nowhere else */
  readonly released = new Set<LinkLeg>();
  readonly listener: LinkListener;
  readonly #host: OwnerHost;
  readonly #upkeep: Upkeep;

  constructor(host: OwnerHost, upkeep: Upkeep) {
    this.#host = host;
    this.#upkeep = upkeep;
    this.listener = {
      onActive: (link) => link.reset(),
      onHold: (link) => link.reset(),
      onResume: () => {},
      onHeld: () => {},
      onInterrupted: () => upkeep.onInterrupted(),
      onContinued: (link) => upkeep.onContinued(link),
      onLate: (link) => upkeep.onLate(link),
      onReleased: (link, isConfirmed) => {
        if (isConfirmed) this.released.delete(link);
        else this.released.add(link);
      },
      onOver: (link, code) => this.#onOver(link, code),
      onBroken: (link, error) => {
        const session = host.sessions.get(link.id);
        if (this.#parked.get(link.id) === link) this.unpark(link.id);
        if (session?.downstream === link) session.onBroken(error);
        else host.log.error({ err: error }, "a link has broken");
      },
    };
  }

  /** those that wait for their session, or for this proxy to own the workload; by session */
  get parked(): ReadonlyMap<string, LinkLeg> {
    return this.#parked;
  }

  /** It waits no more, and is the caller's. null: there is none */
  unpark(session: string): LinkLeg | null {
    const link = this.#parked.get(session) ?? null;
    this.#parked.delete(session);
    if (link !== null) this.#fresh.delete(link);
    return link;
  }

  unparkAll(): LinkLeg[] {
    const links = [...this.#parked.values()];
    this.#parked.clear();
    this.#fresh.clear();
    return links;
  }

  /** It is authenticated. */
  arrived(link: LinkLeg, greeting: Greeting): void {
    const { config, epoch, role } = this.#host;
    if (greeting.port >= config.ports.length) {
      link.close(RST_CODE.unknownSession);
      return;
    }
    this.#upkeep.watchOver(link, greeting.port);
    if (greeting.epoch > epoch || role === "idle" || role === "anchor") {
      // The dialler knows of a newer owner than this proxy does, or this proxy owns nothing.
      link.close(RST_CODE.moved);
    } else if (role === "owner") this.take(link);
    else if (this.#isSurplus(greeting)) {
      // a gateway dials again, within its own bounds; a node's anchor resets its client, as this node would
      link.close(RST_CODE.reset);
    } else this.#park(link, greeting);
  }

  /** One that takes another's place is none. */
  #isSurplus({ session, fresh }: Greeting): boolean {
    const { heldSessionsMax } = this.#host.config.limits;
    return fresh && !this.#parked.has(session) && this.#fresh.size >= heldSessionsMax;
  }

  #park(link: LinkLeg, { session, fresh }: Greeting): void {
    this.unpark(session)?.close(RST_CODE.moved);
    this.#parked.set(session, link);
    if (fresh) this.#fresh.add(link);
  }

  /** This proxy owns the workload now: takes each of those that wait. */
  takeParked(): void {
    for (const link of [...this.#parked.values()]) this.take(link);
    this.unparkAll();
  }

  /** Joins the link to its session, or begins a new one. */
  take(link: LinkLeg): void {
    const { sessions, counters, table, epoch } = this.#host;
    const greeting = link.greeting as Greeting;
    const known = sessions.get(greeting.session);
    const joinable =
      known !== undefined &&
      (known.state === "open" || known.state === "waiting" || known.state === "dialling");
    if (joinable && known.downstream === null) {
      this.join(known, link);
    } else if (joinable && isUnheard(known, greeting)) {
      takeFromUnheard(known);
      this.join(known, link);
    } else if (known === undefined && greeting.fresh) {
      counters.sessionsAccepted++;
      const session = table.create({
        id: greeting.session,
        port: greeting.port,
        anchor: greeting.anchor,
        client: greeting.client,
        acceptedAtMs: greeting.acceptedAtMs,
        state: "waiting",
      });
      link.sendActive({ epoch, bytesIn: 0, bytesOut: 0 });
      if (this.movingTo !== null) link.sendMove(this.movingTo);
      session.setDownstream(link);
      this.#host.start(session);
    } else {
      link.close(RST_CODE.unknownSession);
    }
  }

  /** The session's client is behind the link from now on. */
  join(session: LiveSession, link: LinkLeg): void {
    endLinkWait(session);
    session.client = link.greeting?.client ?? session.client;
    link.sendActive({
      epoch: this.#host.epoch,
      bytesIn: session.inbound.bytes,
      bytesOut: session.outbound.bytes - session.outbound.pendingBytes,
    });
    // The anchor takes a second FIN for none at all, and may not have had the first.
    session.outbound.finSent = false;
    session.setDownstream(link);
  }

  /** The other side ends it when it has what is in it; after a while we do. */
  releaseLater(link: LinkLeg): void {
    link.moveOn();
    setTimeout(() => link.release(), this.#host.config.limits.lingerMsMax).unref();
  }

  closeParked(code: number): void {
    for (const link of this.unparkAll()) link.close(code);
  }

  #onOver(link: LinkLeg, code: number): void {
    const { sessions, counters } = this.#host;
    const session = sessions.get(link.id);
    if (this.#parked.get(link.id) === link) {
      this.unpark(link.id);
      if (code === RST_CODE.reset && session?.state === "adopted" && session.downstream === null) {
        session.lost ??= "downstream reset";
      }
      return;
    }
    if (session === undefined || session.downstream !== link) return;
    if (session.state === "captured" || session.state === "adopted") {
      // Either the client is gone, or its anchor has switched to the new owner already.
      session.lose("downstream", "link over");
      return;
    }
    if (code !== RST_CODE.reset) counters.linkFailures++;
    session.reset("downstream link over");
  }
}

/** The anchor has not had the ACTIVE of the link that is there, which has broken: so it dials as if there had been none. */
function isUnheard({ downstream }: LiveSession, { anchor }: Greeting): boolean {
  return downstream instanceof LinkLeg && downstream.isUnproven && downstream.greeting?.anchor === anchor;
}

function takeFromUnheard({ downstream, outbound }: LiveSession): void {
  const old = downstream as LinkLeg;
  const sent = old.takeUnacknowledged();
  outbound.removeSink(old.takeUnsent());
  outbound.prepend(sent);
  old.listener = null;
  old.close(RST_CODE.moved);
}
