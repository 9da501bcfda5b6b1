/**
 * A stage for moves that go wrong: two real agents in a laboratory, an application under load, faults that happen at a
 * named step, and one list of what has to be true afterwards whatever happened (`assertWell`).
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { type AgentConfig, createLab, type Lab, type LabAgent, nodeBinary, projectRoot } from "../lab/lab.ts";
import { type Load, type LoadKind, startLoad } from "../load/load.ts";
import type { LoadOptions } from "../load/protocol.ts";

// named in an import, node:http costs 45 ms more of every start: its lazy exports are evaluated, fetch and HTTP/2 among them
const { request } = process.getBuiltinModule("node:http");

export type NodeName = "a" | "b";
export type Downstream = "takeover" | "forward" | "gateway";

export const WORKLOAD = "chat";
export const VIP = "10.99.0.50";
export const PORT = 8080;
const APP_PORT = 9000;
const SETTLE_MS_MAX = 30_000;
const POLL_MS = 20;

export interface StageOptions {
  downstream: Downstream;
  /** ws: the chat application; tcp: the counting echo; lives: HTTP and WebSocket, the lives; none: no load of ours */
  load?: LoadKind | "none";
  app?: "chat" | "echo" | "lives";
  /** over the laboratory's own; `limits`, `container`, `bundle` … of the workload */
  workload?: AgentConfig;
  /** one node's own part of it */
  workloadOf?: Partial<Record<NodeName, AgentConfig>>;
  loadOptions?: Partial<LoadOptions>;
  /** a node's own part of the agent's configuration, beside workloads */
  agentOf?: (node: NodeName, lab: Lab) => AgentConfig;
  /** what starts a node's agent, where it is not this version */
  programOf?: Partial<Record<NodeName, string>>;
  /** a third node, c, whose agent has the workload in its configuration and no part in it */
  withC?: boolean;
}

/** What `migrate` came to; `cut` when the agent asked died over it. */
export interface MoveEnd {
  end: "moved" | "rolled-back" | "refused" | "cut";
  reason: string;
  code: string;
  phases: string[];
}

interface WorkloadShown {
  role: "none" | "owner" | "anchor";
  state: string;
  epoch: number;
  /** what the node's proxy has, of clients and of other nodes' */
  sessions?: number | null;
  moving: unknown;
}

export class MoveStage implements AsyncDisposable {
  readonly lab: Lab;
  readonly options: StageOptions;
  readonly sessions: number;
  load: Load | null = null;
  #owner: NodeName = "a";
  /** clients that the test itself has ended */
  #spent = 0;

  private constructor(lab: Lab, options: StageOptions) {
    this.lab = lab;
    this.options = options;
    this.sessions = options.loadOptions?.sessions ?? 8;
  }

  static async open(options: StageOptions): Promise<MoveStage> {
    const nodes = options.withC === true ? ["a", "b", "c"] : ["a", "b"];
    const gateways = options.downstream === "gateway" ? ["g"] : [];
    const stage = new MoveStage(await createLab({ nodes, gateways }), options);
    try {
      if (options.downstream === "gateway") await stage.#startGateway();
      await stage.lab.startAgents(nodes, (node) => stage.startAgent(node as NodeName));
      const kind = options.load ?? "ws";
      if (kind !== "none")
        stage.load = await startLoad(stage.lab, kind, {
          target: stage.target,
          intervalMs: 20,
          ...options.loadOptions,
          sessions: stage.sessions,
        });
      return stage;
    } catch (error) {
      await stage.lab.close();
      throw error;
    }
  }

  get owner(): NodeName {
    return this.#owner;
  }
  get other(): NodeName {
    return this.#owner === "a" ? "b" : "a";
  }
  /** where clients connect; with forward always at node a */
  get target(): { address: string; port: number } {
    const place = { takeover: null, forward: "a", gateway: "g" }[this.options.downstream];
    return { address: place === null ? VIP : this.lab.place(place).address, port: PORT };
  }

