/**
 * Load in a laboratory, as the test, demo or benchmark holds it: starts the load process in the clients' namespace and
 * turns its lines into promises.
 */
import { once } from "node:events";
import { join } from "node:path";
import { type Lab, type LabProcess, nodeBinary, projectRoot } from "../lab/lab.ts";
import {
  type LoadCommand,
  type LoadEvent,
  type LoadOptions,
  type LoadReport,
  readLines,
  sendLine,
} from "./protocol.ts";

export type LoadKind = "ws" | "tcp" | "lives";

const reportSlackMs = 5_000;

export class Load {
  readonly process: LabProcess;
  readonly #drainMsMax: number;
  #messages = 0;
  #alive = 0;
  #stderr = "";
  #onProgress: ((messages: number, alive: number) => void) | undefined;
  #waiting: {
    type: LoadEvent["type"];
    resolve: (event: LoadEvent) => void;
    reject: (error: Error) => void;
  }[] = [];

  constructor(started: LabProcess, drainMsMax: number) {
    this.process = started;
    this.#drainMsMax = drainMsMax;
    const { child } = started;
    if (child.stdout === null || child.stderr === null)
      throw new Error("a load process needs its output piped");
    readLines<LoadEvent>(child.stdout, (event) => this.#hear(event));
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    child.stdin?.on("error", () => {}); // told by "exit"
    child.once("exit", () =>
      this.#fail(new Error(`the load process ended: ${this.#stderr.trim() || "it said nothing"}`)),
    );
  }

  /** answers so far, over all intervals */
  get messages(): number {
    return this.#messages;
  }
  /** clients that have their connection */
  get alive(): number {
    return this.#alive;
  }

  onProgress(listener: (messages: number, alive: number) => void): void {
    this.#onProgress = listener;
  }

  /** An interval begins. */
  async mark(): Promise<void> {
    await this.#ask("mark", "marked");
  }

  /** The interval since the last mark. Sending stops until everything is answered, then goes on. */
  async report(): Promise<LoadReport> {
    const event = await this.#ask("report", "report");
    if (event.type !== "report") throw new Error("unreachable");
    return event.report;
  }

  pauseReading(): void {
    this.#tell({ type: "pauseReading" });
  }

  resumeReading(): void {
    this.#tell({ type: "resumeReading" });
  }

  /** Closes every client in order and ends the process. */
  async stop(): Promise<void> {
    if (this.process.exited) return;
    const { child } = this.process;
    const ended = once(child, "exit");
    const killer = setTimeout(() => child.kill("SIGKILL"), this.#drainMsMax + reportSlackMs);
    this.#tell({ type: "stop" });
    await ended;
    clearTimeout(killer);
  }

  /** Resolves when every client is connected. */
  async ready(): Promise<void> {
    await this.#expect("ready");
  }

  /** Resolves when that many clients have their connection; rejects when the load ends first. */
  async untilAlive(count: number): Promise<void> {
    do await this.#expect("progress");
    while (this.#alive !== count);
  }

  #tell(command: LoadCommand): void {
    if (this.process.child.stdin === null) throw new Error("a load process needs its input piped");
    sendLine(this.process.child.stdin, command);
  }

  async #ask(type: LoadCommand["type"], answer: LoadEvent["type"]): Promise<LoadEvent> {
    const event = this.#expect(answer);
    this.#tell({ type } as LoadCommand);
    return event;
  }

  #expect(type: LoadEvent["type"]): Promise<LoadEvent> {
    if (this.process.exited)
      return Promise.reject(new Error(`the load process has ended: ${this.#stderr.trim()}`));
    return new Promise((resolve, reject) => this.#waiting.push({ type, resolve, reject }));
  }

  #hear(event: LoadEvent): void {
    if (event.type === "progress") {
      this.#messages = event.messages;
      this.#alive = event.alive;
      this.#onProgress?.(event.messages, event.alive);
    }
    if (event.type === "failed") {
      this.#fail(new Error(`load: ${event.reason}`));
    } else {
      const index = this.#waiting.findIndex(({ type }) => type === event.type);
      this.#waiting.splice(index, index < 0 ? 0 : 1)[0]?.resolve(event);
    }
  }

  #fail(error: Error): void {
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }
}

/**
 * Starts clients at `at` (default the client host); resolves when all are connected.
 * @param enter a command before theirs, as for the network of a pod that is there
 */
export async function startLoad(
  lab: Lab,
  kind: LoadKind,
  options: Partial<LoadOptions> & Pick<LoadOptions, "target">,
  at = "client",
  enter: readonly string[] = [],
): Promise<Load> {
  const started = lab.spawn(
    at,
    [...enter, nodeBinary, join(projectRoot, `test/load/${kind}-clients.ts`), JSON.stringify(options)],
    { name: `${kind}-clients`, cwd: projectRoot, stdio: ["pipe", "pipe", "pipe"], keep: false },
  );
  const load = new Load(started, options.drainMsMax ?? 5_000);
  await load.ready();
  return load;
}
