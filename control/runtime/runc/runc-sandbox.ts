/**
 * One container of runc's (or crun's), alive or not.
 *
 * What it leaves on the host is one tmpfs at `runDir`; its overlay is mounted in a mount namespace of its own and ends with the
 * container. The container shows that tmpfs read-only. An agent that was started later, perhaps in another mount namespace, takes it from
 * there and mounts it at the same place again (`hostPath`).
 */
import { closeSync, existsSync, mkdirSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { messageOf } from "#proxy/contract/errors.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { cgroupProcsOf } from "../cgroups.ts";
import { runCommand } from "../command.ts";
import { parseExactJson } from "../exact-json.ts";
import { endFrozen } from "../freezer.ts";
import { openAsMount, openFolderIn, openOutputEnd } from "../inside.ts";
import { launchArgs } from "../launchers.ts";
import type { OciSpec } from "../oci.ts";
import { showQueues } from "../posix-queues.ts";
import { isSameProcess, type ProcessIdentity, rootBelow } from "../processes.ts";
import { isShortage } from "../read-text.ts";
import { removeRunFolder } from "../run-folder.ts";
import type { LaunchOptions, OutputOptions, Sandbox, SandboxRef } from "../runtime.ts";
import { startInside } from "../start-inside.ts";
import { disconnectNetwork } from "./network.ts";
import { restartOutputReader } from "./output-reader.ts";
import { cgroupsPathOf } from "./planned-spec.ts";
import { INSIDE_CRIU, INSIDE_RUN } from "./spec.ts";

/** The program that makes containers, and its `--root`. */
export interface RuncProgram {
  program: string;
  root: string;
}

export class RuncSandbox implements Sandbox {
  readonly layerInUse = false;
  readonly ours = [INSIDE_RUN, INSIDE_CRIU];
  readonly ref: SandboxRef;
  readonly #runc: RuncProgram;

  constructor(runc: RuncProgram, ref: SandboxRef) {
    this.#runc = runc;
    this.ref = ref;
  }

  get id(): string {
    return this.ref.id;
  }
  get init(): ProcessIdentity {
    return this.ref.init;
  }
  get travels(): readonly string[] {
    return this.ref.tmpfs;
  }

  hostPath(...parts: string[]): string {
    const { id, runDir } = this.ref;
    if (!attached.has(id) && (existsSync(join(runDir, "bundle")) || attach(this.ref))) attached.add(id);
    return join(runDir, ...parts);
  }

  openLayer(): number {
    return openFolderIn(this, `${INSIDE_RUN}/layer`);
  }

  openRootForFiles(): number {
    return openFolderIn(this, "/");
  }

  openFolder(path: string): number {
    return openAsMount(this, path);
  }

  async spec(): Promise<OciSpec> {
    const text = await readFile(this.hostPath("bundle", "config.json"), "utf8");
    return parseExactJson(text) as OciSpec; // written by this agent or an earlier one
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

  async launch(process: OciSpec["process"], { criu, logFile, subreaper }: LaunchOptions): Promise<void> {
    const { program, root } = this.#runc;
    const tool = criu.at(INSIDE_CRIU);
    const args = launchArgs(process.args, {
      ...{ folder: INSIDE_RUN, loader: tool.loader, libraryPath: tool.libraryPath },
      subreaper,
    });
    await showQueues(this, this.init.pid); // those of an application that was restored here are gone with it
    const processFile = this.hostPath("bundle", "process.json");
    await writeFile(processFile, JSON.stringify({ ...process, args }));
    const ref = { program, root, id: this.id };
    await startInside(this, { ...ref, processFile, folder: this.hostPath(), logFile });
  }

  /** Into a network of its own nobody connects; in the node's, others are as near as the proxy. */
  async closeDoor(): Promise<void> {}

  async openDoor(): Promise<void> {}

  /** Nobody but this agent ends it. */
  async takeSignals(): Promise<{ signals: number[]; isToEnd: boolean }> {
    return { signals: [], isToEnd: false };
  }

  async end(): Promise<void> {}

  untakenOutput(): number {
    let pipe = -1;
    try {
      pipe = openOutputEnd(this.init.pid);
      return descriptor.ioctlInt(pipe, sock.SIOCINQ);
    } catch {
      return 0; // it has ended, and its pipe with it; or that is another's
    } finally {
      if (pipe !== -1) closeSync(pipe);
    }
  }

  readOutput(options: OutputOptions): Promise<ProcessIdentity> {
    return restartOutputReader(this.init.pid, options);
  }

  destroy(): Promise<void> {
    return removeInstance(this.#runc, this.id, this.ref.runDir);
  }
}

/** Ends every process of an instance, of which perhaps only a part was made, and removes all traces of it. Safe to repeat. */
export async function removeInstance(
  { program, root }: RuncProgram,
  id: string,
  runDir: string,
): Promise<void> {
  await endFrozen(cgroupsPathOf(id));
  await runCommand(program, ["--root", root, "delete", "--force", id], {
    source: "container",
  }).catch((error) => {
    if (!/does not exist|not exist/.test(messageOf(error))) throw error;
  });
  await disconnectNetwork(id, runDir);
  attached.delete(id);
  await removeRunFolder(runDir);
}

/** Instances whose tmpfs was seen at its place. */
const attached = new Set<string>();

function attach({ init, runDir }: SandboxRef): boolean {
  let mount = -1;
  try {
    mount = namespaces.inMountNamespaceOf(init.pid, () => mounts.openTree(INSIDE_RUN));
    mounts.setReadOnly(mount, false);
    mkdirSync(runDir, { recursive: true, mode: 0o700 });
    mounts.attachMount(mount, runDir);
    return true;
  } catch (error) {
    if (isShortage(error)) throw error;
    return false;
  } finally {
    if (mount !== -1) closeSync(mount);
  }
}
