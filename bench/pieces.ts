/** Every piece of `npm run bench`, in the order in which a round runs them. */
import { cutoverPieces } from "./cutover/cutover-pieces.ts";
import { idlePiece } from "./idle.ts";
import { latencyPieces } from "./latency.ts";
import { meshPiece } from "./mesh.ts";
import { meshPausePiece } from "./mesh-pause.ts";
import { pausePiece } from "./pause.ts";
import type { BenchPiece } from "./piece.ts";
import { restartPiece } from "./restart-behind-peers.ts";
import { sessionPieces } from "./sessions.ts";
import { throughputPieces } from "./throughput.ts";
import { toolsPiece } from "./tools.ts";

/** Something of each kind: --quick runs what fits, so these come first. */
const FIRST = ["http", "tcp-echo", "latency-tcp-echo", "cutover-sessions"];

const all: BenchPiece[] = [
  ...throughputPieces,
  ...latencyPieces,
  ...sessionPieces,
  idlePiece,
  toolsPiece,
  pausePiece,
  restartPiece,
  meshPiece,
  meshPausePiece,
  ...cutoverPieces,
];

export const pieces: readonly BenchPiece[] = [
  ...all.filter(({ name }) => FIRST.includes(name)),
  ...all.filter(({ name }) => !FIRST.includes(name)),
];
