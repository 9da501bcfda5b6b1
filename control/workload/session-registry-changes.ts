/** What the store has been told of a workload's sessions, and what it is to be told next. Pure. */
import type { SessionInfo } from "#proxy/contract/commands.ts";
import type { SessionRecord } from "#proxy/store/store.ts";

interface Told {
  record: SessionRecord;
  text: string;
  /** by performance.now() */
  atMs: number;
  round: number;
}

export class RegistryChanges {
  readonly #told = new Map<string, Told>();
  readonly #againMs: number;
  #round = 0;

  /** @param againMs what has not changed is told once more after this: a fail-over may have forgotten it */
  constructor(againMs: number) {
    this.#againMs = againMs;
  }

  /** Nothing has been told. */
  forget(): void {
    this.#told.clear();
  }

  begin(): void {
    this.#round++;
  }

  /** Those of a page that are new, have changed, or were told long ago. {@link tell} them when the store has them. */
  ofPage(sessions: readonly SessionInfo[], nowMs: number): SessionRecord[] {
    const changed: SessionRecord[] = [];
    for (const session of sessions) {
      const told = this.#told.get(session.id);
      const since = told?.record.since ?? new Date(Date.now() - session.ageMs).toISOString();
      const record = recordOf(session, `${since}`);
      if (told !== undefined) told.round = this.#round;
      if (told?.text === JSON.stringify(record) && nowMs - told.atMs < this.#againMs) continue;
      changed.push(record);
    }
    return changed;
  }

  tell(records: readonly SessionRecord[], nowMs: number): void {
    for (const record of records)
      this.#told.set(record.id, { record, text: JSON.stringify(record), atMs: nowMs, round: this.#round });
  }

  /** After the last page: ids that were in none. {@link untell} them when the store has forgotten them. */
  gone(): string[] {
    return [...this.#told].filter(([, { round }]) => round !== this.#round).map(([id]) => id);
  }

  untell(ids: readonly string[]): void {
    for (const id of ids) this.#told.delete(id);
  }
}

/** What stays the same while bytes pass. */
function recordOf(session: SessionInfo, since: string): SessionRecord {
  const { id, port, client, anchor, place, state, protocol, continuity, name } = session;
  return { id, port, client, anchor, place, state, protocol, continuity, name, since };
}
