/**
 * A piece of `npm run bench`: one kind of load (or of move) that the command runs a round at a time, in turn with the others.
 * It gives figures; what is made of them (medians, ratios, pictures) is the report's business.
 */
import type { Contenders } from "./contenders.ts";
import type { Figure } from "./results.ts";
import type { Stage } from "./stage.ts";

export interface BenchPiece {
  /** for --only, and the anchor in the report: "http", "tcp-echo", "bulk-down", "cutover-sessions", … */
  readonly name: string;
  readonly title: string;
  /** it has one round, in the last of the others: nothing is measured beside what it leaves */
  readonly isLast?: true;
  /** seconds of one round, roughly: for the time left that is shown, and for what fits into --quick */
  estimateSeconds(plan: Plan): number;
  /**
   * One round. Counts that do not fit and peers that fail go to `run.problem`, and the others go on.
   * @throws Error when nothing of it can be measured here
   */
  measure(run: Run): Promise<Figure[]>;
}

/** What is the same in all rounds. */
export interface Plan {
  /** names of the peers that are wanted, `direct` among them */
  peers: string[];
  quick: boolean;
  /** of each measurement */
  seconds: number;
  /** of the load that each contender carries before it is measured; half a second where it is left out */
  warmSeconds?: number;
}

export interface Run extends Plan {
  /** closed when the command ends: whatever runs on it is gone then */
  stage: Stage;
  /** the contenders of this run with a peer each, started when they are first asked for */
  contenders(): Promise<Contenders>;
  /** Names peers and their versions in the report; once for each set that was started. */
  introduce(contenders: Contenders): void;
  /** from 1 */
  round: number;
  /** progress: what is measured now, or what came of it */
  say(line: string): void;
  problem(where: string, what: string): void;
}
