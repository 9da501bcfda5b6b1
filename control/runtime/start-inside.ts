/**
 * Starts a process in a container that runs, by `runc exec` (or crun's): with the container's control groups, seccomp filter and
 * namespaces, and the container's own output as its output.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { openNull, openOutput } from "./inside.ts";
import { identify, isSameProcess } from "./processes.ts";

const FORK_POLL_MS = 5;

export interface StartOptions {
  /** runc or crun */
  program: string;
  /** where it keeps its containers */
  root: string;
  id: string;
  /** the process, as in an OCI configuration; it forks and ends */
  processFile: string;
  /** for what the runtime writes */
  folder: string;
  /** where the reason can be read, if it is not known */
  logFile: string;
}

/** Resolves when the process has forked. @throws HoldfastError `CONTAINER_EXEC` */
export async function startInside(
  container: { init: { pid: number } },
  { program, root, id, processFile, folder, logFile }: StartOptions,
): Promise<void> {
  const output = openOutput(container, 1);
  const errorOutput = openOutput(container, 2);
  const nothing = openNull(container); // the container's own: CRIU must find its mount
  const errors = join(folder, "exec.log");
  const pidFile = join(folder, "exec.pid");
  try {
    const argv = [
      ...["--root", root, "--log", errors, "exec", "--detach"],
      ...["--pid-file", pidFile, "--process", processFile, id],
    ];
    const child = spawn(program, argv, { stdio: [nothing ?? "ignore", output, errorOutput], cwd: "/" });
    const status = await exitStatus(child);
    if (status !== 0) {
      const reason = lastLine(await readFile(errors, "utf8").catch(() => "")) || `see ${logFile}`;
      throw fail("CONTAINER_EXEC", `${program} cannot start the application: ${reason}`);
    }
    const forking = await identify(Number(await readFile(pidFile, "utf8")));
    while (forking !== null && (await isSameProcess(forking)))
      await new Promise((resolve) => setTimeout(resolve, FORK_POLL_MS));
  } finally {
    closeSync(output);
    closeSync(errorOutput);
    if (nothing !== null) closeSync(nothing);
  }
}

export function exitStatus(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", resolve); // not "close": the application keeps the pipe open
  });
}

export function lastLine(text: string): string {
  return text.trim().split("\n").at(-1) ?? "";
}
