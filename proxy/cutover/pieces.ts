/**
 * What a capture has found, on its way to the agent: a piece at a time, so that the target adopts one while the next is
 * encoded, and no frame between processes has to hold them all.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { CAPTURE_BYTES_MAX, type LegSnapshot, type SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { encodeSessions } from "#proxy/contract/snapshot-codec.ts";

/** A piece ends with the session that fills it. A session has less than a MiB, unless its leg was let grow. */
export const PIECE_BYTES = 8 * 1024 * 1024;

/** … or is so many, as the other side takes no more at once */
export const PIECE_SESSIONS = 50_000;

export class Pieces {
  #sessions: SessionSnapshot[];
  #at = 0;

  constructor(sessions: SessionSnapshot[]) {
    this.#sessions = sessions;
  }

  /** sessions that are still to be taken */
  get left(): number {
    return this.#sessions.length - this.#at;
  }

  /** The next of them, encoded; what is taken is forgotten here. */
  take(): Buffer {
    const from = this.#at;
    let bytes = 0;
    const end = Math.min(from + PIECE_SESSIONS, this.#sessions.length);
    while (this.#at < end && bytes < PIECE_BYTES)
      bytes += queuedBytes(this.#sessions[this.#at++] as SessionSnapshot);
    const piece = encodeSessions(this.#sessions.slice(from, this.#at));
    if (this.left === 0) {
      this.#sessions = [];
      this.#at = 0;
    }
    return piece;
  }
}

/** @throws HoldfastError `PROXY_CAPTURE` when the queues captured so far are more than the proxy keeps */
export function checkTotal(bytes: number): void {
  if (bytes <= CAPTURE_BYTES_MAX) return;
  throw fail(
    "PROXY_CAPTURE",
    `${bytes} bytes are queued on connections, more than a capture can have (${CAPTURE_BYTES_MAX}); wait until slow clients have read`,
  );
}

/** What it has of its client's and its application's bytes. */
export function queuedBytes(session: SessionSnapshot): number {
  return (
    legBytes(session.upstream) +
    legBytes(session.downstream) +
    session.pendingIn.length +
    session.pendingOut.length +
    session.filter.length
  );
}

function legBytes(leg: LegSnapshot | null): number {
  return leg === null ? 0 : leg.receive.bytes.length + leg.send.bytes.length;
}
