/** Seccomp filters as the kernel takes them, with calls refused in addition: what they refuse themselves stays as it is. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { refusing } from "#control/runtime/cri/filter-program.ts";
import { refusalsWith } from "#control/runtime/not-carried.ts";

const [ALLOW, LOG, KILL_PROCESS, ERRNO] = [0x7fff0000, 0x7ffc0000, 0x80000000, 0x00050000];
const [X86_64, I386, AARCH64, ARM] = [0xc000003e, 0x40000003, 0xc00000b7, 0x40000028];
const [EPERM, ENODEV, EINVAL, ENOSYS, ENOPROTOOPT, EPROTONOSUPPORT, EOPNOTSUPP] = [1, 19, 22, 38, 92, 93, 95];
const MPTCP = 262;
const PR_SET_MDWE = 65;
const [PR_SET_THP_DISABLE, PR_SCHED_CORE] = [41, 62];
const IPPROTO_TCP = 6;

/** code, instructions to skip if so, if not, and a number (`struct sock_filter`) */
function program(...instructions: [number, number, number, number][]): Buffer {
  return Buffer.concat(
    instructions.map(([code, ifTrue, ifFalse, k]) => {
      const one = Buffer.alloc(8);
      one.writeUInt16LE(code, 0);
      one.writeUInt8(ifTrue, 2);
      one.writeUInt8(ifFalse, 3);
      one.writeUInt32LE(k, 4);
      return one;
    }),
  );
}

/** What the kernel comes to (Documentation/networking/filter.rst), as far as filters here go. */
function answer(filter: Buffer, architecture: number, number: number, args: number[] = []): number {
  const data = Buffer.alloc(64);
  data.writeUInt32LE(number, 0);
  data.writeUInt32LE(architecture, 4);
  for (const [at, value] of args.entries()) data.writeUInt32LE(value, 16 + at * 8);
  let accumulator = 0;
  for (let at = 0; at < filter.length / 8; at += 1) {
    const [code, k] = [filter.readUInt16LE(at * 8), filter.readUInt32LE(at * 8 + 4)];
    if (code === 0x06) return k;
    if (code === 0x20) accumulator = data.readUInt32LE(k);
    else if (code === 0x54) accumulator = (accumulator & k) >>> 0;
    else if (code === 0x05) at += k;
    else if (code === 0x15) at += filter.readUInt8(at * 8 + (accumulator === k ? 2 : 3));
    else assert.fail(`instruction ${code}`);
  }
  return assert.fail("the filter has no end");
}

/** As libseccomp makes them: of x86-64 only, call 41 (socket) is logged, 157 (prctl) refused, 444 (Landlock) killed, and all else let. */
const KEPT = program(
  [0x20, 0, 0, 4],
  [0x15, 1, 0, X86_64],
  [0x06, 0, 0, ALLOW],
  [0x20, 0, 0, 0],
  [0x15, 4, 0, 41],
  [0x15, 2, 0, 157],
  [0x15, 0, 3, 444],
  [0x06, 0, 0, KILL_PROCESS],
  [0x06, 0, 0, ERRNO | EPERM],
  [0x06, 0, 0, LOG],
  [0x06, 0, 0, ALLOW],
);

