/**
 * Containers, by runc or crun. Each is made as a standby, PID 1 and nothing else; then the application is launched in it,
 * or CRIU restores it. Either way it is a child of that init and the leader of its own session, so that it looks the
 * same after any number of moves.
 *
 * What an instance leaves on the host is one tmpfs at `runDir`; its overlay is mounted in a mount namespace of its own
 * and ends with the container. The container shows that tmpfs read-only. An agent that was started later, perhaps in another
 * mount namespace, takes it from there and mounts it at the same place again (`runPath`).
 */
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { closeSync, existsSync, mkdirSync, realpathSync } from "node:fs";
import { chmod, copyFile, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import type { CriuTool } from "../../criu/sealed.ts";
import { runCommand } from "../command.ts";
import { endFrozen } from "../freezer.ts";
import { openNull, openOutput } from "../inside.ts";
import { showQueues } from "../posix-queues.ts";
import { childrenOf, identify, isSameProcess, type ProcessIdentity, processState } from "../processes.ts";
import { connectedInstances, connectNetwork, disconnectNetwork } from "./network.ts";
import { startOutputReader } from "./output-reader.ts";
import { hidePasswords } from "./shadow.ts";
import {
  adaptSpec,
  buildSpec,
  type ContainerPlan,
  INSIDE_RUN,
  type OciSpec,
  travellingTmpfs,
} from "./spec.ts";

export interface WorkloadRootfs {
  /** lower folder of the overlay: "/" for `rootfs: host` */
  lower: string;
  /** an OCI configuration made by others, or null */
  bundle: OciSpec | null;
}

export interface CreateOptions {
  workload: string;
  node: string;
  container: ContainerPlan;
  rootfs: WorkloadRootfs;
  stateDir: string;
  logFile: string;
  /** of the log, and the one before it */
  logBytesMax: number;
  criuDir: string;
  /** a static init (catatonit) that every container gets a copy of */
  initBinary: string;
  /** host paths of this agent's files that no container is to show */
  secrets: string[];
  /** size limit of the instance's tmpfs */
  runBytesMax: number;
}

/** What the journal keeps of an instance. */
export interface ContainerRecord {
  id: string;
  runDir: string;
  init: ProcessIdentity;
  tmpfs: string[];
  /** what takes its output out of the pipe; undefined: an earlier version made it, or none is known */
  reader?: ProcessIdentity | undefined;
}

const SETSID_BINARY = "/usr/bin/setsid";
/** of an instance's id, behind workload and node */
const ID_SUFFIX = "-01234567";
const FORK_POLL_MS = 5;
const RUNTIMES = ["runc", "crun"];

export class ContainerRuntime {
  #program: string;
  /** e.g. "1.1.5+ds1" */
  readonly version: string;
  #root: string;

  private constructor(program: string, version: string, root: string) {
    this.#program = program;
    this.version = version;
    this.#root = root;
  }

  /** @throws HoldfastError `RUNTIME_MISSING` */
  static async find(stateDir: string): Promise<ContainerRuntime> {
    for (const program of RUNTIMES) {
      try {
        const said = await runCommand(program, ["--version"], { source: "container" });
        return new ContainerRuntime(program, /\d\S*/.exec(said)?.[0] ?? "", join(stateDir, "runtime"));
      } catch {
        // the next one may be there
      }
    }
    throw fail("RUNTIME_MISSING", "neither runc nor crun is installed: apt-get install runc");
  }

  get program(): string {
    return this.#program;
  }

  /**
   * Creates and starts an instance. Its standard output and error go to `logFile` through a pipe (`output-reader.ts`) whose
   * reader lives as long as the pipe, not as long as the agent.
   * @param populate called with the writable layer's folder before the container sees it
   */
  async create(
    options: CreateOptions,
    populate: (layerDir: string) => Promise<void> = async () => {},
  ): Promise<ContainerRecord> {
    const id = `${options.workload}-${options.node}-${randomBytes(4).toString("hex")}`;
    const runDir = join(options.stateDir, "run", id);
    await mkdir(runDir, { recursive: true, mode: 0o700 });
    try {
      await runCommand(
        "mount",
        ["-t", "tmpfs", "-o", `size=${options.runBytesMax},mode=0700`, "holdfast", runDir],
        { source: "container" },
      );
      for (const folder of ["layer", "work", "rootfs", "bundle"]) await mkdir(join(runDir, folder));
      // CRIU tries kernel features out in the container's /tmp: there must be one, and a layer that has it already does
      // not change by that
      await mkdir(join(runDir, "layer", "tmp"));
      await chmod(join(runDir, "layer", "tmp"), 0o1777);
      if (options.rootfs.lower === "/") hidePasswords(join(runDir, "layer"));
      await copyFile(options.initBinary, join(runDir, "init"));
      await copyFile(SETSID_BINARY, join(runDir, "setsid"));
      await populate(join(runDir, "layer"));
      const spec = specOf(options, id, runDir);
      await writeFile(join(runDir, "bundle", "config.json"), JSON.stringify(spec));
      const reader = await this.#createAndStart(id, runDir, options);
      const pid = await this.#initPid(id);
      const init = pid === null ? null : await identify(pid);
      if (init === null) {
        throw fail(
          "CONTAINER_ENDED",
          `the container of ${options.workload} ended at once: see ${options.logFile}`,
        );
      }
      const { network } = options.container;
      if (network !== null) await connectNetwork({ id, runDir, initPid: init.pid }, network);
      return { id, runDir, init, tmpfs: travellingTmpfs(spec), reader };
    } catch (error) {
      await this.#remove(id, runDir).catch(() => {}); // what is left the next agent removes; why it came to this counts
      throw error;
    }
  }

  /**
   * Starts the application in a container that has none. `setsid --fork` leaves it to the container's init as a child.
   * @param plan as it is now: of the container only what its processes are given can change while it lives
   * @throws HoldfastError `CONTAINER_EXEC`
   */
  async launch(
    record: ContainerRecord,
    tool: CriuTool,
    plan: OciSpec["process"],
    logFile: string,
  ): Promise<void> {
    // setsid(1) comes with its own C library, as the container may have none
    const args = [
      tool.loader,
      "--library-path",
      tool.libraryPath,
      `${INSIDE_RUN}/setsid`,
      "--fork",
      "--",
      ...plan.args,
    ];
    await showQueues(record, record.init.pid); // those of an application that was restored here are gone with it
    const processFile = runPath(record, "bundle", "process.json");
    await writeFile(processFile, JSON.stringify({ ...plan, args }));
    const output = openOutput(record);
    const nothing = openNull(record); // the container's own: CRIU must find its mount
    const errors = runPath(record, "exec.log");
    const pidFile = runPath(record, "exec.pid");
    try {
      const argv = [
        "--root",
        this.#root,
        "--log",
        errors,
        "exec",
        "--detach",
        "--pid-file",
        pidFile,
        "--process",
        processFile,
        record.id,
      ];
      const child = spawn(this.#program, argv, { stdio: [nothing ?? "ignore", output, output], cwd: "/" });
      const status = await exitStatus(child);
      if (status !== 0) {
        const reason = lastLine(await readFile(errors, "utf8").catch(() => "")) || `see ${logFile}`;
        throw fail("CONTAINER_EXEC", `${this.#program} cannot start the application: ${reason}`);
      }
      const setsid = await identify(Number(await readFile(pidFile, "utf8")));
      while (setsid !== null && (await isSameProcess(setsid)))
        await new Promise((resolve) => setTimeout(resolve, FORK_POLL_MS));
    } finally {
      closeSync(output);
      if (nothing !== null) closeSync(nothing);
    }
  }

  async isAlive(record: ContainerRecord): Promise<boolean> {
    // one that its parent has not waited for yet has no namespaces any more
    return (await isSameProcess(record.init)) && (await processState(record.init.pid)) !== "Z";
  }

  /** Ends every process of the instance and removes all traces of it. Safe to repeat. */
  async destroy(record: ContainerRecord): Promise<void> {
    await this.#remove(record.id, record.runDir);
  }

  /**
   * Removes instances that no journal knows (an agent died while it made them). One that cannot be removed keeps no other.
   * @param unread workloads of a node whose journals cannot be read: nobody knows which of their instances are alive
   */
  async destroyAllExcept(
    stateDir: string,
    ids: Set<string>,
    unread: { workload: string; node: string }[],
  ): Promise<{ id: string; problem: string | null }[]> {
    const mayBeOf = (id: string): boolean =>
      unread.some(({ workload, node }) => id.slice(0, -ID_SUFFIX.length) === `${workload}-${node}`);
    const runDir = join(stateDir, "run");
    const found = new Set([...(await readdir(runDir).catch(() => [])), ...connectedInstances(stateDir)]);
    const strays = [...found].filter((id) => !ids.has(id) && !mayBeOf(id));
    const removed: { id: string; problem: string | null }[] = [];
    for (const id of strays) {
      const problem = await this.#remove(id, join(runDir, id)).then(() => null, messageOf);
      const isLeft = problem === null && connectedInstances(stateDir).includes(id);
      removed.push({ id, problem: isLeft ? "something of its network is left (nft(8), ip(8))" : problem });
    }
    return removed;
  }

  async #createAndStart(id: string, runDir: string, options: CreateOptions): Promise<ProcessIdentity> {
    const [reader, writer] = descriptor.pipe();
    try {
      const output = { file: options.logFile, bytesMax: options.logBytesMax };
      const readerProcess = await startOutputReader(reader, output);
      const overlay = `lowerdir=${options.rootfs.lower},upperdir=${runDir}/layer,workdir=${runDir}/work`;
      // private, so that the overlay is not seen (and need not be unmounted) outside
      const script =
        'mount --make-rprivate / && mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"';
      const errors = join(runDir, "create.log");
      const runtime = [
        this.#program,
        "--root",
        this.#root,
        "--log",
        errors,
        "create",
        "--bundle",
        join(runDir, "bundle"),
        id,
      ];
      const argv = [
        "-m",
        "--propagation",
        "unchanged",
        "/bin/sh",
        "-c",
        script,
        "sh",
        overlay,
        join(runDir, "rootfs"),
        ...runtime,
      ];
      // Its init has the reading end too and never reads: without any, a writer is ended by SIGPIPE.
      const child = spawn("unshare", argv, { stdio: [reader, writer, writer], cwd: "/" });
      const status = await exitStatus(child);
      if (status !== 0) {
        const reason = lastLine(await readFile(errors, "utf8").catch(() => "")) || `see ${options.logFile}`;
        throw fail("CONTAINER_CREATE", `${this.#program} cannot create ${id}: ${reason}`);
      }
      await runCommand(this.#program, ["--root", this.#root, "start", id], { source: "container" });
      return readerProcess;
    } finally {
      descriptor.close(reader);
      descriptor.close(writer);
    }
  }

  async #initPid(id: string): Promise<number | null> {
    const state: unknown = JSON.parse(
      await runCommand(this.#program, ["--root", this.#root, "state", id], { source: "container" }),
    );
    const pid = (state as { pid?: unknown }).pid;
    return typeof pid === "number" && pid > 0 ? pid : null;
  }

  async #remove(id: string, runDir: string): Promise<void> {
    await endFrozen(cgroupsPathOf(id));
    await runCommand(this.#program, ["--root", this.#root, "delete", "--force", id], {
      source: "container",
    }).catch((error) => {
      if (!/does not exist|not exist/.test(messageOf(error))) throw error;
    });
    await disconnectNetwork(id, runDir);
    attached.delete(id);
    await runCommand("umount", ["--lazy", runDir], { source: "container" }).catch(() => {}); // not mounted: nothing to do
    await rm(runDir, { recursive: true, force: true });
  }
}

