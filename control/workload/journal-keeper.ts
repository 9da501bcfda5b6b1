/** The journal of one workload: what it says now, and each change of it on disk before it counts. */
import type { HoldfastError } from "#proxy/contract/errors.ts";
import type { Moving } from "../migration/moving.ts";
import { isShortage } from "../runtime/read-text.ts";
import { EMPTY_JOURNAL, type Journal, nextJournal, readJournal, writeJournal } from "./journal.ts";

export class JournalKeeper {
  readonly #path: string;
  #journal: Journal;
  #damage: HoldfastError | null = null;

  /** @throws Error a shortage */
  constructor(path: string) {
    this.#path = path;
    try {
      this.#journal = readJournal(path);
    } catch (error) {
      if (isShortage(error)) throw error;
      this.#damage = error as HoldfastError;
      this.#journal = EMPTY_JOURNAL;
    }
  }

  get journal(): Readonly<Journal> {
    return this.#journal;
  }
  /** It cannot be read: nobody knows what of the workload runs here, so nothing is touched. */
  get damage(): HoldfastError | null {
    return this.#damage;
  }
  throwIfDamaged(): void {
    if (this.#damage !== null) throw this.#damage;
  }

  /** @throws HoldfastError `JOURNAL_INVALID` where the last one could not be read: it is not overwritten */
  record(patch: Partial<Journal>): void {
    this.throwIfDamaged();
    const isOther = patch.container !== undefined && patch.container?.id !== this.#journal.container?.id;
    // what was known of an application was of its container
    const next = nextJournal(this.#journal, { ...(isOther ? { application: null } : {}), ...patch });
    writeJournal(this.#path, next); // what could not be written does not hold
    this.#journal = next;
  }

  /**
   * An epoch that was given out: this node will not let it be given out again. Where there is no room on the disk it is written with what is
   * recorded next: who is told of another owner has to step down all the same.
   */
  see(epoch: number): void {
    if (this.#damage !== null || epoch <= this.#journal.seen) return;
    try {
      this.record({ seen: epoch });
    } catch {
      this.#journal = nextJournal(this.#journal, { seen: epoch });
    }
  }

  recordMoving(patch: Partial<Moving>): void {
    if (this.#journal.moving !== null) this.record({ moving: { ...this.#journal.moving, ...patch } });
  }
}
