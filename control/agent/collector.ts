/**
 * How often V8 looks for garbage in an agent. Memory on its way to another node passes through Buffers, which V8 counts beside its own
 * heap: with its defaults it marks all of that heap (30 MB) each time 16 to 40 MB have come by, which took a third of the CPU of both agents
 * in a move (seen: of 340 MB, 17 times at either end; 7.7 s of CPU, and 5.2 s with this).
 *
 * Source: external_memory_accounted_in_global_limit, heap_growing_percent in V8's src/flags/flag-definitions.h. A V8 that does not know them
 * goes on as it does.
 */
import { setFlagsFromString } from "node:v8";

/** of what was alive at the last collection: so much more is waited for */
const GROWING_PERCENT = 100;

/** As early as possible: a limit that was set holds until the next collection. */
export function collectSeldom(): void {
  setFlagsFromString("--external-memory-accounted-in-global-limit");
  setFlagsFromString(`--heap-growing-percent=${GROWING_PERCENT}`);
}
