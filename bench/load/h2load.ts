/** h2load(1) of nghttp2, in HTTP/1.1: the second load generator that nobody here wrote. Closed loop, one thread, on the load's CPU. */
import { execFileSync } from "node:child_process";
import type { Stage } from "../stage.ts";
import type { WrkReport } from "./wrk.ts";

/** @returns null where h2load is not installed */
export function h2loadVersion(): string | null {
  try {
    const text = execFileSync("h2load", ["--version"], { encoding: "utf8" });
    return /nghttp2\/(\S+)/.exec(text)?.[1] ?? text.trim();
  } catch {
    return null;
  }
}

/** @throws Error when h2load cannot connect, or says what it never said before */
export async function runH2load(
  stage: Stage,
  load: { port: number; connections: number; seconds: number },
): Promise<WrkReport> {
  const text = await stage.outputOf([
    "h2load",
    "--h1",
    "--threads=1",
    `--clients=${load.connections}`,
    `--duration=${load.seconds}`,
    `http://127.0.0.1:${load.port}/`,
  ]);
  return parseH2load(text, load.connections);
}

/** "requests: 8 total, 8 started, 8 done, 8 succeeded, 0 failed, 0 errored, 0 timeout" */
export function parseH2load(text: string, connections: number): WrkReport {
  const perSecond = /^finished in [\d.]+\w+, ([\d.]+) req\/s/m.exec(text)?.[1];
  const counts = /^requests: .* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$/m
    .exec(text)
    ?.slice(1)
    .map(Number);
  if (perSecond === undefined || counts === undefined) throw new Error(`h2load said ${JSON.stringify(text)}`);
  const [done = 0, succeeded = 0, failed = 0, errored = 0, timeout = 0] = counts;
  if (done === 0) throw new Error("h2load got no answer");
  return {
    answered: done,
    sent: done + connections,
    perSecond: Number(perSecond),
    errors: Math.max(failed, done - succeeded, errored + timeout),
  };
}
