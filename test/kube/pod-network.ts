/** The network of a pod of a test cluster, entered from outside: a pod's image has no programs for a test. */
import { readdirSync, readFileSync } from "node:fs";
import type { KubeObject } from "./cluster.ts";

/** A command before another's, which that is run by in the pod's network. @param program of the pod, which goes on. @throws Error none runs */
export function enterNetwork(pod: KubeObject, program: string): string[] {
  const group = `/pod${String(pod.metadata.uid)}/`;
  const pid = readdirSync("/proc").find((name) => {
    if (!/^\d+$/.test(name)) return false;
    try {
      return (
        readFileSync(`/proc/${name}/comm`, "utf8").trim() === program &&
        readFileSync(`/proc/${name}/cgroup`, "utf8").includes(group)
      );
    } catch {
      return false; // it has ended
    }
  });
  if (pid === undefined) throw new Error(`no ${program} of pod ${pod.metadata.name} runs`);
  return ["nsenter", `--target=${pid}`, "--net", "--"];
}
