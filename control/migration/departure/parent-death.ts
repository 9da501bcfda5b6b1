/** What a move does to signals that processes want when their parents end; of a tree that stands still, with its images. */
import { leaveParentDeath } from "../../criu/parent-death.ts";
import { innerPid, madeByThreads, treeOf } from "../../runtime/processes.ts";

/** @returns lines for the move's result: what is not kept */
export async function parentDeathNotKept(imagesDir: string, root: number): Promise<string[]> {
  const wanting = leaveParentDeath(imagesDir);
  const lines: string[] = [];
  if (wanting.root !== null)
    lines.push(
      `process ${wanting.root}: the signal that it wants when its parent ends (PR_SET_PDEATHSIG), which it would have at the end of its container only`,
    );
  if (wanting.others.length === 0) return lines;
  for (const pid of await madeByThreads(await treeOf(root))) {
    const inner = await innerPid(pid);
    if (inner !== null && wanting.others.includes(inner))
      lines.push(
        `process ${inner}: which thread has made it, at whose end it wants a signal (PR_SET_PDEATHSIG): now it has that at the end of its parent`,
      );
  }
  return lines;
}
