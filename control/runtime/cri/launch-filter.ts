/**
 * A pod's application gets its container's seccomp filter with what a move would not carry refused in addition (`not-carried.ts`): Kubernetes'
 * RuntimeDefault lets Landlock and MPTCP through, for one. `runc exec` filters by what it finds in the container's state.json, so it
 * is shown one with the refusals; the container's own stays as it is.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseExactJson } from "../exact-json.ts";
import { type SeccompProfile, withoutNotCarried } from "../not-carried.ts";

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

const STATE = "state.json";
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

/** Writes a state with the refusals for `runc exec` to find. @returns what to give it as `--root` */
export async function writeLaunchState(root: string, id: string, folder: string): Promise<string> {
  const state = parseExactJson(await readFile(join(root, id, STATE), "utf8")) as {
    config: { seccomp?: KeptFilter | null };
  };
  const seccomp = launchFilter(state.config.seccomp ?? null);
  await mkdir(join(folder, id), { recursive: true, mode: 0o700 });
  const shown = { ...state, config: { ...state.config, seccomp } };
  await writeFile(join(folder, id, STATE), JSON.stringify(shown), { mode: 0o600 });
  return folder;
}
