/**
 * A seccomp filter as the kernel takes it, with calls refused in addition: crun keeps a container's like this (`seccomp.bpf`), and not the
 * profile that it was made of. Pure.
 *
 * Classic BPF is an array of instructions that jump forward only (Documentation/networking/filter.rst; linux/filter.h, linux/seccomp.h,
 * seccomp(2)). So what lets a call through is replaced by a jump to the end, where the refusals are: what the filter refuses stays as it is.
 */
import type { ArgumentTest, Refusal } from "../not-carried.ts";

const INSTRUCTION_BYTES = 8;
/** BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JA, BPF_RET|BPF_K */
const [LOAD, AND, IF_EQUAL, JUMP, RETURN] = [0x20, 0x54, 0x15, 0x05, 0x06];
/** offsets in `struct seccomp_data` */
const [NUMBER, ARCHITECTURE, ARGUMENTS] = [0, 4, 16];
const ARGUMENT_BYTES = 8;
const RET_ERRNO = 0x00050000;
const RET_ALLOW = 0x7fff0000;
/** SECCOMP_RET_TRACE, _LOG and _ALLOW, with their data: the call is made, or whoever traces says so */
const [RET_TRACE, RET_ACTION] = [0x7ff00000, 0xffff0000];
/** a call of x32 is one of x86-64 with this bit */
const X32_BIT = 0x40000000;

/** AUDIT_ARCH_X86_64, _I386, _AARCH64 (linux/audit.h), and numbers of system calls there (asm/unistd.h); null: it has none. */
const NUMBERS: readonly [architecture: number, numbers: Record<string, number | null>][] = [
  [
    0xc000003e,
    {
      setsockopt: 54,
      arch_prctl: 158,
      prctl: 157,
      io_setup: 206,
      pkey_alloc: 330,
      socket: 41,
      add_key: 248,
      request_key: 249,
      keyctl: 250,
    },
  ],
  [
    0x40000003,
    {
      setsockopt: 366,
      arch_prctl: 384,
      prctl: 172,
      io_setup: 245,
      pkey_alloc: 381,
      socket: 359,
      add_key: 286,
      request_key: 287,
      keyctl: 288,
    },
  ],
  [
    0xc00000b7,
    {
      setsockopt: 208,
      arch_prctl: null,
      prctl: 167,
      io_setup: 0,
      pkey_alloc: 289,
      socket: 198,
      add_key: 217,
      request_key: 218,
      keyctl: 219,
    },
  ],
];
/** newer ones have the same number everywhere */
const COMMON: Record<string, number> = {
  io_uring_setup: 425,
  io_uring_enter: 426,
  io_uring_register: 427,
  landlock_create_ruleset: 444,
  landlock_add_rule: 445,
  landlock_restrict_self: 446,
  mseal: 462,
};

interface Instruction {
  code: number;
  /** instructions to skip */
  ifTrue?: number;
  ifFalse?: number;
  k: number;
}

const NUMBER_LOADED: readonly Instruction[] = [
  { code: LOAD, k: NUMBER },
  { code: AND, k: ~X32_BIT >>> 0 },
];

/** @param program of the container; empty: it has none */
export function refusing(program: Buffer, refusals: readonly Refusal[]): Buffer {
  const kept = program.length === 0 ? [{ code: RETURN, k: RET_ALLOW }] : decode(program);
  const lets = ({ code, k }: Instruction): boolean => {
    const action = (k & RET_ACTION) >>> 0;
    return code === RETURN && action >= RET_TRACE && action <= RET_ALLOW;
  };
  const actions = [...new Set(kept.filter(lets).map(({ k }) => k))];
  const endings = actions.map((action) => refusalsThen(action, refusals));
  const starts = endings.map((_, at) => kept.length + endings.slice(0, at).flat().length);
  const led = kept.map((one, at): Instruction => {
    if (!lets(one)) return one;
    return { code: JUMP, k: (starts[actions.indexOf(one.k)] as number) - at - 1 };
  });
  return encode([...led, ...endings.flat()]);
}

/** What is not refused is answered by the action. */
function refusalsThen(action: number, refusals: readonly Refusal[]): Instruction[] {
  const sections = NUMBERS.flatMap(([architecture, own]): Instruction[] => {
    const section: Instruction[] = [
      ...NUMBER_LOADED,
      ...refusals.flatMap((refusal) => checksOf(refusal, { ...COMMON, ...own })),
      { code: RETURN, k: action },
    ];
    return [{ code: IF_EQUAL, ifFalse: section.length, k: architecture }, ...section];
  });
  return [{ code: LOAD, k: ARCHITECTURE }, ...sections, { code: RETURN, k: action }];
}

/** Whatever it does not refuse comes out at its end, with the call's number loaded as before. */
function checksOf({ names, errno, where }: Refusal, numbers: Record<string, number | null>): Instruction[] {
  const refuse = { code: RETURN, k: RET_ERRNO | errno };
  const check = where.length === 0 ? [refuse] : [...where.reduceRight(onlyIf, [refuse]), ...NUMBER_LOADED];
  return names.flatMap((name) => {
    const number = numbers[name];
    if (number === undefined) throw new Error(`no number of system call ${name} is known`);
    return number === null ? [] : [{ code: IF_EQUAL, ifFalse: check.length, k: number }, ...check];
  });
}

/** The instructions, which are skipped where the test fails. */
function onlyIf(then: Instruction[], test: ArgumentTest): Instruction[] {
  // the lower half: these are ints, and both architectures are little-endian
  const load = { code: LOAD, k: ARGUMENTS + test.index * ARGUMENT_BYTES };
  if ("isNot" in test) return [load, { code: IF_EQUAL, ifTrue: then.length, k: test.isNot }, ...then];
  const last = test.is.length - 1;
  const comparisons = test.is.map((value, at) => ({
    code: IF_EQUAL,
    ifTrue: last - at,
    ifFalse: at === last ? then.length : 0,
    k: value,
  }));
  return [load, ...comparisons, ...then];
}

/** `struct sock_filter` */
function encode(instructions: Instruction[]): Buffer {
  const program = Buffer.alloc(instructions.length * INSTRUCTION_BYTES);
  for (const [at, { code, ifTrue = 0, ifFalse = 0, k }] of instructions.entries()) {
    const offset = at * INSTRUCTION_BYTES;
    program.writeUInt16LE(code, offset);
    program.writeUInt8(ifTrue, offset + 2);
    program.writeUInt8(ifFalse, offset + 3);
    program.writeUInt32LE(k, offset + 4);
  }
  return program;
}

function decode(program: Buffer): Instruction[] {
  return Array.from({ length: Math.floor(program.length / INSTRUCTION_BYTES) }, (_, at) => {
    const offset = at * INSTRUCTION_BYTES;
    return {
      code: program.readUInt16LE(offset),
      ifTrue: program.readUInt8(offset + 2),
      ifFalse: program.readUInt8(offset + 3),
      k: program.readUInt32LE(offset + 4),
    };
  });
}
