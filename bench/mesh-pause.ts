/**
 * The pause of a move behind a mesh's Envoys beside that of the same workload without them: WebSocket clients come through their own
 * Envoy, mutual TLS and the server's, or straight to Holdfast. Moves of both ways are measured in turn, there; the way back is not.
 */
import { createMesh, type Mesh, type MeshOptions } from "#test/envoy/mesh.ts";
import { allRun, LISTEN_FIRST, PORTS, severalWorkload } from "#test/envoy/several-workload.ts";
import { startLoad } from "#test/load/load.ts";
import { until } from "#test/support/moved-program.ts";
import { type LoadSize, type SeenByClients, underLoad } from "./cutover/cutover-lab.ts";
import { median } from "./figures.ts";
import type { BenchPiece, Run } from "./piece.ts";
import type { Figure } from "./results.ts";

const SERVICE = { address: "10.96.0.10", port: PORTS.http.number };
const NODE = { address: "10.99.0.2", port: LISTEN_FIRST };
const SWITCH = "10.99.0.1";
const WORKLOAD = "chat";
const SESSIONS = 100;
const WARM_SESSIONS = 10;
const MOVES = 5;
const MOVES_QUICK = 2;
const START_MS_MAX = 60_000;
const OPEN_SECONDS = 8;
const MOVE_SECONDS = 6;

/** Peer → where its clients come. */
const WAYS = { holdfast: NODE, "holdfast-mesh": SERVICE } as const;
type Way = keyof typeof WAYS;

const SIDECARS: MeshOptions["sidecars"] = {
  client: {
    account: "client",
    outboundBut: [SWITCH, NODE.address],
    routes: {
      outbound: [
        { port: SERVICE.port, protocol: "http", to: { address: NODE.address, port: PORTS.http.number } },
      ],
    },
  },
  a: {
    inboundOnly: [PORTS.http.number],
    holdfastFrom: LISTEN_FIRST,
    routes: {
      inbound: [
        { port: PORTS.http.number, protocol: "http", to: { address: "127.0.0.1", port: LISTEN_FIRST } },
      ],
    },
  },
};

export const meshPausePiece: BenchPiece = {
  name: "mesh-pause",
  title: `Pause of a move with ${SESSIONS} sessions, behind two Envoys with mutual TLS and without them`,
  estimateSeconds: ({ quick }) => OPEN_SECONDS + 2 * MOVE_SECONDS * (movesOf(quick) + 1),
  async measure(run): Promise<Figure[]> {
    const mesh = await createMesh({ nodes: ["a", "b"], sidecars: SIDECARS });
    run.stage.onClose(() => mesh.close());
    try {
      return await measure(run, mesh);
    } finally {
      await mesh.close();
    }
  },
};

async function measure(run: Run, { lab }: Mesh): Promise<Figure[]> {
  const workload = (node: string) =>
    severalWorkload({ name: WORKLOAD, start: node === "a", upstreamFirst: 9_001 });
  await lab.startAgents(["a", "b"], (node) => lab.startAgent(node, { workloads: [workload(node)] }));
  await until("the workload runs", () => allRun(lab, "a"), START_MS_MAX);

  const move = async (from: string, to: string): Promise<void> => {
    const { status, stderr } = await lab.cli(from, ["migrate", WORKLOAD, "--to", to]);
    if (status !== 0) throw new Error(`${WORKLOAD} did not move to ${to}: ${stderr}`);
  };
  const sample = async (way: Way, sessions: number): Promise<SeenByClients> => {
    const start = (size: LoadSize) => startLoad(lab, "ws", { target: WAYS[way], ...size });
    const { seen } = await underLoad(start, sessions, () => move("a", "b"));
    await move("b", "a");
    return seen;
  };
  const ways = Object.keys(WAYS) as Way[];
  for (const way of ways) await sample(way, WARM_SESSIONS);

  const pausesMs: Record<Way, number[]> = { holdfast: [], "holdfast-mesh": [] };
  for (let turn = 0; turn < movesOf(run.quick); turn++) {
    for (const way of turn % 2 === 0 ? ways : ways.toReversed()) {
      const { blackoutMs, lost, repeated, resets, problems } = await sample(way, SESSIONS);
      pausesMs[way].push(blackoutMs.p50);
      run.say(`${way}: blackout p50 ${blackoutMs.p50.toFixed(0)} ms`);
      if (lost + repeated + resets > 0)
        run.problem(
          `mesh-pause, ${way}`,
          `${lost} lost, ${repeated} repeated, ${resets} reset: ${problems.join("; ")}`,
        );
    }
  }
  return ways.map((peer) => ({
    peer,
    parameters: { sessions: SESSIONS },
    metric: "blackoutMs",
    rounds: [median(pausesMs[peer])],
  }));
}

function movesOf(quick: boolean): number {
  return quick ? MOVES_QUICK : MOVES;
}
