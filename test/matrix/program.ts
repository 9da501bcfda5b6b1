/**
 * What the matrix of programs moves: one program that nobody here wrote, how it is started, and clients of its own that
 * use it while it is moved there and back. One file a program, in `programs/`; `npm run test:matrix` runs all of them,
 * `npm test` a part (`test/privileged/move-matrix-*.test.ts`).
 */
import { spawnSync } from "node:child_process";
import { closeSync, openSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Stage } from "./stage.ts";

export interface Program {
  /** of its file, and for `--only` */
  name: string;
  /** as the table calls it */
  title: string;
  /** commands (looked for in PATH) and absolute paths without which it cannot run */
  needs: string[];
  /** of the program, as it says itself */
  version(): string;
  /** writes what it needs into a folder of this machine, which its container sees at `/srv`, read-only */
  prepare?(folder: string): void;
  /** the container's command; it listens on {@link upstream} */
  command: string[];
  env?: Record<string, string>;
  /** where clients connect */
  port: number;
  /** what of its state is looked at, for the table */
  keeps: string;
  /** Starts clients, calls `stage.moves()`, and checks what they saw. */
  use(stage: Stage): Promise<void>;
}

export const upstream = "127.0.0.1:9000";
export const upstreamPort = "9000";
/** where a container sees what `prepare` wrote */
export const inside = "/srv";

/** Runtimes that `scripts/setup.sh matrix` keeps: the newest folder of that name, or null. */
export function runtimeOf(name: string, binary = name): string | null {
  const folder = join(process.env.HOLDFAST_CACHE ?? "/var/cache/holdfast", "matrix");
  const found = entriesOf(folder)
    .filter((each) => each.startsWith(`${name}-`) && canOpen(join(folder, each, "complete")))
    .sort((x, y) => x.localeCompare(y, "en", { numeric: true }));
  const newest = found.at(-1);
  return newest === undefined ? null : join(folder, newest, "bin", binary);
}

/** What of `needs` this machine has not. */
export function missing(needs: string[]): string[] {
  const folders = (process.env.PATH ?? "").split(":");
  return needs.filter((need) =>
    need.startsWith("/") ? !canOpen(need) : !folders.some((folder) => canOpen(join(folder, need))),
  );
}

/** The first match of `pattern` in what a command prints. */
export function versionFrom(argv: string[], pattern: RegExp = /\d+(?:\.\d+)+/): string {
  const [command = "", ...args] = argv;
  // some say it on standard error, and some with a status of 1
  const { stdout, stderr } = spawnSync(command, args, { encoding: "utf8" });
  const match = pattern.exec(`${stdout}${stderr}`);
  return match?.[1] ?? match?.[0] ?? "?";
}

/** The newest of the folders in `parent`, for programs that Debian installs by version; "" when there is none */
export function newestIn(parent: string): string {
  return (
    entriesOf(parent)
      .sort((x, y) => x.localeCompare(y, "en", { numeric: true }))
      .map((each) => join(parent, each))
      .at(-1) ?? ""
  );
}

function entriesOf(folder: string): string[] {
  return canOpen(folder) ? readdirSync(folder) : [];
}

function canOpen(path: string): boolean {
  try {
    closeSync(openSync(path, "r"));
    return true;
  } catch {
    return false;
  }
}
