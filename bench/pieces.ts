/** Every piece of `npm run bench`, in the order in which a round runs them. */
import { cutoverPieces } from "./cutover/cutover-pieces.ts";
import { dataPathPieces } from "./data-path.ts";
import { pausePiece } from "./pause.ts";
import type { BenchPiece } from "./piece.ts";
import { restartPiece } from "./restart-behind-peers.ts";

/** Something of each kind: --quick runs what fits, so these come first. */
const FIRST = ["http", "tcp-echo", "latency-tcp-echo", "cutover-sessions"];

const all: BenchPiece[] = [...dataPathPieces, pausePiece, restartPiece, ...cutoverPieces];

export const pieces: readonly BenchPiece[] = [
  ...all.filter(({ name }) => FIRST.includes(name)),
  ...all.filter(({ name }) => !FIRST.includes(name)),
];
