/**
 * A copy of some objects of the API server, kept current: one list, then a watch from its version on
 * (kubernetes.io/docs/reference/using-api/api-concepts, "Efficient detection of changes").
 *
 *   the watch ends           it is taken up again from the last version seen
 *   410, an ERROR event      that version is too old: everything is listed again
 *   nothing for a while      a watch can go silent and stay so. The server sends a bookmark every minute: without one, all is listed again
 *   no answer, refused       tried again, with a growing delay; the copy stays as it was
 */
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

/** of a watch: the server ends it, so that watches spread over its replicas */
const WATCH_SECONDS_MIN = 240;
const WATCH_SECONDS_SPREAD = 120;
const SILENT_MS_MAX = 130_000;
const RETRY_MS_MIN = 200;
const RETRY_MS_MAX = 30_000;

const metadata = z.looseObject({ uid: z.string(), resourceVersion: z.string() });
const objectSchema = z.looseObject({ metadata });
const listSchema = z.looseObject({
  metadata: z.looseObject({ resourceVersion: z.string() }),
  items: z.array(objectSchema),
});
const eventSchema = z.discriminatedUnion("type", [
  z.looseObject({ type: z.enum(["ADDED", "MODIFIED", "DELETED"]), object: objectSchema }),
  z.looseObject({
    type: z.literal("BOOKMARK"),
    object: z.looseObject({ metadata: z.looseObject({ resourceVersion: z.string() }) }),
  }),
  z.looseObject({
    type: z.literal("ERROR"),
    object: z.looseObject({ code: z.number().optional(), message: z.string().optional() }),
  }),
]);

/** An object of the API, with whatever its kind has. */
export type ApiObject = z.infer<typeof objectSchema>;

/** What it reads by: `ClusterApi`. */
export interface Readable {
  get(path: string, signal: AbortSignal): Promise<unknown>;
  watch(path: string, signal: AbortSignal): AsyncIterable<unknown>;
}

export interface ReflectorOptions {
  api: Readable;
  /** of a list of objects, as `/api/v1/pods?fieldSelector=…` */
  path: string;
  /** All there are, after the first list and after each change. */
  onChange(objects: readonly ApiObject[]): void;
  /** It goes on by itself. */
  onProblem(error: unknown): void;
  /** for tests; default {@link SILENT_MS_MAX} */
  silentMsMax?: number;
  /** for tests; default {@link RETRY_MS_MIN} */
  retryMsMin?: number;
}

export class Reflector {
  readonly #options: ReflectorOptions;
  readonly #closing = new AbortController();
  readonly #objects = new Map<string, ApiObject>();
  /** null: everything is to be listed */
  #version: string | null = null;
  #heardMs = performance.now();
  #tries = 0;

  constructor(options: ReflectorOptions) {
    this.#options = options;
  }

  /** Since the server was last heard; it should be about a minute at most. */
  get silentMs(): number {
    return performance.now() - this.#heardMs;
  }

  start(): void {
    void this.#run();
  }

  close(): void {
    this.#closing.abort();
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        this.#version ??= await this.#list();
        await this.#watch(this.#version);
      } catch (error) {
        if (signal.aborted) return;
        const code = error instanceof HoldfastError ? error.code : "";
        // where the server was not reached, or refused, nothing is lost: the watch is taken up from the same version
        if (!/^KUBERNETES_(UNREACHABLE|REFUSED)$/.test(code)) this.#version = null;
        // too old a version is no problem: that is how one learns of it
        if (code !== "KUBERNETES_EXPIRED") this.#options.onProblem(error);
      }
      await this.#delay();
    }
  }

  /** Grows from try to try; the first one after an answer is short. */
  async #delay(): Promise<void> {
    const { retryMsMin = RETRY_MS_MIN } = this.#options;
    const delayMs = Math.min(RETRY_MS_MAX, retryMsMin * 2 ** this.#tries++);
    await sleep(delayMs * (0.5 + Math.random()), undefined, {
      ref: false,
      signal: this.#closing.signal,
    }).catch(() => {});
  }

  async #list(): Promise<string> {
    const { api, path } = this.#options;
    const found = listSchema.parse(await api.get(path, this.#closing.signal));
    this.#heard();
    this.#objects.clear();
    for (const object of found.items) this.#objects.set(object.metadata.uid, object);
    this.#changed();
    return found.metadata.resourceVersion;
  }

  /** Resolves when the server ends it. */
  async #watch(from: string): Promise<void> {
    const { api, path, silentMsMax = SILENT_MS_MAX } = this.#options;
    const seconds = WATCH_SECONDS_MIN + Math.floor(Math.random() * WATCH_SECONDS_SPREAD);
    const query = `watch=true&allowWatchBookmarks=true&timeoutSeconds=${seconds}&resourceVersion=${encodeURIComponent(from)}`;
    const silence = new AbortController();
    const isSilent = (): void => silence.abort(new Error(`the watch was silent for ${silentMsMax} ms`));
    let timer = setTimeout(isSilent, silentMsMax);
    const signal = AbortSignal.any([silence.signal, this.#closing.signal]);
    try {
      for await (const line of api.watch(`${path}${path.includes("?") ? "&" : "?"}${query}`, signal)) {
        clearTimeout(timer);
        timer = setTimeout(isSilent, silentMsMax);
        this.#heard();
        this.#take(eventSchema.parse(line));
      }
    } catch (error) {
      throw silence.signal.aborted ? silence.signal.reason : error;
    } finally {
      clearTimeout(timer);
    }
  }

  #take(event: z.infer<typeof eventSchema>): void {
    if (event.type === "ERROR") {
      const { code, message } = event.object;
      const what = `the watch has ended: ${code} ${message}`;
      throw code === 410 ? fail("KUBERNETES_EXPIRED", what) : new Error(what);
    }
    this.#version = event.object.metadata.resourceVersion;
    if (event.type === "BOOKMARK") return;
    const object = event.object as ApiObject;
    if (event.type === "DELETED") this.#objects.delete(object.metadata.uid);
    else this.#objects.set(object.metadata.uid, object);
    this.#changed();
  }

  #heard(): void {
    this.#heardMs = performance.now();
    this.#tries = 0;
  }

  #changed(): void {
    this.#options.onChange([...this.#objects.values()]);
  }
}
