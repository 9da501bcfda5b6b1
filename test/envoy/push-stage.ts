/**
 * What istiod's pushes do to long sessions, seen: the same pushes to a service without Holdfast, to one whose sidecar leads to Holdfast
 * by a `Sidecar` resource, and to clients of a Holdfast gateway that is in the mesh. Its links leave through its own sidecar, and come to the
 * application's node past that one's, which has to leave their port alone (control/kubernetes/README.md).
 *
 *   client ── Envoy ══mutual TLS══ Envoy ── application                "without"
 *   client ── Envoy ══mutual TLS══ Envoy ── Holdfast ── application    "pinned"
 *   client ── gateway ── Envoy ──────────── Holdfast ── application    "gateway"
 */
import { setTimeout as sleep } from "node:timers/promises";
import { until } from "../support/moved-program.ts";
import { connectFrom } from "./in-network.ts";
import { hostOf } from "./istio-objects.ts";
import { LongSession, type SessionKind, type SessionSeen } from "./long-sessions.ts";
import { createMesh, type Mesh } from "./mesh.ts";
import {
  HELD,
  PLAIN,
  type Push,
  type Resources,
  resourcesOf,
  SPARE,
  SUBJECTS,
  type Subject,
} from "./pushes.ts";
import { APPLICATION, allRun, LISTEN_FIRST, portOf, SERVED, severalWorkload } from "./several-workload.ts";

export const WAYS = ["without", "pinned", "gateway"] as const;
export type Way = (typeof WAYS)[number];
export const SESSION_KINDS: readonly SessionKind[] = ["tcp", "websocket", "grpc", "http"];

export const GATEWAY = { name: "g", address: "10.99.0.90" };
const SWITCH = "10.99.0.1";
const GATED = { name: "gated", upstreamFirst: 9_011, listenFirst: 15_920 };
const SERVED_NUMBERS = SERVED.map(({ number }) => number);
/** of a silent connection, as `render` has it of a policy's idleSeconds */
const IDLE = "86400s";
const ASK_MS = 100;
const STARTING_MS_MAX = 60_000;

/** By way and kind of session. */
export type PushSeen = Record<Way, Record<SessionKind, SessionSeen>>;

export class PushStage {
  readonly mesh: Mesh;

  private constructor(mesh: Mesh) {
    this.mesh = mesh;
  }

  static async open(): Promise<PushStage> {
    const resources = Object.values<Subject>(SUBJECTS).flatMap((subject) =>
      Object.entries(resourcesOf(subject)).map(([file, objects]) => [`${subject.app}-${file}`, objects]),
    );
    const mesh = await createMesh({
      nodes: [HELD.name, PLAIN.name, SPARE.name],
      gateways: [GATEWAY.name],
      sidecars: {
        client: { labels: { app: "client" }, account: "client", outboundBut: [SWITCH] },
        [PLAIN.name]: {
          labels: { app: SUBJECTS.without.app },
          inboundOnly: SERVED_NUMBERS,
          metadata: { IDLE_TIMEOUT: IDLE },
        },
        [HELD.name]: {
          labels: { app: SUBJECTS.pinned.app },
          inboundOnly: SERVED_NUMBERS,
          holdfastFrom: LISTEN_FIRST,
        },
        [GATEWAY.name]: { labels: { app: "gateway" }, account: "gateway", outboundBut: [SWITCH] },
      },
      resources: Object.fromEntries(resources),
      istiodEnv: { PILOT_ENABLE_PERSISTENT_SESSION_FILTER: "true" },
    });
    const stage = new PushStage(mesh);
    try {
      await stage.#startApplications();
      return stage;
    } catch (error) {
      await mesh.close();
      throw error;
    }
  }

