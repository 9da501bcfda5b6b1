/**
 * What the store knows of a workload's sessions: looked at every two seconds, a page at a time, of which it is told what has changed;
 * and their names, which it remembers for an hour after it was told last. Off the data path, and left out when the store does
 * not answer.
 */

import type { Logger } from "pino";
import type { SessionInfo } from "#proxy/contract/commands.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Store } from "#proxy/store/store.ts";
import {
  isName,
  NAMES_BATCH_MAX,
  type Owned,
  SESSIONS_BATCH_MAX,
  type SessionRecord,
} from "#proxy/store/store.ts";
import { RegistryChanges } from "./session-registry-changes.ts";

const REGISTRY_MS = 2_000;
const REGISTRY_TTL_MS = 15_000;
const NAME_TTL_MS = 3_600_000;
const SESSION_REFRESH_MS = 60_000;
/** a name whose session goes on is told again after this */
const NAME_REFRESH_MS = 60_000;
const NAMES_MAX = 100_000;

/** Whose sessions they are. */
export interface RegistryHost {
  readonly name: string;
  readonly context: { readonly node: string; readonly store: Store; readonly log: Logger };
  readonly journal: { readonly role: string; readonly moving: object | null; readonly epoch: number };
  readonly keeper: { sessionPages(): AsyncIterable<SessionInfo[]> };
  /** The store has no record, or another one. */
  assertOwnership(): Promise<void>;
}

export class Registry {
  #workload: RegistryHost;
  #timer: NodeJS.Timeout | undefined;
  #isWriting = false;
  /** when each name was told, by performance.now() */
  #told = new Map<string, number>();
  readonly #changes = new RegistryChanges(SESSION_REFRESH_MS);
  /** the store may have sessions that nobody has told it of now */
  #isAnew = true;
  #putAtMs = Number.NEGATIVE_INFINITY;
  #epoch = 0;

  constructor(workload: RegistryHost) {
    this.#workload = workload;
  }

  keep(): void {
    this.#timer ??= setInterval(() => {
      const { role, moving } = this.#workload.journal;
      if (this.#isWriting || role !== "owner" || moving !== null) return;
      this.#isWriting = true;
      this.#write()
        .catch((error: unknown) => this.#onFailure(error))
        .catch((error: unknown) =>
          this.#workload.context.log.warn(
            { workload: this.#workload.name, reason: messageOf(error) },
            "the store was not told again who the owner is",
          ),
        )
        .finally(() => {
          this.#isWriting = false;
        });
    }, REGISTRY_MS).unref();
  }

  close(): void {
    clearInterval(this.#timer);
  }

  async #write(): Promise<void> {
    const { name: workload, context, journal } = this.#workload;
    const owned = { workload, node: context.node, epoch: journal.epoch };
    // another owner may have told more, and a store that was emptied has to be told all again
    if (this.#epoch !== journal.epoch) this.#forget();
    this.#epoch = journal.epoch;
    // it has forgotten what it was not told for so long
    if (performance.now() - this.#putAtMs >= REGISTRY_TTL_MS) this.#changes.forget();
    const put = async (sessions: SessionRecord[], gone: string[]): Promise<void> => {
      const change = { sessions, gone, anew: this.#isAnew, ttlMs: REGISTRY_TTL_MS };
      await context.store.putSessions({ ...owned, ...change });
      this.#isAnew = false;
      this.#putAtMs = performance.now();
    };
    this.#changes.begin();
    for await (const page of this.#workload.keeper.sessionPages()) {
      // also without a change: that is the sign that all of it is still true
      for (const batch of inBatches(this.#changes.ofPage(page, performance.now()), SESSIONS_BATCH_MAX)) {
        await put(batch, []);
        this.#changes.tell(batch, performance.now());
      }
      await this.#tellNames(owned, page);
    }
    for (const batch of inBatches(this.#changes.gone(), SESSIONS_BATCH_MAX)) {
      if (batch.length > 0) await put([], batch);
      this.#changes.untell(batch);
    }
  }

  async #tellNames(owned: Owned, sessions: readonly SessionInfo[]): Promise<void> {
    for (const batch of inBatches(this.#toTell(sessions), NAMES_BATCH_MAX)) {
      if (batch.length === 0) return;
      const request = { ...owned, names: batch, ttlMs: NAME_TTL_MS, namesMax: NAMES_MAX };
      await this.#workload.context.store.putNames(request);
      const nowMs = performance.now();
      for (const name of batch) this.#told.set(name, nowMs);
    }
  }

  #forget(): void {
    this.#told.clear();
    this.#changes.forget();
    this.#isAnew = true;
  }

  /** Names the store has not been told lately, the newest at most. */
  #toTell(sessions: readonly SessionInfo[]): string[] {
    const staleMs = performance.now() - NAME_REFRESH_MS;
    for (const [name, toldMs] of this.#told) if (toldMs < staleMs) this.#told.delete(name);
    const names = new Set<string>();
    for (const { name } of sessions) {
      if (typeof name === "string" && isName(name) && !this.#told.has(name)) names.add(name);
      if (names.size === NAMES_MAX) break;
    }
    return [...names];
  }

  async #onFailure(error: unknown): Promise<void> {
    const { name, context } = this.#workload;
    context.log.debug({ workload: name, reason: messageOf(error) }, "registry not written");
    if (!(error instanceof HoldfastError && error.code === "STORE_ABSENT")) return;
    this.#forget();
    await this.#workload.assertOwnership();
  }
}

/** At least one, which is empty where there is nothing. */
function* inBatches<T>(items: readonly T[], most: number): Generator<T[]> {
  for (let at = 0; at === 0 || at < items.length; at += most) yield items.slice(at, at + most);
}
