/** What is mounted in a container (proc(5), /proc/PID/mountinfo). Paths of what is below a folder are relative to that. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

export interface Mount {
  id: string;
  /** in which it is mounted */
  parent: string;
  device: string;
  /** folder of the file system that it shows */
  root: string;
  at: string;
}

export function mountsOf(initPid: number): Mount[] {
  return mountsIn(readFileSync(`/proc/${initPid}/mountinfo`, "utf8"));
}

/** Pure. The first one is the lowest. */
export function mountsIn(mountinfo: string): Mount[] {
  return mountinfo.split("\n").map((line) => {
    const [id = "", parent = "", device = "", root = "", at = ""] = line.split(" ").map(unescaped);
    return { id, parent, device, root, at };
  });
}

/** Pure. Where others are mounted, however deep. */
export function mountedBelow(mounts: Mount[], folder: string): string[] {
  return mounts.flatMap(({ at }) => relative(at, folder) ?? []);
}

/** Pure. What of a mount has others mounted on it, here or where it is shown a second time: to delete it takes those off. */
export function coveredIn(mounts: Mount[], folder: string): string[] {
  const own = mounts.findLast(({ at }) => at === folder);
  return mounts.flatMap(({ parent, at }) => {
    const under = mounts.find(({ id }) => id === parent);
    const inside = under === undefined ? null : relative(at, under.at);
    if (own === undefined || under?.device !== own.device || inside === null) return [];
    return relative(join(under.root, inside), own.root) ?? [];
  });
}

/** Pure. What of a mount is the root of another: a part of a volume beside the whole of it. */
export function shownIn(mounts: Mount[], folder: string): string[] {
  const own = mounts.findLast(({ at }) => at === folder);
  return mounts.flatMap(({ device, root }) =>
    own !== undefined && device === own.device ? (relative(root, own.root) ?? []) : [],
  );
}

/** null: it is not below it */
function relative(path: string, folder: string): string | null {
  const prefix = folder.endsWith("/") ? folder : `${folder}/`;
  return path.startsWith(prefix) && path !== prefix ? path.slice(prefix.length) : null;
}

/** Blanks, newlines and backslashes are written in octal. */
function unescaped(text: string): string {
  return text.replaceAll(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}
