/**
 * A program nobody here wrote, as the workload of a laboratory, moved from node to node while it is in use.
 *
 * While it lives the test's own main thread is in the clients' network namespace: what a test connects, connects from
 * there. Files, the agents' sockets and the commands of the laboratory do not depend on that.
 */
import assert from "node:assert/strict";
import { closeSync, openSync, readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Client } from "undici";
import type { CheckReport, Finding } from "#control/api/finding.ts";
import type { SessionInfo } from "#proxy/contract/commands.ts";
import { CLONE_NEWNET, setns } from "#proxy/kernel/namespaces.ts";
import { createLab, type Lab, type LabAgent, type LabProcess } from "../lab/lab.ts";

export type Downstream = "takeover" | "forward";

export interface ProgramOptions {
  downstream: Downstream;
  /** the workload's part of the agents' configuration: container or bundle, ports, … */
  workload: Record<string, unknown>;
  /** what the configuration of a node says otherwise; null: it does not have the workload */
  elsewhere?: Record<string, Record<string, unknown> | null>;
  /** default a and b; the first one owns it */
  nodes?: string[];
  /** takeover: default 10.99.0.50/24 */
  vip?: string;
  /** HOLDFAST_FAULT of a node's agent */
  faults?: Record<string, string>;
  /** made in the laboratory before the agents start, as servers the program connects to */
  before?: (lab: Lab) => Promise<void>;
}

export interface Move {
  outcome: "moved" | "rolled-back";
  reason: string | null;
  sessions: number;
  holdMs: number;
  phasesMs: Record<string, number>;
  precopyBytes: number;
  imageBytes: number;
  trackedProcesses: number;
  check?: CheckReport;
  notKept: string[];
}

export const workloadName = "program";
const moveMsMax = 60_000;
/** all memory is compared, too, on a machine that has other work */
const deadlineMs = 25_000;
const waitMsMax = 20_000;
const logCharsMax = 4_000;

/** For node:test's `skip`: a sentence when this machine cannot run these tests, else false. */
export function lacking(...programs: string[]): string | false {
  if (process.getuid?.() !== 0) return "needs root: network namespaces, containers and CRIU";
  for (const program of programs) {
    const folders = (process.env.PATH ?? "").split(":");
    if (!folders.some((folder) => exists(join(folder, program)))) return `needs ${program}`;
  }
  return false;
}

/** Runs `use` with the program on the first node, then asserts that nothing of it is left on the machine. */
export async function withProgram(
  options: ProgramOptions,
  use: (program: MovedProgram) => Promise<void>,
): Promise<void> {
  const home = openSync("/proc/thread-self/ns/net", "r");
  const lab = await createLab({ nodes: options.nodes ?? ["a", "b"] });
  let failure: unknown = null;
  try {
    await options.before?.(lab);
    const program = await MovedProgram.start(lab, options);
    try {
      const clients = openSync(`/run/netns/${lab.client.netns}`, "r");
      setns(clients, CLONE_NEWNET);
      closeSync(clients);
      await use(program);
    } catch (error) {
      failure = error;
      process.stderr.write(program.story());
    }
    for (const node of program.nodes) assert.ok(!program.agent(node).exited, `agent ${node} has ended`);
  } finally {
    setns(home, CLONE_NEWNET);
    closeSync(home);
    await lab.close();
  }
  if (failure !== null) throw failure;
  assert.deepEqual(
    lab.leftovers(),
    { processes: [], namespaces: [], nftTables: [], mounts: [], cgroups: [], containers: [], folders: [] },
    "something was left behind",
  );
}

export class MovedProgram {
  readonly lab: Lab;
  readonly nodes: string[];
  /** where clients connect, whatever node the program is on */
  readonly address: string;
  /** the node the program is on */
  at: string;
  readonly #agents: Map<string, LabAgent>;
  readonly #workload: Record<string, unknown>;

  private constructor(
    lab: Lab,
    options: ProgramOptions,
    agents: Map<string, LabAgent>,
    workload: Record<string, unknown>,
  ) {
    this.lab = lab;
    this.#workload = workload;
    this.nodes = [...lab.nodes.keys()];
    this.at = this.nodes[0] ?? "a";
    const vip = options.vip ?? "10.99.0.50/24";
    this.address = options.downstream === "takeover" ? (vip.split("/")[0] ?? "") : lab.place(this.at).address;
    this.#agents = agents;
  }

  /** Part of {@link withProgram}. */
  static async start(lab: Lab, options: ProgramOptions): Promise<MovedProgram> {
    const vip =
      options.downstream === "takeover"
        ? { vip: { address: options.vip ?? "10.99.0.50/24", device: "eth0" } }
        : {};
    const limits = { verifyMemory: true, ...(options.workload.limits as object | undefined) };
    const workload = { name: workloadName, ...vip, ...options.workload, limits };
    const agents = new Map<string, LabAgent>();
    const nodes = [...lab.nodes.keys()];
    await lab.startAgents(nodes, async (node) => {
      const fault = options.faults?.[node];
      const env = fault === undefined ? {} : { HOLDFAST_FAULT: fault };
      agents.set(
        node,
        await lab.startAgent(
          node,
          {
            workloads:
              options.elsewhere?.[node] === null
                ? []
                : [{ ...workload, ...options.elsewhere?.[node], start: node === nodes[0] }],
          },
          { env },
        ),
      );
    });
    const program = new MovedProgram(lab, options, agents, workload);
    const { workloads } = await program.ask<{ workloads: { state: string }[] }>("GET", "/v1/status");
    assert.equal(workloads[0]?.state, "running", program.story());
    return program;
  }

