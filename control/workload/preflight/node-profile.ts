/**
 * What a node is, as far as an application that comes from another node can tell: processor, kernel, CRIU, container
 * runtime. And what of two such profiles stands in the way of a move.
 */
import { access, readFile } from "node:fs/promises";
import { arch, release } from "node:os";
import type { NodeProfile } from "../../api/check.ts";
import type { Add } from "../../api/finding.ts";
import type { AgentContext } from "../context.ts";

export async function profileOf({ criu, runtime }: AgentContext): Promise<NodeProfile> {
  return {
    arch: arch(),
    cpuFlags: instructionFlags(await readFile("/proc/cpuinfo", "utf8")),
    kernel: release(),
    timeNamespaces: await exists("/proc/self/ns/time"),
    cgroups: cgroupsOf(await readFile("/proc/self/cgroup", "utf8")),
    criu: criu.version,
    runtime: `${runtime.program} ${runtime.version}`,
  };
}

/**
 * Flags of x86 that no program asks for: how the kernel defends itself, what the hypervisor or the timer is like, power.
 * Everything else names instructions or registers, and a program that has looked once goes on using them. (arch/x86/include/asm/cpufeatures.h)
 */
const NOT_INSTRUCTIONS =
  /^(hypervisor|constant_tsc|nonstop_tsc|tsc_(reliable|known_freq|deadline_timer|adjust)|art|arch_perfmon|pebs|bts|rep_good|nopl|xtopology|cpuid|aperfmperf|acpi|ds_cpl|dts|ht|tm2?|pbe|dtes64|monitor|vmx|smx|est|xtpr|pdcm|pcid|dca|x2apic|apic|extapic|mca|mce|mtrr|pge|pse|pse36|pat|pae|vme|de|msr|sep|nx|pdpe1gb|svm|cr8_legacy|osvw|ibs|skinit|wdt|tce|topoext|perfctr_.*|bpext|cpb|cat_l[23]|cdp_l[23]|cqm.*|mba|rdt_a|pti|kaiser|ssbd|ibrs.*|ibpb.*|stibp.*|amd_.*|virt_ssbd|cppc|tpr_shadow|flexpriority|ept.*|vpid|vnmi|vmmcall|npt|lbrv|svm_lock|nrip_save|tsc_scale|vmcb_clean|flushbyasid|decodeassists|pausefilter|pfthreshold|avic|v_.*|vgif|x2avic|overflow_recov|succor|smca|dtherm|ida|arat|pln|pts|hwp.*|hfi|epb|intel_p(pin|t)|ring3mwait|cpuid_fault|invpcid.*|smep|smap|umip|md_clear|flush_l1d|arch_capabilities|arch_lbr|split_lock_detect|bus_lock_detect|user_shstk|mwaitx|sev.*|sme|debug_swap|invlpgb|efficiency.*|hwpstate|proc_feedback|sdbg|swait|tdx_guest|ospke|osxsave|wbnoinvd|xsaves|ss|cmp_legacy|abm_legacy|zero_fcs_fds|fdp_excptn_only|swapgs.*|mds_no|stibp_always_on|btc_no|ibt)$/;

/** The flags of all processors that every one of them has, in order. */
export function instructionFlags(cpuinfo: string): string[] {
  const lists = [...cpuinfo.matchAll(/^(?:flags|Features)\s*:\s*(.*)$/gm)].map(
    (match) => new Set((match[1] ?? "").split(/\s+/)),
  );
  const [first, ...others] = lists;
  return [...(first ?? [])]
    .filter((flag) => flag !== "" && !NOT_INSTRUCTIONS.test(flag))
    .filter((flag) => others.every((list) => list.has(flag)))
    .sort();
}

/** cgroups(7), /proc/PID/cgroup: hierarchy 0 is version 2. */
export function cgroupsOf(procSelfCgroup: string): NodeProfile["cgroups"] {
  const lines = procSelfCgroup.trim().split("\n");
  const two = lines.some((line) => line.startsWith("0::"));
  const one = lines.some((line) => /^[1-9]/.test(line));
  if (!one) return "v2";
  return two ? "v1 with v2" : "v1";
}

/** Told of the target: what an application of the source would miss there. Pure. */
export function profileDifferences(source: NodeProfile, target: NodeProfile, add: Add): void {
  if (source.arch !== target.arch) {
    add(
      "target.cpu-architecture",
      "error",
      `its processor is ${target.arch}, the source's is ${source.arch}`,
      "choose a node of the same architecture",
    );
    return;
  }
  const missing = source.cpuFlags.filter((flag) => !target.cpuFlags.includes(flag));
  if (missing.length > 0)
    add(
      "target.cpu-features",
      "error",
      `its processor lacks instructions that programs on the source may be using: ${missing.join(" ")}`,
      "choose a node with the same or a newer processor, or hide these features from both (a hypervisor's CPU model)",
    );
  if (source.timeNamespaces && !target.timeNamespaces)
    add(
      "target.no-time-namespaces",
      "error",
      "its kernel has no time namespaces: the application's monotonic clock would jump",
      "use a kernel with CONFIG_TIME_NS",
    );
  if (compareVersions(target.kernel, source.kernel) < 0)
    add(
      "target.kernel-older",
      "warning",
      `its kernel ${target.kernel} is older than the source's ${source.kernel}: what only the newer one has cannot be restored, and the move rolls back`,
      "use the same kernel on both nodes",
    );
  if (source.cgroups !== target.cgroups)
    add(
      "target.cgroups-differ",
      "warning",
      `it has cgroups ${target.cgroups}, the source ${source.cgroups}: limits of the container are set in another way`,
      "use the same cgroup hierarchy on both nodes",
    );
  const criu = compareVersions(target.criu, source.criu);
  if (criu < 0)
    // CRIU reads images of older versions, not of newer ones (https://criu.org/Images)
    add(
      "target.criu-older",
      "error",
      `its CRIU ${target.criu} is older than the source's ${source.criu}, whose images it need not understand`,
      "run set-up there, so that both have the same version",
    );
  if (criu > 0)
    add(
      "target.criu-newer",
      "warning",
      `its CRIU ${target.criu} is newer than the source's ${source.criu}: the way back will be refused`,
      "run set-up on the source, so that both have the same version",
    );
  const [sourceRuntime = "", sourceVersion = ""] = source.runtime.split(" ");
  const [targetRuntime = "", targetVersion = ""] = target.runtime.split(" ");
  // the standby is made by it: what it mounts, masks and makes in /dev is its own choice
  if (sourceRuntime !== targetRuntime || majorOf(sourceVersion) !== majorOf(targetVersion))
    add(
      "target.runtime-differs",
      "warning",
      `containers are made by ${target.runtime} there and by ${source.runtime} here: devices and mounts may differ, and a restore that misses one rolls back`,
      "install the same container runtime on both nodes",
    );
}

/** By the first numbers in them: "6.18.44-fc" is 6.18.44. The first two count: a patch level changes no image format. */
export function compareVersions(one: string, other: string): number {
  const numbers = (text: string): number[] =>
    (/\d+(\.\d+)*/.exec(text)?.[0] ?? "0").split(".").slice(0, 2).map(Number);
  const [a, b] = [numbers(one), numbers(other)];
  for (let at = 0; at < Math.max(a.length, b.length); at++) {
    const difference = (a[at] ?? 0) - (b[at] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

function majorOf(version: string): string {
  return /\d+/.exec(version)?.[0] ?? "";
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
