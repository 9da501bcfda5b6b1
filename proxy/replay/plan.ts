/**
 * Pure: what becomes of the HTTP requests that were in flight when the application ended (RFC 9110 9.2.2: a proxy may send
 * again what is idempotent, or what it knows was not acted upon).
 *
 *   nothing of it given to the application         → sent again: nobody can have acted upon it
 *   given in part or whole, idempotent or `unsafe` → sent again
 *   given in part or whole, anything else          → refused: applications act upon what they have read so far (imports,
 *                                                    uploads), and nobody knows
 *   its bytes are not in the log any more          → refused
 *   as many instances as it may have ended with it     → refused: it may be what ends them
 *
 * In order, and one at a time: what follows waits for the answer, so that a refusal in the middle is given in its turn.
 */
import type { RequestRecord } from "../protocol/observer.ts";

export type PlanStep =
  | {
      do: "send";
      from: number;
      to: number /** null: a head that is not complete */;
      record: RequestRecord | null;
    }
  | { do: "refuse"; record: RequestRecord };

export interface PlanInput {
  inFlight: readonly RequestRecord[];
  /** of the client's stream: how much was read, and where its incomplete request began (= bytesIn between requests) */
  bytesIn: number;
  messageStart: number;
  /** up to where the application, in any of its instances, was given the stream */
  sentUpTo: number;
  /** send again also what may have been acted upon */
  unsafe: boolean;
  /** whether it may be given to one more instance */
  hasLife(record: RequestRecord): boolean;
  /** whether the log has [from, to) */
  covers(from: number, to: number): boolean;
}

/** Null: the beginning of an incomplete head is lost, and the connection with it. */
export function planReplay(input: PlanInput): PlanStep[] | null {
  const { inFlight, bytesIn, messageStart, sentUpTo, unsafe } = input;
  const steps: PlanStep[] = [];
  for (const record of inFlight) {
    const to = record.end < 0 ? bytesIn : record.end;
    const mayHaveActed = record.start < sentUpTo;
    const isSafe = !mayHaveActed || record.idempotent || unsafe;
    if (isSafe && input.hasLife(record) && input.covers(record.start, to))
      steps.push({ do: "send", from: record.start, to, record });
    else steps.push({ do: "refuse", record });
  }
  const last = inFlight.at(-1);
  const hasPartialHead = messageStart < bytesIn && (last === undefined || last.end >= 0);
  if (hasPartialHead) {
    if (!input.covers(messageStart, bytesIn)) return null;
    steps.push({ do: "send", from: messageStart, to: bytesIn, record: null });
  }
  return steps;
}
