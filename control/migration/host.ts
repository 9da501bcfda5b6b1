/**
 * What a move needs of the workload that moves: `control/workload/workload.ts` is it. Grouped by what it is for; `Departure` and
 * `settle.ts` use it at the source, `Arrival` and `settle.ts` at the target.
 */
import type { Logger } from "pino";
import type { Channel } from "#proxy/contract/channel.ts";
import type { Downstream, ProxyCommands } from "#proxy/contract/commands.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Ownership, Store } from "#proxy/store/store.ts";
import type { DepartureFacts } from "../api/check.ts";
import type { CheckReport } from "../api/finding.ts";
import type { PeerAnswer } from "../api/owners.ts";
import type { WorkloadConfig } from "../config/config.ts";
import type { FoundCriu } from "../criu/tool.ts";
import type { Vip } from "../network/vip.ts";
import type { Freezer } from "../runtime/freezer.ts";
import type { ProcessIdentity } from "../runtime/processes.ts";
import type { Runtime, Sandbox, SandboxRef } from "../runtime/runtime.ts";
import type { Faults } from "./faults.ts";
import type { Moving, OutboxEntry } from "./moving.ts";
import type { Timeline } from "./timeline.ts";

/** What both sides have of the agent. */
export interface MigrationContext {
  readonly node: string;
  readonly store: Store;
  readonly criu: FoundCriu;
  readonly ring: { readonly keys: SharedKeys; readonly first: Buffer };
  readonly owners: { ask(workload: string): Promise<PeerAnswer[]> };
  readonly log: Logger;
  readonly faults: Faults;
  /** @throws HoldfastError when the node cannot be reached or is not configured */
  dial(node: string, timeoutMs?: number): Promise<Channel>;
}

/** What is on record, and outlives the agent. */
export interface MigrationRecord {
  readonly journal: { readonly epoch: number; readonly seen: number; readonly moving: Moving | null };
  record(patch: { moving?: Moving | null; container?: SandboxRef | null; epoch?: number }): void;
  recordMoving(patch: Partial<Moving>): void;
  /** An epoch that was given out: this node will not let it be given out again. */
  see(epoch: number): void;
}

/** Who owns the workload, in the store and among agents. */
export interface MigrationOwnership {
  readonly outbox: {
    reserve(migration: string, target: string): Promise<Ownership>;
    put(owed: OutboxEntry): void;
    /** Waits a while for all to be told. */
    flushed(timeoutMs: number): Promise<void>;
  };
  /** A person has decided that it goes on here. */
  readonly isForced: boolean;
  /** The source of an arrival being recovered has given its word. */
  readonly isGranted: boolean;
  /** `status` says meanwhile that it is waited for. */
  settling(isSettling: boolean): void;
  /** The agent ends. */
  readonly isClosed: boolean;
  throwIfClosed(): void;
}

/** The proxies: this node's, and those of anchors. */
export interface MigrationProxies {
  readonly proxy: {
    command<Name extends keyof ProxyCommands, Result = unknown>(
      name: Name,
      params: ProxyCommands[Name],
      body?: Buffer,
      waitMs?: number,
    ): Promise<{ result: Result; body: Buffer }>;
  };
  readonly keeper: {
    countSessions(): Promise<number>;
    /** → where the links of anchors arrive */
    standby(epoch: number): Promise<Endpoint>;
    discard(epoch: number): Promise<void>;
  };
  readonly anchors: {
    /** Nodes whose proxies have clients of this workload once it has left. */
    afterLeaving(to: string): string[];
    prepare(epoch: number, to: string, target: Endpoint, signal: AbortSignal): Promise<void>;
    /** Before the commit. @throws HoldfastError `PROXY_QUIESCE` */
    settle(epoch: number): Promise<void>;
  };
  /** What the source left in the store for the clients' legs. @throws HoldfastError when it cannot be read */
  heldBytes(epoch: number): Promise<Buffer>;
}

export interface MigrationHost extends MigrationRecord, MigrationOwnership, MigrationProxies {
  readonly name: string;
  readonly config: WorkloadConfig;
  readonly downstream: Downstream;
  readonly limits: {
    readonly imagesBytesMax: number;
    readonly precopyBytesMax: number;
    /** memory of one process, from which on the kernel is asked what it writes; Infinity: never */
    readonly trackedBytesMin: number;
    readonly verifyMemory: boolean;
    readonly storedLegsBytesMax: number;
  };
  readonly context: MigrationContext;

  // where the application is
  readonly container: Sandbox;
  readonly runtime: Runtime;
  /** What stops the container unseen. null: this machine has nothing of the kind */
  freezer(): Promise<Freezer | null>;
  createContainer(populate: (layer: string) => Promise<void>): Promise<Sandbox>;
  /** Of an arrival that was given up, when its container has gone. */
  endLeftConnections(): void;
  readonly vip: Vip | null;

  /** Before a move. `facts` is what the target is told then; null: nothing is running */
  preflight(to: string, channel: Channel): Promise<CheckReport & { facts: DepartureFacts | null }>;

  // how it ends
  /** The application goes on here, with its legs. Everything before this was silent. */
  comeAlive(epoch: number, onAlive?: () => void, timeline?: Timeline): Promise<void>;
  /** Undoes whatever a move has done to the application and its sessions here. May be repeated. */
  goOnHere(epoch: number): Promise<void>;
  /** A move that failed has left the application otherwise than it was: `status` says so as long as its root lives. null: that has ended */
  harmed(root: ProcessIdentity | null, what: string): void;
  becomeOwner(epoch: number, anchors: string[]): void;
  /** The target goes on; whatever was kept for a rollback goes. */
  retire(epoch: number, owner: { node: string; link: Endpoint }): Promise<void>;
}
