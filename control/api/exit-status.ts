/** Exit statuses of the command line: part of its contract, printed by --help. */
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

/** Codes with which an agent says "not now" or "not here" instead of trying. */
const REFUSED =
  /_BUSY$|^(WORKLOAD|NODE|PEER|NAME)_UNKNOWN$|^(NOT_OWNER|WORKLOAD_DOWN|OWNER_UNKNOWN|ALREADY_THERE|NAME_AMBIGUOUS)$/;
const UNREACHABLE = /^AGENT_(UNREACHABLE|NOT_FOUND|AMBIGUOUS|PROTOCOL)$/;
const USAGE = /^(ADMIN|CONFIG|KEY|USAGE)_|^REQUEST_INVALID$/;

export function exitStatusOf(error: unknown): number {
  const code = error instanceof HoldfastError ? error.code : "INTERNAL";
  if (REFUSED.test(code)) return EXIT.refused;
  if (UNREACHABLE.test(code)) return EXIT.unreachable;
  if (USAGE.test(code)) return EXIT.usage;
  return EXIT.failed;
}
