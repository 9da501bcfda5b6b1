/**
 * Calls that a container's processes do without, since CRIU cannot dump what they make, or drops it without a word: io_uring (they
 * use epoll), Linux AIO (what is under way is dropped, and may be written to memory that was copied already; databases use threads), MPTCP
 * (they use TCP: Go since 1.24 listens with it unless it is told that the kernel has none), and what confines a process and
 * nobody can see from outside or set again, Landlock, PR_SET_MDWE, memory protection keys and sealed memory: it would be confined before a
 * move and free after it. So would a program whose own handler is to have its system calls (PR_SET_SYSCALL_USER_DISPATCH: Wine), or its
 * reading of the processor's clock (PR_SET_TSC). And keys that the kernel holds for it (keyrings(7)), which stay on
 * their node. A program that finds none of them goes on as on an older kernel or processor. So each container's filter refuses them (seccomp(2)), whoever has made the filter.
 */
import { isDeepStrictEqual } from "node:util";

/** In an OCI configuration: `linux.seccomp` (runtime-spec, config-linux.md). */
export interface SeccompProfile {
  defaultAction: string;
  syscalls?: SeccompRule[];
  [key: string]: unknown;
}
export interface SeccompRule {
  names: string[];
  action: string;
  errnoRet?: number;
  args?: SeccompCondition[];
}
export interface SeccompCondition {
  index: number;
  value: number;
  valueTwo?: number;
  op: string;
}

export interface Refusal {
  /** system calls */
  names: readonly string[];
  /** asm-generic/errno.h */
  errno: number;
  /** only where this argument, an int, is one of these; null: always */
  where: { index: number; is: readonly number[] } | null;
  /** Whoever names it in a profile means it, and is not deceived: `check` finds what it makes. */
  unlessNamed?: boolean;
}

const EINVAL = 22;
const ENOSPC = 28;
const ENOSYS = 38;
const EPROTONOSUPPORT = 93;
/** linux/prctl.h */
const PR_SET_TSC = 26;
const PR_SET_SYSCALL_USER_DISPATCH = 59;
/** no memory that is writable and executable, from now on */
const PR_SET_MDWE = 65;
const IPPROTO_MPTCP = 262;
/** of a register of 64 bits that holds an int */
export const INT_MASK = 0xffffffff;

/** values of an argument that are let through one by one; those that are in use (prctl(2)) are fewer, but for some */
const BETWEEN_MAX = 256;

const NOT_CARRIED: readonly Refusal[] = [
  {
    names: ["io_uring_setup", "io_uring_enter", "io_uring_register"],
    errno: ENOSYS,
    where: null,
    unlessNamed: true,
  },
  {
    names: ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"],
    errno: ENOSYS,
    where: null,
  },
  {
    names: ["prctl"],
    errno: EINVAL,
    where: { index: 0, is: [PR_SET_TSC, PR_SET_SYSCALL_USER_DISPATCH, PR_SET_MDWE] },
  },
  // a kernel without CONFIG_AIO; whoever has no context has nothing to submit to (io_submit(2))
  { names: ["io_setup"], errno: ENOSYS, where: null },
  // what it fails with where the processor has none (pkey_alloc(2))
  { names: ["pkey_alloc"], errno: ENOSPC, where: null },
  { names: ["mseal"], errno: ENOSYS, where: null },
  // a kernel without CONFIG_KEYS; a restored process would have the agent's session keyring
  { names: ["add_key", "request_key", "keyctl"], errno: ENOSYS, where: null },
  // no other family has a protocol of this number
  { names: ["socket"], errno: EPROTONOSUPPORT, where: { index: 2, is: [IPPROTO_MPTCP] } },
];

/** Those of a container with this profile. @param profile null: it has none */
export function refusalsWith(profile: SeccompProfile | null): Refusal[] {
  return NOT_CARRIED.filter((refusal) => !isMeant(profile?.syscalls ?? [], refusal));
}

function isMeant(rules: SeccompRule[], { names, unlessNamed = false }: Refusal): boolean {
  return unlessNamed && rules.some((rule) => rule.names.some((name) => names.includes(name)));
}

