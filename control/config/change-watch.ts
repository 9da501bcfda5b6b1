/**
 * Tells when one of some files may have changed. Their folders are watched, since files are replaced by rename(2) (and the
 * links to them, as Kubernetes does); and it is told from time to time without a sign, for file systems that give none.
 */
import { type FSWatcher, watch } from "node:fs";
import { dirname } from "node:path";

/** a writer may not be done at the first sign */
const QUIET_MS = 50;
const WITHOUT_SIGN_MS = 10_000;

export class ChangeWatch {
  readonly #changed: () => void;
  readonly #watchers: FSWatcher[] = [];
  readonly #interval: NodeJS.Timeout;
  #quiet: NodeJS.Timeout | undefined;

  /** @param changed reads the files again and compares: it is called more often than they change */
  constructor(paths: string[], changed: () => void) {
    this.#changed = changed;
    this.#interval = setInterval(changed, WITHOUT_SIGN_MS).unref();
    for (const folder of new Set(paths.map((path) => dirname(path)))) {
      try {
        const watcher = watch(folder, { persistent: false }, () => this.#soon());
        watcher.on("error", () => watcher.close());
        this.#watchers.push(watcher);
      } catch {
        // no folder, or no inotify instance left: looked at from time to time
      }
    }
  }

  #soon(): void {
    clearTimeout(this.#quiet);
    this.#quiet = setTimeout(this.#changed, QUIET_MS).unref();
  }

  close(): void {
    clearInterval(this.#interval);
    clearTimeout(this.#quiet);
    for (const watcher of this.#watchers) watcher.close();
  }
}
