/**
 * Containers, by runc or crun. Each is made as a standby, PID 1 and nothing else; then the application is launched in it,
 * or CRIU restores it. Either way it is a child of that init and the leader of its own session, so that it looks the
 * same after any number of moves.
 */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chmod, copyFile, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import type { WorkloadConfig } from "../../config/config.ts";
import { runCommand } from "../command.ts";
import { LAUNCHERS, SUBREAPER } from "../launchers.ts";
import { identify, type ProcessIdentity } from "../processes.ts";
import { withRoom } from "../read-text.ts";
import { mountRunFolder } from "../run-folder.ts";
import type { Runtime, Sandbox, SandboxPlan, SandboxRef, StandbyOptions } from "../runtime.ts";
import { exitStatus, lastLine } from "../start-inside.ts";
import { subreaperProgram } from "../subreaper-program.ts";
import { connectedInstances, connectNetwork } from "./network.ts";
import { startOutputReader } from "./output-reader.ts";
import { plannedSpec, specOf } from "./planned-spec.ts";
import { type LoadedRootfs, loadRootfs } from "./rootfs.ts";
import { type RuncProgram, RuncSandbox, removeInstance } from "./runc-sandbox.ts";
import { hidePasswords } from "./shadow.ts";
import { processOf, travellingTmpfs } from "./spec.ts";

/** of an instance's id, behind workload and node */
const ID_SUFFIX = "-01234567";
const RUNTIMES = ["runc", "crun"];

export class RuncRuntime implements Runtime {
  readonly supervisor = "agent";
  readonly program: string;
  /** e.g. "1.1.5+ds1" */
  readonly version: string;
  readonly #stateDir: string;

  private constructor(program: string, version: string, stateDir: string) {
    this.program = program;
    this.version = version;
    this.#stateDir = stateDir;
  }

  /** @throws HoldfastError `RUNTIME_MISSING` */
  static async find(stateDir: string): Promise<RuncRuntime> {
    for (const program of RUNTIMES) {
      try {
        const said = await runCommand(program, ["--version"], { source: "container" });
        return new RuncRuntime(program, /\d\S*/.exec(said)?.[0] ?? "", stateDir);
      } catch {
        // the next one may be there
      }
    }
    throw fail("RUNTIME_MISSING", "neither runc nor crun is installed: apt-get install runc");
  }

