/**
 * The proxy of one workload on this node: a process of its own, so that the clients' sockets outlive an agent that dies.
 * Started detached, or a container of the application's pod; spoken to over its Unix socket, found again by a later agent.
 */
import { spawn } from "node:child_process";
import { closeSync, openSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { fileURLToPath } from "node:url";
import { Channel } from "#proxy/contract/channel.ts";
import { type HandedMessage, type ProxyCommands, SIDECAR_SOCKET } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { LEGS_CALL } from "#proxy/contract/privileged-steps.ts";
import { sendDescriptors } from "#proxy/kernel/descriptor-passing.ts";
import { openIn, using } from "../runtime/inside.ts";
import { identify, isSameProcess, type ProcessIdentity } from "../runtime/processes.ts";
import type { Sidecar } from "../runtime/runtime.ts";
import { LegPrivileges } from "./leg-privileges.ts";

/** A node with both its CPUs busy takes 16 s and more for it; one that fails ends, and is not waited for. */
const START_MS_MAX = 60_000;
const RETRY_MS = 10;
const COMMAND_MS_MAX = 30_000;

/**
 * What clients send is parsed here: of root's powers the process keeps only what it uses (setpriv(1)). TCP_REPAIR, the shield and
 * transparent addresses (NET_ADMIN, BPF), a FIN that is made up (NET_RAW), ports below 1024.
 */
const PRIVILEGES = [
  ...["--bounding-set", "-all,+net_admin,+net_raw,+net_bind_service,+bpf"],
  ...["--inh-caps", "-all", "--ambient-caps", "-all", "--no-new-privs"],
];

export interface ProxyRecord {
  process: ProcessIdentity;
  /** of a sidecar: as its container has it, where clients' bytes are parsed, so that a link there leads to nothing of the node's */
  socketPath: string;
  /** kubelet's, and without capabilities: this agent takes the steps for it that need some */
  isSidecar: boolean;
}

export class ProxyClient {
  readonly record: ProxyRecord;
  #channel: Channel;

  private constructor(record: ProxyRecord, channel: Channel) {
    this.record = record;
    this.#channel = channel;
  }

  /**
   * Starts the process and connects to it. @throws HoldfastError `PROXY_START`
   * @param onSpawn told at once, so that an agent that dies now leaves no process nobody knows of
   * @param groups `cgroup.procs` of the groups that it is to be in. Empty: the agent's
   * @param signal it is of no use any more: what was started is ended, and this rejects with the signal's reason
   */
  static async start(
    socketPath: string,
    logFile: string,
    onSpawn: (record: ProxyRecord) => void,
    groups: readonly string[] = [],
    signal?: AbortSignal,
  ): Promise<ProxyClient> {
    await rm(socketPath, { force: true });
    signal?.throwIfAborted();
    const log = openSync(logFile, "a", 0o600);
    const main = fileURLToPath(new URL("../../proxy/main.ts", import.meta.url));
    const child = spawn("setpriv", [...PRIVILEGES, "--", process.execPath, main, "--socket", socketPath], {
      detached: true,
      stdio: ["ignore", log, log],
      cwd: "/",
    });
    closeSync(log);
    let ended: string | null = null;
    child.once("error", (error) => (ended = messageOf(error)));
    child.once("exit", (code, signal) => (ended = `it ended (${signal ?? code})`));
    child.unref();
    const spawned = await identify(child.pid ?? -1);
    if (spawned !== null) {
      onSpawn({ process: spawned, socketPath, isSidecar: false });
      for (const procs of groups) writeFileSync(procs, String(spawned.pid));
    }
    const deadline = Date.now() + START_MS_MAX;
    for (;;) {
      const socket = await tryConnect(socketPath);
      const process = socket === null ? null : await identify(child.pid ?? -1);
      if (socket !== null && process !== null)
        return new ProxyClient(
          { process, socketPath, isSidecar: false },
          new Channel(socket, { name: "proxy" }),
        );
      if (ended !== null || signal?.aborted || Date.now() > deadline) {
        if (ended === null) child.kill("SIGKILL"); // nobody would know of it any more
        signal?.throwIfAborted();
        throw fail("PROXY_START", `the proxy did not start: ${ended ?? "no answer"}; see ${logFile}`);
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  /** Connects to a container of the application's pod. null: it does not listen yet, or has ended */
  static of({ process }: Sidecar): Promise<ProxyClient | null> {
    return ProxyClient.find({ process, socketPath: SIDECAR_SOCKET, isSidecar: true });
  }

  /** Connects to a proxy that an earlier agent started or found. null: it has ended. */
  static async find(record: ProxyRecord): Promise<ProxyClient | null> {
    if (!(await isSameProcess(record.process))) return null;
    const socket = record.isSidecar
      ? await using(() => openIn({ init: record.process }, SIDECAR_SOCKET), tryConnect)
      : await tryConnect(record.socketPath);
    if (socket === null) return null;
    if (!record.isSidecar) return new ProxyClient(record, new Channel(socket, { name: "proxy" }));
    let privileges: LegPrivileges;
    try {
      privileges = await LegPrivileges.of(record.process);
    } catch {
      socket.destroy();
      return null; // it has ended
    }
    const channel = new Channel(socket, {
      name: "proxy",
      handlers: { [LEGS_CALL]: privileges.handler },
    });
    void channel.closed.then(() => privileges.close());
    return new ProxyClient(record, channel);
  }

  get isOpen(): boolean {
    return this.#channel.isOpen;
  }

  /** Resolves when the connection is over: the process has ended, or the connection alone. */
  get closed(): Promise<unknown> {
    return this.#channel.closed;
  }

  /** @param waitMs how long the proxy has been asked to wait before it answers */
  async command<Name extends keyof ProxyCommands, Result = unknown>(
    name: Name,
    params: ProxyCommands[Name],
    body?: Buffer,
    waitMs = 0,
  ): Promise<{ result: Result; body: Buffer }> {
    return this.#channel.call<Result>(name, params, {
      timeoutMs: COMMAND_MS_MAX + waitMs,
      ...(body === undefined ? {} : { body }),
    });
  }

  /** Sends it duplicates of descriptors; a command says what they are for. */
  hand(message: HandedMessage, descriptors: number[]): void {
    sendDescriptors(`${this.record.socketPath}.net`, Buffer.from(JSON.stringify(message)), descriptors);
  }

  /** Lets go of the process without ending it. */
  disconnect(): void {
    this.#channel.close();
  }

  /** Ends the process, with an RST to every client it still has; a sidecar stays, with nothing. */
  async stop(): Promise<void> {
    if (this.#channel.isOpen) await this.command("stop", {}).catch(() => {});
    this.#channel.close();
    if (!this.record.isSidecar) await endProcess(this.record.process);
  }
}

/** Of a proxy that nobody is connected to: as {@link ProxyClient.stop}, but it is not waited for. */
export async function endProxy(record: ProxyRecord, graceMs?: number): Promise<void> {
  if (record.isSidecar) await (await ProxyClient.find(record))?.stop();
  else await endProcess(record.process, graceMs);
}

/** Waits for a process to end, and makes it. */
export async function endProcess(identity: ProcessIdentity, graceMs = 2_000): Promise<void> {
  const deadline = Date.now() + graceMs;
  while (await isSameProcess(identity)) {
    if (Date.now() > deadline) kill(identity.pid);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // it has ended since it was looked at
  }
}

function tryConnect(path: string): Promise<Socket | null> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.removeAllListeners("error");
      resolve(socket);
    });
    socket.once("error", () => resolve(null));
  });
}
