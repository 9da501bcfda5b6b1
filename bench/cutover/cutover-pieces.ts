/**
 * The cutover as pieces of `npm run bench`: against the number of sessions, against the application's memory, and many
 * moves in a row. The modes are measured in turn, another first in each round. The first move of each agent runs cold
 * code: so each laboratory's modes are tried once in either direction before they are measured.
 */
import type { BenchPiece, Run } from "../piece.ts";
import type { Figure } from "../results.ts";
import { cutoverFigures, cutoverProblems, rowFigures } from "./cutover-figures.ts";
import { CutoverLab, type CutoverSample, type Mode, modes, type RowSample } from "./cutover-lab.ts";

const SESSIONS = [10, 100, 1_000, 5_000];
const MEMORY_MB = [32, 128, 512, 1_024];
const SESSIONS_QUICK = [10, 100];
/** beside the one of the other piece */
const MEMORY_MB_QUICK = [256];
const ROW_MOVES = 20;
const ROW_MOVES_QUICK = 4;
/** of the sizes whose piece is about the other one */
const FIXED_MEMORY_MB = 32;
const FIXED_SESSIONS = 100;
const WARM_SESSIONS = 10;

const OPEN_SECONDS = 6;
const WARM_SECONDS = 12;
const SAMPLE_SECONDS = 4;

export interface CutoverSizes {
  sessions: readonly number[];
  memoryMb: number;
  /** false: the first measured move of each agent is one with cold code */
  isWarmedUp?: boolean;
}

interface Reporting {
  say(line: string): void;
  problem(where: string, what: string): void;
}

/**
 * One round in a laboratory of its own. A mode that fails is a problem, and the others go on.
 * @param closing is told how to end the laboratory early
 */
export async function measureCutover(
  run: Reporting & { round: number },
  { sessions, memoryMb, isWarmedUp = true }: CutoverSizes,
  closing: (close: () => Promise<void>) => void,
): Promise<CutoverSample[]> {
  const lab = await CutoverLab.open(memoryMb);
  closing(() => lab.close());
  const samples: CutoverSample[] = [];
  const attempt = async (mode: Mode, count: number): Promise<CutoverSample | null> => {
    try {
      return await lab.sample(mode, count);
    } catch (error) {
      run.problem(`cutover, ${mode}, ${count} sessions, ${memoryMb} MiB`, (error as Error).message);
      return null;
    }
  };
  try {
    const there = isWarmedUp ? modes : [];
    const back = there.filter((mode) => mode !== "bare");
    for (const mode of [...there, ...back]) await attempt(mode, WARM_SESSIONS);
    for (const count of sessions) {
      for (const mode of inTurn(run.round)) {
        const sample = await attempt(mode, count);
        if (sample === null) continue;
        samples.push(sample);
        run.say(
          `${count} sessions, ${memoryMb} MiB, ${mode}: blackout p50 ${sample.blackoutMs.p50.toFixed(0)} ms`,
        );
      }
    }
  } finally {
    await lab.close();
  }
  for (const { where, what } of cutoverProblems(samples)) run.problem(where, what);
  return samples;
}

/** Many moves in a row of each kind, in one laboratory; the first are cold. */
export async function measureRow(
  run: Reporting,
  moves: number,
  closing: (close: () => Promise<void>) => void,
): Promise<RowSample[]> {
  const lab = await CutoverLab.open(0);
  closing(() => lab.close());
  try {
    const rows: RowSample[] = [];
    for (const mode of ["takeover", "forward"] as const) {
      rows.push(await lab.row(mode, moves));
      run.say(`${moves} moves in a row by ${mode}`);
    }
    return rows;
  } finally {
    await lab.close();
  }
}

function inTurn(round: number): Mode[] {
  const first = (round - 1) % modes.length;
  return [...modes.slice(first), ...modes.slice(0, first)];
}

/** A laboratory ends with the command's stage, also when that is closed in the middle. */
function onClose(run: Run): (close: () => Promise<void>) => void {
  return (close) => run.stage.onClose(close);
}

const sessionsOf = (quick: boolean): number[] => (quick ? SESSIONS_QUICK : SESSIONS);
const memoryOf = (quick: boolean): number[] => (quick ? MEMORY_MB_QUICK : MEMORY_MB);
const movesOf = (quick: boolean): number => (quick ? ROW_MOVES_QUICK : ROW_MOVES);

const againstSessions: BenchPiece = {
  name: "cutover-sessions",
  title: `Cutover against the number of sessions; the application keeps ${FIXED_MEMORY_MB} MiB beside its own memory`,
  estimateSeconds: ({ quick }) =>
    OPEN_SECONDS +
    WARM_SECONDS +
    sessionsOf(quick)
      .map((sessions) => modes.length * (SAMPLE_SECONDS + sessions / 250))
      .reduce((sum, seconds) => sum + seconds),
  async measure(run): Promise<Figure[]> {
    const sizes = { sessions: sessionsOf(run.quick), memoryMb: FIXED_MEMORY_MB };
    return cutoverFigures(await measureCutover(run, sizes, onClose(run)));
  },
};

const againstMemory: BenchPiece = {
  name: "cutover-memory",
  title: `Cutover against what the application keeps beside its own memory; ${FIXED_SESSIONS} sessions`,
  estimateSeconds: ({ quick }) =>
    memoryOf(quick)
      .map((memoryMb) => OPEN_SECONDS + WARM_SECONDS + modes.length * SAMPLE_SECONDS + memoryMb / 20)
      .reduce((sum, seconds) => sum + seconds),
  async measure(run): Promise<Figure[]> {
    const samples: CutoverSample[] = [];
    for (const memoryMb of memoryOf(run.quick))
      samples.push(...(await measureCutover(run, { sessions: [FIXED_SESSIONS], memoryMb }, onClose(run))));
    return cutoverFigures(samples);
  },
};

const inARow: BenchPiece = {
  name: "cutover-row",
  title: "Moves in a row, there and back: whether the hold, memory or descriptors grow",
  estimateSeconds: ({ quick }) => OPEN_SECONDS + 2 * 1.5 * movesOf(quick),
  async measure(run): Promise<Figure[]> {
    return rowFigures(await measureRow(run, movesOf(run.quick), onClose(run)));
  },
};

export const cutoverPieces: readonly BenchPiece[] = [againstSessions, againstMemory, inARow];
