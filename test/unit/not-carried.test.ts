/** Seccomp profiles that others made, with what a move does not carry refused: nothing else changes, and nothing is let through that was not. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { type KeptFilter, launchFilter } from "#control/runtime/cri/launch-filter.ts";
import { parseExactJson } from "#control/runtime/exact-json.ts";
import {
  INT_MASK,
  type SeccompCondition,
  type SeccompProfile,
  withoutNotCarried,
} from "#control/runtime/not-carried.ts";

const ALLOW = "SCMP_ACT_ALLOW";
const ERRNO = "SCMP_ACT_ERRNO";
const LISTED = [
  "read",
  "prctl",
  "socket",
  "landlock_restrict_self",
  "pkey_alloc",
  "mseal",
  "io_setup",
  "keyctl",
  "arch_prctl",
  "setsockopt",
];
const VALUES = [0, 1, 2, 6, 14, 26, 40, 41, 59, 62, 65, 262, 0x1012, 0x1023, 0x3fff, 0x4002, 0x4004];
const NAMES = [...LISTED, "io_uring_setup"];

/** What libseccomp has the kernel answer: the most permissive rule that matches, as each names one action. */
function answer(profile: SeccompProfile, name: string, args: number[]): string {
  const holds = ({ index, value, valueTwo = 0, op }: SeccompCondition): boolean => {
    const arg = args[index] ?? 0;
    if (op === "SCMP_CMP_EQ") return arg === value;
    if (op === "SCMP_CMP_NE") return arg !== value;
    if (op === "SCMP_CMP_LT") return arg < value;
    if (op === "SCMP_CMP_LE") return arg <= value;
    if (op === "SCMP_CMP_GT") return arg > value;
    if (op === "SCMP_CMP_GE") return arg >= value;
    assert.equal(op, "SCMP_CMP_MASKED_EQ");
    return (arg & value) >>> 0 === valueTwo;
  };
  const matching = (profile.syscalls ?? []).filter((rule) => {
    const conditions = rule.args ?? [];
    const isPlain = new Set(conditions.map(({ index }) => index)).size === conditions.length;
    return rule.names.includes(name) && (isPlain ? conditions.every(holds) : conditions.some(holds));
  });
  const said = matching.map(({ action, errnoRet }) => `${action} ${action === ERRNO ? errnoRet : ""}`.trim());
  return said.includes(ALLOW) ? ALLOW : (said[0] ?? profile.defaultAction);
}

const condition = fc.record({
  index: fc.constantFrom(0, 1, 2),
  value: fc.constantFrom(...VALUES),
  op: fc.constantFrom(...["EQ", "NE", "LT", "LE", "GT", "GE"].map((op) => `SCMP_CMP_${op}`)),
});
const profile: fc.Arbitrary<SeccompProfile> = fc.record({
  defaultAction: fc.constantFrom(ALLOW, ERRNO),
  syscalls: fc.array(
    fc.record({
      names: fc.uniqueArray(fc.constantFrom(...NAMES), { minLength: 1 }),
      action: fc.constant(ALLOW),
      args: fc.array(condition, { maxLength: 3 }),
    }),
    { maxLength: 4 },
  ),
});
const call = fc.tuple(
  fc.constantFrom(...NAMES),
  fc.array(fc.constantFrom(...VALUES), { minLength: 3, maxLength: 3 }),
);

const isNotCarried = (name: string, args: number[]): boolean =>
  /^(landlock|io_uring|pkey_alloc$|mseal$|io_setup$|keyctl$)/.test(name) ||
  (name === "prctl" && [26, 59, 62, 65].includes(args[0] ?? 0)) ||
  (name === "prctl" && args[0] === 41 && args[2] !== 0) ||
  (name === "arch_prctl" && [0x1012, 0x1023, 0x4002, 0x4004].includes(args[0] ?? 0)) ||
  (name === "setsockopt" && args[1] === 6 && [14, 40].includes(args[2] ?? 0)) ||
  (name === "socket" && args[2] === 262);

