/** What an agent's streams are opened and accepted by: its certificate if it has one, else the keys that all nodes share. */
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { type IdentityFiles, type IdentityText, readIdentity } from "./identity.ts";
import type { KeyRing } from "./key-ring.ts";
import { Revocations } from "./revocations.ts";

export interface TrustOptions {
  node: string;
  ring: KeyRing;
  identity: IdentityFiles | null;
  /** path; null: nobody is revoked */
  revoked: string | null;
}

export class Trust {
  readonly node: string;
  readonly ring: KeyRing;
  readonly revoked: Revocations;
  readonly #files: IdentityFiles | null;
  #identity: IdentityText | null = null;
  #problem: string | null = null;
  readonly #listeners = new Set<() => void>();

  /** @throws HoldfastError `CONFIG_INVALID` when its files cannot be used */
  constructor(options: TrustOptions) {
    this.node = options.node;
    this.ring = options.ring;
    this.#files = options.identity;
    try {
      this.revoked = new Revocations(options.revoked);
      if (options.identity !== null) this.#identity = readIdentity(options.identity, options.node);
    } catch (error) {
      throw fail("CONFIG_INVALID", messageOf(error), { cause: error });
    }
    this.ring.onChange(() => this.#tell());
  }

  /** null: streams go by the shared keys */
  get identity(): IdentityText | null {
    return this.#identity;
  }
  /** why files are not what is used: a line each */
  get problems(): string[] {
    return [this.ring.problem, this.#problem, this.revoked.problem].filter((line) => line !== null);
  }

  /** @returns to be called when the listener is no longer interested */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Of certificates and who is revoked; keys are the ring's. @returns whether anything is different */
  readAgain(): boolean {
    const isChanged = this.revoked.readAgain();
    const isOther = this.#readIdentity();
    if (isChanged || isOther) this.#tell();
    return isChanged || isOther;
  }

  #readIdentity(): boolean {
    if (this.#files === null) return false;
    const before = [this.#problem, JSON.stringify(this.#identity)].join();
    try {
      this.#identity = readIdentity(this.#files, this.node);
      this.#problem = null;
    } catch (error) {
      this.#problem = `the certificate before it is used: ${messageOf(error)}`;
    }
    return before !== [this.#problem, JSON.stringify(this.#identity)].join();
  }

  /** All of them: one that fails must not keep the stream of a revoked node open. */
  #tell(): void {
    for (const listener of [...this.#listeners]) {
      try {
        listener();
      } catch (error) {
        this.#problem = messageOf(error);
      }
    }
  }
}
