/**
 * One leg of a session, whatever carries it: a TCP leg on this node, or a link to another node's proxy.
 *
 * Contract. Nothing here throws; trouble arrives as `onReset`, once, and nothing follows it.
 *  - `write` gives true when the chunk is out of our hands. On false the leg takes no other until `onDrain`. A leg that
 *    `keepsChunk` may hold on to the memory it was given; the others have copied what they could not pass on.
 *  - `finish` is called at most once per direction and never while a chunk is outstanding.
 */
export interface LegListener {
  onData(chunk: Buffer): void;
  onFin(): void;
  onReset(reason: string): void;
  onDrain(): void;
  /** The connection has ended behind the peer's FIN, in order or not: {@link TcpLeg.endIfReset}. */
  onGone?(): void;
  /** One of the above has thrown; nothing follows. The leg is gone, or the listener resets it. */
  onBroken(error: unknown): void;
}

export interface Leg {
  listener: LegListener | null;
  /** Chunks given to `onData` are overwritten when any leg reads next: what is kept beyond that call is to be copied. */
  readonly reusesBuffer: boolean;
  /** The memory of a chunk given to `write` is used after that call. */
  readonly keepsChunk: boolean;
  /** Of a chunk that `write` gave false for, what is still in our hands: less with each part passed on, and as it was once the leg has gone. */
  readonly outstandingBytes: number;
  write(chunk: Buffer): boolean;
  finish(): void;
  reset(): void;
  pauseReading(): void;
  resumeReading(): void;
  /** So many bytes this leg delivered have left the process (links give their sender credit for it). */
  consumed(bytes: number): void;
}
