/**
 * The proxy of one workload on one node: its sessions, where clients and links arrive, who owns the workload, and what
 * happens to a session when nothing is being moved. The steps of a move are in the files beside this one.
 */
import { hkdfSync, randomBytes } from "node:crypto";
import net from "node:net";
import type { Logger } from "pino";
import {
  CONTAINER_PORT_FIRST,
  type Configure,
  type PortConfig,
  type SessionInfo,
} from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { LegSurgeon } from "#proxy/contract/leg-surgeon.ts";
import type { ProxyLimits } from "#proxy/contract/limits.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Greeting } from "#proxy/link/link-auth.ts";
import { type Active, type Destination, RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg, type LinkListener } from "#proxy/link/link-leg.ts";
import { LinkWatch } from "#proxy/link/link-watch.ts";
import { ClientListener } from "#proxy/listen/client-listener.ts";
import type { PlainRequest } from "#proxy/protocol/stored-answer.ts";
import { HeldBudget } from "#proxy/replay/held-bytes.ts";
import { ProtocolFilter, type ProtocolFilterHost } from "#proxy/replay/protocol-filter.ts";
import type { Carrier } from "#proxy/replay/replay-host.ts";
import type { Role } from "#proxy/session/role.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { Admission } from "./admission.ts";
import { newCounters } from "./counters.ts";
import { IdleSessions } from "./idle-sessions.ts";
import type { LegKernel } from "./leg-kernel.ts";
import { Linger } from "./linger.ts";
import { type DetachedLeg, LiveSession } from "./live-session.ts";
import { Front, FrontHeader } from "./load-balancer.ts";
import { ProbeAnswers, ProbePeek } from "./probes.ts";
import { UpstreamAvailability } from "./upstream-availability.ts";
import { placeOf, sessionPage } from "./view.ts";

const NO_BYTES: Buffer = Buffer.alloc(0);
const LINKS_GREETING_MAX = 4096;
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
/** clients over `heldSessionsMax` of replay ports that are answered 503; beyond them RST */
const REFUSED_POLITELY_MAX = 1024;

/** What a restart has done to the sessions, between {@link WorkloadProxy.beginUnavailable} and `endUnavailable`. */
interface UnavailableFigures {
  replayed: number;
  refused: number;
  reset: number;
}

/** How an anchor that is no node's, a gateway, finds the owner: no agent tells it. */
export interface OwnerFinder {
  /** Which of the owner's ports one of ours is for. null: it has no such port */
  portThere(port: number): number | null;
  /** What the application gets of a client before the client's own bytes. null: nothing */
  preface(port: number, client: string): Buffer | null;
  /** There is no owner, or a link to it was refused or lost: look where it is, then lead the sessions there. */
  seek(): void;
  /** The proxy there has said ACTIVE at that epoch. */
  found(to: Destination): void;
  /** A move to there is under way: runs `dial`, which makes a link to it, when it is this one's turn. @returns what that does */
  prepare(to: Destination, dial: () => Promise<boolean>): Promise<boolean>;
}

export interface WorkloadProxyOptions {
  config: Configure;
  /** default: this is a node's proxy */
  finder?: OwnerFinder;
  /** of its links; the first is what it dials with */
  keys: SharedKeys;
  kernel: LegKernel;
  surgeon: LegSurgeon;
  log: Logger;
}

const ANY_ADDRESS = "0.0.0.0";

export class WorkloadProxy implements ProtocolFilterHost {
  readonly config: Configure;
  readonly kernel: LegKernel;
  readonly surgeon: LegSurgeon;
  readonly log: Logger;
  readonly sessions = new Map<string, LiveSession>();
  readonly listeners: ClientListener[] = [];
  /** accepted links that wait for their session, or for this proxy to own the workload */
  readonly parked = new Map<string, LinkLeg>();
  readonly counters = newCounters();
  /** how often bytes could not be named any more, by reason */
  readonly opaqueReasons = new Map<string, number>();
  readonly budget: HeldBudget;
  readonly admission: Admission;
  /** one a port */
  readonly availabilities: UpstreamAvailability[];
  readonly #fronts: (Front | null)[];
  readonly probeAnswers = new ProbeAnswers();
  /** when the present cutover or restart began */
  heldAtMs = 0;
  role: Role = "idle";
  epoch = 0;
  /** forward: this proxy is an anchor, and the application is there */
  owner: { node: string; link: Endpoint } | null = null;
  /** source: the target has said ACTIVE, so there is no way back */
  releasedElsewhere = false;
  /** gateway, source: where sessions of new links are to be prepared, too */
  movingTo: Destination | null = null;
  /** gateway, source: to be closed when everything is over here */
  readonly leavingLinks: LinkLeg[] = [];

