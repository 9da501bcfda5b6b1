/** What the benchmarks ran on, for whoever reads the figures. */
import { execFileSync } from "node:child_process";
import { availableParallelism, cpus, release, totalmem } from "node:os";
import type { BenchResults } from "./results.ts";

export function describeMachine(): BenchResults["machine"] {
  return {
    cpu: cpus()[0]?.model ?? "?",
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    kernel: `Linux ${release()}`,
    node: `Node ${process.version}`,
    commit: commit(),
    calm: true,
    notes: [],
  };
}

/** @returns "-" outside of a checkout; a "+" says that files differ from it */
function commit(): string {
  const git = (...args: string[]): string =>
    execFileSync("git", args, {
      cwd: import.meta.dirname,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    }).trim();
  try {
    const changed = git(
      "status",
      "--porcelain",
      "--untracked-files=no",
      "--",
      ":/proxy",
      ":/control",
      ":/bench",
    );
    return `${git("rev-parse", "--short", "HEAD")}${changed === "" ? "" : "+"}`;
  } catch {
    return "-";
  }
}
