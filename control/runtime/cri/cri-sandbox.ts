/** One container of a pod, alive or not: kubelet's, but for the application in it and a tmpfs of ours beside it. */
import { closeSync, readFileSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { cgroupProcsOf } from "../cgroups.ts";
import { Freezer } from "../freezer.ts";
import { openAsMount, openOutput } from "../inside.ts";
import { launchArgs } from "../launchers.ts";
import type { OciSpec } from "../oci.ts";
import { showQueues } from "../posix-queues.ts";
import { identify, isSameProcess, type ProcessIdentity, parentOf, rootBelow } from "../processes.ts";
import { removeRunFolder } from "../run-folder.ts";
import type { LaunchOptions, OutputOptions, Sandbox, SandboxRef } from "../runtime.ts";
import { startInside } from "../start-inside.ts";
import { closeDoor, openDoor } from "./door.ts";
import { dropSignals, endInit, heldSignals, holdSignals, isEnding } from "./init-signals.ts";
import { writeLaunchState } from "./launch-filter.ts";
import { type OciState, specOf, stateOf } from "./oci-state.ts";

/** Where the pod has our init, and setsid(1) with its own C library, as the container may have none. */
export const INSIDE = "/.holdfast";
/** signals that end the init and the application has been given: an agent that starts gives them no second time */
const GIVEN = "given-signals";
const END_MS_MAX = 5_000;
const POLL_MS = 2;

export class CriSandbox implements Sandbox {
  readonly layerInUse = true;
  readonly ours = [INSIDE];
  readonly ref: SandboxRef;

  constructor(ref: SandboxRef) {
    this.ref = ref;
  }

  get id(): string {
    return this.ref.id;
  }
  /** as the container runtime knows it */
  get #containerId(): string {
    return this.id.slice(0, this.id.lastIndexOf("-"));
  }
  get init(): ProcessIdentity {
    return this.ref.init;
  }
  get travels(): readonly string[] {
    return this.ref.tmpfs;
  }

  /** Its layer is the container runtime's. */
  hostPath(...parts: string[]): string {
    if (parts[0] !== "layer") return join(this.ref.runDir, ...parts);
    const { shim, path } = layerOf(this.init.pid);
    return join(`/proc/${shim}/root`, path, ...parts.slice(1));
  }

  openLayer(): number {
    const { shim, path } = layerOf(this.init.pid);
    return namespaces.inMountNamespaceOf(shim, () => mounts.openTree(path));
  }

  /**
   * Without what is mounted in it: there the runtime has made empty files and folders, which are in the layer too. For the pod it may be read-only
   * (`readOnlyRootFilesystem`), and what differs of its layer comes all the same.
   */
  openRootForFiles(): number {
    return openAsMount(this, "/");
  }

  openFolder(path: string): number {
    return openAsMount(this, path);
  }

  async spec(): Promise<OciSpec> {
    return specOf(await this.#state());
  }

  #state(): Promise<OciState> {
    return stateOf(this.init.pid, this.#containerId);
  }

  isAlive(): Promise<boolean> {
    return isSameProcess(this.init);
  }

  applicationRoot(): Promise<number | null> {
    return rootBelow(this.init);
  }

  cgroupProcs(): Promise<string[]> {
    return cgroupProcsOf(this);
  }

  async launch(process: OciSpec["process"], { logFile, subreaper }: LaunchOptions): Promise<void> {
    const args = launchArgs(process.args, {
      ...{ folder: INSIDE, loader: `${INSIDE}/loader`, libraryPath: INSIDE },
      subreaper,
    });
    await showQueues(this, this.init.pid); // those of an application that was restored here are gone with it
    const processFile = this.hostPath("process.json");
    await writeFile(processFile, JSON.stringify({ ...process, args }));
    const state = await this.#state();
    const id = this.#containerId;
    await startInside(this, {
      program: state.program,
      root: await writeLaunchState(state, id, this.hostPath(state.program)),
      id,
      processFile,
      folder: this.ref.runDir,
      logFile,
    });
  }

  closeDoor(ports: readonly number[]): Promise<void> {
    return closeDoor(this.init.pid, ports);
  }

  openDoor(): Promise<void> {
    return openDoor(this.init.pid);
  }

  /** What kubelet sends to end the container stays with its init from now on. */
  async holdSignals(): Promise<void> {
    await holdSignals(this.init.pid);
  }

  async takeSignals(): Promise<{ signals: number[]; isToEnd: boolean }> {
    const { pid } = this.init;
    const held = heldSignals(pid);
    if (held.length === 0 || !(await this.isAlive())) return { signals: [], isToEnd: false };
    await dropSignals(pid, held);
    const ending = held.filter(isEnding);
    const given = await this.#given();
    const signals = held.filter((signal) => !isEnding(signal) || !given.includes(signal));
    if (ending.some((signal) => !given.includes(signal)))
      await writeFile(this.hostPath(GIVEN), JSON.stringify(ending));
    return { signals, isToEnd: ending.length > 0 };
  }

  async #given(): Promise<number[]> {
    const text = await readFile(this.hostPath(GIVEN), "utf8").catch(() => "[]");
    return JSON.parse(text) as number[];
  }

  async end(status: number | null): Promise<void> {
    if (!(await this.isAlive())) return;
    if (status === 0) endInit(this.init.pid);
    else kill(this.init.pid);
  }

  untakenOutput(): number {
    let pipe = -1;
    try {
      pipe = openOutput(this, 1);
      return descriptor.ioctlInt(pipe, sock.SIOCINQ);
    } catch {
      return 0; // it has ended, and its pipe with it
    } finally {
      if (pipe !== -1) closeSync(pipe);
    }
  }

  /** The container runtime's shim takes it, and is the parent of the init: no other can be started. */
  async readOutput(_options: OutputOptions): Promise<ProcessIdentity> {
    const shim = await identify((await parentOf(this.init.pid)) ?? 0);
    if (shim !== null) return shim;
    throw fail("OUTPUT_READER", "the container runtime's shim has ended: delete the pod");
  }

  /**
   * Ends the container: kubelet makes it anew, as an empty standby with a layer that nobody has written to, unless the pod goes. The
   * pod is not ours to end.
   */
  async destroy(): Promise<void> {
    const late = performance.now() + END_MS_MAX;
    if (await this.isAlive()) await this.openDoor(); // the network stays for the next one
    while (await this.isAlive()) {
      kill(this.init.pid);
      // one that is frozen takes no signal before it thaws
      (await Freezer.of(this).catch(() => null))?.thaw();
      if (performance.now() > late)
        throw fail(
          "APPLICATION_STUCK",
          `process ${this.init.pid}, PID 1 of the pod's container, cannot be ended: a process in it waits for a device or a file system`,
        );
      await delay(POLL_MS);
    }
    await removeRunFolder(this.ref.runDir);
  }
}

/**
 * Path of the writable layer in its overlay, in the mount namespace of the container runtime's shim, which the agent need not be in.
 * @throws HoldfastError `CONTAINER_ENDED`
 */
function layerOf(initPid: number): { shim: number; path: string } {
  let [mounted, status] = ["", ""];
  try {
    mounted = readFileSync(`/proc/${initPid}/mountinfo`, "utf8");
    status = readFileSync(`/proc/${initPid}/status`, "utf8");
  } catch {
    // it has ended
  }
  const root = mounted.split("\n").find((line) => line.split(" ")[4] === "/") ?? "";
  const path = /[ ,]upperdir=([^,]+)/.exec(root)?.[1];
  const shim = /^PPid:\s*(\d+)$/m.exec(status)?.[1];
  if (path !== undefined && shim !== undefined) return { shim: Number(shim), path };
  throw fail("CONTAINER_ENDED", `the root of process ${initPid}'s container is no overlay, or has ended`);
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // it has ended
  }
}
