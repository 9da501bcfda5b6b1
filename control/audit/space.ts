/**
 * How much of an application is looked at: so long it takes, and so much this agent has to keep of it, while nothing of the
 * application runs and clients wait. The application has it in hand: it lists what it likes (watches, locks, mappings, groups,
 * arguments) as often as it likes (dup(2), fork(2)).
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { readBeginning, readRecords } from "../runtime/read-text.ts";

const LIMITS = { threads: 10_000, descriptors: 50_000, bytes: 128 * 1024 * 1024 };
/** What is restored has as much, but another kernel may list it in more words: that is no reason to roll back. */
export const LIMITS_OF_RESTORED = { ...LIMITS, bytes: 2 * LIMITS.bytes };
/** are read in the time that one is kept and compared in */
const READ_BYTES = 4;
type Counted = keyof typeof LIMITS;
const NAMES: Record<Counted, string> = {
  threads: "threads",
  descriptors: "descriptors",
  bytes: "bytes that the kernel lists of it (watches, locks, mappings, groups, arguments)",
};

/** Of one look. What is beyond it is not read. */
export class Space {
  readonly #limits: Record<Counted, number>;
  readonly #left: Record<Counted, number>;

  /** @param limits in place of the usual ones */
  constructor(limits: Partial<Record<Counted, number>> = {}) {
    this.#limits = { ...LIMITS, ...limits };
    this.#left = { ...this.#limits };
  }

  /** @throws HoldfastError `AUDIT_SPACE` */
  take(what: Counted, count: number): void {
    this.#left[what] -= count;
    if (this.#left[what] >= 0) return;
    throw fail(
      "AUDIT_SPACE",
      `the application has more than ${this.#limits[what]} ${NAMES[what]}, which is as much as a move can compare`,
    );
  }

  /**
   * A file of /proc, whose length is the application's; "" where it cannot be read.
   * @param weight how many bytes one of it costs
   * @throws HoldfastError `AUDIT_SPACE`
   */
  text(path: string, weight = 1): string {
    return this.bytes(path, weight).toString("utf8");
  }

  /**
   * {@link text} of which little is kept: that costs, and a quarter of what has to be read for it where that is more.
   * @param last how the last line of each record begins
   * @param condense whole records to what is kept of them
   * @throws HoldfastError `AUDIT_SPACE`, before more is read
   */
  records(path: string, last: string, condense: (records: string) => string): string {
    const kept: string[] = [];
    readRecords(path, last, (records) => {
      const text = condense(records);
      this.take("bytes", Math.max(text.length, Math.floor(records.length / READ_BYTES)));
      kept.push(text);
    });
    return kept.join("");
  }

  /** {@link text}, as it stands. */
  bytes(path: string, weight = 1): Buffer {
    const bytes = readBeginning(path, Math.floor(this.#left.bytes / weight) + 1);
    this.take("bytes", bytes.length * weight);
    return bytes;
  }
}
