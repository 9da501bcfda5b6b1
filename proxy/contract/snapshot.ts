/**
 * What a captured leg and a captured session look like outside the kernel. Field names are the kernel's
 * (include/uapi/linux/tcp.h) where it has one.
 */

const NO_BYTES: Buffer = Buffer.alloc(0);

/** TCP states a leg can be moved in (include/net/tcp_states.h). SYN_RECV, TIME_WAIT and LISTEN are not movable. */
export type LegState =
  | "ESTABLISHED"
  | "FIN_WAIT1"
  | "FIN_WAIT2"
  | "CLOSE"
  | "CLOSE_WAIT"
  | "LAST_ACK"
  | "CLOSING";

export interface Endpoint {
  /** Numeric IPv4 or IPv6 address, no brackets, no zone. */
  address: string;
  /** 1..65535 */
  port: number;
}

/** `struct tcp_repair_window`, all u32. */
export interface RepairWindow {
  snd_wl1: number;
  snd_wnd: number;
  max_window: number;
  rcv_wnd: number;
  rcv_wup: number;
}

export interface LegSnapshot {
  family: 4 | 6;
  local: Endpoint;
  remote: Endpoint;
  /** `CLOSE` means the peer has reset the leg: there is nothing to adopt, the other leg is to be reset too. */
  state: LegState;
  mss: number;
  sackOk: boolean;
  /** null: window scaling was not negotiated */
  windowScale: { snd: number; rcv: number } | null;
  /** TCP_TIMESTAMP, null when timestamps were not negotiated */
  timestamp: number | null;
  window: RepairWindow;
  /** sequence number after the last byte of the queue as TCP_QUEUE_SEQ gives it (FIN included), and the unread bytes */
  receive: { seq: number; bytes: Buffer };
  /** as above; `bytes` is everything unacknowledged, of which the last `unsentBytes` never left the host */
  send: { seq: number; bytes: Buffer; unsentBytes: number };
  noDelay: boolean;
  keepAlive: boolean;
}

/** What a capture may copy out of the kernel at all: it lies in the proxy's memory until it is taken. */
export const CAPTURE_BYTES_MAX = 1024 * 1024 * 1024;

/** A leg without a connection: what was reset, or has ended in order with `unread` bytes that still belong to somebody. */
export function closedLeg(local: Endpoint, remote: Endpoint, unread: Buffer = NO_BYTES): LegSnapshot {
  return {
    family: local.address.includes(":") ? 6 : 4,
    local,
    remote,
    state: "CLOSE",
    mss: 0,
    sackOk: false,
    windowScale: null,
    timestamp: null,
    window: { snd_wl1: 0, snd_wnd: 0, max_window: 0, rcv_wnd: 0, rcv_wup: 0 },
    receive: { seq: 0, bytes: unread },
    send: { seq: 0, bytes: NO_BYTES, unsentBytes: 0 },
    noDelay: false,
    keepAlive: false,
  };
}

/**
 * One session as it travels. A session captured for takeover has both legs (the downstream part comes in a later
 * message); in forward mode the downstream leg stays at `anchor`.
 */
export interface SessionSnapshot {
  id: string;
  /** index into the workload's `ports` */
  port: number;
  /** node whose proxy holds the client's socket */
  anchor: string;
  /** milliseconds since the Unix epoch */
  acceptedAtMs: number;
  /** "address:port" where a load balancer has named the client; "": the peer of its leg */
  client: string;
  /** The header that names it is not complete: `pendingIn` is its beginning, which `bytesIn` does not count. */
  headerAwaited: boolean;
  bytesIn: number;
  bytesOut: number;
  /** null: not captured in this snapshot, or accepted while held and never dialled */
  upstream: LegSnapshot | null;
  downstream: LegSnapshot | null;
  /** read by the proxy from one leg and not yet written to the other */
  pendingIn: Buffer;
  pendingOut: Buffer;
  /** the client's FIN was read / was passed on; the application's FIN was read / was passed on */
  finIn: "none" | "read" | "sent";
  finOut: "none" | "read" | "sent";
  /** what is known of its bytes (`proxy/replay/saved-filter.ts`); empty: nothing */
  filter: Buffer;
}
