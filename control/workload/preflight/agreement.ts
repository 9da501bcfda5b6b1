/**
 * What two nodes' configurations of a workload must agree on, compared without showing it: a digest for each key, so that
 * the keys that differ can be named and no value (a password in `env`, say) leaves its node. Pure.
 *
 * A digest is HMAC-SHA256 with the key all agents share, of the workload's name, the key's name and its value as
 * canonical JSON: without that key nobody can try values out.
 */
import { createHmac } from "node:crypto";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Severity } from "../../api/finding.ts";
import type { WorkloadConfig } from "../../config/config.ts";
import type { OciSpec } from "../../runtime/oci.ts";

/** key → 64 hexadecimal digits */
export type Agreement = Record<string, string>;

export interface Disagreement {
  key: string;
  severity: Severity;
  what: string;
  cure: string;
}

/** Of a container, what it shows to the processes in it and CRIU expects to find again. */
const CONTAINER_KEYS = ["root.readonly", "hostname", "mounts"];
/** Keys of `linux` whose values belong to one node or one instance (as which files are hidden), or come along with the processes. */
const LINUX_NOT = ["cgroupsPath", "seccomp", "namespaces", "maskedPaths"];
/** What processes carry along through a move, and a new one started at the target would have otherwise. */
const PROCESS_KEYS = [
  "user",
  "capabilities",
  "noNewPrivileges",
  "rlimits",
  "apparmorProfile",
  "selinuxLabel",
  "oomScoreAdj",
];

/**
 * @param spec of the container: where the application runs, of the live one; at the target, of the one it would make
 * @param secret shared by both nodes, 32 bytes
 */
export function agreementOf(config: WorkloadConfig, spec: OciSpec, secret: Buffer): Agreement {
  const agreement: Agreement = {};
  for (const [key, value] of Object.entries(valuesOf(config, spec)))
    agreement[key] = createHmac("sha256", secret)
      .update(`${config.name}\0${key}\0${canonicalJson(value)}`)
      .digest("hex");
  return agreement;
}

/**
 * Of what two nodes share under one of several keys, the source has used one: under any other nothing is equal, so it is the one with
 * the fewest disagreements.
 */
export function disagreementsUnder(
  keys: SharedKeys,
  source: Agreement,
  own: (key: Buffer) => Agreement,
): Disagreement[] {
  const [first, ...others] = keys.map((key) => disagreements(source, own(key)));
  return others.reduce((least, found) => (found.length < least.length ? found : least), first ?? []);
}

function valuesOf(config: WorkloadConfig, spec: OciSpec): Record<string, unknown> {
  const { ports, vip, container, limits } = config;
  const values: Record<string, unknown> = {
    downstream: config.downstream,
    outbound: config.outbound,
    vip: vip === null ? null : { address: vip.address, prefix: vip.prefix },
    ports: ports.map(({ listen, upstream }) => ({ listen, upstream })),
    [PORTS_SORTED]: ports.map(({ listen, upstream }) => canonicalJson({ listen, upstream })).sort(),
    "ports.protocol": ports.map(({ protocol }) => protocol),
    "ports.continuity": ports.map(({ continuity, moveBy }) => ({ continuity, moveBy })),
    "ports.replay": ports.map(({ replayUnsafe, delivery, setUp, naming, probes }) => ({
      replayUnsafe,
      delivery,
      setUp,
      naming,
      probes,
    })),
    rootfs:
      config.pod !== null
        ? "pod"
        : container === null
          ? "bundle"
          : container.rootfs === "host"
            ? "host"
            : "folder",
    "restart.policy": [config.restart, config.stopSignal, config.stopMsMax],
  };
  // Only where it is used: a version without it has no such key.
  if (ports.some(({ proxyProtocol }) => proxyProtocol !== null)) {
    values["ports.proxyProtocol"] = ports.map(({ proxyProtocol }) => proxyProtocol !== null);
    values["ports.proxyProtocol.from"] = ports.map(({ proxyProtocol }) => proxyProtocol);
  }
  if (config.subreaper) values.subreaper = true;
  for (const [name, limit] of Object.entries(limits)) values[`limits.${name}`] = limit;
  if (container !== null) {
    values["container.command"] = container.command;
    values["container.cwd"] = container.cwd;
    if (container.network !== null) values["container.network"] = container.network;
    for (const [name, value] of Object.entries(container.env)) values[`container.env.${name}`] = value;
    values["container.mounts"] = container.mounts.map(({ target, shared, readonly }) => ({
      target,
      shared,
      readonly,
    }));
  } else if (config.pod !== null) {
    values["pod.command"] = config.pod.command;
    values["pod.cwd"] = config.pod.cwd;
  } else values["bundle.process"] = [spec.process.cwd, spec.process.env ?? []];
  const found: Record<string, unknown> = {
    "root.readonly": (spec.root as { readonly?: boolean }).readonly ?? false,
    // a pod has its own, which CRI-O says of its containers too, and containerd of the pod's sandbox alone
    hostname: config.pod === null ? (spec.hostname ?? null) : null,
    // where a mount comes from may differ from node to node; what is seen in it is looked at file by file
    mounts: (spec.mounts ?? []).map(({ destination, type, options }) => ({
      destination,
      type: type ?? null,
      options: options ?? [],
    })),
  };
  for (const key of CONTAINER_KEYS) values[`spec.${key}`] = found[key];
  // Only where it is not runc: a version without it has no such key.
  if (spec.madeBy === "crun") values[MADE_BY] = spec.madeBy;
  // … and a version without it does not carry them
  const { folders = [], files = [] } = spec.parts ?? {};
  if (folders.length + files.length > 0) values["spec.parts"] = { folders, files };
  const linux = spec.linux ?? {};
  for (const [key, value] of Object.entries(linux))
    if (!LINUX_NOT.includes(key)) values[`spec.linux.${key}`] = value;
  values["spec.linux.namespaces"] = (linux.namespaces ?? []).map(({ type }) => type).sort();
  values["spec.seccomp"] = linux.seccomp ?? null;
  for (const key of PROCESS_KEYS)
    if (spec.process[key] !== undefined) values[`spec.process.${key}`] = spec.process[key];
  return values;
}

