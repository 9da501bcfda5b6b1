/**
 * The audit at the target: is what was restored what was frozen? Differences are repaired and looked at again; what is left
 * makes the move roll back.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { compareFingerprints, describeDifferences } from "./compare.ts";
import { type Fingerprint, FORMAT, RAW_FORMAT } from "./fingerprint.ts";
import type { Circumstances, Difference } from "./harmless.ts";
import { keyOf, repair } from "./repair.ts";
import { type TakeOptions, takeFingerprint } from "./take.ts";

export interface Verified {
  /** the whole look, and what came of it */
  ms: number;
  facts: number;
  /** `descriptor 12/5: TCP_USER_TIMEOUT` */
  repaired: string[];
  /** what is left, in the order of the fingerprint */
  differences: Difference[];
  /** what cannot be kept, each in a line */
  losses: string[];
}

/**
 * Of a restored tree that does not run; it must not go on while there are differences ({@link notWhatItWas}).
 */
export function verifyRestored(
  before: Fingerprint,
  options: TakeOptions,
  circumstances: Omit<Circumstances, "rearmed">,
): Verified {
  const startedMs = performance.now();
  const format = before.format === RAW_FORMAT ? RAW_FORMAT : FORMAT;
  const taken = takeFingerprint({ ...options, format, isRestored: true });
  let { differences, losses } = compareFingerprints(before, taken.fingerprint, {
    ...circumstances,
    rearmed: new Set(),
  });
  let repaired: string[] = [];
  if (differences.length > 0) {
    const repairs = repair(differences, taken.tree, before, taken.fingerprint);
    repaired = repairs.done;
    const now = repairs.subjects.size > 0 ? taken.again(repairs.subjects) : taken.fingerprint;
    if (repaired.length > 0)
      ({ differences, losses } = compareFingerprints(before, now, {
        ...circumstances,
        rearmed: repairs.rearmed,
      }));
    for (const difference of differences) difference.refused = repairs.refused.get(keyOf(difference));
  }
  return {
    ms: performance.now() - startedMs,
    facts: Object.values(before.subjects).reduce((sum, facts) => sum + Object.keys(facts).length, 0),
    repaired,
    differences,
    losses: losses.map((loss) => describeDifferences([loss], before)),
  };
}

/** Subjects of the connections that clients have to these ports: `moveBy: replay` ends them while the application is frozen. */
export function sessionsAt(ports: number[], { subjects }: Fingerprint): string[] {
  return Object.keys(subjects).filter((subject) => {
    const { state = "LISTEN", "local address": local = "" } = subjects[subject] ?? {};
    return state !== "LISTEN" && ports.some((port) => local.endsWith(`:${port}`));
  });
}

/** The one line of a move that rolls back. */
export function notWhatItWas(before: Fingerprint, differences: Difference[]): HoldfastError {
  return fail(
    "AUDIT_DIFFERENCE",
    `the restored application is not what it was: ${describeDifferences(differences, before)}`,
  );
}
