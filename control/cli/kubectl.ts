/** kubectl, for what only it does well: commands in containers. Found in PATH, as somebody who has a cluster has it. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Terminal } from "./terminal.ts";

const SIGNALLED = 128;

/** @returns its exit status; what it prints goes to the terminal. @throws HoldfastError `KUBECTL_MISSING` */
export async function runKubectl(
  args: string[],
  { out, err }: Terminal,
  env: Record<string, string | undefined>,
): Promise<number> {
  const child = spawn("kubectl", args, { env, stdio: ["ignore", "pipe", "pipe"] });
  child.stdout.setEncoding("utf8").on("data", (text: string) => out.write(text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => err.write(text));
  try {
    const [status] = (await once(child, "close")) as [number | null];
    return status ?? SIGNALLED;
  } catch (cause) {
    throw kubectlMissing(cause, "it is asked to reach agents");
  }
}

/** @param why it is needed */
export function kubectlMissing(cause: unknown, why: string): HoldfastError {
  return fail("KUBECTL_MISSING", `kubectl cannot be run (${messageOf(cause)}): install it, ${why}`, {
    cause,
  });
}
