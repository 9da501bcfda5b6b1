/**
 * From accept(2) until a client's session is begun: whether the client may come, what its load balancer says of it, and whether it has to
 * wait for an owner of the workload, or for its application. Too many that wait are refused; health checks among them are answered.
 */
import { randomBytes } from "node:crypto";
import type { Logger } from "pino";
import type { Configure, PortConfig } from "#proxy/contract/commands.ts";
import type { Role } from "#proxy/session/role.ts";
import type { SocketKernel } from "#proxy/stream/socket-kernel.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { Admission } from "./admission.ts";
import type { AnchorLinks } from "./anchor-links.ts";
import type { Counters } from "./counters.ts";
import type { LiveSession } from "./live-session.ts";
import { Front, FrontHeader } from "./load-balancer.ts";
import { type ProbeAnswers, ProbePeek } from "./probes.ts";
import type { SessionTable } from "./session-table.ts";

const NO_BYTES: Buffer = Buffer.alloc(0);
/** an owner that has answered nobody for so long, where many ask, does not answer: a burst of clients takes a while at a good one */
const ANSWER_MS_MAX = 1_000;
/** clients over `heldSessionsMax` of replay ports that are answered 503; beyond them RST */
const REFUSED_POLITELY_MAX = 1024;

/** Whose clients they are. */
export interface EntranceHost {
  readonly config: Pick<Configure, "node" | "ports" | "limits">;
  readonly kernel: SocketKernel;
  readonly log: Logger;
  readonly counters: Pick<
    Counters,
    "peersRefused" | "sessionsRefused" | "sessionsAccepted" | "headersRefused" | "probesAnswered"
  >;
  readonly admission: Pick<Admission, "refuses" | "refusesConnection" | "refusesClient">;
  readonly table: Pick<SessionTable, "create" | "countClient" | "waiting">;
  readonly anchorLinks: Pick<AnchorLinks, "answeredAtMs">;
  readonly role: Role;
  /** the application is at another node, and this is an anchor */
  readonly owner: object | null;
  readonly heldAtMs: number;
  readonly availabilities: readonly { readonly isAbsent: boolean }[];
  readonly probeAnswers: ProbeAnswers;
  readonly filters: { attach(session: LiveSession, saved: null): void };
  /** Gives a waiting session its upstream, where that is possible now. */
  start(session: LiveSession): void;
}

/** What the application gets of a client before the client's own bytes. null: nothing */
export type Preface = (port: number, client: string) => Buffer | null;

export class ClientEntrance {
  readonly #host: EntranceHost;
  readonly #preface: Preface;
  readonly #fronts: (Front | null)[];

