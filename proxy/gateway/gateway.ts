/**
 * A gateway: holds clients' sockets for workloads that run, and move, elsewhere. Here are the listeners, whom each leads where, the store's
 * watch and the end. What clients are led by may change: sessions that there are go on as they began.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import {
  type GatewayConfig,
  type GatewayListener,
  type GatewayRoute,
  isAnyRoute,
} from "#proxy/contract/gateway.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import { ClientListener } from "#proxy/listen/client-listener.ts";
import type { HttpHead } from "#proxy/protocol/http-head.ts";
import type { Store, StoreWatch } from "#proxy/store/store.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { Admission } from "#proxy/workload/admission.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { portOf, ServedWorkload, type Way, wayOf } from "./served-workload.ts";
import { SessionPlaces } from "./session-places.ts";
import { Turns } from "./turns.ts";
import { UndecidedConnections } from "./undecided.ts";

/** in case the store's word of a change was lost */
const LOOK_MS = 10_000;
/** looks at the store at a time */
const LOOKS_MAX = 16;
/** links that are made at a time for moves to come, and how long one may take (its greeting: 5 s) */
const PREPARING_MAX = 128;
const PREPARING_MS_MAX = 6_000;
/** a workload that the store says nothing of keeps a gateway waiting no longer than this, while it says something of others */
const UNANSWERED_MS_MAX = 5_000;
const DRAIN_POLL_MS = 20;
/** a line in the log for all that are reset meanwhile */
const UNROUTED_LOG_MS = 60_000;

export interface GatewayOptions {
  config: GatewayConfig;
  /** link keys of a workload */
  keysOf(workload: string): SharedKeys;
  store: Pick<Store, "link" | "watchLinks" | "lookup">;
  kernel: LegKernel;
  log: Logger;
  /** of connections whose route is not known yet; default: see {@link UndecidedConnections} */
  undecided?: { max?: number; msMax?: number };
  /** default: {@link UNANSWERED_MS_MAX} */
  unansweredMsMax?: number;
}

/** Where clients come. */
interface Door {
  name: string;
  listener: GatewayListener;
  opened: ClientListener;
  /** of clients before it is known where they go */
  admission: Admission;
}

export class Gateway {
  readonly #options: GatewayOptions;
  readonly #turns = new Turns(PREPARING_MAX, PREPARING_MS_MAX);
  readonly #workloads = new Map<string, ServedWorkload>();
  /** nobody is led to them any more, and they have sessions */
  readonly #leaving = new Set<ServedWorkload>();
  /** of the workloads that there were at the beginning, those that there are */
  #first: Set<ServedWorkload>;
  readonly #doors = new Map<string, Door>();
  readonly #undecided: UndecidedConnections;
  readonly #places: SessionPlaces;
  #listeners: readonly GatewayListener[];
  #keysOf: (workload: string) => SharedKeys;
  #watch: StoreWatch | null = null;
  #timer: NodeJS.Timeout | null = null;
  #looking = false;
  #lookAgain = false;
  #isOpen = false;
  #draining = false;
  #stopped = false;
  #turn = 0;
  #unroutedToldAtMs = Number.NEGATIVE_INFINITY;
  /** connections that no route is for */
  unrouted = 0;

