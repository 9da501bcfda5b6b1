/**
 * What an agent does of the Migrations of its cluster (`control/api/resources.ts` says who writes what):
 *
 *   its pods      condition holdfast.dev/serving: True where the workload is owned and runs
 *   as an anchor  (forward) serves, too, for as long as the controller waits for its clients, and counts them
 *   as a source   moves the workload when the phase is Moving, after "Running" was written at the version that was read; says
 *                 what came of it until it is written
 *
 * Decided from facts, not from memory: an agent that starts in the middle of a move settles it by its journal first, and then says
 * who has the workload.
 */
import type { Logger } from "pino";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Store } from "#proxy/store/store.ts";
import { areToPass } from "../api/finding.ts";
import type { MoveResult } from "../api/migration.ts";
import {
  type Migration,
  type MoveStatus,
  migration as migrationSchema,
  migrationsIn,
  SERVING,
} from "../api/resources.ts";
import { isCode, type KubernetesApi } from "../kubernetes/client/api.ts";
import { conditionOf, isActive, type KubernetesObject, type Pod } from "../kubernetes/client/objects.ts";
import { pathOf } from "../kubernetes/client/paths.ts";
import type { MigrateRequest } from "../workload/moves.ts";

/** of a Workload, what is needed here */
export interface MovableWorkload {
  readonly name: string;
  readonly journal: { readonly role: string };
  readonly runsHere: boolean;
  /** null: it is neither moved nor restarted */
  readonly busyWith: string | null;
  readonly keeper: { countSessions(): Promise<number> };
  readonly moves: { migrate(request: MigrateRequest): Promise<MoveResult> };
  cancel(): boolean;
}

export interface MigrationsOptions {
  node: string;
  api: Pick<KubernetesApi, "find" | "patch">;
  store: Pick<Store, "ownership">;
  log: Logger;
  /** of the pod with this uid, on this node; null: it has none, or not yet */
  workloadOf(podUid: string): MovableWorkload | null;
  /** its journal is not settled yet */
  isRecovering(workload: MovableWorkload): boolean;
  /** for tests; default {@link LOOK_MS} */
  lookMs?: number;
}

/** workloads change without an event of the API server */
const LOOK_MS = 250;
const AGAIN_MS = 500;
/** `status.reason` while the controller waits for clients of a source (`controller/plan.ts`) */
const CLIENTS_OF_SOURCE = "ClientsOfSource";
const MESSAGE_MAX = 2_000;

interface Running {
  workload: MovableWorkload;
  isCancelled: boolean;
}

export class Migrations {
  readonly #options: MigrationsOptions;
  readonly #running = new Map<string, Running>();
  readonly #looking = new Set<string>();
  #migrations: Migration[] = [];
  #pods: Pod[] = [];
  readonly #timer: NodeJS.Timeout;
  #isClosed = false;

  constructor(options: MigrationsOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.#look(), options.lookMs ?? LOOK_MS).unref();
  }

  /** @param pods all of this node */
  seePods(pods: Pod[]): void {
    this.#pods = pods;
    this.#look();
  }

  /** @param objects all of the cluster */
  seeMigrations(objects: KubernetesObject[]): void {
    // most have ended long ago, or are of other nodes
    this.#migrations = migrationsIn(objects.filter((object) => concerns(object, this.#options.node)));
    this.#look();
  }

