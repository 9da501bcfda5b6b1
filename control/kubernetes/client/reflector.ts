/**
 * What is in the API server of one kind, kept current: list, then watch from there, for ever. Level-triggered: who uses it is told
 * that an object is another now, not what happened in between.
 *
 * A watch may end without a sign, when a connection is dropped on the way (kubernetes-client/javascript #364, #596, #958, #1496):
 * the server sends a bookmark every minute, so that silence for longer ends a watch here. What a watch missed is in the next list.
 */
import { setTimeout as delay } from "node:timers/promises";
import { isCode, type KubernetesApi, type Query } from "./api.ts";
import type { KubernetesObject } from "./objects.ts";

/** the server's bookmarks come once a minute (apiserver, pkg/storage/cacher: defaultBookmarkFrequency) */
const SILENT_MS_MAX = 150_000;
/** the server ends a watch after so long, not all at once; the next begins where it ended */
const WATCH_S_MIN = 240;
const WATCH_S_SPREAD = 120;
const BACKOFF_MS = 200;
const BACKOFF_MS_MAX = 30_000;

/** @param object null: it has gone. Is not to throw. */
type OnChange<T> = (object: T | null, before: T | null) => void;

/** What is watched, for whom it is watched by another. */
export interface Watched<T> {
  /** by `NAMESPACE/NAME` */
  readonly objects: ReadonlyMap<string, T>;
  /** Resolves with the first list. Rejects when it is closed before. */
  readonly synced: Promise<void>;
  /** @param onChange is told of those that are there, at once, and of each change. @returns what ends it */
  follow(onChange: OnChange<T>): () => void;
}

export interface ReflectorOptions<T, Read = T> {
  api: KubernetesApi;
  path: string;
  /** e.g. `fieldSelector` */
  query?: Query;
  onChange?: OnChange<T>;
  /** All there are, after each list and each change. Is not to throw. */
  onAll?(objects: T[]): void;
  /** it goes on trying */
  onProblem?(error: unknown): void;
  /** What is kept of an object, where not all of it is: its metadata's name, namespace and resourceVersion at least. Is not to throw. */
  keep?(read: Read, before: T | null): T;
  silentMsMax?: number;
  backoffMs?: number;
}

export class Reflector<T extends KubernetesObject, Read extends KubernetesObject = T> implements Watched<T> {
  readonly #options: ReflectorOptions<T, Read>;
  readonly #followers = new Set<OnChange<T>>();
  readonly #objects = new Map<string, T>();
  readonly #end = new AbortController();
  readonly #synced = Promise.withResolvers<void>();
  readonly #done: Promise<void>;
  #resourceVersion: string | null = null;
  #heardMs = performance.now();
  #lists = 0;
  #isSynced = false;

  constructor(options: ReflectorOptions<T, Read>) {
    this.#options = options;
    if (options.onChange !== undefined) this.#followers.add(options.onChange);
    this.#synced.promise.catch(() => {}); // nobody may wait for it
    this.#done = this.#run();
  }

  get objects(): ReadonlyMap<string, T> {
    return this.#objects;
  }

  get synced(): Promise<void> {
    return this.#synced.promise;
  }

  /** whether everything was listed once */
  get isSynced(): boolean {
    return this.#isSynced;
  }

  /** how often everything was listed */
  get lists(): number {
    return this.#lists;
  }

  get(name: string, namespace = ""): T | null {
    return this.#objects.get(`${namespace}/${name}`) ?? null;
  }

  follow(onChange: OnChange<T>): () => void {
    for (const object of this.#objects.values()) onChange(object, null);
    this.#followers.add(onChange);
    return () => void this.#followers.delete(onChange);
  }

  /** since the server last said anything, be it that nothing has changed */
  secondsSinceLastEvent(): number {
    return (performance.now() - this.#heardMs) / 1_000;
  }

  async close(): Promise<void> {
    this.#end.abort();
    this.#synced.reject(new Error("closed"));
    await this.#done;
  }

  async #run(): Promise<void> {
    const { onProblem, backoffMs = BACKOFF_MS } = this.#options;
    const { signal } = this.#end;
    let failures = 0;
    while (!signal.aborted) {
      try {
        if (this.#resourceVersion === null) await this.#list();
        await this.#watch(() => {
          failures = 0;
        });
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        // what comes after this version is not known any more
        if (isCode(error, "KUBERNETES_EXPIRED")) this.#resourceVersion = null;
        failures += 1;
        if (failures > 1 || !isCode(error, "KUBERNETES_EXPIRED")) onProblem?.(error);
        const most = Math.min(BACKOFF_MS_MAX, backoffMs * 2 ** Math.min(failures, 16));
        await delay(most * (0.5 + Math.random() / 2), undefined, { signal }).catch(() => {});
      }
    }
  }

  async #list(): Promise<void> {
    const { api, path, query = {} } = this.#options;
    // of a page what is to be kept of it, before the next is read
    const kept = (read: KubernetesObject): KubernetesObject => this.#kept(read as Read);
    const { items, resourceVersion } = await api.list(path, query, this.#end.signal, kept);
    this.#heard();
    this.#lists += 1;
    const gone = new Set(this.#objects.keys());
    for (const item of items as T[]) {
      gone.delete(keyOf(item));
      this.#put(item);
    }
    this.#isSynced = true;
    for (const key of gone) this.#remove(key);
    this.#resourceVersion = resourceVersion;
    this.#synced.resolve();
    this.#options.onAll?.([...this.#objects.values()]);
  }

  /** @param heard the watch works */
  async #watch(heard: () => void): Promise<void> {
    const { api, path, query = {}, silentMsMax = SILENT_MS_MAX } = this.#options;
    const silence = new AbortController();
    const signal = AbortSignal.any([this.#end.signal, silence.signal]);
    const watchdog = setTimeout(
      () => silence.abort(new Error(`watch of ${path} was silent for ${silentMsMax} ms`)),
      silentMsMax,
    );
    try {
      const timeoutSeconds = WATCH_S_MIN + Math.floor(Math.random() * WATCH_S_SPREAD);
      const from = { resourceVersion: this.#resourceVersion ?? "", timeoutSeconds };
      for await (const { type, object } of api.watch<Read>(path, { ...query, ...from }, signal)) {
        watchdog.refresh();
        this.#heard();
        heard();
        if (type === "DELETED") this.#remove(keyOf(object));
        else if (type !== "BOOKMARK") this.#put(this.#kept(object));
        if (type !== "BOOKMARK") this.#options.onAll?.([...this.#objects.values()]);
        this.#resourceVersion = object.metadata.resourceVersion;
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  #heard(): void {
    this.#heardMs = performance.now();
  }

  #kept(read: Read): T {
    const { keep } = this.#options;
    return keep === undefined
      ? (read as KubernetesObject as T)
      : keep(read, this.#objects.get(keyOf(read)) ?? null);
  }

  #put(object: T): void {
    const key = keyOf(object);
    const before = this.#objects.get(key) ?? null;
    this.#objects.set(key, object);
    if (before?.metadata.resourceVersion !== object.metadata.resourceVersion) this.#tell(object, before);
  }

  #remove(key: string): void {
    const before = this.#objects.get(key);
    if (before === undefined) return;
    this.#objects.delete(key);
    this.#tell(null, before);
  }

  #tell(object: T | null, before: T | null): void {
    for (const onChange of this.#followers) onChange(object, before);
  }
}

function keyOf({ metadata }: KubernetesObject): string {
  return `${metadata.namespace ?? ""}/${metadata.name}`;
}
