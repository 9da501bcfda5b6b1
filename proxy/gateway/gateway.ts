/**
 * A gateway: holds clients' sockets for workloads that run, and move, elsewhere. Each workload is a `WorkloadProxy` that is an anchor and
 * never anything else, with an `OwnerFollower` in place of an agent; here are the listeners, the store's watch and the end.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { endpointIn } from "#proxy/contract/address.ts";
import type { PortConfig } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import {
  type GatewayConfig,
  type GatewayListener,
  type GatewayRoute,
  isAnyRoute,
} from "#proxy/contract/gateway.ts";
import type { LegSurgeon } from "#proxy/contract/leg-surgeon.ts";
import { defaultsOf, PROXY_LIMITS } from "#proxy/contract/limits.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import { ClientListener } from "#proxy/listen/client-listener.ts";
import type { HttpHead } from "#proxy/protocol/http-head.ts";
import { writeProxyHeader } from "#proxy/protocol/proxy-header.ts";
import type { Store, StoreWatch } from "#proxy/store/store.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";
import { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { OwnerFollower } from "./owner-follower.ts";
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
}

interface Served {
  proxy: WorkloadProxy;
  follower: OwnerFollower;
}

/** A workload's proxy has one for each route that leads to it. */
interface Way {
  listener: GatewayListener;
  route: GatewayRoute;
}

export class Gateway {
  readonly #options: GatewayOptions;
  readonly #workloads = new Map<string, Served>();
  readonly #ways = new Map<string, Way[]>();
  readonly #listeners: ClientListener[] = [];
  readonly #undecided: UndecidedConnections;
  readonly #places: SessionPlaces;
  #watch: StoreWatch | null = null;
  #timer: NodeJS.Timeout | null = null;
  #looking = false;
  #lookAgain = false;
  #draining = false;
  #stopped = false;
  #unroutedToldAtMs = Number.NEGATIVE_INFINITY;
  /** connections that no route is for */
  unrouted = 0;

  constructor(options: GatewayOptions) {
    this.#options = options;
    this.#undecided = new UndecidedConnections(options.undecided);
    for (const listener of options.config.listeners)
      for (const route of listener.routes)
        for (const workload of route.workloads) {
          const ways = this.#ways.get(workload) ?? [];
          this.#ways.set(workload, [...ways, { listener, route }]);
        }
    const turns = new Turns(PREPARING_MAX, PREPARING_MS_MAX);
    for (const [workload, ways] of this.#ways)
      this.#workloads.set(workload, makeServed(options, workload, ways, turns));
    this.#places = new SessionPlaces({
      store: options.store,
      log: options.log,
      cookieKeysOf: (workload) => this.#servedAs(workload).proxy.filters.cookieKeys,
    });
  }

  get proxies(): WorkloadProxy[] {
    return [...this.#workloads.values()].map(({ proxy }) => proxy);
  }
  get isDraining(): boolean {
    return this.#draining;
  }
  /** Clients are accepted, and the store has been asked where each workload is. */
  get isReady(): boolean {
    const isListening = this.#listeners.length === this.#options.config.listeners.length;
    return !this.#draining && isListening && this.#served.every(({ follower }) => follower.isLooked);
  }
  /** where clients come: port numbers in the order of the configuration */
  get ports(): number[] {
    return this.#listeners.map(({ port }) => port);
  }
  get #served(): Served[] {
    return [...this.#workloads.values()];
  }

  /** of each workload: who owns it, as far as is known */
  view(): { workload: string; sessions: number; owner: { node: string; epoch: number } | null }[] {
    return [...this.#workloads].map(([workload, { proxy, follower }]) => {
      const { owner } = follower;
      return {
        workload,
        sessions: proxy.sessions.size,
        owner: owner === null ? null : { node: owner.node, epoch: owner.epoch },
      };
    });
  }

  /** @throws HoldfastError `PROXY_LISTEN`: nothing is left open */
  open(): void {
    try {
      for (const listener of this.#options.config.listeners) this.#listeners.push(this.#listen(listener));
    } catch (error) {
      this.#closeListeners();
      throw error;
    }
    for (const { proxy } of this.#served) proxy.watchIdleSessions();
    this.#watch = this.#options.store.watchLinks((workload) => {
      if (workload === null) this.#lookAtAll();
      else void this.#workloads.get(workload)?.follower.changed();
    });
    this.#timer = setInterval(() => this.#lookAtAll(), LOOK_MS).unref();
    this.#lookAtAll();
  }

  /** Links that are there go on. */
  useKeys(keysOf: (workload: string) => SharedKeys): void {
    for (const [workload, { proxy }] of this.#workloads) proxy.keys = keysOf(workload);
  }

  /** Accepts nobody any more and waits for the sessions to end; those that do not are reset. */
  async drain(): Promise<{ reset: number }> {
    const { config, log } = this.#options;
    this.#draining = true;
    this.#closeListeners();
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
    this.#closeListeners();
    this.#undecided.stop();
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#watch?.close();
    for (const { proxy, follower } of this.#served) {
      follower.close();
      proxy.stop();
    }
  }

  #servedAs(workload: string): Served {
    return this.#workloads.get(workload) as Served;
  }

  #listen(listener: GatewayListener): ClientListener {
    const { kernel, log } = this.#options;
    const { at, routes } = listener;
    const [first] = routes;
    const only = first !== undefined && isAnyRoute(first) ? first : null;
    const opened = ClientListener.open({
      kernel,
      address: at.address,
      port: at.port,
      bind: null,
      onAccept: (fd) => {
        if (only !== null)
          this.#servedAs(only.workloads[0] as string).proxy.entrance.accept(this.#portOf(listener, only), fd);
        else this.#decide(listener, fd);
      },
      onError: (error) => {
        log.warn({ err: error }, "accepting a client failed");
      },
    });
    kernel.setPeerTimeouts(opened.fd, listener);
    kernel.boundQueues(opened.fd, "client");
    return opened;
  }

  /** Of the proxy of the route's workload, or of one of them. */
  #portOf(listener: GatewayListener, route: GatewayRoute, workload = route.workloads[0] as string): number {
    const ways = this.#ways.get(workload) as Way[];
    return ways.findIndex((way) => way.listener === listener && way.route === route);
  }

  #decide(listener: GatewayListener, fd: number): void {
    const { kernel, log } = this.#options;
    this.#undecided.add(TcpLeg.attach(kernel, fd, "client"), {
      routes: listener.routes,
      proxyProtocol: listener.proxyProtocol,
      onChosen: ({ route, head, leg, read }) => {
        const lead = (workload: string): void => {
          if (this.#stopped || !leg.isOpen) {
            leg.reset();
            return;
          }
          const { proxy } = this.#servedAs(workload);
          proxy.entrance.acceptRead(this.#portOf(listener, route, workload), leg, read);
        };
        const workload = this.#workloadOf(route, head);
        if (typeof workload === "string") return lead(workload);
        workload.then(lead).catch((error: unknown) => {
          leg.reset();
          log.warn({ err: error }, "a client could not be led to its workload");
        });
      },
      onNone: (peer, why) => this.#unroutable(listener, peer, why),
      onBroken: (error) => log.error({ err: error }, "a client's first bytes could not be looked at"),
    });
  }

  #workloadOf({ session, workloads }: GatewayRoute, head: HttpHead | null): string | Promise<string> {
    const [only] = workloads;
    if (session === null || head === null || workloads.length === 1) return only as string;
    return this.#places.of(session, workloads, head);
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

  #closeListeners(): void {
    for (const listener of this.#listeners.splice(0)) listener.close();
  }

  /** A few at a time; what changes meanwhile is told by the watch. */
  #lookAtAll(): void {
    this.#lookAgain = true;
    if (this.#looking) return;
    this.#looking = true;
    void (async () => {
      while (this.#lookAgain && !this.#stopped) {
        this.#lookAgain = false;
        const waiting = this.#workloads.values();
        const inTurn = async (): Promise<void> => {
          for (const { follower } of waiting) await follower.changed();
        };
        await Promise.all(Array.from({ length: LOOKS_MAX }, inTurn));
      }
      this.#looking = false;
    })();
  }
}

