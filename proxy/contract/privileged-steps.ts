/**
 * What of the work on legs the kernel does only for CAP_NET_ADMIN or CAP_NET_RAW. All the rest of it (reading queues and windows in
 * repair mode, filling them) needs neither: net/ipv4/tcp.c asks `tcp_can_repair_sock` where repair mode begins and ends, and nowhere
 * else. A filter on a socket of one's own needs CAP_NET_ADMIN on some kernels (seen: 6.18). So a proxy without capabilities asks an agent for these steps alone, by the call `legs` of the channel
 * that the agent has opened; the bytes of clients stay with the proxy.
 *
 * Each step may be done again: whoever asked does not know what an agent that died had done.
 */
import type { Side } from "./leg-surgeon.ts";
import type { Endpoint } from "./snapshot.ts";

export interface BareSegment {
  from: Endpoint;
  to: Endpoint;
  seq: number;
  ack: number;
  flags: number;
  /** as on the wire, already shifted right by the sender's scale */
  window: number;
}

export const DROPPED = ["all", "reset", "none"] as const;
export type Dropped = (typeof DROPPED)[number];

/** `fd` is the proxy's own number, which stays open until the step is answered. */
export type PrivilegedStep =
  /** Into repair mode, with room for so many bytes in its queues (0: as they are) whatever net.core says. */
  | { do: "repair"; fd: number; sendBytes: number; receiveBytes: number }
  /** Out of it. `probe`: ask the peer for a sign of life (ESTABLISHED only) */
  | { do: "speak"; fd: number; probe: boolean }
  /** all: it receives nothing; reset: everything but RST; none: everything */
  | { do: "filter"; fd: number; drop: Dropped }
  /** It may be bound to an address that is not here (IP_TRANSPARENT). Takeover: never asked of an agent. */
  | { do: "foresee"; fd: number; family: 4 | 6 }
  /** A segment that seems to come from the peer of a socket here. */
  | { do: "inject"; side: Side; segment: BareSegment };

/** → {@link StepsDone} */
export interface AskSteps {
  steps: PrivilegedStep[];
}
export interface StepsDone {
  /** in their order; null: done, else an error as the channel has it */
  outcomes: unknown[];
}

/** The proxy's call. */
export const LEGS_CALL = "legs";
/** … and how many it asks for at once. */
export const STEPS_MAX = 256;
/** More than any leg's queue has (tcp_rmem, tcp_wmem). */
export const ROOM_BYTES_MAX = 64 * 1024 * 1024;
