/**
 * The controller's loop: looks at a Migration when it, or a pod that has to do with it, has changed, or when its plan asks for it;
 * each at its own pace, one look at a time. What is watched only says when to look: a plan is made of what is read then.
 */

import { messageOf } from "#proxy/contract/errors.ts";
import {
  isFinal,
  MIGRATION_LABEL,
  type Migration,
  type MigrationPhase,
  migration as migrationSchema,
  SERVING,
} from "../../api/resources.ts";
import { aborted } from "../client/aborted.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import { report } from "../client/events.ts";
import { isTrue, type KubernetesObject, type Pod } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import { Watches } from "../client/watches.ts";
import { RequestWatch, type RequestWatchOptions } from "../eviction/request-watch.ts";
import { causeOf } from "../triggers/caused.ts";
import { NodeWatch } from "../triggers/node-watch.ts";
import { act, type Done } from "./act.ts";
import { eventsOf } from "./events.ts";
import { type Known, look } from "./look.ts";
import type { ControllerMetrics } from "./metrics.ts";
import type { Action } from "./next.ts";
import { isStandby } from "./standby-pod.ts";

/** what is made, and the reason that a Migration has when the cluster does not take it */
const REFUSED: { [Kind in Action["do"]]?: string } = {
  "create-guard": "GuardRefused",
  "create-standby": "StandbyRefused",
};
const BACKOFF_MS = 250;
const BACKOFF_MS_MAX = 30_000;
/** of a standby whose Migration is not there: its create may have been in flight */
const STRAY_MS = 30_000;
/** turns in a row: a plan that never comes to rest is a bug of ours */
const TURNS_MAX = 50;
/** actions of one turn: a standby takes six */
const STEPS_MAX = 10;
const MESSAGE_MAX = 2_000;
/** looks at a time, of all Migrations: each is a dozen calls */
const PARALLEL = 8;

export interface ReconcilerOptions {
  api: KubernetesApi;
  metrics: ControllerMetrics;
  onProblem(what: string, error: unknown): void;
  onAction(migration: Migration, action: { do: string }): void;
  onTriggered(made: { namespace: string; name: string; trigger: string }): void;
  /** absent: EvictionRequests are not answered */
  requests?: Pick<RequestWatchOptions, "onDone"> | null;
}

/** when to look again; null: when something changes; or at once, with what is known */
type Next = number | null | "gone" | { known: Known | null };

interface Item {
  namespace: string;
  name: string;
  isRunning: boolean;
  /** something has changed since the look that is under way began */
  isAgain: boolean;
  failures: number;
  /** as far as it is known: it has not begun, and is looked at while no other is that has not */
  isPending: boolean;
  timer: NodeJS.Timeout | undefined;
}

/** Works until the signal is aborted; resolves when nothing is under way any more. */
export async function reconcile(options: ReconcilerOptions, signal: AbortSignal): Promise<void> {
  const { api, metrics, onProblem } = options;
  const queue = new Queue(options, signal);
  const watches = new Watches({ api, silent: metrics.silent, onProblem });
  const migrations = watches.open<KubernetesObject>("migrations", {
    path: pathOf("migrations"),
    onChange: (now, before) => {
      const { namespace = "", name } = ((now ?? before) as KubernetesObject).metadata;
      if (now === null || !isAtRest(now)) queue.look(namespace, name);
      if (now !== null && hasEnded(now)) nodes.look(); // there may be room for the next one
      requests?.look(namespace, podOf((now ?? before) as KubernetesObject));
    },
  });
  // whole, and without waiting behind the changes of all others
  const pods = watches.open<Pod>("pods of Migrations", {
    path: pathOf("pods"),
    query: { labelSelector: MIGRATION_LABEL },
    onChange: (now, before) => {
      for (const pod of [now, before]) {
        const uid = pod?.metadata.labels?.[MIGRATION_LABEL];
        const found = [...migrations.objects.values()].find(({ metadata }) => metadata.uid === uid);
        if (found !== undefined) queue.look(found.metadata.namespace ?? "", found.metadata.name);
      }
    },
  });
  const nodes = new NodeWatch({
    api,
    watches,
    migrations,
    onMade: options.onTriggered,
    onNode: (node) => {
      for (const object of migrations.objects.values())
        if (isOpenOn(object, node.metadata.name))
          queue.look(object.metadata.namespace ?? "", object.metadata.name);
    },
    onProblem,
  });
  const requests =
    options.requests == null
      ? null
      : new RequestWatch({
          api,
          watches,
          ...options.requests,
          onEviction: (namespace, eviction) => {
            for (const object of migrations.objects.values())
              if (isAskedBy(object, namespace, eviction)) queue.look(namespace, object.metadata.name);
          },
          onProblem,
        });
  metrics.migrations = () => migrations.objects.values();
  const sweep = setInterval(() => {
    sweepStrays(api, pods.objects.values()).catch((error: unknown) => onProblem("strays stay", error));
  }, STRAY_MS);
  await aborted(signal);
  clearInterval(sweep);
  metrics.migrations = () => [];
  await Promise.all([requests?.close(), nodes.close(), watches.close(), queue.close()]);
}

