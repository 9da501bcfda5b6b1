/** Folders that the application is in the middle of reading, and stays so: a program that reads on is at another place at each look. */
import { setTimeout as delay } from "node:timers/promises";
import type { Add } from "../../api/finding.ts";
import { type BegunFolder, halfReadFolders, said } from "../../migration/half-read-folders.ts";
import type { Travelling } from "../../runtime/travelling-mounts.ts";

const LOOKS = 5;
const LOOK_MS = 50;

/** Told is what is found at every look. */
export async function checkFolders(container: Travelling, pids: number[], add: Add): Promise<void> {
  const key = ({ pid, fd, position }: BegunFolder): string => `${pid} ${fd} ${position}`;
  let found = await halfReadFolders(container, pids);
  for (let look = 1; look < LOOKS && found.length > 0; look++) {
    await delay(LOOK_MS);
    const again = new Set((await halfReadFolders(container, pids)).map(key));
    found = found.filter((folder) => again.has(key(folder)));
  }
  for (const folder of found)
    add(
      "descriptor.folder-half-read",
      "error",
      said(folder),
      "let it read the folder to its end or close it, and try again",
      { pid: folder.pid, fd: folder.fd, path: folder.path },
    );
}