  get #runc(): RuncProgram {
    return { program: this.program, root: join(this.#stateDir, "runtime") };
  }

  async plan(config: WorkloadConfig): Promise<SandboxPlan> {
    const loaded = await loadRootfs(config);
    return {
      lower: loaded.rootfs.lower,
      process: processOf(loaded.container, loaded.rootfs.bundle),
      spec: (of) => plannedSpec({ ...loaded, ...of, secrets: [] }),
      standby: (options, populate) => this.#standby({ ...options, ...loaded }, populate),
    };
  }

  /** They are kubelet's. */
  async runs(): Promise<boolean> {
    return false;
  }

  async sidecar(): Promise<null> {
    return null;
  }

  find(ref: SandboxRef): Sandbox {
    return new RuncSandbox(this.#runc, ref);
  }

  /**
   * Its standard output and error go to the file through a pipe (`output-reader.ts`) whose reader lives as long as the pipe, not as
   * long as the agent.
   */
  async #standby(
    options: StandbyOptions & LoadedRootfs,
    populate: (layer: string) => Promise<void> = async () => {},
  ): Promise<Sandbox> {
    const id = `${options.workload}-${options.node}-${randomBytes(4).toString("hex")}`;
    const runDir = join(this.#stateDir, "run", id);
    try {
      await mountRunFolder(runDir, options.runBytesMax);
      for (const folder of ["layer", "work", "rootfs", "bundle"]) await mkdir(join(runDir, folder));
      // CRIU tries kernel features out in the container's /tmp: there must be one, and a layer that has it already does
      // not change by that
      await mkdir(join(runDir, "layer", "tmp"));
      await chmod(join(runDir, "layer", "tmp"), 0o1777);
      if (options.rootfs.lower === "/") hidePasswords(join(runDir, "layer"));
      await copyFile(options.initBinary, join(runDir, "init"));
      for (const [name, file] of Object.entries(LAUNCHERS)) await copyFile(file, join(runDir, name));
      await writeFile(join(runDir, SUBREAPER), subreaperProgram(), { mode: 0o755 });
      await populate(join(runDir, "layer"));
      const spec = specOf(options, id, runDir);
      await writeFile(join(runDir, "bundle", "config.json"), JSON.stringify(spec));
      const reader = await this.#createAndStart(id, runDir, options);
      const pid = await this.#initPid(id);
      const init = pid === null ? null : await identify(pid);
      if (init === null) {
        throw fail(
          "CONTAINER_ENDED",
          `the container of ${options.workload} ended at once: see ${options.output.file}`,
        );
      }
      const { network } = options.container;
      if (network !== null) await connectNetwork({ id, runDir, initPid: init.pid }, network);
      return this.find({ id, runDir, init, tmpfs: travellingTmpfs(spec), reader });
    } catch (error) {
      // what is left the next agent removes; why it came to this counts
      await withRoom(() => removeInstance(this.#runc, id, runDir)).catch(() => {});
      throw error;
    }
  }

  async removeStrays(
    known: ReadonlySet<string>,
    unread: { workload: string; node: string }[],
  ): Promise<{ id: string; problem: string | null }[]> {
    const stateDir = this.#stateDir;
    const mayBeOf = (id: string): boolean =>
      unread.some(({ workload, node }) => id.slice(0, -ID_SUFFIX.length) === `${workload}-${node}`);
    const runDir = join(stateDir, "run");
    const found = new Set([...(await readdir(runDir).catch(() => [])), ...connectedInstances(stateDir)]);
    const strays = [...found].filter((id) => !known.has(id) && !mayBeOf(id));
    const removed: { id: string; problem: string | null }[] = [];
    for (const id of strays) {
      const problem = await removeInstance(this.#runc, id, join(runDir, id)).then(() => null, messageOf);
      const isLeft = problem === null && connectedInstances(stateDir).includes(id);
      removed.push({ id, problem: isLeft ? "something of its network is left (nft(8), ip(8))" : problem });
    }
    return removed;
  }

  async #createAndStart(
    id: string,
    runDir: string,
    options: StandbyOptions & LoadedRootfs,
  ): Promise<ProcessIdentity> {
    const { root } = this.#runc;
    const [reader, writer] = descriptor.pipe();
    try {
      const readerProcess = await startOutputReader(reader, options.output);
      const overlay = `lowerdir=${options.rootfs.lower},upperdir=${runDir}/layer,workdir=${runDir}/work`;
      // private, so that the overlay is not seen (and need not be unmounted) outside
      const script =
        'mount --make-rprivate / && mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"';
      const errors = join(runDir, "create.log");
      const runtime = [
        this.program,
        "--root",
        root,
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
        const reason =
          lastLine(await readFile(errors, "utf8").catch(() => "")) || `see ${options.output.file}`;
        throw fail("CONTAINER_CREATE", `${this.program} cannot create ${id}: ${reason}`);
      }
      await runCommand(this.program, ["--root", root, "start", id], { source: "container" });
      return readerProcess;
    } finally {
      descriptor.close(reader);
      descriptor.close(writer);
    }
  }

  async #initPid(id: string): Promise<number | null> {
    const state: unknown = JSON.parse(
      await runCommand(this.program, ["--root", this.#runc.root, "state", id], { source: "container" }),
    );
    const pid = (state as { pid?: unknown }).pid;
    return typeof pid === "number" && pid > 0 ? pid : null;
  }
}
