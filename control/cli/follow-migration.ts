/**
 * Migrations on their way to their end, as the API server tells of them. Whoever waits for one is told what keeps it from hearing, and
 * does not wait for what never comes: an API server that refuses to say, or no controller.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { isFinal, type Migration, migration as migrationSchema } from "../api/resources.ts";
import { isCode, type KubernetesApi } from "../kubernetes/client/api.ts";
import type { KubernetesObject } from "../kubernetes/client/objects.ts";
import { pathOf } from "../kubernetes/client/paths.ts";
import { Reflector } from "../kubernetes/client/reflector.ts";
import { type PhaseRenderer, plain, type Terminal } from "./terminal.ts";

/** How long nothing may be heard. */
export interface Patience {
  /** of a controller that is asked for something */
  controllerMs: number;
  /** of an API server that fails, when the Migration is under way */
  serverMs: number;
  /** of one that refuses, or of a plug-in that has no credentials, when the Migration was seen before */
  refusedMs: number;
}

const PATIENCE: Patience = { controllerMs: 30_000, serverMs: 600_000, refusedMs: 60_000 };

/** Of one command, which may follow many at once: they have the same controller, and what is wrong is told once. */
export class MigrationFollower {
  readonly #api: KubernetesApi;
  readonly #terminal: Terminal;
  readonly #patience: Patience;
  /** problems */
  readonly #told = new Set<string>();
  /** a word about any of them: with many the controller comes to the last late */
  #controllerMs = Number.NEGATIVE_INFINITY;

  constructor(api: KubernetesApi, terminal: Terminal, patience: Patience = PATIENCE) {
    this.#api = api;
    this.#terminal = terminal;
    this.#patience = patience;
  }

  /**
   * Its end.
   * @throws HoldfastError `KUBERNETES_NOT_FOUND`: it was deleted before; `KUBERNETES_BUSY`: no controller takes it up;
   * `KUBERNETES_PROTOCOL`: it is of another version; of the client: what
   * cannot get better by waiting (`KUBERNETES_FORBIDDEN` of what was never seen), or has not
   */
  async follow(namespace: string, name: string, phases: PhaseRenderer | null = null): Promise<Migration> {
    const { controllerMs, serverMs, refusedMs } = this.#patience;
    const ended = Promise.withResolvers<Migration>();
    let shown: string | null = null;
    let told = "";
    /** since when the controller has been asked for something; null: it has answered */
    let askedMs: number | null = performance.now();
    let problem: unknown = null;
    let isSeen = false;
    /** since when nothing was heard but refusals; a watch may be silent for a minute before the first */
    let refusedSinceMs = Number.NEGATIVE_INFINITY;
    const see = (object: KubernetesObject | null): void => {
      problem = null;
      isSeen = true;
      const parsed = object === null ? null : migrationSchema.safeParse(object);
      if (!parsed?.success) {
        const [code, what] =
          parsed === null
            ? (["KUBERNETES_NOT_FOUND", "not there any more"] as const)
            : (["KUBERNETES_PROTOCOL", `of another version: ${parsed.error.message}`] as const);
        ended.reject(fail(code, `Migration ${namespace}/${name} is ${what}`));
        return;
      }
      const { phase = "Pending", message = "" } = parsed.data.status;
      if (phase !== shown) {
        if (shown !== null) phases?.show({ type: "phase", phase: shown.toLowerCase(), state: "done" });
        if (!isFinal(phase)) phases?.show({ type: "phase", phase: phase.toLowerCase(), state: "start" });
        shown = phase;
      } else if (message !== told && phases !== null) phases.note(`  ${plain(message)}`);
      told = message;
      if (isUnanswered(parsed.data)) askedMs ??= performance.now();
      else {
        askedMs = null;
        this.#controllerMs = performance.now();
      }
      if (isFinal(phase)) ended.resolve(parsed.data);
    };
    const reflector = new Reflector<KubernetesObject>({
      api: this.#api,
      path: pathOf("migrations", { namespace }),
      query: { fieldSelector: `metadata.name=${name}` },
      onChange: see,
      onAll: (objects) => {
        if (objects.length === 0) see(null);
      },
      onProblem: (error) => {
        problem = error;
        const nowMs = performance.now();
        const silentMs = reflector.secondsSinceLastEvent() * 1_000;
        const isRefused = isSeen && isCode(error, "KUBERNETES_FORBIDDEN", "KUBERNETES_CONFIG");
        if (isRefused && refusedSinceMs < nowMs - silentMs) refusedSinceMs = nowMs;
        const isPassing = isRefused
          ? nowMs - refusedSinceMs <= refusedMs
          : error instanceof HoldfastError && error.retryable;
        if (silentMs > serverMs || !isPassing) ended.reject(error);
        else this.#tell(`${messageOf(error)}; trying again`, phases);
      },
    });
    let timer: NodeJS.Timeout | undefined;
    const lookAfterController = (): void => {
      const nowMs = performance.now();
      const leftMs =
        askedMs === null ? controllerMs : Math.max(askedMs, this.#controllerMs) + controllerMs - nowMs;
      if (leftMs <= 0) ended.reject(problem ?? noController(namespace, name, controllerMs));
      else timer = setTimeout(lookAfterController, leftMs);
    };
    lookAfterController();
    try {
      return await ended.promise;
    } catch (error) {
      if (!(error instanceof HoldfastError && error.code === "KUBERNETES_NOT_FOUND"))
        this.#tell(
          `not waited for any longer: Migration ${name} stays (kubectl get migration ${name} -n ${namespace})`,
          phases,
        );
      throw error;
    } finally {
      clearTimeout(timer);
      await reflector.close();
    }
  }

  #tell(line: string, phases: PhaseRenderer | null): void {
    if (this.#told.has(line)) return;
    this.#told.add(line);
    phases?.clear();
    this.#terminal.err.write(`${plain(line)}\n`);
  }
}

/** A controller that runs writes a phase when it first sees a Migration, and goes on at once when it is to give up what has not moved. */
function isUnanswered({ spec, status: { phase, cancel, origin } }: Migration): boolean {
  if (phase === undefined) return true;
  if (isFinal(phase) || phase === "Adopting" || cancel !== undefined || origin !== undefined) return false;
  return spec.abort === true;
}

function noController(namespace: string, name: string, ms: number): Error {
  return fail(
    "KUBERNETES_BUSY",
    `nothing has been done about Migration ${namespace}/${name} for ${ms / 1_000} s: does the controller run? ` +
      "See holdfast check --cluster, or kubectl get pods -A -l app.kubernetes.io/component=controller",
  );
}
