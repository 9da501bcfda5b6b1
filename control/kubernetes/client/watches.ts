/** What one part of a process watches of the API server. None is without its metric, none fails unsaid, and all end together. */
import type { KubernetesApi } from "./api.ts";
import type { KubernetesObject } from "./objects.ts";
import { Reflector, type ReflectorOptions } from "./reflector.ts";
import type { SilentSeconds } from "./silent-seconds.ts";

export interface WatchesOptions {
  api: KubernetesApi;
  silent: SilentSeconds;
  /** it goes on trying */
  onProblem(what: string, error: unknown): void;
}

export class Watches {
  readonly #options: WatchesOptions;
  readonly #open: { reflector: { close(): Promise<void> }; forget(): void }[] = [];

  constructor(options: WatchesOptions) {
    this.#options = options;
  }

  /** @param objects as the metric and the log call them */
  open<T extends KubernetesObject, Read extends KubernetesObject = T>(
    objects: string,
    from: Pick<ReflectorOptions<T, Read>, "path" | "query" | "keep" | "onChange" | "onAll">,
  ): Reflector<T, Read> {
    const { api, silent, onProblem } = this.#options;
    const reflector = new Reflector<T, Read>({
      api,
      onProblem: (error) => onProblem(`${objects} are not seen`, error),
      ...from,
    });
    const forget = silent.add(objects, () => reflector.secondsSinceLastEvent());
    this.#open.push({ reflector, forget });
    return reflector;
  }

  async close(): Promise<void> {
    for (const { forget } of this.#open) forget();
    await Promise.all(this.#open.map(({ reflector }) => reflector.close()));
  }
}