/** Nothing is going to happen to it. Most are so when a controller starts. */
function isAtRest(object: KubernetesObject): boolean {
  const parsed = migrationSchema.safeParse(object);
  if (!parsed.success) return true; // of a later version
  const { metadata, spec, status } = parsed.data;
  return (
    isFinal(status.phase) &&
    metadata.finalizers.length === 0 &&
    metadata.deletionTimestamp === undefined &&
    spec.ttlSecondsAfterFinished === undefined
  );
}

function hasEnded(object: KubernetesObject): boolean {
  const { phase } = (object as { status?: { phase?: MigrationPhase } }).status ?? {};
  return isFinal(phase);
}

/** It has to do with the node, and is not over. */
function isOpenOn(object: KubernetesObject, node: string): boolean {
  const read = migrationSchema.safeParse(object);
  if (!read.success || isFinal(read.data.status.phase)) return false;
  const { source, target } = read.data.status;
  return [source?.node, target?.node, causeOf(read.data)?.node].includes(node);
}

/** An EvictionRequest is why it is there, and it is not over. */
function isAskedBy(object: KubernetesObject, namespace: string, eviction: string): boolean {
  const read = migrationSchema.safeParse(object);
  if (!read.success || read.data.metadata.namespace !== namespace) return false;
  const cause = causeOf(read.data);
  return cause?.kind === "request" && cause.trigger === eviction && !isFinal(read.data.status.phase);
}

/** That a Migration is about. */
function podOf(object: KubernetesObject): string {
  return (object as { spec?: { pod?: string } }).spec?.pod ?? "";
}

/** Standbys that a late call made after their Migration was deleted. */
export async function sweepStrays(
  api: Pick<KubernetesApi, "list" | "delete">,
  pods: Iterable<Pod>,
  nowMs = Date.now(),
): Promise<void> {
  const old = [...pods].filter(
    (pod) =>
      isStandby(pod) &&
      !isTrue(pod, SERVING) &&
      pod.metadata.deletionTimestamp === undefined &&
      nowMs - Date.parse(pod.metadata.creationTimestamp) > STRAY_MS,
  );
  for (const { metadata } of old) {
    const { namespace = "", name, uid, resourceVersion, labels } = metadata;
    const { items } = await api.list(pathOf("migrations", { namespace }));
    if (items.some((one) => one.metadata.uid === labels?.[MIGRATION_LABEL])) continue;
    await api
      .delete(pathOf("pods", { namespace, name }), { preconditions: { uid, resourceVersion } })
      .catch((error: unknown) => {
        if (!isCode(error, "KUBERNETES_CONFLICT")) throw error;
      });
  }
}

class Queue {
  readonly #options: ReconcilerOptions;
  readonly #signal: AbortSignal;
  readonly #items = new Map<string, Item>();
  readonly #waiting: Item[] = [];
  readonly #running = new Set<Promise<void>>();
  /** the look at one that has not begun which is under way: two at a time would not see that the other begins */
  #beginning: Promise<unknown> = Promise.resolve();

  constructor(options: ReconcilerOptions, signal: AbortSignal) {
    this.#options = options;
    this.#signal = signal;
  }

  /** Soon: something about it has changed. */
  look(namespace: string, name: string): void {
    if (this.#signal.aborted) return;
    const key = `${namespace}/${name}`;
    const item = this.#items.get(key) ?? {
      namespace,
      name,
      isRunning: false,
      isAgain: false,
      failures: 0,
      isPending: true,
      timer: undefined,
    };
    this.#items.set(key, item);
    clearTimeout(item.timer);
    if (item.isRunning) item.isAgain = true;
    else if (!this.#waiting.includes(item)) {
      this.#waiting.push(item);
      this.#next();
    }
  }

