/**
 * `HOLDFAST_CHAOS=1`: everything, in each phase and in both modes. Without it tests take of what is alike in its own way (three replicas or
 * two, what becomes of memory in takeover or in forward) what shows the behaviour: `npm test` has a time to be over in.
 */
import type { Downstream } from "./moved-program.ts";

export const isThorough = process.env.HOLDFAST_CHAOS === "1";

/** Of what does not depend on who holds clients' sockets. */
export function modes(one: Downstream): Downstream[] {
  return isThorough ? ["takeover", "forward"] : [one];
}
