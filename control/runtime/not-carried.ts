/**
 * Calls that a container's processes do without, since CRIU cannot dump what they make, or drops it without a word: io_uring (they
 * use epoll), Linux AIO (what is under way is dropped, and may be written to memory that was copied already; databases use threads), MPTCP
 * (they use TCP: Go since 1.24 listens with it unless it is told that the kernel has none), and what confines a process and
 * nobody can see from outside or set again, Landlock, PR_SET_MDWE, memory protection keys and sealed memory: it would be confined before a
 * move and free after it. So would a program whose own handler is to have its system calls (PR_SET_SYSCALL_USER_DISPATCH: Wine), or its
 * reading of the processor's clock (PR_SET_TSC), a thread that shares no core with strangers (PR_SCHED_CORE), and a socket that takes signed
 * segments only (TCP_MD5SIG, TCP-AO: BGP). What a program asks its processor for by arch_prctl(2) it would find gone: with tiles of AMX the next
 * instruction ends it (SIGILL). And keys that the kernel holds for it (keyrings(7)), which stay on
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
  /** only where all of these hold; none: always */
  where: readonly ArgumentTest[];
  /** Whoever names it in a profile means it, and is not deceived: `check` finds what it makes. */
  unlessNamed?: boolean;
}
/** Of an argument, an int. */
export type ArgumentTest = { index: number; is: readonly number[] } | { index: number; isNot: number };

const EINVAL = 22;
const ENODEV = 19;
const ENOSPC = 28;
const ENOSYS = 38;
const ENOPROTOOPT = 92;
const EPROTONOSUPPORT = 93;
const EOPNOTSUPP = 95;
/** linux/prctl.h */
const PR_SET_TSC = 26;
const PR_SET_THP_DISABLE = 41;
const PR_SET_SYSCALL_USER_DISPATCH = 59;
const PR_SCHED_CORE = 62;
/** no memory that is writable and executable, from now on */
const PR_SET_MDWE = 65;
/** asm/prctl.h of x86 */
const ARCH_SET_CPUID = 0x1012;
const ARCH_REQ_XCOMP_PERM = 0x1023;
const ARCH_REQ_XCOMP_GUEST_PERM = 0x1025;
const ARCH_ENABLE_TAGGED_ADDR = 0x4002;
const ARCH_FORCE_TAGGED_SVA = 0x4004;
const IPPROTO_TCP = 6;
const IPPROTO_MPTCP = 262;
/** linux/tcp.h: TCP_MD5SIG, TCP_MD5SIG_EXT, TCP_AO_ADD_KEY, TCP_AO_DEL_KEY, TCP_AO_INFO */
const SIGNED_SEGMENTS = [14, 32, 38, 39, 40];
/** of a register of 64 bits that holds an int */
export const INT_MASK = 0xffffffff;