  async close(): Promise<void> {
    for (const { timer } of this.#items.values()) clearTimeout(timer);
    this.#waiting.length = 0;
    await Promise.all(this.#running);
  }

  #next(): void {
    while (this.#running.size < PARALLEL && !this.#signal.aborted) {
      const item = this.#waiting.shift();
      if (item === undefined) return;
      item.isRunning = true;
      const running: Promise<void> = this.#run(item).finally(() => {
        item.isRunning = false;
        this.#running.delete(running);
        if (item.isAgain) {
          item.isAgain = false;
          this.look(item.namespace, item.name);
        }
        this.#next();
      });
      this.#running.add(running);
    }
  }

  /** Until there is nothing to do for now. Never throws. */
  async #run(item: Item): Promise<void> {
    const { metrics, onProblem } = this.#options;
    try {
      const wakeMs = await this.#work(item);
      item.failures = 0;
      if (wakeMs === "gone") this.#items.delete(`${item.namespace}/${item.name}`);
      else if (wakeMs !== null) this.#later(item, wakeMs - Date.now());
    } catch (error) {
      metrics.failed();
      item.failures += 1;
      onProblem(`Migration ${item.namespace}/${item.name} is tried again`, error);
      const most = Math.min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** Math.min(item.failures, 16));
      this.#later(item, most * (0.5 + Math.random() / 2));
    }
  }

  #later(item: Item, ms: number): void {
    if (this.#signal.aborted) return;
    clearTimeout(item.timer);
    // a delay that setTimeout does not know is none
    const delayMs = Math.min(Math.max(1, ms), 2 ** 31 - 1);
    item.timer = setTimeout(() => this.look(item.namespace, item.name), delayMs);
  }

  /** What the cluster does not take (a quota, Pod Security) is no secret of this process. */
  async #act(migration: Migration, action: Action): Promise<Done | null> {
    const { api } = this.#options;
    try {
      return await act(api, migration, action);
    } catch (error) {
      const isRefused = isCode(error, "KUBERNETES_FORBIDDEN", "KUBERNETES_INVALID");
      const message = messageOf(error).slice(0, MESSAGE_MAX);
      const reason = REFUSED[action.do];
      if (reason !== undefined && isRefused && message !== migration.status.message)
        await act(api, migration, { do: "status", status: { ...migration.status, reason, message } });
      throw error;
    }
  }

  async #work(item: Item): Promise<number | null | "gone"> {
    for (let turns = 0; turns < TURNS_MAX && !this.#signal.aborted; turns += 1) {
      const steps = (): Promise<Next> => this.#steps(item);
      const next: Next = item.isPending ? await this.#inTurn(steps) : await steps();
      if (next === null || typeof next !== "object") return next;
    }
    return Date.now() + BACKOFF_MS_MAX;
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#beginning.then(work);
    this.#beginning = turn.catch(() => {});
    return turn;
  }

  /** As long as one knows what the one before has read: who else begins is known only while nobody else has a turn. */
  async #steps(item: Item): Promise<Next> {
    let next: Next = await this.#step(item, null);
    for (let steps = 1; steps < STEPS_MAX && !this.#signal.aborted; steps += 1) {
      if (next === null || typeof next !== "object" || next.known === null) break;
      next = await this.#step(item, next.known);
    }
    return next;
  }

  /** One action at most. */
  async #step(item: Item, before: Known | null): Promise<Next> {
    const { api, metrics, onProblem, onAction } = this.#options;
    const carryOut = (migration: Migration, action: Action): Promise<Done | null> =>
      this.#act(migration, action);
    const looked = await look(api, item, Date.now, carryOut, before);
    if (looked === null) return "gone";
    const { migration, action, isDone, wakeMs, nowMs, known } = looked;
    const again = { known };
    item.isPending = (migration.status.phase ?? "Pending") === "Pending";
    if (action === null) return wakeMs;
    if (!isDone) return again;
    onAction(migration, action);
    if (action.do !== "status") return again;
    metrics.changed(migration, action.status, nowMs);
    await report(api, eventsOf(migration, action.status, nowMs), (error) =>
      onProblem("an Event is not written", error),
    );
    // it only said why it waits
    return wakeMs ?? again;
  }
}
