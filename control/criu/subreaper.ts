/**
 * Daemons below an application's first process. Whoever is orphaned in a container becomes a child of its init, and the application is no
 * longer one tree; of one that is a child subreaper itself (prctl(2), PR_SET_CHILD_SUBREAPER) it becomes a child of that.
 *
 * CRIU 4.2 restores such a child as a child of a helper that has its session and ends (`prepare_pstree_ids`, criu/pstree.c), but makes the first
 * process a subreaper only when all is there: the container's init would have the child. So it is made one before anything is below it.
 */
import { join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { withGuestThread } from "./guest-thread.ts";
import { isSubreaper, processesInTree, type TreeEntry } from "./image-file.ts";
import { readImage } from "./image-files.ts";

/** x86-64; linux/prctl.h */
const SYS_PRCTL = 157;
const PR_SET_CHILD_SUBREAPER = 36;

/**
 * What CRIU has made of the tree is its first process alone.
 * @param root its number here @throws HoldfastError `CRIU_RESTORE`, `CRIU_IMAGE`
 */
export async function adoptOrphans(imagesDir: string, root: number): Promise<void> {
  const tree = processesInTree(readImage(join(imagesDir, "pstree.img")));
  const [first] = tree;
  if (first === undefined || !hasOrphans(tree)) return;
  if (!isSubreaper(readImage(join(imagesDir, `core-${first.pid}.img`)))) return;
  const made = await withGuestThread(root, (guest) => guest.call(SYS_PRCTL, PR_SET_CHILD_SUBREAPER, 1));
  if (made !== 0)
    throw fail(
      "CRIU_RESTORE",
      `the application's first process cannot be made to take daemons (PR_SET_CHILD_SUBREAPER) before they are there${made === null ? "" : `: errno ${-made}`}`,
    );
}

/** Children of the first process that are born in a session of somebody else's. Pure. @param tree the first process first */
export function hasOrphans(tree: readonly Pick<TreeEntry, "pid" | "parent" | "sid">[]): boolean {
  const [first] = tree;
  return tree.some(({ pid, parent, sid }) => parent === first?.pid && sid !== pid && sid !== first.sid);
}
