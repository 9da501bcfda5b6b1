/** What every part of an agent is given by the composition root (`main.ts`). */
import type { Logger } from "pino";
import type { Channel } from "#proxy/contract/channel.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Store } from "#proxy/store/store.ts";
import type { MoveResult } from "../api/migration.ts";
import type { PeerAnswer } from "../api/owners.ts";
import type { FoundCriu } from "../criu/tool.ts";
import type { Faults } from "../migration/faults.ts";
import type { ParkedAddresses } from "../network/parked-addresses.ts";
import type { Runtime } from "../runtime/runtime.ts";
import type { ClusterMark } from "./cluster-mark.ts";

/** Something whose changes are worth knowing. */
export interface Changing {
  /** @returns to be called when the listener is no longer interested */
  onChange(listener: () => void): () => void;
}

/** The keys that all nodes share, as they are now. */
export interface SharedKeyRing extends Changing {
  /** another array when it has changed */
  readonly keys: SharedKeys;
  /** proves and seals */
  readonly first: Buffer;
}

export interface WorkloadMetrics {
  /** away from this node, however it came out */
  moved(move: MoveResult): void;
  restarted(workload: string, reason: "command" | "status" | "signal" | "unknown"): void;
  steppedDown(workload: string): void;
}

export interface AgentContext {
  node: string;
  /** address other nodes reach this one at: agents, links between proxies */
  host: string;
  links: "encrypted" | "plain";
  /** read again by a restart */
  configFile: string;
  stateDir: string;
  /** `cgroup.procs` of the groups that proxies are in, as they outlive the agent. Empty: its own */
  proxyGroups: readonly string[];
  ring: SharedKeyRing;
  /** of links with gateways: those that all nodes share where gateways have them */
  gatewayRing: SharedKeyRing;
  /** by what streams of agents are opened */
  trust: Changing;
  store: Store;
  /** for people: no password in it */
  storeUrl: string;
  mark: ClusterMark;
  /** of the devices that addresses move on */
  parked: ParkedAddresses;
  peers: Record<string, Endpoint>;
  owners: { ask(workload: string): Promise<PeerAnswer[]> };
  runtime: Runtime;
  criu: FoundCriu;
  /** real paths of files and folders that no container is to show: the key, this agent's state, its configuration */
  secrets: string[];
  initBinary: string;
  log: Logger;
  metrics: WorkloadMetrics;
  faults: Faults;
  /** A channel to the agent of another node. @throws HoldfastError when it cannot be reached or is not configured */
  dial(node: string, timeoutMs?: number): Promise<Channel>;
}
