/**
 * Containers of Kubernetes' pods. They are not made here: kubelet makes a pod's container with nothing in it but an init that waits
 * (`catatonit -P`), and the application is launched in it, or CRIU restores it. So a pod is a standby until it has an application.
 *
 * The pod brings what is needed in it at {@link INSIDE}, an emptyDir of its own.
 */
import { randomBytes } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { SIDECAR_NAME } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { PodConfig, WorkloadConfig } from "../../config/config.ts";
import { realPathIn } from "../inside.ts";
import type { OciSpec } from "../oci.ts";
import { identify, parentOf } from "../processes.ts";
import { mountRunFolder, removeRunFolder } from "../run-folder.ts";
import type { Runtime, Sandbox, SandboxPlan, SandboxRef, Sidecar, StandbyOptions } from "../runtime.ts";
import { CriClient, type RunningContainer } from "./cri-client.ts";
import { CriSandbox, INSIDE } from "./cri-sandbox.ts";
import { specOf, stateOf } from "./oci-state.ts";

/** With its configuration as runc or crun was given it: what is between them and the container runtime may have changed what that knows. */
interface Found extends RunningContainer {
  spec: OciSpec;
}

/** as they call themselves */
const RUNTIMES = ["containerd", "cri-o"];

export class CriRuntime implements Runtime {
  readonly supervisor = "agent";
  /** e.g. "containerd" */
  readonly program: string;
  readonly version: string;
  readonly #client: CriClient;
  readonly #stateDir: string;

  private constructor(client: CriClient, program: string, version: string, stateDir: string) {
    this.#client = client;
    this.program = program;
    this.version = version;
    this.#stateDir = stateDir;
  }

  /** @throws HoldfastError `CRI_UNREACHABLE`, `RUNTIME_MISSING` */
  static async connect(socket: string, stateDir: string): Promise<CriRuntime> {
    const client = new CriClient(socket);
    try {
      const { name, version } = await client.version();
      if (!RUNTIMES.includes(name))
        throw fail(
          "RUNTIME_MISSING",
          `the container runtime at ${socket} is ${name}: use one of ${RUNTIMES.join(", ")}`,
        );
      return new CriRuntime(client, name, version, stateDir);
    } catch (error) {
      client.close();
      throw error;
    }
  }

  async plan(config: WorkloadConfig): Promise<SandboxPlan> {
    const pod = requirePod(config);
    const found = await this.#find(pod);
    return {
      lower: `/proc/${found.pid}/root`,
      process: await this.#processOf(found, pod),
      spec: () => seenFromHere(found),
      standby: (options, populate) => this.#standby(options, found, populate),
    };
  }

  async runs({ name, ...of }: Pick<PodConfig, "namespace" | "name" | "uid" | "container">): Promise<boolean> {
    return (await this.#client.find({ ...of, pod: name })) !== null;
  }

  async sidecar(config: WorkloadConfig): Promise<Sidecar | null> {
    const { namespace, name, uid } = requirePod(config);
    const found = await this.#client.find({ namespace, pod: name, container: SIDECAR_NAME, uid });
    const process = found === null ? null : await identify(found.pid);
    if (found === null || process === null) return null;
    const address = await this.#client.addressOf(found.sandbox);
    return address === null ? null : { process, address };
  }

  find(ref: SandboxRef): CriSandbox {
    return new CriSandbox(ref);
  }

  /** The containers are kubelet's to remove; of an instance there is only its folder. */
  async removeStrays(
    known: ReadonlySet<string>,
    unread: { workload: string; node: string }[],
  ): Promise<{ id: string; problem: string | null }[]> {
    if (unread.length > 0) return [];
    const folder = join(this.#stateDir, "run");
    const strays = (await readdir(folder).catch(() => [])).filter((id) => !known.has(id));
    const remove = async (id: string) => ({
      id,
      problem: await removeRunFolder(join(folder, id)).then(() => null, messageOf),
    });
    return Promise.all(strays.map(remove));
  }

  async #find(pod: PodConfig): Promise<Found> {
    const { namespace, name, container, uid } = pod;
    const found = await this.#client.find({ namespace, pod: name, container, uid });
    if (found !== null) return { ...found, spec: await specOf(await stateOf(found.pid, found.id)) };
    throw fail("POD_MISSING", `no container ${container} of pod ${namespace}/${name} runs on this node`, {
      retryable: true,
    });
  }

  /** The application as the pod's container would have run it, had it not been given an init that waits. */
  async #processOf({ spec, image }: Found, pod: PodConfig): Promise<OciSpec["process"]> {
    const end = spec.process.args.indexOf("--");
    const given = end < 0 ? [] : spec.process.args.slice(end + 1);
    let args = pod.command;
    if (args === null) {
      const own = await this.#client.commandOf(image);
      args = [...own.entrypoint, ...(given.length > 0 ? given : own.arguments)];
      if (args.length === 0)
        throw fail(
          "CONTAINER_EXEC",
          `pod ${pod.namespace}/${pod.name} names no command for ${pod.container}, and its image has no entrypoint`,
        );
    } else if (pod.uid !== null && given.length > 0) args = given; // kubelet has put variables in
    return { ...spec.process, terminal: false, args, cwd: pod.cwd ?? spec.process.cwd };
  }

