/**
 * A gateway: holds clients' sockets for workloads that run, and move, elsewhere. Each workload is a `WorkloadProxy` that is an anchor and
 * never anything else, with an `OwnerFollower` in place of an agent; here are the listeners, the store's watch and the end.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { PortConfig } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { GatewayConfig, GatewayListener } from "#proxy/contract/gateway.ts";
import type { LegSurgeon } from "#proxy/contract/leg-surgeon.ts";
import { defaultsOf, PROXY_LIMITS } from "#proxy/contract/limits.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import { ClientListener } from "#proxy/listen/client-listener.ts";
import type { Store, StoreWatch } from "#proxy/store/store.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";
import { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { OwnerFollower } from "./owner-follower.ts";
import { Turns } from "./turns.ts";

/** in case the store's word of a change was lost */
const LOOK_MS = 10_000;
/** looks at the store at a time */
const LOOKS_MAX = 16;
/** links that are made at a time for moves to come, and how long one may take (its greeting: 5 s) */
const PREPARING_MAX = 128;
const PREPARING_MS_MAX = 6_000;
const DRAIN_POLL_MS = 20;

export interface GatewayOptions {
  config: GatewayConfig;
  /** link keys of a workload */
  keysOf(workload: string): SharedKeys;
  store: Pick<Store, "link" | "watchLinks">;
  kernel: LegKernel;
  log: Logger;
}

interface Served {
  proxy: WorkloadProxy;
  follower: OwnerFollower;
}

export class Gateway {
  readonly #options: GatewayOptions;
  readonly #workloads = new Map<string, Served>();
  readonly #listeners: ClientListener[] = [];
  #watch: StoreWatch | null = null;
  #timer: NodeJS.Timeout | null = null;
  #looking = false;
  #lookAgain = false;
  #draining = false;

  constructor(options: GatewayOptions) {
    this.#options = options;
    const ofWorkload = Map.groupBy(options.config.listeners, ({ workload }) => workload);
    const turns = new Turns(PREPARING_MAX, PREPARING_MS_MAX);
    for (const [workload, listeners] of ofWorkload)
      this.#workloads.set(workload, makeServed(options, workload, listeners, turns));
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
    return [...this.#workloads].map(
      ([
        workload,
        {
          proxy,
          follower: { owner },
        },
      ]) => ({
        workload,
        sessions: proxy.sessions.size,
        owner: owner === null ? null : { node: owner.node, epoch: owner.epoch },
      }),
    );
  }

  /** @throws HoldfastError `PROXY_LISTEN`: nothing is left open */
  open(): void {
    const indices = new Map<string, number>();
    try {
      for (const listener of this.#options.config.listeners) {
        const index = indices.get(listener.workload) ?? 0;
        indices.set(listener.workload, index + 1);
        this.#listeners.push(this.#listen(listener, index));
      }
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
    const sessions = (): number => this.proxies.reduce((sum, proxy) => sum + proxy.sessions.size, 0);
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
    this.#closeListeners();
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#watch?.close();
    for (const { proxy, follower } of this.#served) {
      follower.close();
      proxy.stop();
    }
  }

  #listen({ at, workload, ...listener }: GatewayListener, index: number): ClientListener {
    const { kernel, log } = this.#options;
    const { proxy } = this.#workloads.get(workload) as Served;
    const opened = ClientListener.open({
      kernel,
      address: at.address,
      port: at.port,
      bind: null,
      onAccept: (fd) => proxy.accept(index, fd),
      onError: (error) => {
        proxy.counters.acceptErrors++;
        log.warn({ err: error }, "accepting a client failed");
      },
    });
    kernel.setPeerTimeouts(opened.fd, listener);
    kernel.boundQueues(opened.fd, "client");
    return opened;
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
      while (this.#lookAgain && !this.#draining) {
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

function makeServed(
  options: GatewayOptions,
  workload: string,
  listeners: GatewayListener[],
  turns: Turns,
): Served {
  const { config, keysOf, store, kernel, log } = options;
  const follower = new OwnerFollower({
    workload,
    ports: listeners.map(({ port }) => port),
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
      ports: listeners.map(portOf),
      linkAddress: "",
      links: config.links,
      spillDir: "",
      limits: {
        ...defaultsOf(PROXY_LIMITS),
        heldSessionsMax: config.heldSessionsMax,
        lingerMsMax: config.ownerMsMax,
      },
    },
    finder: follower,
    keys: keysOf(workload),
    kernel,
    surgeon: NO_SURGEON,
    log,
  });
  proxy.role = "anchor";
  follower.follow(proxy);
  return { proxy, follower };
}

function portOf({ at, workload: _, port: __, ...bounds }: GatewayListener): PortConfig {
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
