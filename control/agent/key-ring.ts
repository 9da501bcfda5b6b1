/**
 * The keys that all nodes share, read again when their file changes: a running agent and its proxies need no restart for
 * another key. A file that is damaged changes nothing, and is told in the log and in `status`.
 */

import { messageOf } from "#proxy/contract/errors.ts";
import { keyId, type SharedKeys } from "#proxy/contract/shared-keys.ts";
import { readKeyFile } from "../config/key-file.ts";

export class KeyRing {
  #keys: SharedKeys;
  #problem: string | null = null;
  readonly #listeners = new Set<() => void>();

  constructor(keys: SharedKeys) {
    this.#keys = keys;
  }

  /** Another array when it has changed. */
  get keys(): SharedKeys {
    return this.#keys;
  }
  /** proves and seals */
  get first(): Buffer {
    return this.#keys[0];
  }
  /** of each key, the first one first */
  get ids(): string[] {
    return this.#keys.map(keyId);
  }
  /** why the file is not what is used: one line */
  get problem(): string | null {
    return this.#problem;
  }

  find(id: string): Buffer | null {
    return this.#keys.find((key) => keyId(key) === id) ?? null;
  }

  has(key: Buffer): boolean {
    return this.#keys.some((one) => one.equals(key));
  }

  /** @returns to be called when the listener is no longer interested */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  replace(keys: SharedKeys): void {
    this.#keys = keys;
    for (const listener of [...this.#listeners]) listener();
  }

  /** @returns what is new: "changed", "damaged", or null when nothing is */
  readAgain(path: string): "changed" | "damaged" | "mended" | null {
    const before = this.#problem;
    try {
      const keys = readKeyFile(path);
      this.#problem = null;
      if (keys.length === this.#keys.length && keys.every((key, index) => this.#keys[index]?.equals(key)))
        return before === null ? null : "mended";
      this.replace(keys);
      return "changed";
    } catch (error) {
      this.#problem = `${path} cannot be used, the keys before it are: ${messageOf(error)}`;
      return this.#problem === before ? null : "damaged";
    }
  }
}
