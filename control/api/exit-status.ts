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
       come up again, check found a blocking problem that is not allowed
  2    wrong usage, or a mistake in the configuration file
  3    nobody could be reached who was to be asked: no agent; of a cluster its API
       server, or there is no kubectl; an Envoy
  4    it was refused. By the agent: the workload, node or session is unknown, several
       have it, the workload is not on this node, is there already or does not run,
       nobody knows where it is, the store is busy, or a migration or restart is under
       way. By a cluster's API server: it may not be done, is not valid, or what it is
       about is not there
  130  left by a second Ctrl-C; the agent goes on`;

export function exitStatusOf(error: unknown): number {
  const code = error instanceof HoldfastError ? error.code : "INTERNAL";
  return EXIT[factsOf(code)?.exit ?? "failed"];
}
