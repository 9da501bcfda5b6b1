/** What the load generator (generator.ts) is asked and answers. */

/** http: GET, kept alive. tcp, websocket: a message of 64 bytes that comes back */
export type Protocol = "http" | "tcp" | "websocket";

export interface Load {
  protocol: Protocol;
  /** at 127.0.0.1 */
  port: number;
  connections: number;
  /**
   * Open loop: requests are due on this schedule, whatever becomes of those before them. null: closed loop, a connection
   * asks again when it has its answer (as wrk does; its latencies say how fast the load was, not how long a user waits).
   */
  perSecond: number | null;
  seconds: number;
  /** each request has a connection of its own: connect, ask, close */
  churn?: boolean;
  /** http: every request moves so many bytes, as the body of its answer or as its own */
  bulk?: { direction: "down" | "up"; bytes: number };
}

/** Connections that are opened, used once, and kept open; more are opened until there are so many. */
export interface Hold {
  protocol: Protocol;
  port: number;
  hold: number;
}

/** How many are open, and how many were and are no more. */
export interface Held {
  open: number;
  lost: number;
}

export interface Percentiles {
  p50: number;
  p90: number;
  p99: number;
  p999: number;
  max: number;
}

/** A point of the distribution: `p` per cent took at most so long. */
export interface CurvePoint {
  p: number;
  valueUs: number;
}

export interface LoadReport {
  /** on the wire, and answered whole and as it should be; the one that opened each connection included */
  sent: number;
  answered: number;
  /** due in the time, and not answered (or not even sent, for want of a free connection) when time and drain were over */
  unanswered: number;
  /** connections that closed, and answers that are not what they should be */
  errors: number;
  problem: string | null;
  /** answers within the time */
  perSecond: number;
  /** … and of all, those after the time included, from the start to the last of them */
  perSecondOfAll: number;
  /** from when it was due (open loop) or sent (closed loop) to the last byte of its answer; the unanswered with what they waited */
  latencyUs: Percentiles;
  curve: CurvePoint[];
  /** how late the generator itself was where a connection was free: below this nothing is measured */
  latenessUs: Percentiles;
}
