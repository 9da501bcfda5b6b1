/** Legs that nobody watches end without a byte: one in repair mode sends nothing when it is closed. */
import type { DetachedLeg, LiveSession } from "./live-session.ts";

/** What a leg is closed with. */
interface Closer {
  close(fd: number): void;
}

/** Of one session, a stand-in too. */
export function closeDetached(kernel: Closer, session: LiveSession): void {
  closeDetachedUpstream(kernel, session);
  if (session.detachedDownstream !== null) letGo(kernel, session.detachedDownstream);
  session.detachedDownstream = null;
  if (session.standIn !== null) kernel.close(session.standIn.fd);
  session.standIn = null;
}

export function closeDetachedUpstream(kernel: Closer, session: LiveSession): void {
  if (session.detachedUpstream !== null) letGo(kernel, session.detachedUpstream);
  session.detachedUpstream = null;
}

function letGo(kernel: Closer, leg: DetachedLeg): void {
  // its number must not become another's while the surgeon works on it
  if (leg.inSurgery) leg.isLetGo = true;
  else kernel.close(leg.fd);
}