function makeServed(options: GatewayOptions, workload: string, ways: Way[], turns: Turns): Served {
  const { config, keysOf, store, kernel, log } = options;
  const follower = new OwnerFollower({
    workload,
    ports: ways.map(({ route }) => route.port),
    store,
    turns,
    log,
  });
  const proxy = new WorkloadProxy({
    config: {
      workload,
      // what no node can be called: nodes compare it with their own name
      node: `gateway:${config.name}`,
      network: "host",
      downstream: "gateway",
      listenAddress: "",
      listenDevice: null,
      ports: ways.map(({ listener }) => portOf(listener)),
      linkAddress: "",
      links: config.links,
      spillDir: "",
      limits: {
        ...defaultsOf(PROXY_LIMITS),
        heldSessionsMax: config.heldSessionsMax,
        lingerMsMax: config.ownerMsMax,
        linkResumeMsMax: config.linkResumeMsMax,
        trunkSessionsMax: config.trunkSessionsMax,
      },
    },
    finder: follower,
    preface: (port, client) => {
      const { listener } = ways[port] as Way;
      return listener.sendProxyProtocol ? writeProxyHeader(endpointIn(client), listener.at) : null;
    },
    keys: keysOf(workload),
    kernel,
    surgeon: NO_SURGEON,
    log,
  });
  proxy.role = "anchor";
  follower.follow(proxy);
  return { proxy, follower };
}

function portOf({ at, routes: _, sendProxyProtocol: __, ...bounds }: GatewayListener): PortConfig {
  return {
    ...bounds,
    listen: at.port,
    upstream: at, // of no use: the application is elsewhere
    protocol: "tcp",
    continuity: "transplant",
    moveBy: "transplant",
    replayUnsafe: false,
    delivery: "atMostOnce",
    setUp: "auto",
    naming: null,
    probes: [],
  };
}

async function noLegs(): Promise<never> {
  throw fail("PROXY_STATE", "a gateway's legs do not move");
}
const NO_SURGEON: LegSurgeon = {
  shield: noLegs,
  capture: noLegs,
  uncapture: noLegs,
  adopt: noLegs,
  release: noLegs,
  provoke: noLegs,
};
