/**
 * Keeps segments away from one socket, by a classic BPF filter on the socket itself.
 *
 * The kernel runs the filter before TCP sees the segment (tcp_filter in tcp_v4_rcv and tcp_v6_rcv); a segment it refuses
 * vanishes: no ACK, no RST, no state change. Against a packet filter rule per 4-tuple: no table, no second privileged
 * tool, and it goes away with its descriptor. The bytes the program sees start at the TCP header.
 *
 * A shielded leg still *sends*: retransmissions, window probes and keep-alives run on timers (see capture.ts).
 * Sources: net/core/filter.c, man page socket(7) SO_ATTACH_FILTER, Documentation/networking/filter.rst.
 */
import { addressOf } from "./libc.ts";
import {
  loadSocketFilter,
  SO_ATTACH_BPF,
  SO_ATTACH_FILTER,
  SO_DETACH_FILTER,
  SOL_SOCKET,
  setsockoptBuffer,
  setsockoptInt,
  trySetsockoptInt,
} from "./socket.ts";

const BPF_LD_B_ABS = 0x30;
const BPF_ALU_AND_K = 0x54;
const BPF_JMP_JEQ_K = 0x15;
const BPF_RET_K = 0x06;
const TCP_FLAGS_BYTE = 13;
const FLAG_SYN = 0x02;
const FLAG_RST = 0x04;
const FLAG_ACK = 0x10;
const WHOLE_SEGMENT = 0xffffffff;

/** struct sock_filter: u16 code, u8 jt, u8 jf, u32 k */
type Instruction = [code: number, jt: number, jf: number, k: number];

const DROP_ALL: Instruction[] = [[BPF_RET_K, 0, 0, 0]];
/** Of a listener's segments only the connection attempts go; the ACK that ends a running handshake passes. */
const DROP_SYN: Instruction[] = [
  [BPF_LD_B_ABS, 0, 0, TCP_FLAGS_BYTE],
  [BPF_ALU_AND_K, 0, 0, FLAG_SYN | FLAG_ACK],
  [BPF_JMP_JEQ_K, 0, 1, FLAG_SYN],
  [BPF_RET_K, 0, 0, 0],
  [BPF_RET_K, 0, 0, WHOLE_SEGMENT],
];
const DROP_RST: Instruction[] = [
  [BPF_LD_B_ABS, 0, 0, TCP_FLAGS_BYTE],
  [BPF_ALU_AND_K, 0, 0, FLAG_RST],
  [BPF_JMP_JEQ_K, 1, 0, 0],
  [BPF_RET_K, 0, 0, 0],
  [BPF_RET_K, 0, 0, WHOLE_SEGMENT],
];

function attach(fd: number, program: Instruction[]): void {
  const code = Buffer.alloc(program.length * 8);
  program.forEach(([op, jt, jf, k], index) => {
    code.writeUInt16LE(op, index * 8);
    code.writeUInt8(jt, index * 8 + 2);
    code.writeUInt8(jf, index * 8 + 3);
    code.writeUInt32LE(k, index * 8 + 4);
  });
  // struct sock_fprog: u16 len, padding, pointer
  const fprog = Buffer.alloc(16);
  fprog.writeUInt16LE(program.length, 0);
  fprog.writeBigUInt64LE(addressOf(code), 8);
  setsockoptBuffer(fd, SOL_SOCKET, SO_ATTACH_FILTER, fprog);
}

function detach(fd: number): void {
  // ENOENT, nothing attached: what the caller wants is so already
  trySetsockoptInt(fd, SOL_SOCKET, SO_DETACH_FILTER, 0, "ENOENT");
}

/** `r0 = 0; exit`, in eBPF: what {@link DROP_ALL} says. struct bpf_insn */
const DROP_ALL_LOADED = Buffer.from("b700000000000000" + "9500000000000000", "hex");
/** its descriptor, for the life of the process; null: not tried yet, or refused */
let dropAll: number | null = null;
let loadRefused = false;

/** From now on the leg's socket receives nothing. The peer sees a silent network and retransmits. */
export function shieldLeg(fd: number): void {
  // A classic program is compiled for each socket, which costs more than the rest of a capture; a loaded one only once.
  if (dropAll === null && !loadRefused) {
    try {
      dropAll = loadSocketFilter(DROP_ALL_LOADED);
    } catch {
      loadRefused = true; // a seccomp profile, or lockdown
    }
  }
  if (dropAll === null) attach(fd, DROP_ALL);
  else setsockoptInt(fd, SOL_SOCKET, SO_ATTACH_BPF, dropAll);
}

/** Segments arrive again. No effect on a leg without a shield. */
export function unshieldLeg(fd: number): void {
  detach(fd);
}

/**
 * For an adopted leg whose peer may not exist yet: a retransmission would be answered with RST, which must not end the
 * leg before the peer's own socket is back. Everything else passes. {@link unshieldLeg} takes it away.
 */
export function guardLegFromReset(fd: number): void {
  attach(fd, DROP_RST);
}

/** Connection attempts are dropped (clients try again after 1 s); handshakes already under way complete. */
export function shieldListener(fd: number): void {
  attach(fd, DROP_SYN);
}

export function unshieldListener(fd: number): void {
  detach(fd);
}