  /** A move under way goes on; the next agent says what came of it. */
  close(): void {
    this.#isClosed = true;
    clearInterval(this.#timer);
  }

  #look(): void {
    if (this.#isClosed) return;
    for (const pod of this.#pods)
      if (isActive(pod)) this.#alone(`pod ${pod.metadata.uid}`, () => this.#serve(pod));
    for (const migration of this.#migrations)
      this.#alone(`migration ${migration.metadata.uid}`, () => this.#move(migration));
  }

  #alone(key: string, work: () => Promise<void>): void {
    if (this.#looking.has(key)) return;
    this.#looking.add(key);
    work()
      .catch((error: unknown) => {
        // what was seen is not what is there: the watch tells soon
        if (!isCode(error, "KUBERNETES_CONFLICT", "KUBERNETES_NOT_FOUND"))
          this.#options.log.warn({ about: key, reason: messageOf(error) }, "is tried again");
      })
      .finally(() => this.#looking.delete(key));
  }

  // ---- the condition of pods ----

  async #serve(seen: Pod): Promise<void> {
    const { api, workloadOf, isRecovering } = this.#options;
    const { uid, namespace, name } = seen.metadata;
    const workload = workloadOf(uid);
    if (workload === null || isRecovering(workload)) return;
    const { role } = workload.journal;
    const serves = (role === "owner" && workload.runsHere) || (role === "anchor" && this.#isWaitedFor(uid));
    const status = serves ? "True" : "False";
    if (conditionOf(seen, SERVING)?.status === status) return;
    const path = pathOf("pods", { namespace: namespace ?? "default", name });
    const written = await api.patch<Pod>(
      `${path}/status`,
      {
        // not to another pod of this name
        metadata: { uid },
        status: {
          conditions: [
            {
              type: SERVING,
              status,
              reason: status === "True" ? "Serving" : "NotOwner",
              lastTransitionTime: new Date().toISOString(),
            },
          ],
        },
      },
      "strategic",
    );
    this.#pods = this.#pods.map((pod) => (pod.metadata.uid === uid ? written : pod));
  }

  /** New clients may come to it as before: its proxy leads them on. */
  #isWaitedFor(podUid: string): boolean {
    return this.#migrations.some(
      ({ status: { phase, reason, source } }) =>
        source?.podUid === podUid && (phase === "Moving" || reason === CLIENTS_OF_SOURCE),
    );
  }

  // ---- moves ----

  async #move(migration: Migration): Promise<void> {
    const { workloadOf, isRecovering, log } = this.#options;
    const { metadata, status } = migration;
    const { attempt = 0, source, target, move, phase, cancel } = status;
    if (phase === "Adopting") return this.#countClients(migration);
    const running = this.#running.get(metadata.uid);
    if (running !== undefined) {
      if (cancel === undefined || running.isCancelled) return;
      running.isCancelled = running.workload.cancel();
      log.info({ migration: metadata.name, cancel }, "the move is asked to give up");
      return;
    }
    const known = move?.attempt === attempt ? move : undefined;
    if (phase !== "Moving" || known?.state === "Moved" || known?.state === "Failed") return;
    const workload = workloadOf(source?.podUid ?? "");
    const to = target?.node;
    if (workload === null || to === undefined || isRecovering(workload) || workload.busyWith !== null) return;
    if (known?.state === "Running" || workload.journal.role !== "owner") {
      const came = await this.#whatCame(workload, to);
      if (came !== null) await this.#tell(migration, { attempt, ...came });
      return;
    }
    if (cancel !== undefined) return;
    await this.#write(migration, { attempt, state: "Running" });
    log.info({ migration: metadata.name, workload: workload.name, to, attempt }, "moves for a Migration");
    this.#running.set(metadata.uid, { workload, isCancelled: false });
    void this.#carryOut(migration, workload, to, attempt).finally(() => this.#running.delete(metadata.uid));
  }

  async #countClients(migration: Migration): Promise<void> {
    const { move, source, reason } = migration.status;
    const workload = this.#options.workloadOf(source?.podUid ?? "");
    if (reason !== CLIENTS_OF_SOURCE || move === undefined || workload === null) return;
    const anchored = await workload.keeper.countSessions();
    if (anchored !== (move.anchored ?? move.sessions)) await this.#write(migration, { ...move, anchored });
  }

