/** What ends the steps of an arrival that is given up. */
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";

export function givenUp(): HoldfastError {
  return fail("MIGRATION_ABORTED", "the move was given up");
}
