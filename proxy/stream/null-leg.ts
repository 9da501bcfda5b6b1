/** The sink of a session that has no application any more: takes everything, passes on nothing. */
import type { Leg } from "./leg.ts";

export const nullLeg: Leg = {
  listener: null,
  reusesBuffer: false,
  keepsChunk: false,
  outstandingBytes: 0,
  write: () => true,
  finish: () => {},
  reset: () => {},
  pauseReading: () => {},
  resumeReading: () => {},
  consumed: () => {},
};