  #keys: SharedKeys;
  #cookieKeys: SharedKeys;
  readonly #finder: OwnerFinder | null;
  readonly #idle = new IdleSessions(this);
  /** that can go on over another connection */
  readonly #links: LinkWatch<LinkLeg>;
  #linkServer: net.Server | null = null;
  #linksGreeting = 0;
  #sessionsMade = 0;
  readonly #linger: Linger;
  #unavailableBefore: UnavailableFigures | null = null;
  #shortageToldAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: WorkloadProxyOptions) {
    this.config = options.config;
    this.#finder = options.finder ?? null;
    this.#keys = options.keys;
    this.#cookieKeys = cookieKeysOf(options.keys, options.config.workload);
    this.kernel = options.kernel;
    this.surgeon = options.surgeon;
    this.log = options.log;
    const { limits, spillDir, ports } = options.config;
    this.#links = new LinkWatch(options.keys, limits.linkResumeMsMax);
    this.#linger = new Linger(limits.lingerMsMax, () => this.counters.lingerTimeouts++);
    this.admission = new Admission({ ports, process: options.kernel, log: options.log });
    this.budget = new HeldBudget({
      sessionBytesMax: limits.heldSessionBytesMax,
      workloadBytesMax: limits.heldWorkloadBytesMax,
      spillBytesMax: limits.spillBytesMax,
      spillDir,
    });
    this.availabilities = ports.map((_, port) => new UpstreamAvailability(this, port));
    this.#fronts = ports.map(({ proxyProtocol, listen }) =>
      proxyProtocol === null ? null : new Front(proxyProtocol, listen, options.log),
    );
  }

  /** Links that are there go on; from now on others are dialled and accepted with these. */
  set keys(keys: SharedKeys) {
    this.#keys = keys;
    this.#links.keys = keys;
    this.#cookieKeys = cookieKeysOf(keys, this.config.workload);
  }
  get keys(): SharedKeys {
    return this.#keys;
  }
  get cookieKeys(): SharedKeys {
    return this.#cookieKeys;
  }
  get limits(): ProxyLimits {
    return this.config.limits;
  }
  get lingerMsMax(): number {
    return this.config.limits.lingerMsMax;
  }
  get isPaused(): boolean {
    return this.role !== "owner";
  }
  get isMoving(): boolean {
    return this.role !== "owner" && this.role !== "paused";
  }

  get isAnchor(): boolean {
    return this.owner !== null;
  }

  get linkEndpoint(): Endpoint | null {
    const address = this.#linkServer?.address();
    if (address === undefined || address === null || typeof address === "string") return null;
    return { address: address.address, port: address.port };
  }

  portOf(session: LiveSession): PortConfig {
    return this.config.ports[session.port] as PortConfig;
  }

  // ---- where clients arrive

  /**
   * Does nothing where this proxy, an anchor, listens already. Shielded: there, even before its address is, and silent
   * until the release.
   * @throws HoldfastError `PROXY_LISTEN`
   */
  openListeners(options = { shielded: false }): void {
    if (this.listeners.length > 0) return;
    this.#idle.start();
    if (this.config.downstream === "gateway") return;
    for (const [index, port] of this.config.ports.entries()) {
      try {
        const at = this.#listensAt(index);
        const listener = ClientListener.open({
          kernel: this.kernel,
          ...at,
          bind: this.#bind(at, options.shielded),
          onAccept: (fd) => this.accept(index, fd),
          onError: (error) => {
            this.counters.acceptErrors++;
            this.log.warn({ err: error }, "accepting a client failed");
          },
        });
        this.listeners.push(listener);
        this.kernel.setPeerTimeouts(listener.fd, port);
        this.kernel.boundQueues(listener.fd, "client");
      } catch (error) {
        this.closeListeners();
        throw error;
      }
    }
  }

  #listensAt(index: number): Endpoint {
    const { listenIn, listenAddress, ports } = this.config;
    return listenIn === "container"
      ? { address: ANY_ADDRESS, port: CONTAINER_PORT_FIRST + index }
      : { address: listenAddress, port: (ports[index] as PortConfig).listen };
  }

  /** Takeover: the address comes and goes without its listener. */
  #bind(at: Endpoint, shielded: boolean): (() => number) | null {
    const { downstream, listenIn } = this.config;
    const isInside = listenIn === "container";
    if (shielded) return () => this.kernel.bindShielded(at, isInside ? "upstream" : "downstream");
    if (isInside) return () => this.kernel.bindUpstream(at);
    return downstream === "takeover" ? () => this.kernel.bindFree(at) : null;
  }

  closeListeners(): void {
    for (const listener of this.listeners.splice(0)) listener.close();
  }

  /** A client's connection, ours from now on. @param port which of the configuration's it came to */
  accept(port: number, fd: number): void {
    this.acceptRead(port, TcpLeg.attach(this.kernel, fd, "client"), { bytes: NO_BYTES, ended: false });
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
    const { peer } = leg;
    const front = this.#fronts[port] ?? null;
    if (front !== null && !front.trusts(peer)) {
      this.counters.peersRefused++;
      front.refusePeer(peer);
      leg.reset();
      return;
    }
    const refusal =
      front === null
        ? this.admission.refuses(port, peer, fd)
        : this.admission.refusesConnection(port, peer, fd);
    if (refusal !== null) {
      this.counters.sessionsRefused++;
      leg.reset();
      return;
    }
    const tooMany = front === null ? this.#tooManyWait(port) : null;
    if (tooMany === "reset") {
      this.counters.sessionsRefused++;
      leg.reset();
      return;
    }
    const session = this.createSession({
      id: randomBytes(12).toString("hex"),
      port,
      anchor: this.config.node,
      client: peer,
      acceptedAtMs: Date.now(),
      state: "waiting",
    });
    if (front === null) this.countClient(session);
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
    this.counters.sessionsAccepted++;
    const preface = this.#finder?.preface(session.port, session.client) ?? null;
    if (preface !== null) session.inbound.receive(preface);
    if (tooMany !== null) {
      this.counters.sessionsRefused++;
      // HTTP is told to come later; what turns out to be something else is reset.
      this.attachFilter(session, null);
      session.filter?.replay?.giveUp();
      return;
    }
    if (this.#mustWait && this.#answersProbes(session.port)) {
      session.peek = new ProbePeek(session, this.portOf(session), this.probeAnswers, () => {
        this.counters.probesAnswered++;
      });
    }
    this.start(session);
  }

  get #mustWait(): boolean {
    return this.role !== "owner" && (this.owner === null || this.role === "adopted");
  }

  /** One more would have to wait, and too many do already. null: it may come */
  #tooManyWait(port: number, newcomer: LiveSession | null = null): "reset" | "refuse" | null {
    if (!this.#mustWait && !this.#isAbsent(port)) return null;
    const tooMany = this.#waitingSessions(newcomer) - this.config.limits.heldSessionsMax;
    if (tooMany < 0) return null;
    const isPolite = (this.config.ports[port] as PortConfig).continuity === "replay" && !this.isAnchor;
    return isPolite && tooMany < REFUSED_POLITELY_MAX ? "refuse" : "reset";
  }

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
        this.counters.headersRefused++;
        front.refuseHeader(session.client, why);
        session.reset(`its PROXY protocol header: ${why}`);
      },
    });
  }

  #headerRead(session: LiveSession, client: string | null): void {
    if (client !== null) {
      session.client = client;
      session.named = client;
    }
    const tooMany = this.#tooManyWait(session.port, session);
    if (tooMany === "reset" || this.admission.refusesClient(session.port, session.client) !== null) {
      this.counters.sessionsRefused++;
      session.reset("refused");
      return;
    }
    this.countClient(session);
    this.#admit(session, tooMany);
  }

  /** Its client's socket is here, and counts for that address. */
  countClient(session: LiveSession): void {
    session.countedAs ??= this.admission.clientEnters(session.port, session.client);
  }

  /** The application is held, or being restarted, here and not for too long. */
  #answersProbes(port: number): boolean {
    const isUnavailable = ["held", "captured", "departed", "paused"].includes(this.role);
    const hasProbes = (this.config.ports[port] as PortConfig).probes.length > 0;
    return hasProbes && isUnavailable && performance.now() - this.heldAtMs < this.config.limits.probeMsMax;
  }

  /** It ended by itself, and clients of this port may wait for it. */
  #isAbsent(port: number): boolean {
    const { continuity } = this.config.ports[port] as PortConfig;
    return continuity === "replay" && this.role === "owner" && this.availabilities[port]?.isAbsent === true;
  }

  /** Accepted while there was nobody to connect them to. */
  #waitingSessions(newcomer: LiveSession | null): number {
    let count = 0;
    for (const session of this.sessions.values()) {
      const waits = session.state === "waiting" && !session.wasConnected && session.header === null;
      if (waits && session !== newcomer) count++;
    }
    return count;
  }

  createSession(
    options: Omit<ConstructorParameters<typeof LiveSession>[0], "events" | "number">,
  ): LiveSession {
    const session = new LiveSession({ ...options, number: ++this.#sessionsMade, events: this });
    this.sessions.set(session.id, session);
    this.admission.enter(session.port);
    return session;
  }

  /** Gives a waiting session its upstream, where that is possible now. */
  start(session: LiveSession): void {
    if (session.state !== "waiting" || session.header !== null) return;
    if (this.role === "owner") this.#startHere(session);
    else if (this.role === "paused" && this.availabilities[session.port]?.isGivenUp === true)
      this.giveUp(session);
    else if (this.owner !== null && session.nextLink === null) {
      this.dialLink(session, { to: this.owner.link, epoch: this.epoch, fresh: true });
    } else if (this.owner === null && this.#finder !== null) this.#awaitOwner(session, this.#finder);
  }

  #awaitOwner(session: LiveSession, finder: OwnerFinder): void {
    this.#boundWaiting(session);
    finder.seek();
  }

  /** The application has not come back in time. */
  giveUp(session: LiveSession): void {
    // It is told when it has said who it is.
    if (session.header !== null) return;
    session.peek?.giveBack();
    this.attachFilter(session, null);
    const replay = session.filter?.replay ?? null;
    if (replay === null) session.reset("the application is unavailable");
    else replay.giveUp();
  }

  #startHere(session: LiveSession): void {
    session.peek?.giveBack();
    this.attachFilter(session, null);
    // What was given back may have led here already.
    if (session.state !== "waiting") return;
    const replay = session.filter?.replay ?? null;
    if (replay === null) {
      this.#dialApplication(session);
      return;
    }
    const availability = this.availabilities[session.port] as UpstreamAvailability;
    if (availability.isGivenUp) replay.giveUp();
    else if ((session.dialShortage?.dialNotBeforeMs ?? 0) > performance.now()) return;
    else if (availability.isAbsent) replay.waits();
    else if (replay.comeBack()) this.#dialApplication(session);
  }

  #dialApplication(session: LiveSession): void {
    session.step("dial");
    const replay = session.filter?.replay ?? null;
    const leg = TcpLeg.dial(this.kernel, this.portOf(session).upstream, {
      onConnect: () => {
        session.dialShortage = null;
        if (replay === null) this.#attach(session, leg);
        else {
          replay.shakeHands(leg, (why) => {
            if (why === null) this.#attach(session, leg);
            else {
              this.log.info({ session: session.id, reason: why }, "a WebSocket could not be dialled again");
              leg.reset();
              if (session.dialling !== leg) return;
              session.dialling = null;
              session.step("abort");
            }
          });
        }
      },
      onError: (code) => {
        session.guard(() => this.#dialFailed(session, code));
      },
      onBroken: (error) => session.onBroken(error),
    });
    session.dialling = leg;
    // Of a descriptor that exists, the reserve may not be used up.
    if (leg.fd >= 0 && !this.admission.hasRoom(leg.fd)) {
      leg.close();
      this.#dialFailed(session, "EMFILE");
    }
  }

  #dialFailed(session: LiveSession, code: string): void {
    const replay = session.filter?.replay ?? null;
    this.counters.dialFailures++;
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
    this.availabilities[session.port]?.lost();
    replay.waits();
  }

  /** The node lacks what a connection needs, which says nothing of the application. */
  #dialLater(session: LiveSession, code: string): void {
    this.counters.dialShortages++;
    const nowMs = performance.now();
    if (nowMs - this.#shortageToldAtMs >= SHORTAGE_LOG_MS) {
      this.#shortageToldAtMs = nowMs;
      const { dialShortages } = this.counters;
      this.log.error({ code, dialShortages }, "the node lacks what a connection to the application needs");
    }
    const shortage = {
      sinceMs: session.dialShortage?.sinceMs ?? nowMs,
      dialNotBeforeMs: nowMs + SHORTAGE_MS,
    };
    session.dialShortage = shortage;
    setTimeout(() => {
      shortage.dialNotBeforeMs = 0;
      session.guard(() => this.start(session));
    }, SHORTAGE_MS).unref();
    // A client that has just come is better told at once; one whose state is worth it waits.
    const isLate = nowMs - shortage.sinceMs >= this.config.limits.unavailableMsMax;
    if (!session.wasConnected || isLate) this.giveUp(session);
    else session.filter?.replay?.waits();
  }

  #attach(session: LiveSession, leg: TcpLeg): void {
    session.dialling = null;
    if (this.role === "paused") {
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

  // ---- what passes (ProtocolFilterHost)

  /** @param saved of the node the session comes from. @throws HoldfastError `SNAPSHOT_INVALID` */
  attachFilter(session: LiveSession, saved: Buffer | null): void {
    const port = this.portOf(session);
    if (session.filter !== null || (port.protocol === "tcp" && port.continuity === "transplant")) return;
    const unobserved = saved === null ? session.inbound.takeBack() : null;
    session.filter = new ProtocolFilter({ carrier: session, host: this, port, saved });
    if (unobserved !== null && unobserved.length > 0) session.fromClient(unobserved);
  }

  instanceFor(carrier: Carrier): number {
    return carrier instanceof LiveSession ? (this.availabilities[carrier.port]?.instance ?? -1) : -1;
  }

  want(carrier: Carrier): void {
    if (carrier instanceof LiveSession) this.start(carrier);
  }

  onSpillFailed(error: unknown): void {
    this.log.warn({ err: error }, "held bytes and the disk: a client is refused or reset");
  }

  onOpaque(reason: string): void {
    this.counters.sessionsOpaque++;
    this.opaqueReasons.set(reason, (this.opaqueReasons.get(reason) ?? 0) + 1);
  }

  onProbeAnswer(port: PortConfig, check: PlainRequest, answer: Buffer): void {
    this.probeAnswers.remember(port, check, answer);
  }

  /** From now on it is counted what becomes of sessions whose application is unavailable. */
  beginUnavailable(): void {
    this.#unavailableBefore ??= this.#unavailableFigures();
  }

  endUnavailable(): UnavailableFigures {
    const now = this.#unavailableFigures();
    const before = this.#unavailableBefore ?? now;
    this.#unavailableBefore = null;
    return {
      replayed: now.replayed - before.replayed,
      refused: now.refused - before.refused,
      reset: now.reset - before.reset,
    };
  }

  #unavailableFigures(): UnavailableFigures {
    const { counters } = this;
    return {
      replayed: counters.requestsReplayed + counters.messagesReplayed,
      refused: counters.requestsRefused + counters.webSocketsRefused,
      reset: counters.sessionsReset,
    };
  }

  // ---- endings (SessionEvents)

  onOver(session: LiveSession, reason: string | null): void {
    if (this.sessions.get(session.id) === session) {
      this.sessions.delete(session.id);
      this.admission.leave(session.port);
    }
    if (session.countedAs !== null) this.admission.clientLeaves(session.port, session.countedAs);
    session.countedAs = null;
    closeDetached(this.kernel, session);
    this.#linger.remove(session);
    this.counters.bytesIn += session.inbound.bytes;
    this.counters.bytesOut += session.outbound.bytes;
    if (reason === null) this.counters.sessionsEnded++;
    else {
      this.counters.sessionsReset++;
      this.log.debug({ session: session.id, reason }, "session reset");
    }
  }

  onBroken(session: LiveSession, error: unknown): void {
    if (session.state === "closed") {
      this.log.debug({ session: session.id, err: error }, "an ended session's code has thrown");
      return;
    }
    this.counters.sessionsBroken++;
    this.log.error({ session: session.id, client: session.client, err: error }, "a session has broken");
    try {
      session.breakOff();
    } catch (again) {
      this.log.error({ session: session.id, err: again }, "… and could not be reset: it is let go as it is");
      this.onOver(session, "broken");
    }
  }

  onLingering(session: LiveSession): void {
    this.#linger.add(session);
  }

  // ---- links, at the anchor

  dialLink(session: LiveSession, options: { to: Endpoint; epoch: number; fresh: boolean }): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    session.nextLink?.close(RST_CODE.moved);
    session.nextLink = null;
    const port = this.#finder === null ? session.port : this.#finder.portThere(session.port);
    if (port === null) {
      session.reset("the owner has no such port");
      return Promise.resolve(false);
    }
    const greeting: Greeting = {
      session: session.id,
      port,
      epoch: options.epoch,
      anchor: this.config.node,
      client: session.client,
      acceptedAtMs: session.acceptedAtMs,
      fresh: options.fresh,
    };
    const listener: LinkListener = {
      onActive: (link, active) => this.#onActive(session, link, active),
      onHold: (link) => {
        if (session.upstream === link) session.inbound.hold();
      },
      onResume: (link) => {
        if (session.upstream !== link) return;
        session.nextLink?.close(RST_CODE.moved);
        session.nextLink = null;
        session.inbound.unhold();
      },
      onHeld: () => {},
      onMove: (link, to) => void this.#onMove(session, link, to),
      onCount: (link) => {
        if (session.upstream === link) link.sendCounted(session.outbound.bytes);
      },
      onInterrupted: (link) => {
        this.counters.linksInterrupted++;
        // its owner may have gone for good, and the next one be known
        if (session.upstream === link && session.inbound.held) this.#finder?.seek();
      },
      onContinued: (link) => this.#onContinued(link),
      onLate: (link) => this.#onLate(link),
      onOver: (link, code) => {
        resolve(false);
        this.#onAnchorLinkOver(session, link, code);
      },
      onBroken: (_link, error) => {
        resolve(false);
        session.onBroken(error);
      },
    };
    session.nextLink = LinkLeg.dial({
      keys: this.#keys,
      encrypted: this.config.links === "encrypted",
      to: options.to,
      greeting,
      onReady: (link) => {
        this.#watchOver(link, session.port);
        resolve(true);
      },
      listener,
      watch: this.#links,
    });
    return promise;
  }

  #onContinued(link: LinkLeg): void {
    this.counters.linksContinued++;
    const session = this.sessions.get(link.id);
    if (session !== undefined) this.#watchOver(link, session.port);
  }

  #onLate({ id, greeting }: LinkLeg): void {
    this.counters.linksLate++;
    const { linkResumeMsMax } = this.config.limits;
    this.log.warn(
      { session: id, client: greeting?.client, linkResumeMsMax },
      "a link has not come back: its session ends; look at the network between the two proxies",
    );
  }

  /** Gateway: its next owner may be there soon; the link is to be ready then. */
  async #onMove(session: LiveSession, link: LinkLeg, to: Destination): Promise<void> {
    if (this.#finder === null) return;
    const isPrepared = await this.#finder.prepare(to, async () => {
      if (session.upstream !== link || !link.isOpen || session.state !== "open") return false;
      return this.dialLink(session, { to: to.link, epoch: to.epoch, fresh: false });
    });
    link.sendPrepared(isPrepared);
  }

  #onActive(session: LiveSession, link: LinkLeg, active: Active): void {
    if (session.state === "closed" || session.nextLink !== link || active.epoch < this.epoch) {
      link.close(RST_CODE.moved);
      return;
    }
    if (link.dialledTo !== null) this.#finder?.found({ epoch: active.epoch, link: link.dialledTo });
    session.nextLink = null;
    if (session.state === "waiting") {
      // It had waited for an owner since an earlier one moved away.
      stopWaiting(session);
      session.countAnew();
      session.step("dialled");
      session.setUpstream(link);
      session.inbound.unhold();
      return;
    }
    const old = session.upstream;
    if (session.state === "captured") {
      // The source hears it from the target before its own agent does: nothing can be taken back any more.
      this.releasedElsewhere = true;
      this.#dropDetachedUpstream(session);
      session.dropWatch();
      if (session.lost !== null) {
        link.reset();
        session.reset(session.lost);
        return;
      }
      session.step("resume");
      session.inbound.clear();
    } else if (old instanceof LinkLeg) {
      session.inbound.removeSink(old.takeUnsent());
    }
    this.switchUpstream(session, link, { bytesIn: active.bytesIn, bytesOut: active.bytesOut });
  }

  /**
   * The session's application is behind `next` from now on. What is sent goes there at once; what comes from there is
   * delivered when everything the old owner passed on has arrived. Offsets that do not fit mean bytes were lost on the
   * way (a link or its proxy died): the client gets a reset rather than a gap.
   */
  switchUpstream(
    session: LiveSession,
    next: TcpLeg | LinkLeg,
    offsets: { bytesIn: number; bytesOut: number; prependIn?: Buffer; onComplete?: () => void },
  ): void {
    const old = session.upstream;
    const sentBytes = session.inbound.bytes - session.inbound.pendingBytes;
    if (
      sentBytes !== offsets.bytesIn ||
      session.outbound.bytes > offsets.bytesOut ||
      (old === null && session.outbound.bytes !== offsets.bytesOut)
    ) {
      this.counters.linkMismatches++;
      this.log.warn(
        {
          session: session.id,
          sentBytes,
          receivedBytes: session.outbound.bytes,
          bytesIn: offsets.bytesIn,
          bytesOut: offsets.bytesOut,
        },
        "bytes were lost between anchor and owner; resetting the client",
      );
      next.reset();
      session.reset("link mismatch");
      return;
    }
    stopWaiting(session);
    const complete = (): void => {
      if (old instanceof LinkLeg) {
        old.listener = null;
        old.release();
      }
      session.upstream = next;
      session.setUpstreamSource(next);
      offsets.onComplete?.();
    };
    if (offsets.prependIn !== undefined) session.inbound.prepend(offsets.prependIn);
    if (next instanceof LinkLeg) session.inbound.finSent = false;
    session.setUpstreamSink(next);
    if (session.outbound.bytes === offsets.bytesOut) complete();
    else session.switchAt = { bytesOut: offsets.bytesOut, complete };
    session.inbound.unhold();
  }

  #dropDetachedUpstream(session: LiveSession): void {
    letGo(this.kernel, session.detachedUpstream);
    session.detachedUpstream = null;
  }

  #onAnchorLinkOver(session: LiveSession, link: LinkLeg, code: number): void {
    if (session.nextLink === link) {
      session.nextLink = null;
      // A new session whose owner moved away waits for `switchOwner`; a prepared link can be dialled again then.
      if (this.#finder !== null) {
        this.#onFinderLinkOver(session, code, this.#finder);
        return;
      }
      if (session.state !== "waiting") return;
      if (code === RST_CODE.moved) this.#boundWaiting(session);
      else {
        this.counters.linkFailures++;
        session.reset("link refused");
      }
      return;
    }
    if (session.upstream !== link) return;
    if (code === RST_CODE.reset) {
      session.reset("upstream reset");
      return;
    }
    this.counters.linkFailures++;
    // In the middle of a move the next owner may have everything: its offsets will tell.
    if (session.inbound.held) {
      session.inbound.removeSink(link.takeUnsent());
      session.outbound.setSource(null);
      session.upstream = null;
      if (session.switchAt !== null) session.reset("link broken");
      else {
        this.#boundWaiting(session);
        this.#finder?.seek();
      }
    } else {
      session.reset("link broken");
    }
  }

  /** Gateway: nothing of the session is lost with a link that has not become its own. */
  #onFinderLinkOver(session: LiveSession, code: number, finder: OwnerFinder): void {
    if (code !== RST_CODE.moved) this.counters.linkFailures++;
    if (session.state === "waiting") this.#awaitOwner(session, finder);
    else if (session.state === "open" && session.upstream === null) {
      if (code === RST_CODE.unknownSession) session.reset("not known to the owner");
      else this.#awaitOwner(session, finder);
    }
  }

  #boundWaiting(session: LiveSession): void {
    session.timer ??= setTimeout(() => {
      session.timer = null;
      this.counters.linkFailures++;
      session.guard(() => session.reset("no owner in time"));
    }, this.config.limits.lingerMsMax);
  }

  // ---- links, at the owner

  async openLinks(): Promise<void> {
    if (this.config.downstream === "takeover" || this.#linkServer !== null) return;
    const [host, port] = splitAddress(this.config.linkAddress);
    const server = net.createServer((socket) => this.#onLinkSocket(socket));
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.once("error", reject);
    server.listen({ host, port, backlog: 4096, exclusive: true }, resolve);
    try {
      await promise;
    } catch (cause) {
      throw fail("PROXY_LISTEN", `cannot listen for links on ${this.config.linkAddress}: ${String(cause)}`, {
        source: "link",
        cause,
      });
    }
    server.on("error", (err) => this.log.warn({ err }, "accepting a link failed"));
    this.#linkServer = server;
  }

  #onLinkSocket(socket: net.Socket): void {
    const isFull = !this.admission.hasRoom(this.kernel.lowestFreeDescriptor());
    if (isFull || this.#linksGreeting >= LINKS_GREETING_MAX) {
      this.counters.linksRefused++;
      socket.destroy();
      return;
    }
    this.#linksGreeting++;
    LinkLeg.accept(socket, {
      keys: this.#keys,
      encrypted: this.config.links === "encrypted",
      onReady: (link) => {
        this.#linksGreeting--;
        this.counters.linksAccepted++;
        this.#onLink(link, link.greeting as Greeting);
      },
      onRefused: (reason) => {
        this.#linksGreeting--;
        this.counters.linksRefused++;
        this.log.warn({ reason }, "link refused");
      },
      onRejoined: () => this.#linksGreeting--,
      watch: this.#links,
      listener: {
        onActive: (link) => link.reset(),
        onHold: (link) => link.reset(),
        onResume: () => {},
        onHeld: () => {},
        onInterrupted: () => this.counters.linksInterrupted++,
        onContinued: (link) => this.#onContinued(link),
        onLate: (link) => this.#onLate(link),
        onOver: (link, code) => this.#onOwnerLinkOver(link, code),
        onBroken: (link, error) => {
          const session = this.sessions.get(link.greeting?.session ?? "");
          if (session?.downstream === link) session.onBroken(error);
          else this.log.error({ err: error }, "a link has broken");
        },
      },
    });
  }

  #onLink(link: LinkLeg, greeting: Greeting): void {
    if (greeting.port >= this.config.ports.length) {
      link.close(RST_CODE.unknownSession);
      return;
    }
    this.#watchOver(link, greeting.port);
    if (greeting.epoch > this.epoch || this.role === "idle" || this.role === "anchor") {
      // The dialler knows of a newer owner than this proxy does, or this proxy owns nothing.
      link.close(RST_CODE.moved);
    } else if (this.role === "owner") this.takeLink(link);
    else {
      this.parked.get(greeting.session)?.close(RST_CODE.moved);
      this.parked.set(greeting.session, link);
    }
  }

  /**
   * Behind gateways a link is to an owner what a client's connection is where clients come to it: one whose other end has vanished must not
   * keep the workload from moving, nor a client at a gateway waiting.
   */
  #watchOver(link: LinkLeg, port: number): void {
    const { fd } = link;
    const bounds = this.config.ports[port] as PortConfig;
    // a port that never asks its clients for a sign of life leaves links with what they have
    if (this.config.downstream === "gateway" && fd >= 0 && bounds.keepAliveMs > 0)
      this.kernel.setPeerTimeouts(fd, bounds);
  }

  /** Owner: joins the link to its session, or begins a new one. */
  takeLink(link: LinkLeg): void {
    const greeting = link.greeting as Greeting;
    const known = this.sessions.get(greeting.session);
    const joinable =
      known !== undefined &&
      (known.state === "open" || known.state === "waiting" || known.state === "dialling");
    if (joinable && known.downstream === null) {
      this.joinLink(known, link);
    } else if (joinable && this.#isUnheard(known, greeting)) {
      this.#takeFromUnheard(known);
      this.joinLink(known, link);
    } else if (known === undefined && greeting.fresh) {
      this.counters.sessionsAccepted++;
      const session = this.createSession({
        id: greeting.session,
        port: greeting.port,
        anchor: greeting.anchor,
        client: greeting.client,
        acceptedAtMs: greeting.acceptedAtMs,
        state: "waiting",
      });
      link.sendActive({ epoch: this.epoch, bytesIn: 0, bytesOut: 0 });
      if (this.movingTo !== null) link.sendMove(this.movingTo);
      session.setDownstream(link);
      this.start(session);
    } else {
      link.close(RST_CODE.unknownSession);
    }
  }

  /** The anchor has not had the ACTIVE of the link that is there, which has broken: so it dials as if there had been none. */
  #isUnheard({ downstream }: LiveSession, { anchor }: Greeting): boolean {
    return downstream instanceof LinkLeg && downstream.isUnproven && downstream.greeting?.anchor === anchor;
  }

  #takeFromUnheard({ downstream, outbound }: LiveSession): void {
    const old = downstream as LinkLeg;
    const sent = old.takeUnacknowledged();
    outbound.removeSink(old.takeUnsent());
    outbound.prepend(sent);
    old.listener = null;
    old.close(RST_CODE.moved);
  }

  joinLink(session: LiveSession, link: LinkLeg): void {
    stopWaiting(session);
    session.client = link.greeting?.client ?? session.client;
    link.sendActive({
      epoch: this.epoch,
      bytesIn: session.inbound.bytes,
      bytesOut: session.outbound.bytes - session.outbound.pendingBytes,
    });
    // The anchor takes a second FIN for none at all, and may not have had the first.
    session.outbound.finSent = false;
    session.setDownstream(link);
  }

  /** The anchor has to dial again: its prepared link never came, or broke. */
  awaitLink(session: LiveSession): void {
    this.#boundWaiting(session);
  }

  /** Anchor: the session has an owner and no link to it. */
  relink(session: LiveSession, fresh: boolean): void {
    if (this.owner === null) return;
    this.#boundWaiting(session);
    this.dialLink(session, { to: this.owner.link, epoch: this.epoch, fresh });
  }

  /** The other side ends it when it has what is in it; after a while we do. */
  releaseLater(link: LinkLeg): void {
    link.listener = null;
    setTimeout(() => link.release(), this.config.limits.lingerMsMax).unref();
  }

  #onOwnerLinkOver(link: LinkLeg, code: number): void {
    const id = link.greeting?.session ?? "";
    if (this.parked.get(id) === link) {
      this.parked.delete(id);
      const session = this.sessions.get(id);
      if (code === RST_CODE.reset && session?.state === "adopted" && session.downstream === null) {
        session.lost ??= "downstream reset";
      }
      return;
    }
    const session = this.sessions.get(id);
    if (session === undefined || session.downstream !== link) return;
    if (session.state === "captured" || session.state === "adopted") {
      // Either the client is gone, or its anchor has switched to the new owner already.
      session.lose("downstream", "link over");
      return;
    }
    if (code !== RST_CODE.reset) this.counters.linkFailures++;
    session.reset("downstream link over");
  }

  closeParked(code: number): void {
    for (const link of this.parked.values()) link.close(code);
    this.parked.clear();
  }

  // ---- what people see

  /** Those that came after the session with this number, the oldest first; next: the number to go on with, null at the end. */
  sessionPage(after: number, max: number): { sessions: SessionInfo[]; next: number | null } {
    return sessionPage(this, after, max);
  }

  placeOf(session: LiveSession): SessionInfo["place"] {
    return placeOf(this, session);
  }

  status(): Record<string, unknown> {
    return {
      role: this.role,
      epoch: this.epoch,
      sessions: this.sessions.size,
      pid: process.pid,
      link: this.linkEndpoint,
      owner: this.owner,
      rssBytes: process.memoryUsage.rss(),
      ports: this.listeners.map((listener) => listener.port),
      counters: this.counters,
      heldBytes: this.budget.memoryBytes,
      spilledBytes: this.budget.spilledBytes,
    };
  }

  /** Everything reset, everything closed. */
  stop(): void {
    for (const session of [...this.sessions.values()]) {
      closeDetached(this.kernel, session);
      session.reset("stopped");
    }
    this.#links.stop();
    this.closeDoors();
  }

  /** Sessions that pass nothing are ended from now on. A proxy that listens itself does so by {@link openListeners}. */
  watchIdleSessions(): void {
    this.#idle.start();
  }

  closeDoors(): void {
    this.#idle.stop();
    this.closeListeners();
    this.closeParked(RST_CODE.reset);
    this.#linkServer?.close();
    this.#linkServer = null;
    this.#linger.stop();
    for (const availability of this.availabilities) availability.stop();
  }
}

