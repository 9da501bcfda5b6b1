/**
 * Where an application runs and can be checkpointed: the seam between what moves workloads and what makes containers. `runc/`
 * implements it; only the composition root (`control/agent/main.ts`) chooses.
 */
import type { PodConfig, WorkloadConfig } from "../config/config.ts";
import type { FoundCriu } from "../criu/tool.ts";
import type { OciSpec } from "./oci.ts";
import type { ProcessIdentity } from "./processes.ts";

/** What the journal keeps of a sandbox, as JSON. */
export interface SandboxRef {
  id: string;
  /** host path of the instance's own folder */
  runDir: string;
  init: ProcessIdentity;
  tmpfs: string[];
  /** what takes its output out of the pipe; undefined: an earlier version made it, or none is known */
  reader?: ProcessIdentity | undefined;
}

/** Where the application's output is kept: this file, and the one before it. */
export interface OutputOptions {
  file: string;
  /** of both files together */
  bytesMax: number;
}

export interface StandbyOptions {
  workload: string;
  node: string;
  output: OutputOptions;
  /** host folder of CRIU with its libraries */
  criuDir: string;
  /** a static init (catatonit) that every sandbox gets a copy of */
  initBinary: string;
  /** host paths of this agent's files that no application is to see */
  secrets: string[];
  /** size limit of the instance's own folder: images and the writable layer */
  runBytesMax: number;
}

export interface LaunchOptions {
  criu: FoundCriu;
  /** where the reason can be read, if it is not known */
  logFile: string;
  /** {@link WorkloadConfig.subreaper} */
  subreaper: boolean;
}

/** A container: its init, and below that the application's one process tree, which may not be there. */
export interface Sandbox {
  readonly ref: SandboxRef;
  readonly id: string;
  /** PID 1 of the container, as this agent's PID namespace numbers it: outlives the application */
  readonly init: ProcessIdentity;
  /** folders inside whose files travel beside the writable layer */
  readonly travels: readonly string[];
  /** its layer is part of a mounted overlay from the start: what comes for it goes through that */
  readonly layerInUse: boolean;
  /** folders inside that Holdfast put there, and no application can write to */
  readonly ours: readonly string[];

  /**
   * In the instance's own folder, on the host. Where this agent's mount namespace does not have it and it cannot be mounted again,
   * because the container has ended, there is nothing at the path.
   */
  hostPath(...parts: string[]): string;
  /**
   * A descriptor (O_PATH) of its writable layer, from which no link and no ".." leads further than the container sees; the caller
   * closes it.
   */
  openLayer(): number;
  /** … of its root, where files for its layer are written; the caller closes it. */
  openRootForFiles(): number;
  /**
   * … of one of {@link Sandbox.travels}, which can be written to even where it is mounted read-only, without what is mounted in it; the
   * caller closes it.
   */
  openFolder(path: string): number;
  /** Its configuration, as it was made. */
  spec(): Promise<OciSpec>;
  isAlive(): Promise<boolean>;
  /** PID of the application's root. null: it has ended. @throws HoldfastError `TREES_MANY` */
  applicationRoot(): Promise<number | null>;
  /** `cgroup.procs` of every hierarchy that it is in, the roots left out. */
  cgroupProcs(): Promise<string[]>;
  /**
   * Starts the application in a sandbox that has none.
   * @param process as it is now: of the container only what its processes are given can change while it lives
   * @throws HoldfastError `CONTAINER_EXEC`
   */
  launch(process: OciSpec["process"], options: LaunchOptions): Promise<void>;
  /**
   * From now on nobody begins a connection to these ports of the application from outside of the container's network, where others than
   * the proxy can (kubelet's probes). Until {@link openDoor}; both may be repeated. @throws HoldfastError `COMMAND_FAILED`
   */
  closeDoor(ports: readonly number[]): Promise<void>;
  openDoor(): Promise<void>;
  /** Bytes of its output that nobody has taken yet. */
  untakenOutput(): number;
  /**
   * Signals that the container was sent from outside, for the application, each once. @property isToEnd it was asked to end: when the
   * application has ended it is not to be started again there, see {@link Sandbox.end}
   */
  takeSignals(): Promise<{ signals: number[]; isToEnd: boolean }>;
  /**
   * The application has ended, and its container is to end as if the application had been its init: with status 0 after 0, else by
   * SIGKILL, as an init cannot be made to end otherwise. Nothing else is removed. Safe to repeat.
   */
  end(status: number | null): Promise<void>;
  /** Another reader of its output, where the last has ended. */
  readOutput(options: OutputOptions): Promise<ProcessIdentity>;
  /** Ends every process of the instance and removes all traces of it. Safe to repeat. */
  destroy(): Promise<void>;
}

/** What a workload's configuration comes to on this node. */
export interface SandboxPlan {
  /** host folder of the files below the writable layer: "/" for `rootfs: host` */
  readonly lower: string;
  /** how the application is started */
  readonly process: OciSpec["process"];
  /** What a container would be like; paths of an instance are not in it yet. */
  spec(of: { workload: string; criuDir: string }): OciSpec;
  /**
   * Makes a container with nothing in it but its init.
   * @param populate called with the writable layer's host folder before the container sees it
   * @throws HoldfastError `CONTAINER_CREATE`, `CONTAINER_ENDED`, `CONTAINER_NETWORK`
   */
  standby(options: StandbyOptions, populate?: (layer: string) => Promise<void>): Promise<Sandbox>;
}

/** A proxy that is a container beside the application's, in the same network. */
export interface Sidecar {
  /** PID 1 of its container, which is the proxy */
  process: ProcessIdentity;
  /** of the network that it shares with the application: where proxies of other nodes reach it */
  address: string;
}

export interface Runtime {
  /** who starts an application again that has ended */
  readonly supervisor: "agent";
  /** what makes the containers, e.g. "runc" and "1.1.5+ds1" */
  readonly program: string;
  readonly version: string;
  /** @throws HoldfastError `BUNDLE_INVALID`, `ROOTFS_MISSING` */
  plan(config: WorkloadConfig): Promise<SandboxPlan>;
  /** Whether this container of a pod runs here: the runtime knows it before kubelet says so. @throws HoldfastError `CRI_UNREACHABLE` */
  runs(of: Pick<PodConfig, "namespace" | "name" | "uid" | "container">): Promise<boolean>;
  /** null: it does not run yet, or not now; or there are no such containers here */
  sidecar(config: WorkloadConfig): Promise<Sidecar | null>;
  /** One on record, alive or not. */
  find(ref: SandboxRef): Sandbox;
  /**
   * Removes instances that no journal knows (an agent died while it made them). One that cannot be removed keeps no other.
   * @param unread workloads of a node whose journals cannot be read: nobody knows which of their instances are alive
   */
  removeStrays(
    known: ReadonlySet<string>,
    unread: { workload: string; node: string }[],
  ): Promise<{ id: string; problem: string | null }[]>;
}
