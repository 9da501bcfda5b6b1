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

/** @throws Error with the cure, when set-up has not made it */
export function kubeTools(): KubeTools {
  const file = join(import.meta.dirname, "kubernetes/go.mod");
  const version = /^\s*k8s\.io\/kubernetes v(\S+)/m.exec(readFileSync(file, "utf8"))?.[1] ?? "";
  const dir = join(CACHE_DIR, `kubernetes-${version}`);
  const tools = { version, bin: join(dir, "bin"), cni: join(dir, "cni") };
  for (const program of ["containerd", "kubelet", "kube-apiserver"])
    if (!existsSync(join(tools.bin, program)))
      throw new Error(
        `no Kubernetes ${version} at ${dir} (${program} is missing): run scripts/setup.sh kube`,
      );
  return tools;
}