  async #standby(
    options: StandbyOptions,
    { id: containerId, pid, spec }: Found,
    populate: (layer: string) => Promise<void> = async () => {},
  ): Promise<Sandbox> {
    // one container is several instances, one after the other: an application that comes back is not the one that left
    const id = `${containerId}-${randomBytes(4).toString("hex")}`;
    const runDir = join(this.#stateDir, "run", id);
    const init = await identify(pid);
    const shim = await identify((await parentOf(pid)) ?? 0);
    if (init === null || shim === null)
      throw fail("CONTAINER_ENDED", `the container of ${options.workload} has ended`, { retryable: true });
    if (!(await readFile(`/proc/${pid}/cgroup`, "utf8")).includes(containerId))
      throw fail(
        "CONTAINER_CREATE",
        `process ${pid} is not of the container of ${options.workload}: run the agent in the PID namespace of the container runtime (hostPID)`,
      );
    const sandbox = this.find({ id, runDir, init, tmpfs: travelling(spec, pid), reader: shim });
    if ((await sandbox.applicationRoot()) !== null)
      throw fail("CONTAINER_CREATE", `the pod of ${options.workload} has processes in it already`);
    await sandbox.holdSignals(); // there is no application yet that could miss one
    try {
      await mountRunFolder(runDir, options.runBytesMax);
      await populate(runDir); // nothing comes for it: the layer is in use
      await sandbox.openDoor(); // an earlier container of this pod may have ended while it was closed
      return sandbox;
    } catch (error) {
      await removeRunFolder(runDir).catch(() => {}); // what is left the next agent removes; why it came to this counts
      throw error;
    }
  }
}

function requirePod({ name, pod }: WorkloadConfig): PodConfig {
  if (pod === null)
    throw fail("POD_MISSING", `workload ${name} names no pod, and this agent has a container runtime: cri`);
  return pod;
}

/** Its mounts come from the node's folders, which the agent may not have; it has what the container sees. */
function seenFromHere({ pid, spec }: Found): OciSpec {
  const place = (path: string): string => `/proc/${pid}/root${realPathIn({ init: { pid } }, path)}`;
  const mounts = (spec.mounts ?? []).map((mount) =>
    mount.type === "bind" ? { ...mount, source: place(mount.destination) } : mount,
  );
  return { ...spec, mounts };
}

/** What only this pod has: its emptyDirs, and its shared memory. */
function travelling({ mounts = [], parts }: OciSpec, pid: number): string[] {
  return mounts
    .filter(({ destination, source = "" }) => destination === "/dev/shm" || /~empty-dir\//.test(source))
    .map(({ destination }) => destination)
    .filter((destination) => destination !== INSIDE)
    .concat(parts?.folders ?? [])
    .map((path) => realPathIn({ init: { pid } }, path));
}