const NOT_CARRIED: readonly Refusal[] = [
  {
    names: ["io_uring_setup", "io_uring_enter", "io_uring_register"],
    errno: ENOSYS,
    where: [],
    unlessNamed: true,
  },
  {
    names: ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"],
    errno: ENOSYS,
    where: [],
  },
  // PR_SCHED_CORE: a kernel without CONFIG_SCHED_CORE
  {
    names: ["prctl"],
    errno: EINVAL,
    where: [{ index: 0, is: [PR_SET_TSC, PR_SET_SYSCALL_USER_DISPATCH, PR_SCHED_CORE, PR_SET_MDWE] }],
  },
  // its flags, which CRIU does not know: a kernel before 6.18 has none
  {
    names: ["prctl"],
    errno: EINVAL,
    where: [
      { index: 0, is: [PR_SET_THP_DISABLE] },
      { index: 2, isNot: 0 },
    ],
  },
  // a processor without AMX (xstate_request_perm() in arch/x86/kernel/fpu/xstate.c)
  {
    names: ["arch_prctl"],
    errno: EOPNOTSUPP,
    where: [{ index: 0, is: [ARCH_REQ_XCOMP_PERM, ARCH_REQ_XCOMP_GUEST_PERM] }],
  },
  // one without faults of CPUID, and without LAM (arch/x86/kernel/process.c, process_64.c)
  {
    names: ["arch_prctl"],
    errno: ENODEV,
    where: [{ index: 0, is: [ARCH_SET_CPUID, ARCH_ENABLE_TAGGED_ADDR] }],
  },
  // a kernel without CONFIG_ADDRESS_MASKING
  { names: ["arch_prctl"], errno: EINVAL, where: [{ index: 0, is: [ARCH_FORCE_TAGGED_SVA] }] },
  // a kernel without CONFIG_AIO; whoever has no context has nothing to submit to (io_submit(2))
  { names: ["io_setup"], errno: ENOSYS, where: [] },
  // what it fails with where the processor has none (pkey_alloc(2))
  { names: ["pkey_alloc"], errno: ENOSPC, where: [] },
  { names: ["mseal"], errno: ENOSYS, where: [] },
  // a kernel without CONFIG_KEYS; a restored process would have the agent's session keyring
  { names: ["add_key", "request_key", "keyctl"], errno: ENOSYS, where: [] },
  // no other family has a protocol of this number
  { names: ["socket"], errno: EPROTONOSUPPORT, where: [{ index: 2, is: [IPPROTO_MPTCP] }] },
  // a kernel without CONFIG_TCP_MD5SIG and CONFIG_TCP_AO (do_tcp_setsockopt() in net/ipv4/tcp.c)
  {
    names: ["setsockopt"],
    errno: ENOPROTOOPT,
    where: [
      { index: 1, is: [IPPROTO_TCP] },
      { index: 2, is: SIGNED_SEGMENTS },
    ],
  },
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
    if (where.length === 0) return [refuse];
    const refusals = where.reduce((before, test) => limited(before, test.index, passed(test)), [refuse]);
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

/** What a rule lets through, but for calls that pass all these tests: what fails the first, what passes it and fails the second, and so on. */
function without(rule: SeccompRule, where: readonly ArgumentTest[]): SeccompRule[] {
  return alternatives(rule).flatMap((one) =>
    where.flatMap((failed, at) => {
      const passing = where
        .slice(0, at)
        .reduce((before, test) => limited(before, test.index, passed(test)), [one]);
      return limited(passing, failed.index, "is" in failed ? outside(failed.is) : [only(failed.isNot)]);
    }),
  );
}

/** These rules for some values of an argument alone, each with one condition on it: libseccomp takes no more. */
function limited(rules: SeccompRule[], index: number, to: Range[]): SeccompRule[] {
  return rules.flatMap((rule) => {
    const condition = rule.args?.find((each) => each.index === index);
    const had = condition === undefined ? [ANY] : rangesOf(condition);
    // one that names no range stays as it is: it is of a profile of somebody's own, and looks at bits of what is a number
    const left = had === null ? null : common(had, to);
    if (left === null || isDeepStrictEqual(left, had)) return [rule];
    const others = rule.args?.filter((each) => each !== condition) ?? [];
    return left.flatMap((range) =>
      conditionsOf(range).map((other) => ({ ...rule, args: [...others, { index, ...other }] })),
    );
  });
}

/** runc takes several conditions on one argument for alternatives, each alone (libcontainer/seccomp, `matchCall`). */
function alternatives(rule: SeccompRule): SeccompRule[] {
  const args = rule.args ?? [];
  const isPlain = new Set(args.map(({ index }) => index)).size === args.length;
  return isPlain ? [rule] : args.map((condition) => ({ ...rule, args: [condition] }));
}

// ---- values of an argument ----

/** Both included, without a sign; Infinity: all that come after. */
type Range = [least: number, greatest: number];

const ANY: Range = [0, Number.POSITIVE_INFINITY];

function only(value: number): Range {
  return [value, value];
}

function passed(test: ArgumentTest): Range[] {
  return "is" in test ? test.is.map(only) : outside([test.isNot]);
}

function outside(values: readonly number[]): Range[] {
  const sorted = [-1, ...values.toSorted((a, b) => a - b), Number.POSITIVE_INFINITY];
  return sorted
    .slice(1)
    .map((value, at): Range => [(sorted[at] as number) + 1, value - 1])
    .filter(([least, greatest]) => least <= greatest && least !== Number.POSITIVE_INFINITY);
}

function common(some: Range[], others: Range[]): Range[] {
  return some.flatMap(([least, greatest]) =>
    others
      .map((other): Range => [Math.max(least, other[0]), Math.min(greatest, other[1])])
      .filter((range) => range[0] <= range[1]),
  );
}

/** null: they are not one after the other, or more than an int */
function rangesOf({ op, value, valueTwo = 0 }: SeccompCondition): Range[] | null {
  if (!(value <= INT_MASK && valueTwo <= INT_MASK)) return null;
  const below = (end: number): Range[] => (end === 0 ? [] : [[0, end - 1]]);
  if (op === "SCMP_CMP_EQ") return [only(value)];
  if (op === "SCMP_CMP_NE") return outside([value]);
  if (op === "SCMP_CMP_LT") return below(value);
  if (op === "SCMP_CMP_LE") return below(value + 1);
  if (op === "SCMP_CMP_GT") return [[value + 1, Number.POSITIVE_INFINITY]];
  if (op === "SCMP_CMP_GE") return [[value, Number.POSITIVE_INFINITY]];
  const free = INT_MASK - value;
  const isBlock = ((free + 1) & free) === 0 && (valueTwo & free) === 0;
  return isBlock ? [[valueTwo, valueTwo + free]] : null;
}

/** Alternatives that are the range together. What is between two values far apart are a few blocks, each of numbers that begin with the same bits. */
function conditionsOf([least, greatest]: Range): Omit<SeccompCondition, "index">[] {
  if (greatest === Number.POSITIVE_INFINITY) return [{ value: least - 1, valueTwo: 0, op: "SCMP_CMP_GT" }];
  if (least === 0 && greatest > 0) return [{ value: greatest + 1, valueTwo: 0, op: "SCMP_CMP_LT" }];
  const blocks: Omit<SeccompCondition, "index">[] = [];
  for (let at = least; at <= greatest; ) {
    let size = at === 0 ? 1 : (at & -at) >>> 0;
    while (at + size - 1 > greatest) size /= 2;
    blocks.push({ value: INT_MASK - (size - 1), valueTwo: at, op: "SCMP_CMP_MASKED_EQ" });
    at += size;
  }
  return blocks;
}
