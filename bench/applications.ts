/**
 * Contenders before each of the applications that the data path is measured with, one set a run: started when a piece first asks,
 * and the same for all its rounds.
 */

import { type Application, Contenders } from "./contenders.ts";
import type { BulkState } from "./load/bulk-application.ts";
import type { EchoState } from "./load/echo-application.ts";
import { Program } from "./load/program.ts";
import { peers } from "./peers/peers.ts";
import type { Run } from "./piece.ts";
import type { Stage } from "./stage.ts";

export type ApplicationKind = "http" | "tcp" | "websocket" | "bulk";

const started = new WeakMap<Stage, Map<ApplicationKind, Promise<Contenders>>>();

/** The contenders of this run that stand before it. Peers that are not there have been named when it resolves. */
export async function contendersBefore(
  kind: ApplicationKind,
  run: Pick<Run, "stage" | "peers" | "warmSeconds" | "contenders" | "introduce" | "say">,
): Promise<Contenders> {
  if (kind === "http") return run.contenders();
  const ofStage = started.get(run.stage) ?? new Map<ApplicationKind, Promise<Contenders>>();
  started.set(run.stage, ofStage);
  const known = ofStage.get(kind);
  if (known !== undefined) return known;
  run.say(`starting the contenders before ${kind}`);
  const starting = startContenders(kind, run);
  ofStage.set(kind, starting);
  const contenders = await starting;
  run.introduce(contenders);
  return contenders;
}

/** Tells what the contenders found wrong meanwhile, once. */
export function tellProblems(contenders: Contenders, { problem }: Pick<Run, "problem">): void {
  for (const { where, what } of contenders.problems.splice(0)) problem(where, what);
}

async function startContenders(
  kind: Exclude<ApplicationKind, "http">,
  { stage, peers: wanted, warmSeconds }: Pick<Run, "stage" | "peers" | "warmSeconds">,
): Promise<Contenders> {
  const application = await (kind === "bulk" ? startBulk(stage) : startEcho(stage, kind));
  return Contenders.start(
    stage,
    peers.filter(({ name }) => wanted.includes(name)),
    application,
    warmSeconds,
  );
}

/** Sends back bytes, or WebSocket messages. */
export async function startEcho(stage: Stage, kind: "tcp" | "websocket"): Promise<EchoApplication> {
  const program = await start<EchoState>(stage, "echo-application");
  return new EchoApplication(program, kind, (await program.ask("state"))[kind].port);
}

export class EchoApplication implements Application {
  readonly protocol: "tcp" | "websocket";
  readonly version = "of this checkout, on raw sockets";
  readonly port: number;
  readonly #program: Program<"state", EchoState>;

  constructor(program: Program<"state", EchoState>, protocol: "tcp" | "websocket", port: number) {
    this.#program = program;
    this.protocol = protocol;
    this.port = port;
  }

  async requestsSeen(): Promise<number> {
    return (await this.#program.ask("state"))[this.protocol].seen;
  }

  async sessions(): Promise<number> {
    return (await this.#program.ask("state"))[this.protocol].sessions;
  }

  end(): Promise<void> {
    return this.#program.kill();
  }
}

async function startBulk(stage: Stage): Promise<Application> {
  const program = await start<BulkState>(stage, "bulk-application");
  return {
    port: (await program.ask("state")).port,
    protocol: "http",
    version: "of this checkout, on raw sockets",
    requestsSeen: async () => (await program.ask("state")).seen,
  };
}

function start<State>(stage: Stage, name: string): Promise<Program<"state", State>> {
  return Program.start(stage, `${import.meta.dirname}/load/${name}.ts`, { cpu: stage.cpus.load });
}
