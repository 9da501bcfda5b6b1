/** What `status` says of a workload: looked at, changed by nothing. */
import type { Downstream } from "#proxy/contract/commands.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { listenBacklog } from "#proxy/kernel/diag.ts";
import type { Store } from "#proxy/store/store.ts";
import type { WorkloadConfig } from "../config/config.ts";
import { formatEndpoint } from "../config/endpoint.ts";
import { networkOf } from "../runtime/network-namespace.ts";
import { isSameProcess, type ProcessIdentity } from "../runtime/processes.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import type { Problem } from "./claim.ts";
import type { Journal } from "./journal.ts";
import type { Obstacle } from "./obstacle.ts";

export interface WorkloadStatus {
  name: string;
  role: Journal["role"];
  epoch: number;
  /** failed: its start came to nothing, here. down: this node has it, and it does not run */
  state:
    | "running"
    | "down"
    | "failed"
    | "elsewhere"
    | "moving"
    | "restarting"
    | "stopped"
    | "waiting"
    | "damaged";
  owner: string | null;
  downstream: Downstream;
  sessions: number;
  moving: { to: string; step: string } | null;
  container: string | null;
  /** what keeps it from being what the configuration says */
  problem: Problem | null;
}

/** Whose status it is. */
export interface StatusHost {
  readonly name: string;
  readonly config: WorkloadConfig;
  readonly downstream: Downstream;
  readonly logFile: string;
  readonly context: { readonly node: string; readonly store: Store };
  readonly journal: Readonly<Journal>;
  /** null: there is none on record */
  readonly sandbox: Sandbox | null;
  readonly keeper: {
    readonly client: object | null;
    readonly problem: Problem | null;
    countSessions(): Promise<number>;
  };
  readonly supervisor: { readonly isBusy: boolean; readonly problem: Problem | null };
  readonly isDamaged: boolean;
  /** it is known that it has a container or a proxy here */
  readonly runsHere: boolean;
  /** to be started here as soon as it is known that it may */
  readonly isWaiting: boolean;
  readonly isStarting: boolean;
  readonly obstacle: Obstacle;
  readonly harm: Harm | null;
}

export interface Harm {
  root: ProcessIdentity;
  what: string;
}

export async function statusOf(host: StatusHost): Promise<WorkloadStatus> {
  const { name, downstream, context, keeper, supervisor, sandbox } = host;
  const { role, epoch, container, application, moving, stopped } = host.journal;
  const ownership = await context.store.ownership(name).catch(() => null);
  const sessions = await keeper.countSessions().catch(() => 0);
  const alive =
    container !== null && application !== null
      ? await isSameProcess(application)
      : sandbox !== null && (await sandbox.applicationRoot().catch(() => null)) !== null;
  let state: WorkloadStatus["state"] = stopped ? "stopped" : "elsewhere";
  if (role === "owner") state = alive && keeper.client !== null ? "running" : "down";
  if (supervisor.isBusy) state = "restarting";
  const isOurs = ownership !== null && ownership.owner === context.node && ownership.state !== "stopped";
  if (!host.runsHere && !stopped) {
    if (isOurs) state = "down";
    if (host.isWaiting) state = "waiting";
    else if (host.obstacle.startFailed) state = "failed";
  }
  if (moving !== null) state = "moving";
  if (host.isDamaged) state = "damaged";
  return {
    name,
    role,
    epoch,
    state,
    owner: ownership === null || ownership.state === "stopped" ? null : ownership.owner,
    downstream,
    sessions,
    moving:
      moving === null
        ? null
        : { to: moving.side === "source" ? moving.peer : context.node, step: moving.step },
    container: container?.id ?? null,
    problem:
      (await harmProblem(host)) ??
      host.obstacle.problem ??
      keeper.problem ??
      supervisor.problem ??
      problemOf(host, state),
  };
}

function problemOf(host: StatusHost, state: WorkloadStatus["state"]): Problem | null {
  if (state === "down" && !host.runsHere && !host.isStarting) return downProblem(host);
  const { container } = host.journal;
  if (state !== "running" || container === null) return null;
  const deaf = host.config.ports.find(({ upstream }) => isDeaf(upstream, container.init.pid));
  if (deaf === undefined) return null;
  return {
    id: "application.not-listening",
    what: `nobody listens on ${formatEndpoint(deaf.upstream)}, where clients of port ${deaf.listen} are led to`,
    cure: `correct upstream:, or what the application listens on; the log: ${host.logFile}`,
  };
}

async function harmProblem({ name, harm }: StatusHost): Promise<Problem | null> {
  if (harm === null || !(await isSameProcess(harm.root))) return null;
  return {
    what: `a move that failed has harmed the application: ${harm.what}`,
    cure: `\`holdfast restart ${name}\``,
  };
}

export function downProblem({ name, logFile }: Pick<StatusHost, "name" | "logFile">): Problem {
  return {
    id: "start.down",
    what: "this node has it, and nothing of it runs here",
    cure: `\`holdfast start ${name}\`; the log: ${logFile}`,
  };
}

/** @param initPid of the container whose network it is in */
function isDeaf(upstream: Endpoint, initPid: number): boolean {
  try {
    return listenBacklog(upstream, networkOf([initPid])) === null;
  } catch {
    return false; // nobody can look
  }
}
