/**
 * Answers Evictions of EvictionRequests (`requests.ts`) as their responder, where the cluster serves them. Level-triggered: an Eviction that
 * asks us is looked at when it, or a Migration of its pod, has changed, and every few seconds.
 */
import { setTimeout as delay } from "node:timers/promises";
import { isCode, type KubernetesApi } from "../client/api.ts";
import { pathOf } from "../client/paths.ts";
import type { Reflector } from "../client/reflector.ts";
import type { Watches } from "../client/watches.ts";
import { RESPONDER } from "../inject/names.ts";
import { ask, carryOut } from "./ask.ts";
import { askedOf, type Eviction, sayOf } from "./requests.ts";

const API = "/apis/lifecycle.k8s.io/v1alpha1";
const LOOK_AGAIN_MS = 5_000;
/** a cluster that does not serve it may after an upgrade */
const SERVED_MS = 60_000;

export interface RequestWatchOptions {
  api: KubernetesApi;
  /** that of Evictions is closed with it, and this before */
  watches: Watches;
  /** Migrations that it asked for are to be looked at */
  onEviction(namespace: string, name: string): void;
  onDone(eviction: { namespace: string; name: string; pod: string; message: string }): void;
  onProblem(what: string, error: unknown): void;
}

export class RequestWatch {
  readonly #options: RequestWatchOptions;
  readonly #end = new AbortController();
  readonly #done: Promise<void>;
  /** by NAMESPACE/NAME of those that ask us: when to look at it, by Date.now() */
  readonly #due = new Map<string, number>();
  #evictions: Reflector<Eviction> | null = null;
  #timer: NodeJS.Timeout | undefined;
  #round: Promise<void> | null = null;
  #isAgain = false;

  constructor(options: RequestWatchOptions) {
    this.#options = options;
    this.#done = this.#run();
  }

  /** Soon: a Migration of that pod has changed. */
  look(namespace: string, pod: string): void {
    for (const key of this.#due.keys()) {
      const { metadata, spec } = this.#evictions?.objects.get(key) ?? {};
      if (metadata?.namespace === namespace && spec?.target.pod?.name === pod) this.#due.set(key, 0);
    }
    if (this.#due.size > 0) this.#start();
  }

  async close(): Promise<void> {
    this.#end.abort();
    clearInterval(this.#timer);
    await Promise.all([this.#done, this.#round]);
  }

  async #run(): Promise<void> {
    const { watches, onProblem } = this.#options;
    const { signal } = this.#end;
    let isTold = false;
    while (!(await this.#isServed())) {
      if (!isTold)
        onProblem("EvictionRequests are not answered", new Error(`the cluster does not serve ${API}`));
      isTold = true;
      await delay(SERVED_MS, undefined, { signal }).catch(() => {});
      if (signal.aborted) return;
    }
    if (signal.aborted) return;
    this.#evictions = watches.open<Eviction>("evictions", {
      path: pathOf("evictions"),
      query: { labelSelector: RESPONDER },
      onChange: (now, before) => this.#changed((now ?? before) as Eviction, now === null),
    });
    this.#timer = setInterval(() => this.#start(), LOOK_AGAIN_MS);
  }

  async #isServed(): Promise<boolean> {
    const { api, onProblem } = this.#options;
    try {
      return (await api.find<object>(API)) !== null;
    } catch (error) {
      onProblem("it is not known whether the cluster serves EvictionRequests", error);
      return false;
    }
  }

  #changed(eviction: Eviction, isGone: boolean): void {
    const { namespace = "", name } = eviction.metadata;
    const key = `${namespace}/${name}`;
    if (isGone || askedOf(eviction) === null) this.#due.delete(key);
    else this.#due.set(key, 0);
    this.#options.onEviction(namespace, name);
    this.#start();
  }

  #start(): void {
    if (this.#end.signal.aborted) return;
    this.#isAgain = true;
    this.#round ??= this.#rounds().finally(() => {
      this.#round = null;
    });
  }

  async #rounds(): Promise<void> {
    while (this.#isAgain && !this.#end.signal.aborted) {
      this.#isAgain = false;
      for (const [key, dueMs] of [...this.#due]) {
        if (Date.now() < dueMs || this.#end.signal.aborted) continue;
        this.#due.set(key, Date.now() + LOOK_AGAIN_MS);
        const eviction = this.#evictions?.objects.get(key);
        if (eviction === undefined) continue;
        await this.#answer(eviction).catch((error: unknown) =>
          this.#options.onProblem(`Eviction ${key} is answered later`, error),
        );
      }
    }
  }

  async #answer(eviction: Eviction): Promise<void> {
    const { api, onDone } = this.#options;
    const asked = askedOf(eviction);
    if (asked === null) return;
    const { pod, sinceMs, status } = asked;
    const { namespace = "default", name } = eviction.metadata;
    const nowMs = Date.now();
    const request = { eviction: name, sinceMs };
    const { evicted, decision } = await ask(api, { namespace, ...pod, request }, nowMs);
    const said = sayOf(decision, status, nowMs);
    if (!decision.isAllowed && evicted !== null && (said.isHeartbeat || decision.migration !== null))
      await carryOut(api, evicted, decision);
    if (said.status === null) return;
    try {
      const path = pathOf("evictions", { namespace, name, subresource: "status" });
      await api.patch(path, { status: said.status }, "strategic");
    } catch (error) {
      if (isCode(error, "KUBERNETES_NOT_FOUND")) return; // it has gone
      throw error;
    }
    if (said.isHeartbeat) return;
    onDone({ namespace, name, pod: pod.name, message: said.status.responders[0]?.message ?? "" });
  }
}
