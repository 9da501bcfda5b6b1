/** What of a changed configuration a restart of the application applies: what can change while the container and the proxy live. */
import { fail } from "#proxy/contract/error-codes.ts";
import { loadConfig, type WorkloadConfig } from "../config/config.ts";

export interface RestartConfig {
  config: WorkloadConfig;
  /** changed in the file, and not applied by a restart */
  later: string[];
}

/** @throws HoldfastError `CONFIG_INVALID` */
export function readRestartConfig(configFile: string, present: WorkloadConfig): RestartConfig {
  const { name } = present;
  // one of a pod that the agent has found: not in the file, and what its pod says of it does not change
  if (present.pod !== null && present.pod.uid !== null) return { config: present, later: [] };
  const found = loadConfig(configFile).workloads.find((workload) => workload.name === name);
  if (found === undefined)
    throw fail(
      "CONFIG_INVALID",
      `${configFile} does not have workload ${name} any more: \`holdfast stop\` ends it`,
    );
  const { restart, stopSignal, stopMsMax } = found;
  const config: WorkloadConfig = { ...present, restart, stopSignal, stopMsMax };
  if (config.container !== null && found.container !== null) {
    const { command, cwd, env } = found.container;
    config.container = { ...config.container, command, cwd, env };
  }
  return { config, later: changedKeys(found, config) };
}

/** Keys that two configurations of a workload do not agree on. */
function changedKeys(one: WorkloadConfig, other: WorkloadConfig): string[] {
  return Object.keys(one).filter(
    (key) =>
      JSON.stringify(one[key as keyof WorkloadConfig]) !== JSON.stringify(other[key as keyof WorkloadConfig]),
  );
}