  async #startGateway(): Promise<void> {
    const { address } = this.lab.place("g");
    await this.lab.startGateway("g", { listen: [{ address: `${address}:${PORT}`, workload: WORKLOAD }] });
  }

  agent(node: NodeName): LabAgent {
    const agent = this.lab.agents.get(node);
    assert.ok(agent !== undefined);
    return agent;
  }

  // ---- agents and faults

  async startAgent(node: NodeName, workload: AgentConfig = {}): Promise<void> {
    await this.lab.startAgent(
      node,
      {
        workloads: [{ ...this.#workload(node), ...workload }],
        ...this.options.agentOf?.(node, this.lab),
      },
      {
        env: { HOLDFAST_FAULT: `file:${this.#faultFile(node)}` },
        ...(this.options.programOf?.[node] === undefined ? {} : { program: this.options.programOf[node] }),
      },
    );
  }

  /** Waits until the agent has died of its fault, and starts the next one. */
  async restart(node: NodeName): Promise<void> {
    await this.died(node);
    await this.startAgent(node);
  }

  /** Another agent on the same state, with a workload configured otherwise. */
  async restartWith(node: NodeName, workload: AgentConfig): Promise<void> {
    await this.agent(node).stop();
    await this.startAgent(node, workload);
  }

  async died(node: NodeName): Promise<void> {
    const agent = this.agent(node);
    if (!agent.exited) await once(agent.child, "exit", { signal: AbortSignal.timeout(SETTLE_MS_MAX) });
    assert.equal(agent.child.signalCode, "SIGKILL", `agent ${node} ended: ${agent.stderr.slice(-1_000)}`);
  }

  /** Lets faults (`crash@source:commit`, see control/migration/faults.ts) happen once each; source and target say where. */
  fault(...faults: string[]): void {
    for (const [node, side] of [
      [this.owner, "source"],
      [this.other, "target"],
    ] as const) {
      const text = faults.filter((fault) => fault.includes(`@${side}:`)).join(";");
      writeFileSync(this.#faultFile(node), text);
    }
  }

  /**
   * A fault that stops the agent at `point` until the test has done its work there. `reached` resolves in between; then
   * call `go`.
   */
  gate(point: string): { fault: string; reached: Promise<void>; go(): void } {
    const dir = mkdtempSync(join(this.lab.dir, "gate-"));
    const here = join(dir, "here");
    const go = join(dir, "go");
    const reached = (async () => {
      while (!existsSync(here)) await sleep(2);
    })();
    return {
      fault: `exec@${point}=touch ${here}; while [ ! -e ${go} ]; do sleep 0.005; done`.replaceAll(";", "\n"),
      reached,
      go: () => writeFileSync(go, ""),
    };
  }

  // ---- moving

  /** Asks the owner's agent to move the workload to the other node. */
  migrate(body: { to?: string; deadlineMs?: number } = {}): Promise<MoveEnd> {
    const phases: string[] = [];
    const cut: MoveEnd = { end: "cut", reason: "", code: "", phases };
    return new Promise((resolve) => {
      const asked = request(
        {
          socketPath: this.agent(this.owner).socketPath,
          method: "POST",
          path: `/v1/workloads/${WORKLOAD}/migrate`,
        },
        (response) => {
          let last = cut;
          response.on("error", () => {}); // told by the lines that did not come
          const lines = createInterface({ input: response });
          lines.on("error", () => {});
          lines.on("line", (line) => {
            const event = JSON.parse(line);
            if (event.type === "phase" && event.state === "start") phases.push(event.phase);
            else if (event.type === "result")
              last = { end: event.move.outcome, reason: event.move.reason ?? "", code: "", phases };
            else if (event.error !== undefined)
              last = { end: "refused", reason: event.error.message, code: event.error.code, phases };
          });
          response.once("close", () => setImmediate(() => resolve(last)));
        },
      );
      asked.once("error", () => resolve(cut));
      asked.end(JSON.stringify({ to: this.other, ...body }));
    });
  }

  async cancel(): Promise<void> {
    await this.#api(this.owner, "POST", `/v1/workloads/${WORKLOAD}/cancel`);
  }

  // ---- what has to be true

  /** A client of the load was ended by the test itself. */
  spend(clients: number): void {
    this.#spent += clients;
  }

  /**
   * After whatever has happened: one owner, every session alive and exact, nothing left behind; and then once more after
   * an ordinary move. @param expected where the workload has to be, when that is certain
   */
  async assertWell(expected?: NodeName): Promise<void> {
    await this.assertStays(expected);
    const further = await this.migrate();
    assert.deepEqual({ end: further.end, reason: further.reason }, { end: "moved", reason: "" }, this.logs());
    this.#owner = this.other;
    await this.#assertSettled();
    await this.assertSessions();
  }

  /** The same without the further move, where one is not possible yet. */
  async assertStays(expected?: NodeName): Promise<void> {
    this.fault();
    await this.#assertSettled();
    if (expected !== undefined) assert.equal(this.owner, expected, "the wrong node owns the workload");
    await this.assertSessions();
  }

  /** Every client has had every answer, once. */
  async assertSessions(): Promise<void> {
    if (this.load === null) return;
    const report = await this.load.report();
    const { alive, lost, repeated, corrupt, resets } = report;
    assert.deepEqual(
      { alive, lost, repeated, corrupt, resets },
      { alive: this.sessions - this.#spent, lost: 0, repeated: 0, corrupt: 0, resets: 0 },
      `${report.problems.join("; ")}\n${this.logs()}`,
    );
    await this.load.mark();
  }

  async #assertSettled(): Promise<void> {
    const until = Date.now() + SETTLE_MS_MAX;
    for (;;) {
      const wrong = await this.#whatIsWrong();
      if (wrong.length === 0) return;
      if (Date.now() > until) assert.fail(`${wrong.join("\n")}\n${this.logs()}`);
      await sleep(POLL_MS);
    }
  }

  /** One line for each thing that is not as it has to be when nothing is under way. */
  async #whatIsWrong(): Promise<string[]> {
    const wrong: string[] = [];
    const shown = { a: await this.shown("a"), b: await this.shown("b") };
    const owners = (["a", "b"] as const).filter((node) => shown[node].role === "owner");
    if (owners.length !== 1) wrong.push(`owners by their agents: ${owners.join(" and ") || "none"}`);
    for (const node of ["a", "b"] as const)
      if (shown[node].moving !== null) wrong.push(`node ${node} is moving: ${JSON.stringify(shown[node])}`);
    const [owner] = owners;
    if (owner === undefined) return wrong;
    this.#owner = owner;
    if (shown[owner].state !== "running") wrong.push(`it is ${shown[owner].state} at ${owner}`);
    const record = this.record();
    if (record.owner !== owner || record.state !== "released" || record.mid !== "")
      wrong.push(`the store says ${JSON.stringify(record)}`);
    else if (Number(record.epoch) !== shown[owner].epoch)
      wrong.push(`epoch ${record.epoch} in the store, ${shown[owner].epoch} at ${owner}`);
    wrong.push(...this.#strays(owner));
    return wrong;
  }

  #strays(owner: NodeName): string[] {
    const wrong: string[] = [];
    for (const node of ["a", "b"] as const) {
      const runDir = join(this.lab.stateDir(node), "run");
      const containers = existsSync(runDir) ? readdirSync(runDir) : [];
      const expected = node === owner ? 1 : 0;
      if (containers.length !== expected)
        wrong.push(`containers at ${node}: ${containers.join(" ") || "none"}`);
      for (const id of containers)
        if (existsSync(join(runDir, id, "images"))) wrong.push(`memory images at ${node}`);
      if (this.options.downstream === "takeover" && this.#hasVip(node) !== (node === owner))
        wrong.push(`the address is ${node === owner ? "not " : ""}at ${node}`);
      const tables = this.#output("nsenter", [
        `--net=/run/netns/${this.lab.place(node).netns}`,
        "nft",
        "list",
        "tables",
      ]);
      if ((tables.trim() !== "") !== (node === owner && this.#isApart))
        wrong.push(`nft tables at ${node}: ${tables.trim() || "none"}`);
    }
    const { processes } = this.lab.leftovers();
    const count = (pattern: RegExp): number =>
      processes.filter(({ command }) => pattern.test(command)).length;
    if (count(/\bswrk\b/) > 0) wrong.push("a CRIU is still there");
    if (count(/^tar /) > 0) wrong.push("a tar is still there");
    const proxies = count(/proxy\/main\.ts/);
    // with forward a node that has once owned the workload goes on taking clients for it
    const proxiesMax = this.options.downstream === "forward" ? 2 : 1;
    if (proxies > proxiesMax) wrong.push(`${proxies} proxies`);
    if (count(/catatonit|\/init -P/) !== 1)
      wrong.push(`${count(/catatonit|\/init -P/)} containers by their init`);
    return wrong;
  }

  /** Waits for something that only looking can tell. */
  async until(what: () => Promise<boolean> | boolean): Promise<void> {
    const until = Date.now() + SETTLE_MS_MAX;
    while (!(await what())) {
      if (Date.now() > until) assert.fail(`it never came to be: ${what}\n${this.logs()}`);
      await sleep(POLL_MS);
    }
  }

  // ---- looking

  async shown(node: NodeName): Promise<WorkloadShown> {
    const { workloads } = (await this.status(node)) as { workloads: WorkloadShown[] };
    return workloads[0] as WorkloadShown;
  }

  /** `holdfast status --json` of a node. */
  status(node: NodeName): Promise<unknown> {
    return this.#api(node, "GET", "/v1/status");
  }

  /** The application's process, as the machine sees it. */
  appPid(): number {
    const apps = this.lab.leftovers().processes.filter(({ command }) => / server\.js$/.test(command));
    assert.equal(apps.length, 1, `applications: ${JSON.stringify(apps)}`);
    return apps[0]?.pid ?? -1;
  }

  /** A line of shell that sets RUN to the folder of the only container at a node, and INIT to the pid of its init. */
  enter(node: NodeName): string {
    const state = this.lab.stateDir(node);
    const pid = `runc --root ${state}/runtime state $(basename $RUN) | sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p'`;
    return `RUN=$(echo ${state}/run/*)\nINIT=$(${pid})`;
  }

  shell(script: string): void {
    this.#output("/bin/sh", ["-c", script]);
  }

  /** The ownership record, as it is in Redis. */
  record(): Record<string, string> {
    const lines = this.redisCli("HGETALL", `hf:{${WORKLOAD}}:owner`).split("\n");
    const record: Record<string, string> = {};
    for (let at = 0; at + 1 < lines.length; at += 2) record[lines[at] ?? ""] = lines[at + 1] ?? "";
    return record;
  }

  redisCli(...args: string[]): string {
    return this.#output("redis-cli", ["-s", this.lab.redis.socketPath, "--no-raw", ...args])
      .split("\n")
      .map((line) => /^\s*\d+\)\s*"(.*)"$/.exec(line)?.[1] ?? line)
      .join("\n");
  }

  /** Newest last, of both agents. */
  logs(): string {
    const lines = [...this.lab.agents].flatMap(([node, agent]) =>
      agent.stderr
        .trim()
        .split("\n")
        .slice(-12)
        .map((line) => `${node}: ${line}`),
    );
    return lines.join("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Ends everything and looks whether anything is left. */
  async close(): Promise<void> {
    this.lab.redis.resume();
    await this.load?.stop().catch(() => {});
    await this.lab.close();
    const left = Object.entries(this.lab.leftovers()).filter(([, list]) => list.length > 0);
    assert.deepEqual(left, [], "the laboratory left something behind");
  }

  // ---- inside

  #workload(node: NodeName): AgentConfig {
    const appOf = { ws: "chat", tcp: "echo", lives: "lives", none: "chat" };
    const app = this.options.app ?? appOf[this.options.load ?? "ws"];
    return {
      name: WORKLOAD,
      start: node === "a",
      ...(this.options.workload?.bundle === undefined
        ? {
            container: {
              command: [nodeBinary, "server.js"],
              cwd: `${projectRoot}/test/apps/${app}`,
              env: { PORT: String(APP_PORT) },
              rootfs: "host",
            },
          }
        : {}),
      ports: [{ listen: PORT, upstream: `127.0.0.1:${APP_PORT}` }],
      ...(this.options.downstream === "takeover" ? { vip: { address: `${VIP}/24`, device: "eth0" } } : {}),
      ...(this.options.downstream === "gateway" ? { downstream: "gateway" } : {}),
      ...this.options.workload,
      ...this.options.workloadOf?.[node],
    };
  }

  #faultFile(node: NodeName): string {
    return join(this.lab.dir, `${node}.fault`);
  }

  /** The container has a network of its own, with tables that go with it. */
  get #isApart(): boolean {
    const container = this.options.workload?.container as { network?: unknown } | undefined;
    return container?.network !== undefined;
  }

  #hasVip(node: NodeName): boolean {
    return this.#output("ip", [
      "-n",
      this.lab.place(node).netns,
      "-o",
      "address",
      "show",
      "dev",
      "eth0",
    ]).includes(` ${VIP}/`);
  }

  #output(program: string, args: string[]): string {
    const { stdout, status, stderr } = spawnSync(program, args, { encoding: "utf8", timeout: 5_000 });
    assert.equal(status, 0, `${program} ${args.join(" ")}: ${stderr}`);
    return stdout;
  }

  #api(node: NodeName, method: string, path: string): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const asked = request({ socketPath: this.agent(node).socketPath, method, path }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
        response.once("end", () => resolve(JSON.parse(text)));
        response.once("error", reject);
      });
      asked.once("error", reject);
      asked.end();
    });
  }
}
