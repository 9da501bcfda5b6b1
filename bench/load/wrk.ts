/** wrk(1) of Debian: a load generator that nobody here wrote. Closed loop; one thread, on the load's CPU. */
import { execFileSync } from "node:child_process";
import type { Stage } from "../stage.ts";

export interface WrkReport {
  answered: number;
  /** at most: each connection may have had a request under way at the end */
  sent: number;
  perSecond: number;
  /** sockets that failed, timed out, and answers other than 2xx and 3xx */
  errors: number;
}

/** @returns null where wrk is not installed */
export function wrkVersion(): string | null {
  try {
    execFileSync("wrk", ["-v"], { stdio: ["ignore", "pipe", "ignore"], encoding: "utf8" });
    return "";
  } catch (error) {
    // `wrk -v` says its version and ends with status 1
    const { stdout } = error as { stdout?: string };
    return /^wrk (?:debian\/)?(\S+)/.exec(stdout ?? "")?.[1] ?? null;
  }
}

/** @throws Error when wrk cannot connect, or says what it never said before */
export async function runWrk(
  stage: Stage,
  load: { port: number; connections: number; seconds: number },
): Promise<WrkReport> {
  const text = await stage.outputOf([
    "wrk",
    "--threads=1",
    `--connections=${load.connections}`,
    `--duration=${load.seconds}s`,
    `http://127.0.0.1:${load.port}/`,
  ]);
  return parseWrk(text, load.connections);
}

export function parseWrk(text: string, connections: number): WrkReport {
  const answered = /^\s*(\d+) requests in /m.exec(text)?.[1];
  const perSecond = /^Requests\/sec:\s+([\d.]+)$/m.exec(text)?.[1];
  if (answered === undefined || perSecond === undefined) throw new Error(`wrk said ${JSON.stringify(text)}`);
  const sockets = /^\s*Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)$/m.exec(text);
  const statuses = /^\s*Non-2xx or 3xx responses: (\d+)$/m.exec(text)?.[1] ?? "0";
  const errors = [...(sockets?.slice(1) ?? []), statuses].reduce((sum, count) => sum + Number(count), 0);
  return {
    answered: Number(answered),
    sent: Number(answered) + connections,
    perSecond: Number(perSecond),
    errors,
  };
}
