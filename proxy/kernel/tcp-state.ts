/** The state of a TCP socket, from TCP_INFO (include/uapi/linux/tcp.h, include/net/tcp_states.h). */
import { fail } from "#proxy/contract/error-codes.ts";
import type { LegState } from "#proxy/contract/snapshot.ts";
import * as sock from "./socket.ts";

const STATES = new Map<number, LegState>([
  [sock.TCP_ESTABLISHED, "ESTABLISHED"],
  [sock.TCP_FIN_WAIT1, "FIN_WAIT1"],
  [sock.TCP_FIN_WAIT2, "FIN_WAIT2"],
  [sock.TCP_CLOSE, "CLOSE"],
  [sock.TCP_CLOSE_WAIT, "CLOSE_WAIT"],
  [sock.TCP_LAST_ACK, "LAST_ACK"],
  [sock.TCP_CLOSING, "CLOSING"],
]);

/** struct tcp_info up to and including the window scales and a little more; the kernel copies what fits. */
export const tcpInfo = Buffer.alloc(8);

/** The TCP state now; HoldfastError code LEG_NOT_MOVABLE when it is one that cannot be captured. */
export function readState(fd: number): LegState {
  sock.getsockoptBuffer(fd, sock.IPPROTO_TCP, sock.TCP_INFO, tcpInfo);
  const state = STATES.get(tcpInfo[0] as number);
  if (state === undefined) {
    throw fail("LEG_NOT_MOVABLE", `a TCP socket in state number ${tcpInfo[0]} cannot be moved; close it`);
  }
  return state;
}
