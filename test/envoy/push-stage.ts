/**
 * What istiod's pushes do to long sessions, seen: the same pushes to a service without Holdfast, to one whose sidecar leads to Holdfast
 * by a `Sidecar` resource, and to clients of a Holdfast gateway that is in the mesh. Its links leave through its own sidecar, and come to the
 * application's node past that one's, which has to leave their port alone (control/kubernetes/README.md).
 *
 *   client ── Envoy ══mutual TLS══ Envoy ── application                "without"
 *   client ── Envoy ══mutual TLS══ Envoy ── Holdfast ── application    "pinned"
 *   client ── gateway ── Envoy ──────────── Holdfast ── application    "gateway"
 */
import {
  GATEWAY,
  linksInterrupted,
  openGatedSessions,
  openSessions,
  startGateway,
  startHeld,
  startPlain,
  whileAsking,
} from "./held.ts";
import type { LongSession, SessionKind, SessionSeen } from "./long-sessions.ts";
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
import { LISTEN_FIRST, SERVED } from "./several-workload.ts";

export const WAYS = ["without", "pinned", "gateway"] as const;
export type Way = (typeof WAYS)[number];
const SWITCH = "10.99.0.1";
const SERVED_NUMBERS = SERVED.map(({ number }) => number);
/** of a silent connection, as `render` has it of a policy's idleSeconds */
const IDLE = "86400s";

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
    await Promise.all([PLAIN, SPARE].map(({ name }) => startPlain(lab, name)));
    await startGateway(lab);
    // twice, so that a Sidecar may lead to other ports of it
    const also = SERVED.map((_, index) => LISTEN_FIRST + SERVED.length + index);
    await startHeld(lab, HELD.name, also);
  }

  /** What a push does to sessions that are open, and ask all the while. The push is undone. */
  async see(push: Push): Promise<PushSeen> {
    const sessions = new Map<Way, LongSession[]>();
    let isApplied = false;
    try {
      for (const way of WAYS) sessions.set(way, await this.open(way));
      isApplied = true;
      await whileAsking([...sessions.values()].flat(), () =>
        this.mesh.push(() => this.#apply(push), reachOf(push)),
      );
      return Object.fromEntries(
        [...sessions].map(([way, all]) => [
          way,
          Object.fromEntries(all.map((session) => [session.kind, session.seen])),
        ]),
      ) as PushSeen;
    } finally {
      for (const session of [...sessions.values()].flat()) session.close();
      if (isApplied && !push.restarts) await this.mesh.push(() => this.#undo(push), reachOf(push));
    }
  }

  /** How often a link of the gateway has lost its connection so far. */
  linksInterrupted(): Promise<number> {
    return linksInterrupted(this.mesh.lab);
  }

  /** A session of each kind. */
  open(way: Way): Promise<LongSession[]> {
    const { lab } = this.mesh;
    if (way === "gateway") return openGatedSessions(lab);
    const { app, address } = SUBJECTS[way];
    return openSessions(lab, app, address);
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

/** What all proxies follow changes each one's listeners: what was late of the push before is not taken for it. */
function reachOf({ meshConfig }: Push): "some" | "all listeners" {
  return meshConfig === undefined ? "some" : "all listeners";
}
