/** What a goal is: of which figures, bounded how. */
import type { Piece } from "../results.ts";

export interface Goal {
  /** what is compared with what */
  name: string;
  /** of the pieces that have it, as their names begin */
  piece: string;
  bound: { atLeast: number } | { atMost: number };
  /** digits of the value, and its unit */
  show(value: number): string;
  /** the values of all rounds, for each set of parameters it is judged at */
  values(piece: Piece): { at: string; values: number[] }[];
}

export const times = (value: number): string => `${value.toFixed(2)}×`;
export const milliseconds = (ms: number): string => `${ms.toFixed(1)} ms`;
