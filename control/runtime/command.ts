/** Runs a short-lived program and turns its failure into one clear line. */
import { spawn } from "node:child_process";
import { fail } from "#proxy/contract/error-codes.ts";
import type { ErrorSource, HoldfastError } from "#proxy/contract/errors.ts";

export interface CommandOptions {
  source: ErrorSource;
  input?: string;
  /** default 20,000 */
  timeoutMs?: number;
  env?: NodeJS.ProcessEnv;
  cwd?: string;
}

/** Resolves with standard output. @throws HoldfastError `COMMAND_FAILED` with the last line of standard error */
export function runCommand(program: string, args: string[], options: CommandOptions): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ["pipe", "pipe", "pipe"],
      timeout: options.timeoutMs ?? 20_000,
      killSignal: "SIGKILL",
      ...(options.env === undefined ? {} : { env: options.env }),
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    child.on("error", (cause) =>
      reject(failure(program, options, `cannot be started: ${cause.message}`, cause)),
    );
    if (child.pid === undefined) return; // for want of descriptors it has no pipes
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout.on("data", (chunk: Buffer) => out.push(chunk));
    child.stderr.on("data", (chunk: Buffer) => err.push(chunk));
    child.stdin.on("error", () => {}); // a program that does not read its input ends by its exit status
    child.stdin.end(options.input ?? "");
    child.on("close", (status, signal) => {
      if (status === 0) resolve(Buffer.concat(out).toString("utf8"));
      else {
        const lines = Buffer.concat(err).toString("utf8").trim().split("\n");
        // nft(8) draws below its message where in its input the mistake is
        const lastLine = lines.findLast((line) => /\bError: /.test(line)) ?? lines.at(-1) ?? "";
        const how = signal === null ? `exit status ${status}` : signal;
        reject(failure(program, options, `${args[0] ?? ""} failed (${how}): ${lastLine}`));
      }
    });
  });
}

function failure(program: string, options: CommandOptions, what: string, cause?: unknown): HoldfastError {
  return fail("COMMAND_FAILED", `${program} ${what}`, { source: options.source, cause });
}
