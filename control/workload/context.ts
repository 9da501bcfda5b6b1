/** What every part of an agent is given by the composition root (`main.ts`). */
import type { Logger } from "pino";
import type { Channel } from "#proxy/contract/channel.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Store } from "#proxy/store/store.ts";
import type { KeyRing } from "../agent/key-ring.ts";
import type { AgentMetrics } from "../agent/metrics.ts";
import type { Trust } from "../agent/trust.ts";
import type { FoundCriu } from "../criu/tool.ts";
import type { Faults } from "../migration/faults.ts";
import type { ContainerRuntime } from "../runtime/runc/container-runtime.ts";
import type { ClusterMark } from "./cluster-mark.ts";
import type { Owners } from "./owners.ts";

export interface AgentContext {
  node: string;
  /** address other nodes reach this one at: agents, links between proxies */
  host: string;
  links: "encrypted" | "plain";
  /** read again by a restart */
  configFile: string;
  stateDir: string;
  /** what all nodes share */
  ring: KeyRing;
  /** by what streams of agents are opened */
  trust: Trust;
  store: Store;
  /** for people: no password in it */
  storeUrl: string;
  mark: ClusterMark;
  peers: Record<string, Endpoint>;
  owners: Owners;
  runtime: ContainerRuntime;
  criu: FoundCriu;
  /** real paths of files and folders that no container is to show: the key, this agent's state, its configuration */
  secrets: string[];
  initBinary: string;
  log: Logger;
  metrics: AgentMetrics;
  faults: Faults;
  /** A channel to the agent of another node. @throws HoldfastError when it cannot be reached or is not configured */
  dial(node: string, timeoutMs?: number): Promise<Channel>;
}