  constructor(host: EntranceHost, preface: Preface) {
    this.#host = host;
    this.#preface = preface;
    this.#fronts = host.config.ports.map(({ proxyProtocol, listen }) =>
      proxyProtocol === null ? null : new Front(proxyProtocol, listen, host.log),
    );
  }

  /** A client's connection, ours from now on. @param port which of the configuration's it came to */
  accept(port: number, fd: number): void {
    const leg = TcpLeg.attach(this.#host.kernel, fd, "client");
    this.acceptRead(port, leg, { bytes: NO_BYTES, ended: false });
  }

  /** As {@link accept}, of a client whose first bytes, and perhaps FIN, somebody has read. */
  acceptRead(port: number, leg: TcpLeg, read: { bytes: Buffer; ended: boolean }): void {
    try {
      this.#begin(port, leg, leg.fd, read);
    } catch (error) {
      leg.reset();
      throw error;
    }
  }

  #begin(port: number, leg: TcpLeg, fd: number, read: { bytes: Buffer; ended: boolean }): void {
    const { config, counters, admission, table } = this.#host;
    const { peer } = leg;
    const front = this.#fronts[port] ?? null;
    if (front !== null && !front.trusts(peer)) {
      counters.peersRefused++;
      front.refusePeer(peer);
      leg.reset();
      return;
    }
    const refusal =
      front === null ? admission.refuses(port, peer, fd) : admission.refusesConnection(port, peer, fd);
    if (refusal !== null) {
      counters.sessionsRefused++;
      leg.reset();
      return;
    }
    const tooMany = front === null ? this.#tooManyWait(port) : null;
    if (tooMany === "reset") {
      counters.sessionsRefused++;
      leg.reset();
      return;
    }
    const session = table.create({
      id: randomBytes(12).toString("hex"),
      port,
      anchor: config.node,
      client: peer,
      acceptedAtMs: Date.now(),
      state: "waiting",
    });
    if (front === null) table.countClient(session);
    else this.awaitHeader(session, NO_BYTES);
    session.guard(() => {
      session.setDownstream(leg);
      if (session.header === null) this.#admit(session, tooMany);
      if (read.bytes.length > 0 && session.state !== "closed") session.fromClient(read.bytes);
      if (read.ended && session.state !== "closed") session.clientFin();
    });
  }

  /** Its client is known, and so is that it may come. */
  #admit(session: LiveSession, tooMany: "refuse" | null): void {
    const { counters, probeAnswers, filters } = this.#host;
    counters.sessionsAccepted++;
    const preface = this.#preface(session.port, session.client);
    if (preface !== null) session.inbound.receive(preface);
    if (tooMany !== null) {
      counters.sessionsRefused++;
      // HTTP is told to come later; what turns out to be something else is reset.
      filters.attach(session, null);
      session.filter?.replay?.giveUp();
      return;
    }
    if (this.#mustWait && this.#answersProbes(session.port)) {
      session.peek = new ProbePeek(session, this.#portAt(session.port), probeAnswers, () => {
        counters.probesAnswered++;
      });
    }
    this.#host.start(session);
  }

  // ---- load balancers

  /**
   * The session begins when its load balancer has said whose it is.
   * @param begun what another node's proxy had read of that
   */
  awaitHeader(session: LiveSession, begun: Buffer): void {
    const front = this.#fronts[session.port] as Front;
    session.header = new FrontHeader({
      session,
      begun,
      msMax: front.headerMsMax,
      onRead: (client) => this.#headerRead(session, client),
      onRefused: (why) => {
        this.#host.counters.headersRefused++;
        front.refuseHeader(session.client, why);
        session.reset(`its PROXY protocol header: ${why}`);
      },
    });
  }

  #headerRead(session: LiveSession, client: string | null): void {
    const { counters, admission, table } = this.#host;
    if (client !== null) {
      session.client = client;
      session.named = client;
    }
    const tooMany = this.#tooManyWait(session.port, session);
    if (tooMany === "reset" || admission.refusesClient(session.port, session.client) !== null) {
      counters.sessionsRefused++;
      session.reset("refused");
      return;
    }
    table.countClient(session);
    this.#admit(session, tooMany);
  }

  // ---- who has to wait

  get #mustWait(): boolean {
    const { role, owner } = this.#host;
    return role !== "owner" && (owner === null || role === "adopted");
  }

  /** One more would have to wait, and too many do already. null: it may come */
  #tooManyWait(port: number, newcomer: LiveSession | null = null): "reset" | "refuse" | null {
    const { config, owner, role } = this.#host;
    const { heldSessionsMax } = config.limits;
    let waiting: number;
    if (this.#mustWait || this.#isAbsent(port)) waiting = this.#waitingSessions(newcomer);
    else if (role === "anchor") {
      waiting = this.#unansweredSessions(Math.max(1, heldSessionsMax), newcomer);
      if (waiting === 0) return null; // it answers
    } else return null;
    const tooMany = waiting - heldSessionsMax;
    if (tooMany < 0) return null;
    const isPolite = this.#portAt(port).continuity === "replay" && owner === null;
    return isPolite && tooMany < REFUSED_POLITELY_MAX ? "refuse" : "reset";
  }

  /** The application is held, or being restarted, here and not for too long. */
  #answersProbes(port: number): boolean {
    const { role, heldAtMs, config } = this.#host;
    const isUnavailable = ["held", "captured", "departed", "paused"].includes(role);
    const hasProbes = this.#portAt(port).probes.length > 0;
    return hasProbes && isUnavailable && performance.now() - heldAtMs < config.limits.probeMsMax;
  }

  /** It ended by itself, and clients of this port may wait for it. */
  #isAbsent(port: number): boolean {
    const { role, availabilities } = this.#host;
    const { continuity } = this.#portAt(port);
    return continuity === "replay" && role === "owner" && availabilities[port]?.isAbsent === true;
  }

  /** Accepted while there was nobody to connect them to. */
  #waitingSessions(newcomer: LiveSession | null): number {
    let count = 0;
    for (const session of this.#host.table.waiting)
      if (isToBeConnected(session) && session !== newcomer) count++;
    return count;
  }

  /** An anchor's: their owner is known, and has said nothing. @param most it is not counted beyond */
  #unansweredSessions(most: number, newcomer: LiveSession | null): number {
    const { table, anchorLinks } = this.#host;
    const beforeMs = performance.now() - ANSWER_MS_MAX;
    if (table.waiting.size < most || anchorLinks.answeredAtMs > beforeMs) return 0;
    let count = 0;
    for (const session of table.waiting) {
      if (count >= most || session.waitingSinceMs > beforeMs) break;
      if (isToBeConnected(session) && session !== newcomer) count++;
    }
    return count;
  }

  #portAt(port: number): PortConfig {
    return this.#host.config.ports[port] as PortConfig;
  }
}

/** It waits, and has never had its application. */
function isToBeConnected({ wasConnected, header }: LiveSession): boolean {
  return !wasConnected && header === null;
}