/** Silently: a stand-in too, and a leg in repair mode sends nothing when it is closed. */
export function closeDetached(kernel: LegKernel, session: LiveSession): void {
  letGo(kernel, session.detachedUpstream);
  letGo(kernel, session.detachedDownstream);
  if (session.standIn !== null) kernel.close(session.standIn.fd);
  session.detachedUpstream = null;
  session.detachedDownstream = null;
  session.standIn = null;
}

function letGo(kernel: LegKernel, leg: DetachedLeg | null): void {
  // its number must not become another's while the surgeon works on it
  if (leg?.inSurgery) leg.isLetGo = true;
  else if (leg !== null) kernel.close(leg.fd);
}

/** "10.0.0.2", "10.0.0.2:0", "[fd00::1]:7401", "fd00::1" */
function splitAddress(text: string): [host: string, port: number] {
  const bracketed = /^\[([^\]]+)\](?::(\d+))?$/.exec(text);
  if (bracketed !== null) return [bracketed[1] as string, Number(bracketed[2] ?? 0)];
  if (net.isIP(text) !== 0) return [text, 0];
  const at = text.lastIndexOf(":");
  return at < 0 ? [text, 0] : [text.slice(0, at), Number(text.slice(at + 1))];
}

function stopWaiting(session: LiveSession): void {
  if (session.timer !== null) clearTimeout(session.timer);
  session.timer = null;
}

function cookieKeysOf([first, ...others]: SharedKeys, workload: string): SharedKeys {
  const derive = (key: Buffer): Buffer =>
    Buffer.from(hkdfSync("sha256", key, "", `holdfast session cookie ${workload}`, 32));
  return [derive(first), ...others.map(derive)];
}
