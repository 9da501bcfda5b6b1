/**
 * The proxy of one workload on one node: what it is made of, who owns the workload, and which way a session's upstream is. The steps of a
 * move are in `proxy/cutover/`.
 *
 *   clients ─▶ listeners ─▶ entrance ─▶ a session of the table, begun by `start`: owner here ─▶ dialler ─▶ the application
 *                                                                                  elsewhere ─▶ anchorLinks ─▶ its proxy
 *   its anchors ─▶ linkAcceptor ─▶ ownerLinks ─▶ a session of the table
 */
import type { Logger } from "pino";
import type { Configure, PortConfig } from "#proxy/contract/commands.ts";
import type { LegSurgeon } from "#proxy/contract/leg-surgeon.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { LinkAcceptor } from "#proxy/link/link-acceptor.ts";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import { LinkWatch } from "#proxy/link/link-watch.ts";
import { Trunks } from "#proxy/link/trunks.ts";
import type { ClientListener } from "#proxy/listen/client-listener.ts";
import { PortListeners } from "#proxy/listen/port-listeners.ts";
import type { Role } from "#proxy/session/role.ts";
import { Admission } from "./admission.ts";
import { AnchorLinks, type OwnerFinder } from "./anchor-links.ts";
import { ApplicationDialler } from "./application-dialler.ts";
import { ClientEntrance, type Preface } from "./client-entrance.ts";
import { newCounters } from "./counters.ts";
import { IdleSessions } from "./idle-sessions.ts";
import type { LegKernel } from "./leg-kernel.ts";
import { LinkUpkeep } from "./link-upkeep.ts";
import type { LiveSession } from "./live-session.ts";
import { OwnerLinks } from "./owner-links.ts";
import { ProbeAnswers } from "./probes.ts";
import { SessionFilters } from "./session-filters.ts";
import { SessionTable } from "./session-table.ts";
import { UnavailableCount } from "./unavailable-count.ts";
import { UpstreamAvailability } from "./upstream-availability.ts";

export interface WorkloadProxyOptions {
  config: Configure;
  /** default: this is a node's proxy, whose agent says who the owner is */
  finder?: OwnerFinder;
  /** default: nothing */
  preface?: Preface;
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
  readonly counters = newCounters();

  // who owns the workload
  role: Role = "idle";
  epoch = 0;
  /** forward: this proxy is an anchor, and the application is there */
  owner: { node: string; link: Endpoint } | null = null;
  /** when the present cutover or restart began */
  heldAtMs = 0;

  // sessions
  readonly admission: Admission;
  readonly table: SessionTable;
  readonly sessions: ReadonlyMap<string, LiveSession>;
  readonly filters: SessionFilters;
  readonly #idle: IdleSessions;

  // clients
  readonly #listeners: PortListeners;
  readonly entrance: ClientEntrance;
  readonly probeAnswers = new ProbeAnswers();

  // the application
  readonly dialler: ApplicationDialler;
  /** one a port */
  readonly availabilities: UpstreamAvailability[];
  readonly unavailable = new UnavailableCount(this.counters);

  // links
  readonly anchorLinks: AnchorLinks;
  readonly ownerLinks: OwnerLinks;
  #keys: SharedKeys;
  /** that can go on over another connection */
  readonly #watch: LinkWatch<LinkLeg>;
  /** of the links that it dials */
  readonly #trunks: Trunks;
  readonly #linkAcceptor: LinkAcceptor;