  constructor(options: GatewayOptions) {
    this.#options = options;
    this.#keysOf = options.keysOf;
    this.#undecided = new UndecidedConnections(options.undecided);
    this.#listeners = options.config.listeners;
    this.#places = new SessionPlaces({
      store: options.store,
      log: options.log,
      cookieKeysOf: (workload) => (this.#workloads.get(workload) as ServedWorkload).proxy.filters.cookieKeys,
    });
    this.#first = new Set(this.#serve());
  }

  get proxies(): WorkloadProxy[] {
    return this.#served.map(({ proxy }) => proxy);
  }
  get isDraining(): boolean {
    return this.#draining;
  }
  /**
   * Clients are accepted, and the store has been asked where each workload is that there was at the beginning. One that it says nothing of,
   * as where a part of it is away, keeps the others' clients out for a while only.
   */
  get isReady(): boolean {
    const isListening = this.#isOpen && this.#doors.size === this.#listeners.length;
    if (this.#draining || !isListening) return false;
    const msMax = this.#options.unansweredMsMax ?? UNANSWERED_MS_MAX;
    const first = [...this.#first].map(({ follower }) => follower);
    const lastAtMs = first.reduce((last, { answeredAtMs }) => Math.max(last, answeredAtMs ?? 0), 0);
    return first.every(
      ({ answeredAtMs, askedAtMs }) =>
        answeredAtMs !== null || (askedAtMs !== null && lastAtMs - askedAtMs > msMax),
    );
  }
  /** where clients come: port numbers in the order of the configuration */
  get ports(): number[] {
    return [...this.#doors.values()].map(({ opened }) => opened.port);
  }
  get #served(): ServedWorkload[] {
    return [...this.#workloads.values(), ...this.#leaving];
  }

  /** of each workload: who owns it, as far as is known */
  view(): { workload: string; sessions: number; owner: { node: string; epoch: number } | null }[] {
    return this.#served.map(({ workload, proxy, follower: { owner } }) => ({
      workload,
      sessions: proxy.sessions.size,
      owner: owner === null ? null : { node: owner.node, epoch: owner.epoch },
    }));
  }

  /** @throws HoldfastError `PROXY_LISTEN`: nothing is left open */
  open(): void {
    this.#isOpen = true;
    const [problem] = this.#openDoors();
    if (problem !== undefined) {
      this.#closeDoors();
      throw problem;
    }
    this.#watch = this.#options.store.watchLinks((workload) => {
      if (workload === null) this.#lookAtAll();
      else
        for (const served of this.#served) if (served.workload === workload) void served.follower.changed();
    });
    this.#timer = setInterval(() => {
      this.#settle();
      this.#lookAtAll();
    }, LOOK_MS).unref();
    this.#lookAtAll();
  }

  /** From now on clients come there, and are led so. What cannot be listened at is tried again. */
  use(listeners: readonly GatewayListener[]): void {
    if (this.#draining) return;
    const isFirst = this.#listeners.length === 0 && this.#first.size === 0;
    this.#listeners = listeners;
    const fresh = this.#serve();
    if (isFirst) this.#first = new Set(fresh);
    this.#settle();
    for (const { follower } of fresh) void follower.changed();
  }

  /** Links that are there go on. */
  useKeys(keysOf: (workload: string) => SharedKeys): void {
    this.#keysOf = keysOf;
    for (const { workload, proxy } of this.#served) proxy.keys = keysOf(workload);
  }

  /** Accepts nobody any more and waits for the sessions to end; those that do not are reset. */
  async drain(): Promise<{ reset: number }> {
    const { config, log } = this.#options;
    this.#draining = true;
    this.#closeDoors();
    const sessions = (): number =>
      this.proxies.reduce((sum, proxy) => sum + proxy.sessions.size, this.#undecided.size);
    log.info({ sessions: sessions(), drainMsMax: config.drainMsMax }, "draining");
    const deadlineMs = performance.now() + config.drainMsMax;
    while (sessions() > 0 && performance.now() < deadlineMs) await delay(DRAIN_POLL_MS);
    const reset = sessions();
    this.stop();
    return { reset };
  }

  /** Every session is reset. */
  stop(): void {
    this.#draining = true;
    this.#stopped = true;
    this.#closeDoors();
    this.#undecided.stop();
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#watch?.close();
    for (const served of this.#served) served.stop();
  }

  /** A proxy for each workload that clients are led to. @returns those that are new */
  #serve(): ServedWorkload[] {
    const { config, store, kernel, log } = this.#options;
    const ways = waysOf(this.#listeners);
    for (const [workload, served] of this.#workloads) {
      if (served.isServedBy(ways.get(workload) ?? [])) continue;
      this.#workloads.delete(workload);
      this.#leaving.add(served);
      this.#first.delete(served);
    }
    const fresh: ServedWorkload[] = [];
    for (const [workload, its] of ways) {
      if (this.#workloads.has(workload)) continue;
      const keys = this.#keysOf(workload);
      const served = new ServedWorkload(workload, its, {
        config,
        keys,
        store,
        kernel,
        turns: this.#turns,
        log,
      });
      served.proxy.watchIdleSessions();
      this.#workloads.set(workload, served);
      fresh.push(served);
    }
    return fresh;
  }

  /** Brings doors in line with listeners, and lets go of what has no session any more. */
  #settle(): void {
    if (this.#draining) return;
    for (const problem of this.#openDoors())
      this.#options.log.error({ reason: messageOf(problem) }, "clients cannot come there; tried again soon");
    for (const served of this.#leaving) {
      if (served.proxy.sessions.size > 0) continue;
      this.#leaving.delete(served);
      served.stop();
    }
  }

  #openDoors(): unknown[] {
    const { kernel } = this.#options;
    const wanted = new Map(this.#listeners.map((listener, index) => [doorOf(listener, index), listener]));
    for (const [name, { opened }] of this.#doors) {
      if (wanted.has(name)) continue;
      opened.close();
      this.#doors.delete(name);
    }
    const problems: unknown[] = [];
    for (const [name, listener] of wanted) {
      const door = this.#doors.get(name);
      try {
        if (door === undefined) this.#doors.set(name, this.#listen(name, listener));
        else {
          door.listener = listener;
          kernel.setPeerTimeouts(door.opened.fd, listener);
        }
      } catch (error) {
        problems.push(error);
      }
    }
    return problems;
  }

  #listen(name: string, listener: GatewayListener): Door {
    const { kernel, log } = this.#options;
    const { at } = listener;
    const opened = ClientListener.open({
      kernel,
      address: at.address,
      port: at.port,
      bind: null,
      onAccept: (fd) => this.#arrived(door, fd),
      onError: (error) => {
        log.warn({ err: error }, "accepting a client failed");
      },
    });
    const admission = new Admission({ ports: [portOf(listener)], process: kernel, log });
    const door: Door = { name, listener, opened, admission };
    kernel.setPeerTimeouts(opened.fd, listener);
    kernel.boundQueues(opened.fd, "client");
    return door;
  }

  #arrived({ name, listener, admission }: Door, fd: number): void {
    const { kernel, log } = this.#options;
    const leg = TcpLeg.attach(kernel, fd, "client");
    const [first] = listener.routes;
    if (first !== undefined && isAnyRoute(first)) {
      this.#lead({ door: name, listener, route: first, leg }, this.#fewest(first.workloads), NOTHING_READ);
      return;
    }
    // of others the workload's own asks
    if (admission.refusesConnection(0, leg.peer, fd) !== null) {
      leg.reset();
      return;
    }
    this.#undecided.add(leg, {
      routes: listener.routes,
      proxyProtocol: listener.proxyProtocol,
      workloadOf: (route, head, isThere) => this.#workloadOf(route, head, isThere),
      onChosen: ({ route, workload, leg, read }) =>
        this.#lead({ door: name, listener, route, leg }, workload, read),
      onNone: (peer, why) => this.#unroutable(listener, peer, why),
      onBroken: (error) => log.error({ err: error }, "a client's first bytes could not be looked at"),
    });
  }

  #lead({ door, listener, route, leg }: Arrived, workload: string, read: typeof NOTHING_READ): void {
    const { peer } = leg;
    const served = this.#workloads.get(workload);
    const port = served?.portOf(door, route.port) ?? null;
    if (served !== undefined && port !== null && !this.#stopped && leg.isOpen) {
      served.proxy.entrance.acceptRead(port, leg, read);
      return;
    }
    leg.reset();
    // it came while that was still so
    if (port === null) this.#unroutable(listener, peer, `nobody is led to workload ${workload} any more`);
  }

  #workloadOf(route: GatewayRoute, head: HttpHead | null, isThere: () => boolean): string | Promise<string> {
    const { session } = route;
    const workloads = route.workloads.filter((workload) => this.#workloads.has(workload));
    if (session === null || head === null || workloads.length <= 1) return this.#fewest(workloads);
    return this.#places.of(session, workloads, head, isThere);
  }

  /** That of them with the fewest sessions here; of several in turn. */
  #fewest(workloads: readonly string[]): string {
    const first = this.#turn++;
    let chosen = workloads[first % workloads.length] ?? "";
    let fewest = Number.POSITIVE_INFINITY;
    for (let index = 0; index < workloads.length; index++) {
      const workload = workloads[(first + index) % workloads.length] as string;
      const sessions = this.#workloads.get(workload)?.proxy.sessions.size ?? Number.POSITIVE_INFINITY;
      if (sessions < fewest) [chosen, fewest] = [workload, sessions];
    }
    return chosen;
  }

  #unroutable({ at }: GatewayListener, peer: string, why: string): void {
    this.unrouted++;
    const nowMs = performance.now();
    if (this.#stopped || nowMs - this.#unroutedToldAtMs < UNROUTED_LOG_MS) return;
    this.#unroutedToldAtMs = nowMs;
    this.#options.log.warn(
      { port: at.port, peer, why, unrouted: this.unrouted },
      "a client is reset: no route is for it; add one, or one that names nothing at the end of routes:",
    );
  }

  #closeDoors(): void {
    for (const { opened } of this.#doors.values()) opened.close();
    this.#doors.clear();
  }

  /** A few at a time; what changes meanwhile is told by the watch. */
  #lookAtAll(): void {
    this.#lookAgain = true;
    if (this.#looking) return;
    this.#looking = true;
    void (async () => {
      while (this.#lookAgain && !this.#stopped) {
        this.#lookAgain = false;
        const waiting = this.#served.values();
        const inTurn = async (): Promise<void> => {
          for (const { follower } of waiting) await follower.changed();
        };
        await Promise.all(Array.from({ length: LOOKS_MAX }, inTurn));
      }
      this.#looking = false;
    })();
  }
}

/** A client that has come, and whom its route leads somewhere. */
interface Arrived {
  door: string;
  listener: GatewayListener;
  route: GatewayRoute;
  leg: TcpLeg;
}

const NOTHING_READ = { bytes: Buffer.alloc(0) as Buffer, ended: false };

/** By what a door is known when listeners are others. */
function doorOf({ at }: GatewayListener, index: number): string {
  // any port that is free is another each time
  return `${at.address} ${at.port === 0 ? `#${index}` : at.port}`;
}

/** Of each workload, each once: routes of one listener may lead to the same port. There may be thousands. */
function waysOf(listeners: readonly GatewayListener[]): Map<string, Way[]> {
  const found = new Map<string, Way[]>();
  for (const [index, listener] of listeners.entries()) {
    const door = doorOf(listener, index);
    for (const { workloads, port } of listener.routes) {
      const way = wayOf(door, listener, port);
      for (const workload of workloads) {
        const ways = found.get(workload);
        if (ways === undefined) found.set(workload, [way]);
        else if (!ways.some(({ shape }) => shape === way.shape)) ways.push(way);
      }
    }
  }
  return found;
}
