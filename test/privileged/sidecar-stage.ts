/** A process as kubelet has the proxy of a pod: with a /run and a network of its own. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { identify, type ProcessIdentity } from "#control/runtime/processes.ts";
import { SIDECAR_FOLDER } from "#proxy/contract/commands.ts";

const started: ChildProcess[] = [];

/** @param program of sh(1), ends with what is to stay. Resolves when that begins */
export async function startContained(program: string, last: string): Promise<ProcessIdentity> {
  const inside = `ip link set lo up && mount -t tmpfs run /run && mkdir ${SIDECAR_FOLDER} && ${program} && echo ready && exec ${last}`;
  // it does not stay when this process is killed
  const argv = ["--pdeathsig", "KILL", "unshare", "--mount", "--net", "--", "sh", "-c", inside];
  const child = spawn("setpriv", argv, { stdio: ["ignore", "pipe", "inherit"], detached: true });
  started.push(child);
  const { stdout } = child;
  if (stdout === null) throw new Error("it has no output");
  await once(stdout, "data");
  stdout.resume();
  return (await identify(child.pid ?? -1)) as ProcessIdentity;
}

export function endContained(): void {
  for (const { pid, exitCode, signalCode } of started.splice(0))
    if (exitCode === null && signalCode === null) process.kill(-(pid as number), "SIGKILL");
}
