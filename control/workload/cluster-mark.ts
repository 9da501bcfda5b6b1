/**
 * Whether the store is the one this agent has known: a word in it that the agent remembers in a file of its own. In a store
 * that was emptied the word is another one or none, and "no record" in it proves nothing.
 */
import { randomUUID } from "node:crypto";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { MARK, type Store } from "#proxy/store/store.ts";

export class ClusterMark {
  readonly #path: string;
  readonly #store: Store;
  #known: string | null;

  constructor(path: string, store: Store) {
    this.#path = path;
    this.#store = store;
    this.#known = readMark(path);
  }

  /** @throws HoldfastError `STORE_UNREACHABLE` */
  async isKnown(): Promise<boolean> {
    return this.#known !== null && (await this.#store.mark()) === this.#known;
  }

  /** The caller has made sure that the store has a record of every workload that some node has. */
  async remember(): Promise<void> {
    const mark = await this.#store.setMark(randomUUID());
    if (mark === null || mark === this.#known) return;
    writeFileSync(`${this.#path}.new`, `${mark}\n`, { mode: 0o600 });
    renameSync(`${this.#path}.new`, this.#path);
    this.#known = mark;
  }
}

/** null: none yet, or a file that is not ours: then every peer is asked instead. */
function readMark(path: string): string | null {
  try {
    const text = readFileSync(path, "utf8").trim();
    return MARK.test(text) ? text : null;
  } catch {
    return null;
  }
}
