/** The sink of a session that has no application any more: takes everything, passes on nothing. */
import type { End } from "./leg.ts";

export const nowhere: End = {
  listener: null,
  reusesBuffer: false,
  keepsChunk: false,
  write: () => true,
  finish: () => {},
  reset: () => {},
  pauseReading: () => {},
  resumeReading: () => {},
  consumed: () => {},
};
