/** The Kubernetes that `scripts/setup.sh kube` keeps outside the checkout. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** As scripts/setup.sh has it. */
export const CACHE_DIR = process.env.HOLDFAST_CACHE ?? "/var/cache/holdfast";

export interface KubeTools {
  version: string;
  /** folder of the programs */
  bin: string;
  /** folder of the CNI plugins */
  cni: string;
}

/** Pods and nodes that nobody runs: the program, and what they go through. */
export interface Kwok {
  program: string;
  stages: string;
}

/** @throws Error with the cure, when set-up has not made it */
export function findKwok(): Kwok {
  const version = versionIn("kwok/go.mod", "sigs\\.k8s\\.io/kwok");
  const dir = join(CACHE_DIR, `kwok-${version}`);
  const found = { program: join(dir, "kwok"), stages: join(dir, "stages.yaml") };
  if (!existsSync(found.program) || !existsSync(found.stages))
    throw new Error(`no kwok ${version} at ${dir}: run scripts/setup.sh kwok`);
  return found;
}

function versionIn(file: string, module: string): string {
  const text = readFileSync(join(import.meta.dirname, file), "utf8");
  return new RegExp(`^\\s*${module} v(\\S+)`, "m").exec(text)?.[1] ?? "";
}

/** @throws Error with the cure, when set-up has not made it */
export function kubeTools(): KubeTools {
  const version = versionIn("kubernetes/go.mod", "k8s\\.io/kubernetes");
  const dir = join(CACHE_DIR, `kubernetes-${version}`);
  const tools = { version, bin: join(dir, "bin"), cni: join(dir, "cni") };
  for (const program of ["containerd", "kubelet", "kube-apiserver"])
    if (!existsSync(join(tools.bin, program)))
      throw new Error(
        `no Kubernetes ${version} at ${dir} (${program} is missing): run scripts/setup.sh kube`,
      );
  return tools;
}
