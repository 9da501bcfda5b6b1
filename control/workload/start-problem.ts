/**
 * Why a workload does not start, in a line with its cure: from the error that its start ended with, what its application said, and a look
 * at what the configuration names. Asked after a start has failed, so what is said here is what was in the way, and not what might be.
 */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { FindingId } from "../api/finding.ts";
import type { WorkloadConfig } from "../config/config.ts";
import { formatEndpoint } from "../config/endpoint.ts";
import type { Problem } from "./claim.ts";
import { holderOf } from "./port-holder.ts";

export interface StartProblem extends Problem {
  id: FindingId;
}

export interface NotStarted {
  name: string;
  config: WorkloadConfig;
  /** what the application says, and the container's runtime */
  logFile: string;
  /** processes of the workload that there are all the same */
  own: ReadonlySet<number>;
}

const LATER = "the file system that it is on may not be mounted";

export async function startProblem(error: unknown, place: NotStarted): Promise<StartProblem> {
  const found =
    (await ofConfiguration(error, place.config)) ??
    (await ofPorts(error, place)) ??
    ofCommand(messageOf(error), place.config);
  const again = `then \`holdfast start ${place.name}\`; the log: ${place.logFile}`;
  if (found !== null) return { ...found, cure: `${found.cure}, ${again}` };
  return { id: "start.failed", what: messageOf(error), cure: `see the log, correct what it says, ${again}` };
}

async function ofConfiguration(error: unknown, config: WorkloadConfig): Promise<StartProblem | null> {
  const { bundle, container, vip } = config;
  const code = error instanceof HoldfastError ? error.code : "";
  if (bundle !== null && !(await isThere(join(bundle, "config.json"))))
    return {
      id: "start.bundle-missing",
      what: `the bundle ${bundle} is not there, or has no config.json`,
      cure: `correct bundle:, or make it there (${LATER})`,
    };
  if (code === "BUNDLE_INVALID")
    return { id: "start.bundle-invalid", what: messageOf(error), cure: "correct that file" };
  if (code === "ROOTFS_MISSING")
    return { id: "start.rootfs-missing", what: messageOf(error), cure: `correct rootfs: (${LATER})` };
  for (const { source, target } of container?.mounts ?? []) {
    if (await isThere(source)) continue;
    return {
      id: "start.mount-missing",
      what: `${source}, to be mounted at ${target}, is not there`,
      cure: `make it, or correct mounts: (${LATER})`,
    };
  }
  if (code === "VIP_DEVICE")
    return {
      id: "start.no-device",
      what: `the device ${vip?.device} of the address ${vip?.address} is not there`,
      cure: "make the device, or correct vip.device and start the agent again",
    };
  return null;
}

async function ofPorts(error: unknown, { config, own }: NotStarted): Promise<StartProblem | null> {
  if (error instanceof HoldfastError && error.code === "UPSTREAM_TAKEN")
    return {
      id: "start.upstream-taken",
      what: messageOf(error),
      cure: "stop that process, or let the application listen on another port (upstream:)",
    };
  for (const { listen } of config.downstream === "gateway" ? [] : config.ports) {
    const here = { address: config.listenAddress, port: listen };
    const taken = await holderOf(here, own);
    if (taken !== null)
      return {
        id: "start.port-taken",
        what: `${formatEndpoint(here)}, where clients are to connect, is taken by ${taken}`,
        cure: "stop that process, or give the workload another port (listen:)",
      };
  }
  return null;
}

/**
 * setsid(1), by which every application is started, or nice(1) (`launchArgs`), says what execvp(3) said. (That one gives what is no program to /bin/sh, and runc makes
 * a working folder that is not there.) @param said with it somewhere in it */
export function ofCommand(said: string, { container }: WorkloadConfig): StartProblem | null {
  const [, setsid, nice, why = ""] =
    /(?:setsid: failed to execute (.+)|nice: ['‘](.+)['’]): ([A-Z][A-Za-z ]+)/.exec(said) ?? [];
  const command = setsid ?? nice ?? "";
  const key = container === null ? "process.args of the bundle's config.json" : "container.command";
  if (why === "No such file or directory")
    return {
      id: "start.command-not-found",
      what: command.includes("/")
        ? `the command ${command} is not in the container, or the interpreter that it names is not`
        : `the command ${command} is in no folder of the container's PATH`,
      cure: `correct ${key} or PATH, or mount what it is in`,
    };
  if (why === "Permission denied")
    return {
      id: "start.not-executable",
      what: `the command ${command} is not executable in the container`,
      cure: `chmod +x it, or correct ${key}`,
    };
  return null;
}

async function isThere(path: string): Promise<boolean> {
  return (await stat(path).catch(() => null)) !== null;
}
