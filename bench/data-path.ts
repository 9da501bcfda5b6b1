/** The pieces of `npm run bench` that measure the data path, in the order in which a round runs them. */
import { latencyPieces } from "./latency.ts";
import type { BenchPiece } from "./piece.ts";
import { sessionPieces } from "./sessions.ts";
import { throughputPieces } from "./throughput.ts";
import { toolsPiece } from "./tools.ts";

export const dataPathPieces: readonly BenchPiece[] = [
  ...throughputPieces,
  ...latencyPieces,
  ...sessionPieces,
  toolsPiece,
];
