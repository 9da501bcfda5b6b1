/** Why CRIU gave up, in one line for people. Its answers over RPC do not say; its log does. */
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { readImage } from "./image-files.ts";

/**
 * The error of a request with the reason from CRIU's log. One that CRIU is not the source of, or that its log says nothing of,
 * comes back as it was.
 * @param log path of the log that this request was told to write
 */
export async function withCriuReason(
  error: unknown,
  code: "CRIU_DUMP" | "CRIU_RESTORE",
  log: string,
): Promise<unknown> {
  if (!(error instanceof HoldfastError) || error.source !== "criu") return error;
  const reason = criuLogReason(textOf(log));
  if (reason === null) return error;
  const verb = code === "CRIU_DUMP" ? "dump" : "restore";
  return fail(code, `CRIU cannot ${verb} the application: ${reason}`, { cause: error });
}

/** "" where it cannot be read: then it says nothing. */
function textOf(log: string): string {
  try {
    return readImage(log).toString("utf8");
  } catch {
    return "";
  }
}

/** About limits, and about what is not in images of an earlier dump (`stand-in.ts`). */
const HARMLESS = /RLIMIT_NOFILE|No parent image found, though parent directory is set/;

/** The first complaint in CRIU's log that says why, without file names and without harmless ones. */
function criuLogReason(log: string): string | null {
  const line = log
    .split("\n")
    .find((candidate) => candidate.includes("Error (") && !HARMLESS.test(candidate));
  const reason = line?.replace(/^.*?Error \([^)]*\):\s*/, "").trim() ?? null;
  const [, pid, signal] = /^SEIZE (\d+): unsupported stop signal (\d+)$/.exec(reason ?? "") ?? [];
  if (pid === undefined) return reason;
  return `process ${pid} of the container was stopped by its terminal (signal ${signal}); stop it by Ctrl-Z in the foreground, or end it`;
}