/** The profile with these refused, and otherwise as it is: it lets nothing through that it did not. */
export function withoutNotCarried(profile: SeccompProfile): SeccompProfile {
  const rules = NOT_CARRIED.reduce(
    (before, refusal) => refused(before, refusal, profile.defaultAction),
    profile.syscalls ?? [],
  );
  return { ...profile, syscalls: rules };
}

function refused(rules: SeccompRule[], refusal: Refusal, defaultAction: string): SeccompRule[] {
  if (isMeant(rules, refusal)) return rules;
  const { names, errno, where } = refusal;
  const others = rules.flatMap((rule) => {
    const left = rule.names.filter((name) => !names.includes(name));
    return left.length === 0 ? [] : [left.length === rule.names.length ? rule : { ...rule, names: left }];
  });
  const added = names.flatMap((name): SeccompRule[] => {
    const own = rules.filter((rule) => rule.names.includes(name)).map((rule) => ({ ...rule, names: [name] }));
    // what is not let through anyway stays as the profile has it
    const isRefused = own.some(({ action, args }) => !lets(action) && (args ?? []).length === 0);
    const isLet = own.some(({ action }) => lets(action)) || (lets(defaultAction) && !isRefused);
    if (!isLet) return own;
    const refuse: SeccompRule = { names: [name], action: "SCMP_ACT_ERRNO", errnoRet: errno };
    if (where === null) return [refuse];
    const { index, is } = where;
    const refusals = is.map((value) => ({
      ...refuse,
      args: [{ index, value: INT_MASK, valueTwo: value, op: "SCMP_CMP_MASKED_EQ" }],
    }));
    const kept = own
      .filter((rule) => !refusals.some((one) => isDeepStrictEqual(rule, one)))
      .flatMap((rule) => (lets(rule.action) ? without(rule, where) : [rule]));
    return [...kept, ...refusals];
  });
  return [...others, ...added];
}

function lets(action: string): boolean {
  return ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"].includes(action);
}

/** What a rule lets through, but for some values of an argument. */
function without(rule: SeccompRule, { index, is }: NonNullable<Refusal["where"]>): SeccompRule[] {
  return alternatives(rule).flatMap((one) => {
    const args = one.args ?? [];
    const condition = args.find((each) => each.index === index);
    const others = args.filter((each) => each !== condition);
    if (condition === undefined || condition.op === "SCMP_CMP_NE") {
      const values = [...is, ...(condition === undefined ? [] : [condition.value])];
      return noneOf(index, values).map((other) => ({ ...one, args: [...others, other] }));
    }
    // libseccomp takes one condition an argument: where it names a value, that is a refused one or another
    return condition.op === "SCMP_CMP_EQ" && is.includes(condition.value) ? [] : [one];
  });
}

/** Alternatives: every value but these, of which there is at least one. */
function noneOf(index: number, values: number[]): SeccompCondition[] {
  const sorted = [...new Set(values)].sort((a, b) => a - b);
  const [least, greatest] = [sorted[0] as number, sorted.at(-1) as number];
  if (least === greatest) return [{ index, value: least, op: "SCMP_CMP_NE" }];
  // one that is far away is what the rule had, which is not refused by us: what is between is not let through then
  const between = Array.from(
    { length: Math.min(greatest - least - 1, BETWEEN_MAX) },
    (_, at) => least + 1 + at,
  );
  return [
    { index, value: least, op: "SCMP_CMP_LT" },
    ...between
      .filter((value) => !sorted.includes(value))
      .map((value) => ({ index, value, op: "SCMP_CMP_EQ" })),
    { index, value: greatest, op: "SCMP_CMP_GT" },
  ];
}

/** runc takes several conditions on one argument for alternatives, each alone (libcontainer/seccomp, `matchCall`). */
function alternatives(rule: SeccompRule): SeccompRule[] {
  const args = rule.args ?? [];
  const isPlain = new Set(args.map(({ index }) => index)).size === args.length;
  return isPlain ? [rule] : args.map((condition) => ({ ...rule, args: [condition] }));
}
