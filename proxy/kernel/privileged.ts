/** The privileged steps (`contract/privileged-steps.ts`), on a descriptor of the caller's own. Needs CAP_NET_ADMIN and CAP_NET_RAW. */
import type { Side } from "#proxy/contract/leg-surgeon.ts";
import type { Dropped, PrivilegedStep } from "#proxy/contract/privileged-steps.ts";
import { injectSegment } from "./bare-segment.ts";
import type { Network } from "./network.ts";
import { guardLegFromReset, shieldLeg, unshieldLeg } from "./shield.ts";
import * as sock from "./socket.ts";

const FILTERS: Record<Dropped, (fd: number) => void> = {
  all: shieldLeg,
  reset: guardLegFromReset,
  none: unshieldLeg,
};

/** Kernel buffers are counted with their bookkeeping; SO_*BUFFORCE doubles the value given. */
const BUFFER_SLACK_BYTES = 256 * 1024;

/** @throws HoldfastError with the errno name as code; the step may be done again */
export function takeStep(step: PrivilegedStep, networks: Readonly<Record<Side, Network>>): void {
  switch (step.do) {
    case "repair":
      sock.setsockoptInt(step.fd, sock.IPPROTO_TCP, sock.TCP_REPAIR, sock.TCP_REPAIR_ON);
      makeRoom(step.fd, step);
      return;
    case "speak": {
      const off = step.probe ? sock.TCP_REPAIR_OFF : sock.TCP_REPAIR_OFF_NO_WP;
      sock.setsockoptInt(step.fd, sock.IPPROTO_TCP, sock.TCP_REPAIR, off);
      return;
    }
    case "filter":
      FILTERS[step.drop](step.fd);
      return;
    case "foresee":
      if (step.family === 4) sock.setsockoptInt(step.fd, sock.IPPROTO_IP, sock.IP_TRANSPARENT, 1);
      else sock.setsockoptInt(step.fd, sock.IPPROTO_IPV6, sock.IPV6_TRANSPARENT, 1);
      return;
    case "inject":
      injectSegment(step.segment, networks[step.side]);
  }
}

function makeRoom(
  fd: number,
  { sendBytes, receiveBytes }: { sendBytes: number; receiveBytes: number },
): void {
  if (sendBytes > 0)
    sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_SNDBUFFORCE, sendBytes + BUFFER_SLACK_BYTES);
  if (receiveBytes === 0) return;
  const current = sock.getsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUF);
  if (receiveBytes * 2 <= current) return;
  sock.setsockoptInt(fd, sock.SOL_SOCKET, sock.SO_RCVBUFFORCE, receiveBytes + BUFFER_SLACK_BYTES);
}
