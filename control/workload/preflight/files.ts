/** What is asked of watches and of descriptors whose state cannot go along. */

import type { Add, Check, FindingId } from "../../api/finding.ts";
import { type Unmovable, type UnmovableKind, unmovableFiles } from "../../migration/unmovable-files.ts";
import { WatchedFiles } from "../../migration/watched-files.ts";
import { instancesOf, lostWatches } from "../../migration/watches.ts";
import type { DeparturePlace } from "./departure.ts";
import { checkFolders } from "./folders.ts";

/** fanotify is among those that the descriptors' check tells of. */
const TOLD: Partial<Record<UnmovableKind, { id: FindingId; what: string; cure: string }>> = {
  "folder-notification": {
    id: "descriptor.folder-notification",
    what: "asks for signals about a folder (F_NOTIFY), which nothing can read back",
    cure: "let the application use inotify",
  },
  "memfd-secret": {
    id: "descriptor.memfd-secret",
    what: "is secret memory (memfd_secret), which nobody but its process can read",
    cure: "let the application keep secrets in ordinary memory, or boot with secretmem.enable=0",
  },
};

export const fileChecks: Check<DeparturePlace>[] = [
  {
    category: "descriptors",
    async run({ workload: { container }, pids }, add) {
      for (const unmovable of await unmovableFiles(pids)) tell(unmovable, add);
      await checkFolders(container, pids, add);
    },
  },
  {
    category: "watches",
    async run({ workload: { config, container, runtime }, pids }, add) {
      if ((await instancesOf(pids)).length === 0) return;
      const { lower } = await runtime.plan(config);
      const files = new WatchedFiles(container, lower);
      try {
        for (const { pid, fd, wd } of await lostWatches(files, pids))
          add(
            "watch.file-unknown",
            "error",
            `watch ${wd} of process ${pid}, descriptor ${fd}, is on a file without a name that the other node could find`,
            "let the application end watches on files that were deleted, and watch by a name that is in the container",
            { pid, fd },
          );
      } finally {
        files.close();
      }
    },
  },
];

function tell({ kind, pid, fd }: Unmovable, add: Add): void {
  const told = TOLD[kind];
  if (told !== undefined)
    add(told.id, "error", `descriptor ${fd} of process ${pid} ${told.what}`, told.cure, { pid, fd });
}
