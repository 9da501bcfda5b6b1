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

/** What decides by NetworkPolicies, from a queue of the kernel's, and what puts packets into it. */
export interface Enforcer {
  program: string;
  /** the command of that name, with libraries of its own */
  iptables: string[];
}

/** @throws Error with the cure, when set-up has not made it */
export function findEnforcer(): Enforcer {
  const version = versionIn("policies/go.mod", "sigs\\.k8s\\.io/kube-network-policies");
  const dir = join(CACHE_DIR, `policies-${version}`);
  const program = join(dir, "kube-network-policies");
  const libraries = join(dir, "lib");
  const tables = join(dir, "xtables-legacy-multi");
  if (!existsSync(program) || !existsSync(tables))
    throw new Error(`no kube-network-policies ${version} at ${dir}: run scripts/setup.sh policies`);
  const env = [`LD_LIBRARY_PATH=${libraries}`, `XTABLES_LIBDIR=${join(libraries, "xtables")}`];
  return { program, iptables: ["env", ...env, tables, "iptables"] };
}

export type OciRuntime = "runc" | "crun";

/** CRI-O, and what it starts beside the machine's runc or crun. */
export interface Crio {
  version: string;
  /** folder of crio and pinns */
  bin: string;
  conmon: string;
  runtimes: { name: OciRuntime; program: string; root: string }[];
}

/** @throws Error with the cure, when set-up has not made it */
export function findCrio(): Crio {
  const version = versionIn("crio/go.mod", "github\\.com/cri-o/cri-o");
  const bin = join(CACHE_DIR, `crio-${version}`);
  const conmon = "/usr/bin/conmon";
  for (const program of [join(bin, "crio"), join(bin, "pinns"), conmon])
    if (!existsSync(program))
      throw new Error(`no CRI-O ${version} at ${bin} (${program} is missing): run scripts/setup.sh crio`);
  return {
    version,
    bin,
    conmon,
    runtimes: [
      { name: "runc", program: "/usr/sbin/runc", root: "/run/runc" },
      { name: "crun", program: "/usr/bin/crun", root: "/run/crun" },
    ],
  };
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