describe("a profile without what a move does not carry", () => {
  it("lets nothing through that it did not, and takes nothing else away", () => {
    fc.assert(
      fc.property(profile, call, (before, [name, args]) => {
        const now = answer(withoutNotCarried(before), name, args);
        const isNamed = before.syscalls?.some((rule) => rule.names.includes(name)) === true;
        const isLeft = name === "io_uring_setup" && isNamed;
        if (isLeft || !isNotCarried(name, args)) assert.equal(now, answer(before, name, args));
        else assert.notEqual(now, ALLOW);
      }),
      { numRuns: 2_000 },
    );
  });

  it("refuses it as an older kernel does, whether the profile lists what is let through or what is not", () => {
    for (const before of [
      { defaultAction: ALLOW },
      { defaultAction: ERRNO, syscalls: [{ names: LISTED, action: ALLOW }] },
      // containerd's: no sockets of the hypervisor
      {
        defaultAction: ERRNO,
        syscalls: [
          { names: LISTED.filter((name) => name !== "socket"), action: ALLOW },
          { names: ["socket"], action: ALLOW, args: [{ index: 0, value: 40, op: "SCMP_CMP_NE" }] },
        ],
      },
    ]) {
      const after = withoutNotCarried(before);
      assert.equal(answer(after, "landlock_restrict_self", []), `${ERRNO} 38`);
      if (before.defaultAction === ALLOW) assert.equal(answer(after, "io_uring_setup", []), `${ERRNO} 38`);
      else assert.equal(answer(after, "io_uring_setup", []), ERRNO);
      for (const name of ["io_setup", "keyctl"]) assert.equal(answer(after, name, []), `${ERRNO} 38`);
      for (const refused of [26, 59, 62, 65]) assert.equal(answer(after, "prctl", [refused]), `${ERRNO} 22`);
      for (const left of [0, 15, 25, 27, 58, 60, 61, 63, 64, 66, 0x53564d41])
        assert.equal(answer(after, "prctl", [left, 1, 2]), ALLOW);
      for (const flags of [1, 2, 0x80000000])
        assert.equal(answer(after, "prctl", [41, 1, flags]), `${ERRNO} 22`);
      for (const on of [0, 1]) assert.equal(answer(after, "prctl", [41, on, 0]), ALLOW);
      for (const [option, errno] of [
        [0x1012, 19],
        [0x1023, 95],
        [0x1025, 95],
        [0x4002, 19],
        [0x4004, 22],
      ] as const)
        assert.equal(answer(after, "arch_prctl", [option]), `${ERRNO} ${errno}`);
      // ARCH_SET_FS, ARCH_GET_XCOMP_PERM, and what is between and beyond
      for (const left of [0, 0x1002, 0x1011, 0x1013, 0x1022, 0x1024, 0x1026, 0x2345, 0x4001, 0x4003, 0x5001])
        assert.equal(answer(after, "arch_prctl", [left]), ALLOW);
      for (const name of [14, 32, 38, 39, 40]) {
        assert.equal(answer(after, "setsockopt", [3, 6, name]), `${ERRNO} 92`);
        for (const level of [0, 1, 5, 7, 41, 262])
          assert.equal(answer(after, "setsockopt", [3, level, name]), ALLOW);
      }
      for (const left of [0, 1, 13, 15, 31, 33, 37, 41])
        assert.equal(answer(after, "setsockopt", [3, 6, left]), ALLOW);
      assert.equal(answer(after, "socket", [2, 1, 262]), `${ERRNO} 93`);
      assert.equal(answer(after, "socket", [2, 1, 6]), ALLOW);
      assert.equal(answer(after, "socket", [40, 1, 0]), answer(before, "socket", [40, 1, 0]));
    }
  });

  it("leaves io_uring to whoever names it", () => {
    const before = { defaultAction: ERRNO, syscalls: [{ names: NAMES, action: ALLOW }] };
    assert.equal(answer(withoutNotCarried(before), "io_uring_setup", []), ALLOW);
  });

  it("leaves refused what was refused, with the error that it had", () => {
    const before = {
      defaultAction: ALLOW,
      syscalls: [{ names: ["io_uring_setup", "read"], action: ERRNO, errnoRet: 1 }],
    };
    assert.equal(answer(withoutNotCarried(before), "io_uring_setup", []), `${ERRNO} 1`);
    assert.equal(answer(withoutNotCarried(before), "read", []), `${ERRNO} 1`);
    assert.deepEqual(withoutNotCarried(withoutNotCarried(before)), withoutNotCarried(before));
  });
});

describe("the filter that runc keeps of a container", () => {
  it("gets the same refusals, in its own numbers", () => {
    const argument = (index: number, op: number, value: number, value_two = 0): object => ({
      ...{ index, op, value, value_two },
    });
    const block = (from: number, size: number, index = 0): object =>
      argument(index, 7, INT_MASK - (size - 1), from);
    const kept: KeptFilter = {
      default_action: 2,
      default_errno_ret: 1,
      architectures: ["amd64"],
      syscalls: [
        { name: "prctl", action: 4, errnoRet: null, args: [] },
        { name: "personality", action: 4, args: [{ index: 0, value: INT_MASK, value_two: 3, op: 7 }] },
        { name: "landlock_create_ruleset", action: 4, args: null },
      ],
    };
    assert.deepEqual(launchFilter(kept), {
      ...kept,
      syscalls: [
        { name: "personality", action: 4, errnoRet: null, args: kept.syscalls?.[1]?.args },
        { name: "landlock_create_ruleset", action: 2, errnoRet: 38, args: [] },
        // below 26, the blocks between the refused ones, and above 65
        ...[
          ...[[argument(0, 5, 26)], [block(27, 1)], [block(28, 4)]],
          ...[[block(32, 8)], [block(40, 1)], [block(42, 2)], [block(44, 4)]],
          [block(41, 1), block(0, 1, 2)],
          ...[[block(48, 8)], [block(56, 2)], [block(58, 1)], [block(60, 2)], [block(63, 1)], [block(64, 1)]],
          [argument(0, 3, 65)],
        ].map((args) => ({ name: "prctl", action: 4, errnoRet: null, args })),
        ...[26, 59, 62, 65].map((value) => ({
          ...{ name: "prctl", action: 2, errnoRet: 22 },
          args: [block(value, 1)],
        })),
        { name: "prctl", action: 2, errnoRet: 22, args: [block(41, 1), argument(2, 3, 0)] },
      ],
    });
  });

  it("is made where there was none", () => {
    const { default_action, syscalls } = launchFilter(null);
    assert.equal(default_action, 4);
    assert.ok(syscalls?.some(({ name, action }) => name === "landlock_restrict_self" && action === 2));
  });
});

describe("JSON of container runtimes", () => {
  it("keeps integers of 64 bits as they are written", () => {
    const text =
      '{"soft":18446744073709551615,"hard":-9223372036854775808,"small":9007199254740991,"more":[0.5,1e3]}';
    const value = parseExactJson(text) as { small: number };
    assert.equal(value.small, Number.MAX_SAFE_INTEGER);
    assert.equal(JSON.stringify(value), text.replace("1e3", "1000"));
  });
});
