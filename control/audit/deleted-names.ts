/**
 * Names of files that have been deleted, as readlink(2) of /proc shows them. CRIU restores such a file under a name of its own
 * (criu/files-reg.c), opens it, and deletes that; the application finds its own name with an ending. Pure.
 */

const DELETED = " (deleted)";
const ENDING = /(\.cr\.[0-9a-f]+\.ghost|\.cr_link)$/;

/** `/tmp/x.cr.1.ghost (deleted)` → `/tmp/x (deleted)`; any other name as it is */
export function nameWhenDeleted(name: string): string {
  if (!name.endsWith(DELETED)) return name;
  return `${name.slice(0, -DELETED.length).replace(ENDING, "")}${DELETED}`;
}