const MADE_BY = "spec.made-by";
const PORTS_SORTED = "ports.sorted";
/** The application is started with them, and only then: a move goes, and a later restart starts something else. */
const AT_A_START = /^(subreaper$|(container|pod)\.(command|cwd|env)|bundle\.process|spec\.(process|seccomp))/;

/** Keys that one side has and the other has not, or has otherwise. */
export function disagreements(source: Agreement, target: Agreement): Disagreement[] {
  const found: Disagreement[] = [];
  for (const key of [...new Set([...Object.keys(source), ...Object.keys(target)])].sort()) {
    if (source[key] === target[key] || key === PORTS_SORTED) continue;
    found.push({ key, ...judge(key, source, target) });
  }
  return found;
}

function judge(key: string, source: Agreement, target: Agreement): Omit<Disagreement, "key"> {
  const same = "let both files say the same of it, and start the agent again";
  if (key === "downstream")
    return {
      severity: "error",
      what: "what becomes of clients' connections differs: a vip (takeover) or none (forward), or downstream:",
      cure: same,
    };
  if (key === "ports" && source[PORTS_SORTED] === target[PORTS_SORTED])
    return { severity: "error", what: "its ports are in another order", cure: same };
  if (AT_A_START.test(key))
    return {
      severity: "warning",
      what: `${key} differs: the application keeps what it has, a restart there starts it otherwise`,
      cure: same,
    };
  if (/^(limits|restart|ports\.replay|ports\.proxyProtocol\.)/.test(key))
    return { severity: "warning", what: `${key} differs: there the other value holds`, cure: same };
  if (key === MADE_BY)
    return {
      severity: "error",
      what: "the container there is of another OCI runtime (runc, crun), which mounts other things, and with other options",
      cure: "let the container runtimes of both nodes use the same one (CRI-O: default_runtime), or the pod a RuntimeClass",
    };
  if (key.startsWith("spec."))
    return {
      severity: "error",
      what: `the container there would be another one: ${key} differs`,
      cure: "use the same version of Holdfast and the same configuration on both nodes; a container made before a change of the configuration keeps what it had until it is stopped",
    };
  return { severity: "error", what: `${key} differs`, cure: same };
}

/** JSON with the keys of every object in order, so that equal values have equal texts. */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value)
      .filter(([, inner]) => inner !== undefined)
      .sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    return `{${entries.map(([key, inner]) => `${JSON.stringify(key)}:${canonicalJson(inner)}`).join(",")}}`;
  }
  return JSON.stringify(value ?? null);
}
