/** Every piece of `npm run bench`, in the order in which a round runs them: what matters most comes first. */
import { cutoverPieces } from "./cutover/cutover-pieces.ts";
import type { BenchPiece } from "./piece.ts";

export const pieces: readonly BenchPiece[] = [...cutoverPieces];
