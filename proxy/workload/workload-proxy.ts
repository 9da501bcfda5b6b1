/**
 * The proxy of one workload on one node: what belongs together of it, who owns the workload, and which way a session's upstream is. The
 * steps of a move are in `proxy/cutover/`.
 */
import net from "node:net";
import type { Logger } from "pino";
import type { Configure, PortConfig } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { LegSurgeon } from "#proxy/contract/leg-surgeon.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Greeting } from "#proxy/link/link-auth.ts";
import { type Active, type Destination, RST_CODE } from "#proxy/link/link-codec.ts";
import type { SocketConnection } from "#proxy/link/link-connection.ts";
import { type AcceptOptions, LinkLeg, type LinkListener } from "#proxy/link/link-leg.ts";
import { LinkWatch } from "#proxy/link/link-watch.ts";
import { CHANNELS_MAX, type Channel, Trunk } from "#proxy/link/trunk.ts";
import { Trunks } from "#proxy/link/trunks.ts";
import type { ClientListener } from "#proxy/listen/client-listener.ts";
import { PortListeners } from "#proxy/listen/port-listeners.ts";
import type { Role } from "#proxy/session/role.ts";
import type { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { Admission } from "./admission.ts";
import { ApplicationDialler } from "./application-dialler.ts";
import { ClientEntrance } from "./client-entrance.ts";
import { newCounters } from "./counters.ts";
import { closeDetachedUpstream } from "./detached-legs.ts";
import { IdleSessions } from "./idle-sessions.ts";
import type { LegKernel, PeerTimeouts } from "./leg-kernel.ts";
import type { LiveSession } from "./live-session.ts";
import { ProbeAnswers } from "./probes.ts";
import { SessionFilters } from "./session-filters.ts";
import { SessionTable } from "./session-table.ts";
import { UnavailableCount } from "./unavailable-count.ts";
import { UpstreamAvailability } from "./upstream-availability.ts";

const LINKS_GREETING_MAX = 4096;
const TRUNKS_MAX = 1024;

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

export class WorkloadProxy {
  readonly config: Configure;
  readonly kernel: LegKernel;
  readonly surgeon: LegSurgeon;
  readonly log: Logger;
  /** accepted links that wait for their session, or for this proxy to own the workload */
  readonly parked = new Map<string, LinkLeg>();
  readonly counters = newCounters();
  readonly admission: Admission;
  readonly table: SessionTable;
  readonly sessions: ReadonlyMap<string, LiveSession>;
  /** of the application, one a port */
  readonly availabilities: UpstreamAvailability[];
  readonly unavailable = new UnavailableCount(this.counters);
  /** of trunks */
  readonly #sharedTimeouts: PeerTimeouts;
  readonly probeAnswers = new ProbeAnswers();
  readonly filters: SessionFilters;
  readonly entrance: ClientEntrance;
  readonly dialler: ApplicationDialler;
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
  readonly #finder: OwnerFinder | null;
  readonly #idle: IdleSessions;
  readonly #listeners: PortListeners;
  /** that can go on over another connection */
  readonly #links: LinkWatch<LinkLeg>;
  /** of the links that it dials */
  readonly #trunks: Trunks;
  /** of links that it dials: to be told whether they are ready */
  readonly #dialling = new WeakMap<LinkLeg, (isReady: boolean) => void>();
  /** that were accepted */
  readonly #trunksAccepted = new Set<Trunk>();
  #linkServer: net.Server | null = null;
  #linksGreeting = 0;

  constructor(options: WorkloadProxyOptions) {
    this.config = options.config;
    this.#finder = options.finder ?? null;
    this.#keys = options.keys;
    this.kernel = options.kernel;
    this.surgeon = options.surgeon;
    this.log = options.log;
    const { limits, ports } = options.config;
    this.#links = new LinkWatch(options.keys, limits.linkResumeMsMax);
    this.#trunks = new Trunks({
      keys: options.keys,
      encrypted: options.config.links === "encrypted",
      linksMax: limits.trunkSessionsMax,
      onFault: (to) => this.#trunkFault(to),
      onBroken: (err) => this.log.error({ err }, "a trunk has broken"),
    });
    this.admission = new Admission({ ports, process: options.kernel, log: options.log });
    this.table = new SessionTable(this);
    this.sessions = this.table.byId;
    this.#sharedTimeouts = strictestOf(ports);
    this.availabilities = ports.map((_, port) => new UpstreamAvailability(this, port));
    this.filters = new SessionFilters(this, options.keys);
    this.dialler = new ApplicationDialler(this);
    this.entrance = new ClientEntrance(this, (port, client) => this.#finder?.preface(port, client) ?? null);
    this.#listeners = new PortListeners(this, (port, fd) => this.entrance.accept(port, fd));
    this.#idle = new IdleSessions(this);
  }

  /** Links that are there go on; from now on others are dialled and accepted with these. */
  set keys(keys: SharedKeys) {
    this.#keys = keys;
    this.#links.keys = keys;
    this.#trunks.keys = keys;
    this.filters.keys = keys;
  }
  get keys(): SharedKeys {
    return this.#keys;
  }
  get isAnchor(): boolean {
    return this.owner !== null;
  }

  get linkEndpoint(): Endpoint | null {
    const address = this.#linkServer?.address();
    if (address === undefined || address === null || typeof address === "string") return null;
    return { address: address.address, port: address.port };
  }

  /** of clients; empty while nobody is let in */
  get listeners(): readonly ClientListener[] {
    return this.#listeners.all;
  }

  /** connections that many links share, dialled and accepted */
  get trunks(): number {
    return this.#trunks.size + this.#trunksAccepted.size;
  }

  portOf(session: LiveSession): PortConfig {
    return this.config.ports[session.port] as PortConfig;
  }

  // ---- its doors

  /** Does nothing where clients are let in already. Shielded: see {@link PortListeners.open}. @throws HoldfastError `PROXY_LISTEN` */
  openListeners(options = { shielded: false }): void {
    this.#idle.start();
    if (this.config.downstream !== "gateway") this.#listeners.open(options);
  }

  closeListeners(): void {
    this.#listeners.close();
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
    this.#trunks.stop();
    for (const trunk of [...this.#trunksAccepted]) trunk.retire();
    this.table.stopLooking();
    for (const availability of this.availabilities) availability.stop();
  }

  /** Everything reset, everything closed. */
  stop(): void {
    this.table.resetAll();
    this.#links.stop();
    this.closeDoors();
  }

  // ---- which way a session's upstream is

  /** Gives a waiting session its upstream, where that is possible now. */
  start(session: LiveSession): void {
    if (session.state !== "waiting" || session.header !== null) return;
    if (this.role === "owner") this.dialler.connect(session);
    else if (this.role === "paused" && this.availabilities[session.port]?.isGivenUp === true)
      this.dialler.giveUp(session);
    else if (this.owner !== null && session.nextLink === null) {
      this.dialLink(session, { to: this.owner.link, epoch: this.epoch, fresh: true });
    } else if (this.owner === null && this.#finder !== null) this.#awaitOwner(session, this.#finder);
  }

  #awaitOwner(session: LiveSession, finder: OwnerFinder): void {
    this.#boundWaiting(session);
    finder.seek();
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
    const link = LinkLeg.dial({
      keys: this.#keys,
      encrypted: this.config.links === "encrypted",
      to: options.to,
      greeting,
      onReady: (ready) => {
        this.#watchOver(ready, session.port);
        resolve(true);
      },
      listener: this.#anchorListener,
      watch: this.#links,
      trunks: this.#trunks,
    });
    this.#dialling.set(link, resolve);
    session.nextLink = link;
    return promise;
  }

  /** One for all, since a session costs little beside. A link of a session that is over says nothing more. */
  readonly #anchorListener: LinkListener = {
    onActive: (link, active) => {
      const session = this.sessions.get(link.id);
      if (session === undefined) link.close(RST_CODE.moved);
      else this.#onActive(session, link, active);
    },
    onHold: (link) => {
      const session = this.sessions.get(link.id);
      if (session?.upstream === link) session.inbound.hold();
    },
    onResume: (link) => {
      const session = this.sessions.get(link.id);
      if (session?.upstream !== link) return;
      session.nextLink?.close(RST_CODE.moved);
      session.nextLink = null;
      session.inbound.unhold();
    },
    onHeld: () => {},
    onMove: (link, to) => void this.#onMove(this.sessions.get(link.id), link, to),
    onCount: (link) => {
      const session = this.sessions.get(link.id);
      if (session?.upstream === link) link.sendCounted(session.outbound.bytes);
    },
    onInterrupted: (link) => {
      this.counters.linksInterrupted++;
      const session = this.sessions.get(link.id);
      // its owner may have gone for good, and the next one be known
      if (session?.upstream === link && session.inbound.held) this.#finder?.seek();
    },
    onContinued: (link) => this.#onContinued(link),
    onLate: (link) => this.#onLate(link),
    onOver: (link, code) => {
      this.#dialling.get(link)?.(false);
      const session = this.sessions.get(link.id);
      if (session !== undefined) this.#onAnchorLinkOver(session, link, code);
    },
    onBroken: (link, error) => {
      this.#dialling.get(link)?.(false);
      const session = this.sessions.get(link.id);
      if (session === undefined) this.log.error({ err: error }, "a link has broken");
      else session.onBroken(error);
    },
  };

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
  async #onMove(session: LiveSession | undefined, link: LinkLeg, to: Destination): Promise<void> {
    if (this.#finder === null || session === undefined) return;
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
      closeDetachedUpstream(this.kernel, session);
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
    // In the middle of a move the next owner may have everything: its offsets will tell.
    if (!(session.inbound.held && code === RST_CODE.moved)) this.counters.linkFailures++;
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

  /** A link more may greet; otherwise it is counted as refused. */
  #letsLinkGreet(): boolean {
    const isFull = !this.admission.hasRoom(this.kernel.lowestFreeDescriptor());
    const isLetIn = !isFull && this.#linksGreeting < LINKS_GREETING_MAX;
    if (isLetIn) this.#linksGreeting++;
    else this.counters.linksRefused++;
    return isLetIn;
  }

  #onLinkSocket(socket: net.Socket): void {
    if (!this.#letsLinkGreet()) {
      socket.destroy();
      return;
    }
    const options = this.#acceptOptions();
    const takesTrunks = this.config.limits.trunkSessionsMax > 0;
    if (takesTrunks) options.onTrunk = (connection) => this.#onTrunk(connection);
    LinkLeg.accept(socket, options);
  }

  #onTrunk(connection: SocketConnection): void {
    this.#linksGreeting--;
    if (this.#trunksAccepted.size >= TRUNKS_MAX) {
      this.counters.linksRefused++;
      connection.destroy();
      return;
    }
    const trunk: Trunk = new Trunk(() => connection, {
      channelsMax: CHANNELS_MAX,
      onOpen: (channel) => this.#onChannel(channel),
      onEmpty: () => {},
      onGone: (why) => {
        this.#trunksAccepted.delete(trunk);
        if (why === "fault") this.#trunkFault(null);
      },
      onBroken: (err) => this.log.error({ err }, "a trunk has broken"),
    });
    this.#trunksAccepted.add(trunk);
    trunk.ready();
  }

  /** @param to null: it was accepted */
  #trunkFault(to: Endpoint | null): void {
    this.log.warn(
      { to },
      "a connection of many links is closed: its other end has sent what is none of ours, or asks and does not read; look at the versions of both",
    );
  }

  #onChannel(channel: Channel): void {
    if (this.#letsLinkGreet()) LinkLeg.acceptOn(channel, this.#acceptOptions());
    else channel.destroy();
  }

  #acceptOptions(): AcceptOptions {
    return {
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
    };
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
    const bounds = link.isShared ? this.#sharedTimeouts : (this.config.ports[port] as PortConfig);
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
      const session = this.table.create({
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
}

/**
 * For a connection that links of all these ports may share: the shortest there are, whichever have links on it. It need not be known then which
 * do, nor set again when another comes, and one that is given up early costs nothing: its links go on over the next.
 */
function strictestOf(ports: readonly PortConfig[]): PeerTimeouts {
  const shortest = (times: number[]): number => {
    const set = times.filter((ms) => ms > 0);
    return set.length === 0 ? 0 : Math.min(...set);
  };
  // a port that never asks says nothing of links
  const asking = ports.filter(({ keepAliveMs }) => keepAliveMs > 0);
  return {
    keepAliveMs: shortest(asking.map(({ keepAliveMs }) => keepAliveMs)),
    userTimeoutMs: shortest(asking.map(({ userTimeoutMs }) => userTimeoutMs)),
  };
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
