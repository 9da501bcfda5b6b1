/**
 * Segments that a local TCP socket takes for its peer's.
 *
 * Nothing else restores the peer's FIN: TCP_REPAIR can fill a receive queue with bytes, not with a FIN. The socket answers a FIN with
 * an ACK to its real peer: a duplicate there, nothing more.
 */
import type { Side } from "#proxy/contract/leg-surgeon.ts";
import type { LegSnapshot } from "#proxy/contract/snapshot.ts";
import type { Network } from "#proxy/kernel/network.ts";
import { atOnce, type LegSteps } from "./leg-steps.ts";

export const FLAG_FIN = 0x01;
export const FLAG_ACK = 0x10;

/** further back than any window reaches: at most 2^30 bytes (RFC 7323 2.3) */
const OUT_OF_WINDOW = 2 ** 31 - 1;

/**
 * Makes a local socket speak to its peer: what is out of its window (here: from before the leg's first byte) it answers with an ACK
 * (RFC 9293 3.10.7.4), and an ACK for which there is no socket is answered with RST. With a FIN, since the kernel answers segments
 * that have no length only once in tcp_invalid_ratelimit ms (`tcp_oow_rate_limited`, net/ipv4/tcp_input.c), and the hold may have
 * asked for that one.
 */
export function provoke(leg: Provoked, network: Network): void {
  atOnce(provokeSteps(leg, "upstream"), network);
}

type Provoked = Pick<LegSnapshot, "local" | "remote" | "send" | "receive">;

export function* provokeSteps({ local, remote, send, receive }: Provoked, side: Side): LegSteps<void> {
  const seq = send.seq - send.bytes.length - OUT_OF_WINDOW;
  const flags = FLAG_FIN | FLAG_ACK;
  const segment = { from: local, to: remote, seq, ack: receive.seq, flags, window: 0 };
  yield [{ do: "inject", side, segment }];
}
