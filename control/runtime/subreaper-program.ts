/**
 * A program that makes itself a child subreaper and becomes what its arguments say (prctl(2), PR_SET_CHILD_SUBREAPER; execve(2) keeps it, and
 * fork(2) does not give it on): no program of Debian's does only that. Its first argument is a path. It ends with status 127 where that cannot be executed.
 *
 * ELF (elf(5), System V ABI): a header, one loaded segment, and the instructions, which are those of the two tables below.
 */
import { fail } from "#proxy/contract/error-codes.ts";

const LOADED_AT = 0x400000;
const HEADER_BYTES = 64;
const SEGMENT_BYTES = 56;
const PAGE = 0x1000;

/** e_machine, and instructions as hexadecimal text */
const CODE: { [arch: string]: { machine: number; text: string } | undefined } = {
  x64: {
    machine: 62,
    text: [
      "b89d000000 bf24000000 be01000000", // prctl(36, 1,
      "31d2 4531d2 4531c0 0f05", // 0, 0, 0)
      "488b0424 488d742410 488d54c410", // argc, &argv[1], envp
      "488b3e b83b000000 0f05", // execve(argv[1], &argv[1], envp)
      "bf7f000000 b83c000000 0f05", // exit(127)
    ].join(""),
  },
  arm64: {
    machine: 183,
    text: [
      "800480d2 210080d2 020080d2 030080d2 040080d2 e81480d2 010000d4", // prctl(36, 1, 0, 0, 0)
      "e90340f9 e1430091 220c098b", // argc, &argv[1], envp
      "200040f9 a81b80d2 010000d4", // execve(argv[1], &argv[1], envp)
      "e00f80d2 a80b80d2 010000d4", // exit(127)
    ].join(""),
  },
};

/** @throws HoldfastError `RUNTIME_MISSING`: of another architecture */
export function subreaperProgram(arch: string = process.arch): Buffer {
  const code = CODE[arch];
  if (code === undefined) throw fail("RUNTIME_MISSING", `subreaper: true is for x64 and arm64, not ${arch}`);
  const text = Buffer.from(code.text.replaceAll(" ", ""), "hex");
  const start = HEADER_BYTES + SEGMENT_BYTES;
  const file = Buffer.alloc(start + text.length);
  // 64 bits, little-endian, version 1
  file.write("\x7fELF\x02\x01\x01", "latin1");
  file.writeUInt16LE(2, 16); // ET_EXEC
  file.writeUInt16LE(code.machine, 18);
  file.writeUInt32LE(1, 20);
  file.writeBigUInt64LE(BigInt(LOADED_AT + start), 24); // e_entry
  file.writeBigUInt64LE(BigInt(HEADER_BYTES), 32); // e_phoff
  file.writeUInt16LE(HEADER_BYTES, 52);
  file.writeUInt16LE(SEGMENT_BYTES, 54);
  file.writeUInt16LE(1, 56); // e_phnum
  file.writeUInt32LE(1, HEADER_BYTES); // PT_LOAD
  file.writeUInt32LE(5, HEADER_BYTES + 4); // readable, executable
  file.writeBigUInt64LE(BigInt(LOADED_AT), HEADER_BYTES + 16);
  file.writeBigUInt64LE(BigInt(LOADED_AT), HEADER_BYTES + 24);
  file.writeBigUInt64LE(BigInt(file.length), HEADER_BYTES + 32);
  file.writeBigUInt64LE(BigInt(file.length), HEADER_BYTES + 40);
  file.writeBigUInt64LE(BigInt(PAGE), HEADER_BYTES + 48);
  text.copy(file, start);
  return file;
}