  agent(node: string): LabAgent {
    const agent = this.#agents.get(node);
    assert.ok(agent, `no agent on ${node}`);
    return agent;
  }

  /** Waits until an agent has ended by its fault, and starts the next one. */
  async nextAgent(node: string): Promise<void> {
    await until(`agent ${node} ends`, () => this.agent(node).exited);
    const start = node === this.nodes[0];
    this.#agents.set(node, await this.lab.startAgent(node, { workloads: [{ ...this.#workload, start }] }));
  }

  /** One request to the admin interface of a node (default: where the program is). The last line of its answer. */
  async ask<T>(method: "GET" | "POST", path: string, body?: object, node = this.at): Promise<T> {
    const client = new Client("http://agent", {
      socketPath: this.agent(node).socketPath,
      headersTimeout: moveMsMax,
      bodyTimeout: moveMsMax,
    });
    try {
      const response = await client.request({
        method,
        path,
        body: body === undefined ? null : JSON.stringify(body),
      });
      const text = await response.body.text();
      return JSON.parse(text.trim().split("\n").at(-1) ?? "") as T;
    } finally {
      await client.close();
    }
  }

  /** Asks for a move and tells how it went. */
  async tryMove(to: string): Promise<Move | { error: { code: string; message: string } }> {
    const answer = await this.ask<{ move?: Move; error?: { code: string; message: string } }>(
      "POST",
      `/v1/workloads/${workloadName}/migrate`,
      { to, deadlineMs },
    );
    if (answer.move?.outcome === "moved") this.at = to;
    if (answer.move !== undefined) return answer.move;
    assert.ok(answer.error, JSON.stringify(answer));
    return { error: answer.error };
  }

  /** Moves it there, or fails the test. */
  async move(to: string): Promise<Move> {
    const move = await this.tryMove(to);
    if ("error" in move) throw new Error(`no move to ${to}: ${move.error.message}`);
    assert.equal(move.outcome, "moved", `no move to ${to}: ${move.reason}`);
    return move;
  }

  /** Why it cannot be moved, as `check` says it. */
  async findings(): Promise<Finding[]> {
    const { findings } = await this.ask<{ findings: Finding[] }>("GET", "/v1/check");
    return findings.filter((finding) => finding.workload !== null);
  }

  async sessions(node = this.at): Promise<SessionInfo[]> {
    const path = `/v1/workloads/${workloadName}/sessions`;
    return (await this.ask<{ sessions: SessionInfo[] }>("GET", path, undefined, node)).sessions;
  }

  /** What the program wrote to its standard output and error on a node. */
  log(node: string): string {
    const file = join(this.lab.stateDir(node), "workloads", workloadName, "app.log");
    return readFileSync(file, { encoding: "utf8", flag: "a+" });
  }

  /** Starts a command where the clients are. */
  spawn(argv: string[], options: Parameters<Lab["spawn"]>[2] = {}): LabProcess {
    return this.lab.spawn("client", argv, options);
  }

  async connect(port: number, address = this.address): Promise<Socket> {
    const socket = connect({ host: address, port, noDelay: true });
    await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
    return socket;
  }

  /** Everything the agents, proxies and the program said last, for a test that failed. */
  story(): string {
    const parts: string[] = [];
    for (const node of this.nodes) {
      parts.push(`--- agent ${node}\n${this.agent(node).stderr.slice(-logCharsMax)}`);
      const folder = join(this.lab.stateDir(node), "workloads", workloadName);
      for (const name of ["proxy.log", "app.log"]) {
        const file = join(folder, name);
        if (exists(file))
          parts.push(`--- ${name} ${node}\n${readFileSync(file, "utf8").slice(-logCharsMax)}`);
      }
    }
    return `${parts.join("\n")}\n`;
  }
}

/** Waits for something that is about to be true; looks every few milliseconds. */
export async function until(
  what: string,
  done: () => boolean | Promise<boolean>,
  msMax = waitMsMax,
): Promise<void> {
  const deadlineMs = performance.now() + msMax;
  while (!(await done())) {
    if (performance.now() > deadlineMs) throw new Error(`not within ${msMax} ms: ${what}`);
    await sleep(5);
  }
}

/** The end of a process, with what it said. */
export async function ended(
  started: LabProcess,
): Promise<{ status: number | null; stdout: string; stderr: string }> {
  if (!started.exited || started.child.stdout?.readableEnded === false)
    await new Promise((resolve) => started.child.once("close", resolve));
  return { status: started.child.exitCode, stdout: started.stdout, stderr: started.stderr };
}

function exists(path: string): boolean {
  try {
    closeSync(openSync(path, "r"));
    return true;
  } catch {
    return false;
  }
}
