/**
 * Calls that a container's processes do without, since CRIU cannot dump what they make, or drops it without a word: io_uring (they
 * use epoll), Linux AIO (what is under way is dropped, and may be written to memory that was copied already; databases use threads), MPTCP
 * (they use TCP: Go since 1.24 listens with it unless it is told that the kernel has none), and what confines a process and
 * nobody can see from outside or set again, Landlock, PR_SET_MDWE, memory protection keys and sealed memory: it would be confined before a
 * move and free after it. A program that finds none of them goes on as on an older kernel or processor. So each container's filter refuses them (seccomp(2)), whoever has made the filter.
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
  /** only where this argument, an int, is that; null: always */
  where: { index: number; is: number } | null;
  /** Whoever names it in a profile means it, and is not deceived: `check` finds what it makes. */
  unlessNamed?: boolean;
}

const EINVAL = 22;
const ENOSPC = 28;
const ENOSYS = 38;
const EPROTONOSUPPORT = 93;
/** linux/prctl.h: no memory that is writable and executable, from now on */
const PR_SET_MDWE = 65;
const IPPROTO_MPTCP = 262;
/** of a register of 64 bits that holds an int */
export const INT_MASK = 0xffffffff;

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
  { names: ["prctl"], errno: EINVAL, where: { index: 0, is: PR_SET_MDWE } },
  // a kernel without CONFIG_AIO; whoever has no context has nothing to submit to (io_submit(2))
  { names: ["io_setup"], errno: ENOSYS, where: null },
  // what it fails with where the processor has none (pkey_alloc(2))
  { names: ["pkey_alloc"], errno: ENOSPC, where: null },
  { names: ["mseal"], errno: ENOSYS, where: null },
  // no other family has a protocol of this number
  { names: ["socket"], errno: EPROTONOSUPPORT, where: { index: 2, is: IPPROTO_MPTCP } },
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
    refuse.args = [{ index, value: INT_MASK, valueTwo: is, op: "SCMP_CMP_MASKED_EQ" }];
    const kept = own
      .filter((rule) => !isDeepStrictEqual(rule, refuse))
      .flatMap((rule) => (lets(rule.action) ? without(rule, where) : [rule]));
    return [...kept, refuse];
  });
  return [...others, ...added];
}

function lets(action: string): boolean {
  return ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"].includes(action);
}

/** What a rule lets through, but for one value of an argument. */
function without(rule: SeccompRule, { index, is }: NonNullable<Refusal["where"]>): SeccompRule[] {
  return alternatives(rule).flatMap((one) => {
    const args = one.args ?? [];
    const condition = args.find((each) => each.index === index);
    if (condition === undefined)
      return [{ ...one, args: [...args, { index, value: is, op: "SCMP_CMP_NE" }] }];
    // libseccomp takes one condition an argument: where it names a value, that is the refused one or another
    return condition.op === "SCMP_CMP_EQ" && condition.value === is ? [] : [one];
  });
}

/** runc takes several conditions on one argument for alternatives, each alone (libcontainer/seccomp, `matchCall`). */
function alternatives(rule: SeccompRule): SeccompRule[] {
  const args = rule.args ?? [];
  const isPlain = new Set(args.map(({ index }) => index)).size === args.length;
  return isPlain ? [rule] : args.map((condition) => ({ ...rule, args: [condition] }));
}