  /** Of a move that an earlier agent began. null: it is not known */
  async #whatCame(workload: MovableWorkload, to: string): Promise<Omit<MoveStatus, "attempt"> | null> {
    if (workload.journal.role === "owner")
      return {
        state: "Failed",
        reason: "AgentRestarted",
        message: "the agent was started again in the middle of the move, which was taken back",
        retryable: true,
      };
    const found = await this.#options.store.ownership(workload.name);
    if (found?.owner === to) return { state: "Moved" };
    return {
      state: "Failed",
      reason: "NotOwner",
      message: `${workload.name} is on node ${found?.owner ?? "none"}, and not on ${this.#options.node}`,
      retryable: false,
    };
  }

  async #carryOut(
    migration: Migration,
    workload: MovableWorkload,
    to: string,
    attempt: number,
  ): Promise<void> {
    let came: Omit<MoveStatus, "attempt">;
    try {
      came = statusOf(await workload.moves.migrate({ to, report: () => {} }));
    } catch (error) {
      came = failure(error);
    }
    this.#options.log.info({ migration: migration.metadata.name, ...came }, "the move has ended");
    await this.#tell(migration, { attempt, ...came });
  }

  /** Until it is written, or of no interest any more. */
  async #tell({ metadata }: Migration, move: MoveStatus): Promise<void> {
    const { api, log } = this.#options;
    const { namespace, name, uid } = metadata;
    while (!this.#isClosed) {
      try {
        const found = await api.find<object>(pathOf("migrations", { namespace, name }));
        const now = found === null ? null : migrationSchema.parse(found);
        if (now === null || now.metadata.uid !== uid || now.status.attempt !== move.attempt) return;
        await this.#write(now, move);
        return;
      } catch (error) {
        if (!isCode(error, "KUBERNETES_CONFLICT")) {
          log.warn({ migration: name, reason: messageOf(error) }, "the outcome of a move is not written yet");
          await new Promise((resolve) => setTimeout(resolve, AGAIN_MS).unref());
        }
      }
    }
  }

  /** @throws HoldfastError `KUBERNETES_CONFLICT`: the Migration has changed since it was read */
  async #write({ metadata }: Migration, move: MoveStatus): Promise<void> {
    const { namespace, name, resourceVersion } = metadata;
    await this.#options.api.patch(pathOf("migrations", { namespace, name, subresource: "status" }), {
      metadata: { resourceVersion },
      status: { move },
    });
  }
}

function concerns(object: KubernetesObject, node: string): boolean {
  const { phase, source } =
    (object as { status?: { phase?: string; source?: { node?: string } } }).status ?? {};
  return (phase === "Moving" || phase === "Adopting") && source?.node === node;
}

function statusOf(result: MoveResult): Omit<MoveStatus, "attempt"> {
  const { outcome, reason, sessions, holdMs, precopyBytes, imageBytes, downstream, check } = result;
  if (outcome === "moved")
    return {
      state: "Moved",
      downstream,
      sessions,
      pauseMs: holdMs,
      bytes: precopyBytes + imageBytes,
    };
  const blocking = (check?.findings ?? []).filter(({ severity }) => severity === "error");
  const isToPass = areToPass(blocking);
  const lines = blocking.map(({ node, what, cure }) => `node ${node}: ${what}: ${cure}`);
  return {
    state: "Failed",
    reason: blocking.length === 0 ? "RolledBack" : isToPass ? "NotYet" : "NotMovable",
    message: (lines.join("; ") || reason || "it was rolled back").slice(0, MESSAGE_MAX),
    retryable: isToPass,
  };
}

function failure(error: unknown): Omit<MoveStatus, "attempt"> {
  const isOurs = error instanceof HoldfastError;
  return {
    state: "Failed",
    reason: isOurs ? camel(error.code) : "Internal",
    message: messageOf(error).slice(0, MESSAGE_MAX),
    retryable: isOurs && error.retryable,
  };
}

/** STORE_UNREACHABLE → StoreUnreachable, as reasons of conditions are written */
function camel(code: string): string {
  return code.toLowerCase().replace(/(?:^|_)([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}
