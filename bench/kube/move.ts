/**
 * One application that moves by a Migration in the cluster and, side by side, by agents of a laboratory, where a runtime of our own has it:
 * the same program, clients and mode (forward), there and back in turn. And in the cluster alone the same with its clients at a gateway and its
 * proxy in its pod, as a user has it who says nothing.
 */
import type { MoveResult, Phase } from "#control/api/migration.ts";
import { curve } from "../cutover/cutover-figures.ts";
import { CutoverLab, type SeenByClients, underLoad } from "../cutover/cutover-lab.ts";
import type { BenchPiece, Run } from "../piece.ts";
import { KUBE } from "../report/kube-goals.ts";
import type { Figure } from "../results.ts";
import {
  type Application,
  CHAT,
  GATED,
  type KubeLab,
  type Node,
  OPEN_SECONDS,
  type SharedLab,
} from "./laboratory.ts";

const SESSIONS = 50;
const WARM_SESSIONS = 5;
const WAYS: readonly { way: string; from: Node; to: Node }[] = [
  { way: "there", from: "a", to: "b" },
  { way: "back", from: "b", to: "a" },
];
/** what clients wait for */
const PAUSE: readonly Phase[] = ["hold", "capture", "dump", "transfer", "restore", "commit", "release"];

export function movePiece(shared: SharedLab): BenchPiece {
  let own: Promise<CutoverLab> | null = null;
  const openOwn = async (run: Run): Promise<CutoverLab> => {
    run.say("a laboratory with the same application in our own runtime");
    const lab = await CutoverLab.open(0);
    run.stage.onClose(() => lab.close());
    for (const _ of WAYS) await lab.sample("forward", WARM_SESSIONS);
    return lab;
  };
  let isWarm = false;
  return {
    name: `${KUBE}move`,
    title: `A Migration of an application with ${SESSIONS} clients: in forward mode, beside the same in our own runtime, and in gateway mode`,
    estimateSeconds: () => OPEN_SECONDS + 90,
    async measure(run) {
      const cluster = await shared.open(run);
      own ??= openOwn(run);
      const lab = await own;
      // the first move of each agent runs cold code
      if (!isWarm) for (const { from, to } of WAYS) await inPods(cluster, CHAT, WARM_SESSIONS, from, to);
      isWarm = true;
      const figures: Figure[] = [];
      for (const { way, from, to } of WAYS) {
        const pods = await inPods(cluster, CHAT, SESSIONS, from, to);
        const ours = await lab.sample("forward", SESSIONS);
        const { move } = ours;
        if (move === null) throw new Error("unreachable");
        run.say(
          `${way}: held after ${pods.createdToHoldMs.toFixed(0)} ms, for ${pods.holdMs.toFixed(0)} ms; in our own runtime for ${move.holdMs.toFixed(0)} ms`,
        );
        figures.push(
          ...figuresOf("pods", way, pods.seen, pods),
          ...figuresOf("own", way, ours, move),
          ...startOf(CHAT, way, pods),
        );
        for (const [where, seen] of [
          ["pods", pods.seen],
          ["our own runtime", ours],
        ] as const)
          sayLost(run, `move ${way} in ${where}`, seen);
      }
      await cluster.having(GATED, async () => {
        for (const { way, from, to } of WAYS) {
          const pods = await inPods(cluster, GATED, SESSIONS, from, to);
          const { createdToHoldMs, holdMs, seen } = pods;
          run.say(
            `${way}, behind a gateway: held after ${createdToHoldMs.toFixed(0)} ms, for ${holdMs.toFixed(0)} ms`,
          );
          figures.push(...figuresOf("pods, gateway", way, seen, pods), ...startOf(GATED, way, pods));
          sayLost(run, `move ${way} behind a gateway`, seen);
        }
      });
      return figures;
    },
  };
}

interface InPods extends Pick<MoveResult, "holdMs" | "phasesMs"> {
  createdToHoldMs: number;
  /** from its creation until the Migration is in each of its phases */
  reachedMs: Record<string, number>;
  seen: SeenByClients;
}

async function inPods(
  lab: KubeLab,
  application: Application,
  sessions: number,
  from: Node,
  to: Node,
): Promise<InPods> {
  const before = await lab.phases(from);
  const { result, seen } = await underLoad(
    (size) => lab.clientsOf(application, size),
    sessions,
    () => lab.migrate(application, from, to),
  );
  const phasesMs = Object.fromEntries(
    [...(await lab.phases(from))].map(([phase, ms]) => [phase, ms - (before.get(phase) ?? 0)]),
  );
  const { phaseTransitionTimestamps = [] } = result.migration.status;
  return {
    createdToHoldMs: seen.waitingSinceMs - result.createdMs,
    reachedMs: Object.fromEntries(
      phaseTransitionTimestamps.map(({ phase, timestamp }) => [
        phase,
        Date.parse(timestamp) - result.createdMs,
      ]),
    ),
    holdMs: result.holdMs,
    phasesMs,
    seen,
  };
}

function sayLost(run: Run, move: string, { lost, repeated, resets, problems }: SeenByClients): void {
  if (lost + repeated + resets > 0) run.problem(move, `clients lost something: ${problems.join("; ")}`);
}

function startOf({ mode }: Application, way: string, { createdToHoldMs, reachedMs }: InPods): Figure[] {
  return [
    figure("createdToHoldMs", createdToHoldMs, { runtime: "pods", mode, way }),
    ...Object.entries(reachedMs).map(([reached, ms]) => figure("reachedMs", ms, { mode, way, reached })),
  ];
}

function figuresOf(
  runtime: string,
  way: string,
  { blackoutMs }: SeenByClients,
  { holdMs, phasesMs }: Pick<MoveResult, "holdMs" | "phasesMs">,
): Figure[] {
  const common = { runtime, way };
  return [
    figure("holdMs", holdMs, common),
    { ...figure("blackoutMs", blackoutMs.p50, common), percentiles: [curve(blackoutMs)] },
    ...PAUSE.flatMap((phase) => {
      const ms = phasesMs[phase];
      return ms === undefined ? [] : [figure("phaseMs", ms, { ...common, phase })];
    }),
  ];
}

function figure(metric: string, value: number, parameters: Figure["parameters"]): Figure {
  return { peer: "holdfast", parameters: { sessions: SESSIONS, ...parameters }, metric, rounds: [value] };
}