  async #startApplications(): Promise<void> {
    const { lab } = this.mesh;
    const [HTTP, TCP, GRPC] = SERVED_NUMBERS.map(String) as [string, string, string];
    const env = { HOST: "0.0.0.0", HTTP, TCP, GRPC };
    const servers = [PLAIN, SPARE].map(({ name }) =>
      lab.spawn(name, APPLICATION.command, { cwd: APPLICATION.cwd, env }),
    );
    await Promise.all(servers.map((server) => server.waitFor(/echo: listening/, STARTING_MS_MAX)));
    const ports = SERVED.map(({ number }, index) => ({
      address: `${GATEWAY.address}:${number}`,
      workload: GATED.name,
      port: GATED.listenFirst + index,
    }));
    await lab.startGateway(GATEWAY.name, { listen: ports, admin: `${GATEWAY.address}:9400` });
    const chat = severalWorkload({ name: SUBJECTS.pinned.app, start: true, upstreamFirst: 9_001 });
    // twice, so that a Sidecar may lead to other ports of it
    const twice = (chat.ports as { listen: number; upstream: string }[]).flatMap((port) => [
      port,
      { ...port, listen: port.listen + SERVED.length },
    ]);
    const gated = severalWorkload({ ...GATED, start: true, workload: { downstream: "gateway" } });
    const workloads = [{ ...chat, ports: twice }, gated];
    await lab.startAgents([HELD.name], (node) =>
      lab.startAgent(node, { peers: {}, workloads }, { timeoutMs: STARTING_MS_MAX }),
    );
    await until("every workload runs", () => allRun(lab, HELD.name), STARTING_MS_MAX);
  }

  /** What a push does to sessions that are open, and ask all the while. The push is undone. */
  async see(push: Push): Promise<PushSeen> {
    const sessions = new Map<Way, LongSession[]>();
    let isApplied = false;
    try {
      for (const way of WAYS) sessions.set(way, await this.open(way));
      isApplied = true;
      await whileAsking([...sessions.values()].flat(), () => this.mesh.push(() => this.#apply(push)));
      return Object.fromEntries(
        [...sessions].map(([way, all]) => [
          way,
          Object.fromEntries(all.map((session) => [session.kind, session.seen])),
        ]),
      ) as PushSeen;
    } finally {
      for (const session of [...sessions.values()].flat()) session.close();
      if (isApplied && !push.restarts) await this.mesh.push(() => this.#undo(push));
    }
  }

  /** How often a link of the gateway has lost its connection so far. */
  async linksInterrupted(): Promise<number> {
    const url = `http://${GATEWAY.address}:9400/metrics`;
    const { stdout } = await this.mesh.lab.run("switch", ["curl", "-sS", "--fail", url]);
    return Number(/^holdfast_gateway_links_interrupted_total (\d+)$/m.exec(stdout)?.[1]);
  }

  /** A session of each kind. */
  async open(way: Way): Promise<LongSession[]> {
    const { lab } = this.mesh;
    const [from, address, app] =
      way === "gateway"
        ? [lab.switch, GATEWAY.address, "gateway"]
        : [lab.client, SUBJECTS[way].address, SUBJECTS[way].app];
    const dial = (kind: SessionKind) => connectFrom(from, { address, port: portOf(kind) });
    return Promise.all(SESSION_KINDS.map((kind) => LongSession.open(kind, dial, hostOf(app))));
  }

  async #apply({ change, meshConfig, restarts }: Push): Promise<void> {
    const { istiod } = this.mesh;
    if (restarts) {
      await istiod.kill();
      await istiod.begin();
    }
    if (meshConfig !== undefined) istiod.configure(meshConfig);
    if (change !== undefined)
      for (const subject of Object.values<Subject>(SUBJECTS)) this.#write(subject, change(subject));
  }

  #undo({ change, meshConfig }: Push): void {
    if (meshConfig !== undefined) this.mesh.istiod.configure({});
    if (change === undefined) return;
    for (const subject of Object.values<Subject>(SUBJECTS)) {
      const changed = Object.keys(change(subject));
      const own = Object.entries(resourcesOf(subject)).filter(([file]) => changed.includes(file));
      this.#write(subject, Object.fromEntries(own));
    }
  }

  #write({ app }: Subject, resources: Partial<Resources>): void {
    for (const [file, objects] of Object.entries(resources)) this.mesh.istiod.put(`${app}-${file}`, objects);
  }
}

/** Sessions ask while `work` goes on, and once more after it; who got no answer, or a wrong one, asks no more. */
async function whileAsking(sessions: LongSession[], work: () => Promise<unknown>): Promise<void> {
  let isOver = false;
  const working = work().finally(() => {
    isOver = true;
  });
  const asking = sessions.map(async (session) => {
    const isWell = (): boolean => session.ended === null && session.failed.length === 0;
    while (!isOver && isWell()) {
      await session.ask();
      await sleep(ASK_MS);
    }
    await working;
    if (isWell()) await session.ask();
  });
  await Promise.all([working, ...asking]);
}

/** A session that is not the one it was. */
export function isCut({ ended }: SessionSeen): boolean {
  return ended !== null;
}
