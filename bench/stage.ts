/**
 * What one run of a benchmark has on this machine: a folder, and processes bound to CPUs. All of it is gone when the stage
 * is closed; processes end also when the benchmark itself is killed (PR_SET_PDEATHSIG, by setpriv(1)).
 *
 * Two CPUs, the same for every peer: `server` runs the process under test and nothing else, `load` the load
 * generators and the application. So what is compared is what one CPU does, and the application is not paid for from
 * the peer's share; the price is that the load's CPU may be the one that is full, which `CpuMeter` shows.
 */
import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

const LISTEN_MS_MAX = 15_000;
const LISTEN_CHECK_MS = 10;
/** of a child's stderr, kept to say why it ended */
const STDERR_CHARS = 4_000;
/** → exit status of a command that one of them cuts off */
const SIGNALS = { SIGINT: 130, SIGTERM: 143 };

export class Stage {
  readonly directory = mkdtempSync(join(tmpdir(), "holdfast-bench-"));
  readonly cpus: { server: number; load: number };
  readonly #children = new Set<ChildProcess>();
  readonly #stderr = new WeakMap<ChildProcess, string>();
  readonly #closers: (() => Promise<void> | void)[] = [];
  #closing: Promise<void> | null = null;

  constructor() {
    const allowed = allowedCpus();
    this.cpus = { server: allowed.at(1) ?? (allowed[0] as number), load: allowed[0] as number };
  }

  get closed(): boolean {
    return this.#closing !== null;
  }

  /** What goes before a command so that it runs on this CPU and ends with us. It replaces itself: the PID is the command's. */
  launcher(cpu: number): string[] {
    return ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", String(cpu)];
  }

  /** Its standard error is kept for {@link lastWords}. */
  spawn(
    argv: string[],
    options: { cpu: number; env?: NodeJS.ProcessEnv; stdout?: "pipe"; ipc?: true },
  ): ChildProcess {
    if (this.closed) throw new Error("the benchmark is ending");
    const [command, ...args] = [...this.launcher(options.cpu), ...argv];
    const stdio: SpawnOptions["stdio"] = ["ignore", options.stdout ?? "ignore", "pipe"];
    if (options.ipc) stdio.push("ipc");
    const child = spawn(command as string, args, {
      stdio,
      cwd: this.directory,
      env: { ...process.env, ...options.env },
    });
    this.#children.add(child);
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr.set(child, ((this.#stderr.get(child) ?? "") + text).slice(-STDERR_CHARS));
    });
    child.on("error", (error) => this.#stderr.set(child, error.message));
    child.once("close", () => this.#children.delete(child));
    return child;
  }

  /** Done when the stage is closed, last first, before the processes are killed; at once where it is closed already. */
  onClose(closer: () => Promise<void> | void): void {
    if (this.closed) void closer();
    else this.#closers.push(closer);
  }

  /** What a program says on its standard output, from its start on the load's CPU to its end. @throws Error it failed */
  async outputOf(argv: string[]): Promise<string> {
    const child = this.spawn(argv, { cpu: this.cpus.load, stdout: "pipe" });
    let text = "";
    child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
    });
    await once(child, "close");
    if (child.exitCode !== 0) throw new Error(this.lastWords(child));
    return text;
  }

  /** Of 127.0.0.1; nobody else is likely to take it before it is used. */
  async freePort(): Promise<number> {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    server.close();
    await once(server, "close");
    return port;
  }

  /** Resolves when somebody accepts there. @throws Error with the child's last words when it ends instead */
  async untilListening(port: number, child: ChildProcess): Promise<void> {
    const deadlineMs = performance.now() + LISTEN_MS_MAX;
    for (;;) {
      const socket = connect(port, "127.0.0.1");
      const [accepted] = await Promise.race([
        once(socket, "connect").then(() => [true]),
        once(socket, "close").then(() => [false]),
      ]).catch(() => [false]);
      socket.destroy();
      if (accepted) return;
      if (child.exitCode !== null || child.signalCode !== null) throw new Error(this.lastWords(child));
      if (performance.now() > deadlineMs) throw new Error(`nobody listens at port ${port}`);
      await delay(LISTEN_CHECK_MS);
    }
  }

  /** Of a process that has ended. */
  lastWords(child: ChildProcess): string {
    const how = child.signalCode ?? `status ${child.exitCode}`;
    const command = child.spawnargs.slice(this.launcher(0).length, this.launcher(0).length + 2).join(" ");
    return `${command} ended with ${how}: ${this.#stderr.get(child)?.trim() || "it said nothing"}`;
  }

  /** Kills it and waits for its end. */
  async end(child: ChildProcess): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
    const exited = once(child, "exit");
    child.kill("SIGKILL");
    await exited;
  }

  /** @param onSignal told of each, with the exit status that it makes, before the stage is closed */
  closeOnSignals(onSignal: (status: number, signal: string) => void): void {
    // Not `once`: whoever else ends on a signal raises it again, and what is to be told is still to be written.
    for (const [signal, status] of Object.entries(SIGNALS))
      process.on(signal, () => {
        onSignal(status, signal);
        void this.close();
      });
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    for (const closer of this.#closers.reverse()) await closer();
    await Promise.all([...this.#children].map((child) => this.end(child)));
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** CPUs this process may use (proc(5), Cpus_allowed_list: "0-1,4"). */
function allowedCpus(): number[] {
  const list = /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
  return list.split(",").flatMap((range) => {
    const [first = 0, last = first] = range.split("-").map(Number);
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
}

/** CPU time of a process since the meter was made: all its threads, to the nanosecond (/proc/PID/task/TID/schedstat). */
export class CpuMeter {
  readonly #pid: number;
  readonly #startedMs = performance.now();
  readonly #start: { ranNs: number; waitedNs: number };

  constructor(pid: number) {
    this.#pid = pid;
    this.#start = this.#now();
  }

  /** busy: share of the time it ran. waited: … its first thread was ready to run and did not */
  read(): { cpuUs: number; busy: number; waited: number } {
    const { ranNs, waitedNs } = this.#now();
    const elapsedNs = (performance.now() - this.#startedMs) * 1e6;
    const cpuNs = ranNs - this.#start.ranNs;
    return {
      cpuUs: cpuNs / 1000,
      busy: cpuNs / elapsedNs,
      waited: (waitedNs - this.#start.waitedNs) / elapsedNs,
    };
  }

  #now(): { ranNs: number; waitedNs: number } {
    const sum = { ranNs: 0, waitedNs: 0 };
    for (const thread of readdirSync(`/proc/${this.#pid}/task`)) {
      const [ranNs = 0, waitedNs = 0] = readFileSync(`/proc/${this.#pid}/task/${thread}/schedstat`, "utf8")
        .split(" ")
        .map(Number);
      sum.ranNs += ranNs;
      // Its helpers wait for each other; the first thread is the one that carries the bytes.
      if (thread === String(this.#pid)) sum.waitedNs = waitedNs;
    }
    return sum;
  }
}
