/** What the generator of HTTP requests (http-generator.ts) is asked and answers. */

export interface HttpLoad {
  /** at 127.0.0.1 */
  port: number;
  connections: number;
  /**
   * Open loop: requests are due on this schedule, whatever becomes of those before them. null: closed loop, a connection
   * asks again when it has its answer (as wrk does; its latencies say how fast the load was, not how long a user waits).
   */
  perSecond: number | null;
  seconds: number;
}

export interface Percentiles {
  p50: number;
  p90: number;
  p99: number;
  p999: number;
  max: number;
}

export interface HttpReport {
  /** on the wire, and answered with 200 and whole; the one that opened each connection included */
  sent: number;
  answered: number;
  /** due in the time, and not answered (or not even sent, for want of a free connection) when time and drain were over */
  unanswered: number;
  /** connections that closed, and answers that are not what they should be */
  errors: number;
  problem: string | null;
  /** answers within the time */
  perSecond: number;
  /** from when it was due (open loop) or sent (closed loop) to the last byte of its answer; the unanswered with what they waited */
  latencyUs: Percentiles;
  /** how late the generator itself was where a connection was free: below this nothing is measured */
  latenessUs: Percentiles;
}