  constructor({ config, finder, preface, keys, kernel, surgeon, log }: WorkloadProxyOptions) {
    this.config = config;
    this.kernel = kernel;
    this.surgeon = surgeon;
    this.log = log;
    const { limits, ports } = config;
    this.admission = new Admission({ ports, process: kernel, log });
    this.table = new SessionTable(this);
    this.sessions = this.table.byId;
    this.filters = new SessionFilters(this, keys);
    this.#idle = new IdleSessions(this);

    this.entrance = new ClientEntrance(this, preface ?? (() => null));
    this.#listeners = new PortListeners(this, (port, fd) => this.entrance.accept(port, fd));
    this.dialler = new ApplicationDialler(this);
    this.availabilities = ports.map((_, port) => new UpstreamAvailability(this, port));

    const upkeep = new LinkUpkeep(this);
    this.#keys = keys;
    this.#watch = new LinkWatch(keys, limits.linkResumeMsMax);
    this.#trunks = new Trunks({
      keys,
      encrypted: config.links === "encrypted",
      linksMax: limits.trunkSessionsMax,
      onFault: (to) => upkeep.onTrunkFault(to),
      onBroken: (error) => upkeep.onTrunkBroken(error),
    });
    this.anchorLinks = new AnchorLinks(this, {
      finder: finder ?? null,
      watch: this.#watch,
      trunks: this.#trunks,
      upkeep,
    });
    this.ownerLinks = new OwnerLinks(this, upkeep);
    this.#linkAcceptor = new LinkAcceptor(this, {
      watch: this.#watch,
      hasRoom: () => this.admission.hasRoom(kernel.lowestFreeDescriptor()),
      onLink: (link, greeting) => this.ownerLinks.arrived(link, greeting),
      listener: this.ownerLinks.listener,
      onTrunkFault: () => upkeep.onTrunkFault(null),
      onTrunkBroken: (error) => upkeep.onTrunkBroken(error),
    });
  }

  /** Links that are there go on; from now on others are dialled and accepted with these. */
  set keys(keys: SharedKeys) {
    this.#keys = keys;
    this.#watch.keys = keys;
    this.#trunks.keys = keys;
    this.filters.keys = keys;
  }
  get keys(): SharedKeys {
    return this.#keys;
  }

  get isAnchor(): boolean {
    return this.owner !== null;
  }

  portOf(session: LiveSession): PortConfig {
    return this.config.ports[session.port] as PortConfig;
  }

  /** Gives a waiting session its upstream, where that is possible now. */
  start(session: LiveSession): void {
    if (session.state !== "waiting" || session.header !== null) return;
    const { role, owner, epoch } = this;
    if (role === "owner") this.dialler.connect(session);
    else if (role === "paused" && this.availabilities[session.port]?.isGivenUp === true)
      this.dialler.giveUp(session);
    else if (owner === null) this.anchorLinks.awaitOwner(session);
    else if (session.nextLink === null)
      void this.anchorLinks.dial(session, { to: owner.link, epoch, fresh: true });
  }

  // ---- its doors

  /** of clients; empty while nobody is let in */
  get listeners(): readonly ClientListener[] {
    return this.#listeners.all;
  }
  get linkEndpoint(): Endpoint | null {
    return this.#linkAcceptor.endpoint;
  }
  /** connections that many links share, dialled and accepted */
  get trunks(): number {
    return this.#trunks.size + this.#linkAcceptor.trunks;
  }

  /** Does nothing where clients are let in already. Shielded: see {@link PortListeners.open}. @throws HoldfastError `PROXY_LISTEN` */
  openListeners(options = { shielded: false }): void {
    this.watchIdleSessions();
    if (this.config.downstream !== "gateway") this.#listeners.open(options);
  }

  closeListeners(): void {
    this.#listeners.close();
  }

  /** Does nothing where links are let in already. @throws HoldfastError `PROXY_LISTEN` */
  async openLinks(): Promise<void> {
    if (this.config.downstream !== "takeover") await this.#linkAcceptor.open(this.config.linkAddress);
  }

  /** Sessions that pass nothing are ended from now on. A proxy that listens itself does so by {@link openListeners}. */
  watchIdleSessions(): void {
    this.#idle.start();
  }

  closeDoors(): void {
    this.#idle.stop();
    this.closeListeners();
    this.ownerLinks.closeParked(RST_CODE.reset);
    this.#linkAcceptor.close();
    this.#trunks.stop();
    this.#linkAcceptor.retireTrunks();
    this.table.stopLooking();
    for (const availability of this.availabilities) availability.stop();
  }

  /** Everything reset, everything closed. */
  stop(): void {
    this.#stop(() => false);
  }

  /**
   * As {@link stop}, by somebody who knows of no move (kubelet of a pod that is deleted in the middle of one). A session that was captured may go on
   * elsewhere: a proxy that holds its client is told nothing, as if this process had been killed, and finds the next owner.
   */
  end(): void {
    const { role } = this;
    const isGivenAway = role === "captured" || role === "departed";
    this.#stop(({ downstream }) => isGivenAway && downstream instanceof LinkLeg);
  }

  #stop(stays: (session: LiveSession) => boolean): void {
    this.table.resetAll(stays);
    this.#watch.stop();
    this.closeDoors();
  }
}
