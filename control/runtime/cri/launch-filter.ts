/**
 * A pod's application gets its container's seccomp filter with what a move would not carry refused in addition (`not-carried.ts`): Kubernetes'
 * RuntimeDefault lets Landlock and MPTCP through, for one. `runc exec` filters by what it finds in the container's state.json, and `crun exec`
 * by its seccomp.bpf, so each is shown one with the refusals; the container's own stays as it is.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseExactJson } from "../exact-json.ts";
import { refusalsWith, type SeccompProfile, withoutNotCarried } from "../not-carried.ts";
import { refusing } from "./filter-program.ts";
import { type OciState, specOf } from "./oci-state.ts";

/** `config.seccomp` as runc keeps it (libcontainer/configs/config.go): actions and operators are numbers. */
export interface KeptFilter {
  default_action: number;
  default_errno_ret?: number | null;
  architectures: string[] | null;
  syscalls:
    | {
        name: string;
        action: number;
        errnoRet?: number | null;
        args?: { index: number; value: number; value_two: number; op: number }[] | null;
      }[]
    | null;
  [key: string]: unknown;
}

/** beside crun's status (src/libcrun/container.c, src/libcrun/seccomp.c) */
const [CONFIG, PROGRAM] = ["config.json", "seccomp.bpf"];
const ACTIONS = [
  "",
  "KILL",
  "ERRNO",
  "TRAP",
  "ALLOW",
  "TRACE",
  "LOG",
  "NOTIFY",
  "KILL_THREAD",
  "KILL_PROCESS",
];
const OPERATORS = ["", "EQ", "NE", "GT", "GE", "LT", "LE", "MASKED_EQ"];
/** of a container without a filter, and the numbers of system calls that it may use */
const NO_FILTER: KeptFilter = {
  default_action: ACTIONS.indexOf("ALLOW"),
  architectures: ["amd64", "x86", "arm64"],
  syscalls: [],
};

/** @param kept null: the container has none */
export function launchFilter(kept: KeptFilter | null): KeptFilter {
  const filter = kept ?? NO_FILTER;
  const { syscalls } = withoutNotCarried(profileOf(filter));
  return {
    ...filter,
    syscalls: (syscalls ?? []).flatMap(({ names, action, errnoRet, args }) =>
      names.map((name) => ({
        name,
        action: ACTIONS.indexOf(action.slice("SCMP_ACT_".length)),
        errnoRet: errnoRet ?? null,
        args: (args ?? []).map(({ index, value, valueTwo, op }) => ({
          index,
          value,
          value_two: valueTwo ?? 0,
          op: OPERATORS.indexOf(op.slice("SCMP_CMP_".length)),
        })),
      })),
    ),
  };
}

function profileOf({ default_action, syscalls }: KeptFilter): SeccompProfile {
  return {
    defaultAction: `SCMP_ACT_${ACTIONS[default_action]}`,
    syscalls: (syscalls ?? []).map(({ name, action, errnoRet, args }) => ({
      names: [name],
      action: `SCMP_ACT_${ACTIONS[action]}`,
      ...(typeof errnoRet === "number" ? { errnoRet } : {}),
      args: (args ?? []).map(({ index, value, value_two, op }) => ({
        index,
        value,
        valueTwo: value_two,
        op: `SCMP_CMP_${OPERATORS[op]}`,
      })),
    })),
  };
}

/**
 * Writes a state with the refusals for `runc exec` or `crun exec` to find.
 * @param folder is made @returns what to give it as `--root`
 */
export async function writeLaunchState(state: OciState, id: string, folder: string): Promise<string> {
  const shown = join(folder, id);
  await mkdir(shown, { recursive: true, mode: 0o700 });
  const write = (file: string, text: string | Buffer): Promise<void> =>
    writeFile(join(shown, file), text, { mode: 0o600 });
  const kept = await readFile(join(state.folder, state.file), "utf8");
  if (state.program === "crun") {
    const profile = ((await specOf(state)).linux?.seccomp ?? null) as SeccompProfile | null;
    const program = await readFile(join(state.folder, PROGRAM)).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT" && profile === null) return Buffer.alloc(0);
      throw error; // without it the application would be confined less than its container
    });
    await write(state.file, kept);
    await write(CONFIG, await readFile(state.config, "utf8"));
    await write(PROGRAM, refusing(program, refusalsWith(profile)));
    return folder;
  }
  const { config, ...rest } = parseExactJson(kept) as { config: { seccomp?: KeptFilter | null } };
  const seccomp = launchFilter(config.seccomp ?? null);
  // a folder that it starts itself in, of which this process need not have the container runtime's
  const rootfs = "/";
  await write(state.file, JSON.stringify({ ...rest, config: { ...config, rootfs, seccomp } }));
  return folder;
}
