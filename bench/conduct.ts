/**
 * Runs pieces a round at a time, in turn, and keeps what they give. A piece that fails does not take the others with it, and
 * is not passed over in silence; a run that is cut off keeps what it has. What the pieces are is not its business.
 */

import type { Contenders } from "./contenders.ts";
import type { BenchPiece, Plan, Run } from "./piece.ts";
import { addRound, type Piece } from "./results.ts";
import type { Stage } from "./stage.ts";

export interface Conducted extends Plan {
  pieces: BenchPiece[];
  rounds: number;
  /** what does not fit in any more is left out, and named; null: there is time for everything */
  secondsMax: number | null;
}

export interface Conductor {
  stage: Stage;
  contenders(): Promise<Contenders>;
  introduce(contenders: Contenders): void;
  /** one line of progress */
  say(line: string): void;
  problem(where: string, what: string): void;
  note(what: string): void;
  /** between two measurements: nothing is at work. Also when to keep what is there */
  between(): Promise<void>;
  nowSeconds(): number;
}

/** Resolves when all rounds are done. `kept` holds what was measured at any moment. @throws Error when the stage is closed */
export async function conduct(options: Conducted, conductor: Conductor, kept: Piece[]): Promise<void> {
  const { pieces, rounds, secondsMax, peers, quick, seconds } = options;
  const plan: Plan = { peers, quick, seconds };
  const startedSeconds = conductor.nowSeconds();
  // What a round of it took, once one is known.
  const took = new Map<BenchPiece, number>();
  const estimate = (piece: BenchPiece): number => took.get(piece) ?? piece.estimateSeconds(plan);
  const leftAfter = (round: number, place: number): number =>
    pieces.reduce((sum, piece, index) => {
      const turns = rounds - round + (index >= place ? 1 : 0);
      return sum + estimate(piece) * (piece.isLast ? Math.min(turns, 1) : turns);
    }, 0);
  const leftOut = new Set<string>();
  for (let round = 1; round <= rounds; round++) {
    for (const [place, piece] of pieces.entries()) {
      if (piece.isLast && round < rounds) continue;
      const spentSeconds = conductor.nowSeconds() - startedSeconds;
      if (secondsMax !== null && spentSeconds + estimate(piece) > secondsMax) {
        leftOut.add(piece.name);
        continue;
      }
      const left = Math.min(leftAfter(round, place), (secondsMax ?? Number.POSITIVE_INFINITY) - spentSeconds);
      const head = `[${piece.name}, round ${round}/${rounds}, ${showLeft(left)} left]`;
      const run: Run = {
        ...plan,
        stage: conductor.stage,
        contenders: () => conductor.contenders(),
        introduce: (contenders) => conductor.introduce(contenders),
        round,
        say: (line) => conductor.say(`${head} ${line}`),
        problem: (where, what) => conductor.problem(where, what),
      };
      run.say(piece.title);
      const beganSeconds = conductor.nowSeconds();
      try {
        const figures = await piece.measure(run);
        keep(kept, piece, piece.isLast ? 1 : round, figures);
      } catch (error) {
        if (conductor.stage.closed) throw error;
        conductor.problem(`${piece.name}, round ${round}`, `not measured: ${(error as Error).message}`);
      }
      took.set(piece, conductor.nowSeconds() - beganSeconds);
      await conductor.between();
    }
  }
  if (leftOut.size > 0)
    conductor.note(`Left out, as it does not fit into ${secondsMax} s: ${[...leftOut].join(", ")}.`);
}

function keep(kept: Piece[], { name, title }: BenchPiece, round: number, figures: Piece["figures"]): void {
  let piece = kept.find((each) => each.name === name);
  if (piece === undefined) {
    piece = { name, title, figures: [] };
    kept.push(piece);
  }
  addRound(piece.figures, round - 1, figures);
}

function showLeft(seconds: number): string {
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
}