type SpecInput = Pick<CreateOptions, "container" | "rootfs" | "criuDir" | "workload" | "secrets">;

/** What a container of the workload would be like; paths of an instance are not in it yet. */
export function plannedSpec(options: SpecInput): OciSpec {
  return specOf(options, "", "/");
}

function specOf(options: SpecInput, id: string, runDir: string): OciSpec {
  const specOptions = {
    container: options.container,
    rootfs: join(runDir, "rootfs"),
    isHostView: options.rootfs.lower === "/",
    runDir,
    criuDir: options.criuDir,
    hostname: options.workload,
    secrets: options.secrets.flatMap((path) => [
      ...seenBelow(options.rootfs.lower, "/", path),
      ...options.container.mounts.flatMap(({ source, target }) => seenBelow(source, target, path)),
    ]),
    cgroupsPath: cgroupsPathOf(id),
  };
  return options.rootfs.bundle === null
    ? buildSpec(specOptions)
    : adaptSpec(specOptions, options.rootfs.bundle);
}

/** Where a container that has the host's `source` at `target` has a host path. */
function seenBelow(source: string, target: string, path: string): string[] {
  const below = relative(realPath(source), path);
  return below.startsWith("../") || below === ".." ? [] : [join(target, below)];
}

/** The path itself where there is nothing. */
function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}