describe("a seccomp filter with calls refused in addition", () => {
  it("refuses them where there was none, on each architecture", () => {
    const filter = refusing(Buffer.alloc(0), refusalsWith(null));
    for (const [architecture, prctl, socket, setup, keyctl] of [
      [X86_64, 157, 41, 206, 250],
      [I386, 172, 359, 245, 288],
      [AARCH64, 167, 198, 0, 219],
    ] as const) {
      for (const refused of [26, 59, PR_SCHED_CORE, PR_SET_MDWE])
        assert.equal(answer(filter, architecture, prctl, [refused]), ERRNO | EINVAL);
      for (const left of [15, 25, 27, 60]) assert.equal(answer(filter, architecture, prctl, [left]), ALLOW);
      assert.equal(answer(filter, architecture, socket, [2, 1, MPTCP]), ERRNO | EPROTONOSUPPORT);
      assert.equal(answer(filter, architecture, socket, [2, 1, 6]), ALLOW);
      assert.equal(answer(filter, architecture, setup), ERRNO | ENOSYS);
      assert.equal(answer(filter, architecture, keyctl), ERRNO | ENOSYS);
      assert.equal(answer(filter, architecture, 444), ERRNO | ENOSYS);
      assert.equal(answer(filter, architecture, 425), ERRNO | ENOSYS);
      assert.equal(answer(filter, architecture, 1_000), ALLOW);
    }
    assert.equal(answer(filter, X86_64, 157 | 0x40000000, [PR_SET_MDWE]), ERRNO | EINVAL, "of x32");
    assert.equal(answer(filter, ARM, 444), ALLOW);
  });

  it("refuses of arch_prctl what a move does not carry, where there is such a call", () => {
    const filter = refusing(Buffer.alloc(0), refusalsWith(null));
    for (const [architecture, archPrctl] of [
      [X86_64, 158],
      [X86_64, 158 | 0x40000000],
      [I386, 384],
    ] as const) {
      for (const [option, errno] of [
        [0x1012, ENODEV],
        [0x1023, EOPNOTSUPP],
        [0x1025, EOPNOTSUPP],
        [0x4002, ENODEV],
        [0x4004, EINVAL],
      ] as const)
        assert.equal(answer(filter, architecture, archPrctl, [option]), ERRNO | errno, `${option}`);
      for (const left of [0x1002, 0x1011, 0x1022, 0x1024, 0x2000, 0x4001, 0x4003, 0x5001])
        assert.equal(answer(filter, architecture, archPrctl, [left]), ALLOW, `${left}`);
    }
    assert.equal(answer(filter, AARCH64, 158, [0x1023]), ALLOW);
    assert.equal(answer(filter, AARCH64, 384, [0x1023]), ALLOW);
  });

  it("refuses what several arguments say together, and goes on with the next refusal where one says otherwise", () => {
    const filter = refusing(Buffer.alloc(0), refusalsWith(null));
    for (const [architecture, prctl, setsockopt] of [
      [X86_64, 157, 54],
      [X86_64, 157 | 0x40000000, 54],
      [I386, 172, 366],
      [AARCH64, 167, 208],
    ] as const) {
      assert.equal(answer(filter, architecture, prctl, [PR_SET_THP_DISABLE, 1, 2]), ERRNO | EINVAL);
      assert.equal(answer(filter, architecture, prctl, [PR_SET_THP_DISABLE, 1, 0]), ALLOW);
      assert.equal(answer(filter, architecture, prctl, [PR_SET_THP_DISABLE + 1, 1, 2]), ALLOW);
      for (const name of [14, 32, 38, 39, 40]) {
        assert.equal(answer(filter, architecture, setsockopt, [3, IPPROTO_TCP, name]), ERRNO | ENOPROTOOPT);
        assert.equal(answer(filter, architecture, setsockopt, [3, 1, name]), ALLOW);
      }
      for (const name of [1, 13, 15, 31, 33, 37, 41])
        assert.equal(answer(filter, architecture, setsockopt, [3, IPPROTO_TCP, name]), ALLOW);
    }
  });

  it("is asked first, and what it does not let through stays as it has it", () => {
    const filter = refusing(KEPT, refusalsWith(null));
    assert.equal(answer(filter, X86_64, 157, [PR_SET_MDWE]), ERRNO | EPERM);
    assert.equal(answer(filter, X86_64, 444), KILL_PROCESS);
    assert.equal(answer(filter, X86_64, 41, [2, 1, MPTCP]), ERRNO | EPROTONOSUPPORT);
    assert.equal(answer(filter, X86_64, 41, [2, 1, 6]), LOG);
    assert.equal(answer(filter, X86_64, 445), ERRNO | ENOSYS);
    assert.equal(answer(filter, X86_64, 0), ALLOW);
    assert.equal(answer(filter, I386, 445), ERRNO | ENOSYS);
  });

  it("has io_uring where the container's profile names it", () => {
    const profile = {
      defaultAction: "SCMP_ACT_ERRNO",
      syscalls: [{ names: ["io_uring_setup"], action: "SCMP_ACT_ALLOW" }],
    };
    const filter = refusing(KEPT, refusalsWith(profile));
    assert.equal(answer(filter, X86_64, 425), ALLOW);
    assert.equal(answer(filter, X86_64, 446), ERRNO | ENOSYS);
  });
});
