/** Exit statuses of the command line: part of its contract, printed by --help. */
import { factsOf } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  unreachable: 3,
  refused: 4,
  interrupted: 130,
} as const;

export const EXIT_HELP = `
Exit status:
  0    done
  1    what was asked for failed: the move was rolled back, the application did not
       come up again, check found a blocking problem
  2    wrong usage, or a mistake in the configuration file
  3    no agent could be reached
  4    the agent refused: the workload, node or session is unknown, the workload is not
       on this node or is there already, nobody knows where it is, or a migration or
       restart is under way
  130  left by a second Ctrl-C; the agent goes on`;

export function exitStatusOf(error: unknown): number {
  const code = error instanceof HoldfastError ? error.code : "INTERNAL";
  return EXIT[factsOf(code)?.exit ?? "failed"];
}
