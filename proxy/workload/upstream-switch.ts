/** A session's application is behind another leg from now on: at another node, or back on this one. */
import type { Logger } from "pino";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import type { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { endLinkWait } from "./link-wait.ts";
import type { LiveSession } from "./live-session.ts";

export interface SwitchHost {
  readonly counters: { linkMismatches: number };
  readonly log: Logger;
}

/** Where the application's side of the session is, as its owner says: bytes it has had of the client, and passed on to it. */
export interface SwitchOffsets {
  bytesIn: number;
  bytesOut: number;
  /** to be sent before what the session has */
  prependIn?: Buffer;
  /** everything of the old owner has arrived */
  onComplete?: () => void;
}

/**
 * What is sent goes to `next` at once; what comes from there is delivered when everything the old owner passed on has arrived. Offsets
 * that do not fit mean bytes were lost on the way (a link or its proxy died): the client gets a reset rather than a gap.
 */
export function switchUpstream(
  { counters, log }: SwitchHost,
  session: LiveSession,
  next: TcpLeg | LinkLeg,
  offsets: SwitchOffsets,
): void {
  const old = session.upstream;
  const sentBytes = session.inbound.bytes - session.inbound.pendingBytes;
  if (
    sentBytes !== offsets.bytesIn ||
    session.outbound.bytes > offsets.bytesOut ||
    (old === null && session.outbound.bytes !== offsets.bytesOut)
  ) {
    counters.linkMismatches++;
    log.warn(
      {
        session: session.id,
        sentBytes,
        receivedBytes: session.outbound.bytes,
        bytesIn: offsets.bytesIn,
        bytesOut: offsets.bytesOut,
      },
      "bytes were lost between anchor and owner; resetting the client",
    );
    next.reset();
    session.reset("link mismatch");
    return;
  }
  endLinkWait(session);
  const complete = (): void => {
    if (old instanceof LinkLeg) {
      old.listener = null;
      old.release();
    }
    session.upstream = next;
    session.setUpstreamSource(next);
    offsets.onComplete?.();
  };
  if (offsets.prependIn !== undefined) session.inbound.prepend(offsets.prependIn);
  if (next instanceof LinkLeg) session.inbound.finSent = false;
  session.setUpstreamSink(next);
  if (session.outbound.bytes === offsets.bytesOut) complete();
  else session.switchAt = { bytesOut: offsets.bytesOut, complete };
  session.inbound.unhold();
}
