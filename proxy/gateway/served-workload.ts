/** One workload as a gateway serves it: a `WorkloadProxy` that is an anchor and never anything else, with an `OwnerFollower` in place of an agent. */
import type { Logger } from "pino";
import { endpointIn } from "#proxy/contract/address.ts";
import type { PortConfig } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { GatewayConfig, GatewayListener } from "#proxy/contract/gateway.ts";
import type { LegSurgeon } from "#proxy/contract/leg-surgeon.ts";
import { defaultsOf, PROXY_LIMITS } from "#proxy/contract/limits.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import { writeProxyHeader } from "#proxy/protocol/proxy-header.ts";
import type { Store } from "#proxy/store/store.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";
import { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { OwnerFollower } from "./owner-follower.ts";
import type { Turns } from "./turns.ts";

/** How clients come to a workload: its proxy has a port for each. */
export interface Way {
  /** of the listener */
  door: string;
  listener: GatewayListener;
  /** of the workload's, as routes have it */
  port: number;
  /** another where any of it is another; whom the listener leads where is none of a proxy's business */
  shape: string;
}

/** Of a listener and a route: all workloads that clients are led to by it have the same. */
export function wayOf(door: string, listener: GatewayListener, port: number): Way {
  const { routes: _, ...rest } = listener;
  return { door, listener, port, shape: JSON.stringify([door, port, rest]) };
}

export interface ServedOptions {
  config: Omit<GatewayConfig, "listeners">;
  keys: SharedKeys;
  store: Pick<Store, "link">;
  kernel: LegKernel;
  turns: Turns;
  log: Logger;
}

export class ServedWorkload {
  readonly workload: string;
  readonly proxy: WorkloadProxy;
  readonly follower: OwnerFollower;
  readonly #ways: readonly Way[];

  constructor(workload: string, ways: readonly Way[], options: ServedOptions) {
    const { config, keys, store, kernel, turns, log } = options;
    this.workload = workload;
    this.#ways = ways;
    this.follower = new OwnerFollower({ workload, ports: ways.map(({ port }) => port), store, turns, log });
    this.proxy = new WorkloadProxy({
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
      finder: this.follower,
      preface: (port, client) => {
        const { listener } = ways[port] as Way;
        return listener.sendProxyProtocol ? writeProxyHeader(endpointIn(client), listener.at) : null;
      },
      keys,
      kernel,
      surgeon: NO_SURGEON,
      log,
    });
    this.proxy.role = "anchor";
    this.follower.follow(this.proxy);
  }

  /** Clients come to it in exactly these ways. */
  isServedBy(ways: readonly Way[]): boolean {
    return (
      ways.length === this.#ways.length &&
      ways.every(({ shape }, index) => shape === this.#ways[index]?.shape)
    );
  }

  /** Of its proxy. null: nobody comes by that */
  portOf(door: string, port: number): number | null {
    const index = this.#ways.findIndex((way) => way.door === door && way.port === port);
    return index < 0 ? null : index;
  }

  stop(): void {
    this.follower.close();
    this.proxy.stop();
  }
}

/** Of a workload's proxy at a gateway, or of a listener whose clients are nobody's yet. */
export function portOf({ at, routes: _, sendProxyProtocol: __, ...bounds }: GatewayListener): PortConfig {
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