function cgroupsPathOf(id: string): string {
  return `/holdfast/${id}`;
}

/** Instances whose tmpfs was seen at its place. */
const attached = new Set<string>();

/**
 * Host path of the instance's own folder. Mounts it again where this agent's mount namespace does not have it; where that
 * fails, because the container has ended, there is nothing at the path.
 */
export function runPath(record: ContainerRecord, ...parts: string[]): string {
  const { id, runDir } = record;
  if (!attached.has(id) && (existsSync(join(runDir, "bundle")) || attach(record))) attached.add(id);
  return join(runDir, ...parts);
}

function attach({ init, runDir }: ContainerRecord): boolean {
  let mount = -1;
  try {
    mount = namespaces.inMountNamespaceOf(init.pid, () => mounts.openTree(INSIDE_RUN));
    mounts.setReadOnly(mount, false);
    mkdirSync(runDir, { recursive: true, mode: 0o700 });
    mounts.attachMount(mount, runDir);
    return true;
  } catch {
    return false;
  } finally {
    if (mount !== -1) closeSync(mount);
  }
}

/** The root of the application's process tree. null: it has ended; more than one tree is an error. */
export async function applicationPid(record: ContainerRecord): Promise<number | null> {
  const children: number[] = [];
  // what has ended there waits for the init to reap it
  for (const pid of await childrenOf(record.init.pid)) if ((await identify(pid)) !== null) children.push(pid);
  if (children.length > 1) {
    throw fail(
      "TREES_MANY",
      `the container has ${children.length} process trees below its init: run the application in the foreground, as one tree`,
    );
  }
  return children[0] ?? null;
}

function exitStatus(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", resolve); // not "close": the application keeps the pipe open
  });
}

function lastLine(text: string): string {
  return text.trim().split("\n").at(-1) ?? "";
}
