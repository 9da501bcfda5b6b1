/** Rollback at the source: everything that was held, taken out or captured goes on as if nothing had happened. */
import { fail } from "#proxy/contract/error-codes.ts";
import type { Outcome } from "#proxy/contract/leg-surgeon.ts";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import type { LegSide } from "#proxy/stream/socket-kernel.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { closeDetached } from "#proxy/workload/detached-legs.ts";
import type { DetachedLeg, LiveSession } from "#proxy/workload/live-session.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { operate } from "./surgery.ts";

/**
 * The role becomes `owner` when every leg is taken back: until then links are parked and what ends is noted, as during the
 * move. No target's ACTIVE can arrive meanwhile, as the links that were prepared for it go first.
 */
export async function rollback(
  proxy: WorkloadProxy,
  epoch = proxy.epoch,
): Promise<{ sessions: number; lost: number }> {
  proxy.counters.rollbacks++;
  proxy.ownerLinks.movingTo = null;
  const counts = { sessions: 0, lost: 0 };
  for (const session of proxy.sessions.values()) {
    session.nextLink?.close(RST_CODE.moved);
    session.nextLink = null;
  }
  const failures = await uncaptureAll(proxy);
  proxy.role = "owner";
  proxy.epoch = epoch;
  for (const listener of proxy.listeners) proxy.kernel.unshieldListener(listener.fd);
  for (const session of [...proxy.sessions.values()]) {
    counts.sessions++;
    try {
      if (failures.has(session)) throw failures.get(session);
      if (!goOn(proxy, session)) counts.lost++;
    } catch (error) {
      proxy.counters.legFailures++;
      counts.lost++;
      proxy.log.warn(
        { session: session.id, err: error },
        "a leg could not be taken back; resetting the session",
      );
      closeDetached(proxy.kernel, session);
      session.reset("rollback failed");
    }
  }
  proxy.ownerLinks.takeParked();
  return counts;
}

/** @throws HoldfastError `PROXY_FENCED` when an anchor here has seen the target release */
export function refuseLateRollback(proxy: WorkloadProxy): void {
  if (!proxy.anchorLinks.releasedElsewhere) return;
  throw fail(
    "PROXY_FENCED",
    "the target has released the sessions; retire this proxy instead of rolling back",
  );
}

/** Of both legs. A leg that cannot be taken back costs its session. */
async function uncaptureAll(proxy: WorkloadProxy): Promise<Map<LiveSession, unknown>> {
  const legs: { session: LiveSession; still: DetachedLeg }[] = [];
  for (const session of proxy.sessions.values())
    for (const still of [session.detachedUpstream, session.detachedDownstream])
      if (still !== null) legs.push({ session, still });
  const stills = legs.map(({ still }) => still);
  const failures = new Map<LiveSession, unknown>();
  let outcomes: Outcome<void>[];
  try {
    outcomes = await operate(proxy, stills, () => proxy.surgeon.uncapture(stills));
  } catch (error) {
    outcomes = stills.map(() => ({ ok: false, error }));
  }
  for (const [index, outcome] of outcomes.entries())
    if (!outcome.ok) failures.set((legs[index] as (typeof legs)[0]).session, outcome.error);
  return failures;
}

function goOn(proxy: WorkloadProxy, session: LiveSession): boolean {
  // Either peer may have sent its last word, a reset even, against the shield.
  const upstream = wake(proxy, session.detachedUpstream, "application");
  session.detachedUpstream = null;
  const downstream = wake(proxy, session.detachedDownstream, "client");
  session.detachedDownstream = null;
  if (downstream?.isOpen) proxy.kernel.setPeerTimeouts(downstream.fd, proxy.portOf(session));
  if (session.state === "captured") {
    // Captured with the downstream legs only: it was lingering, told to go, or never dialled.
    const { inbound, outbound } = session;
    const isApart = session.upstream === null && upstream === null;
    session.step(isApart && !inbound.finSent && !outbound.finRead ? "abort" : "resume");
  }
  if (session.lost !== null) {
    upstream?.reset();
    downstream?.reset();
    session.reset(session.lost);
    return false;
  }
  if (upstream !== null) session.setUpstream(upstream);
  if (session.downstream instanceof LinkLeg) {
    session.setDownstream(session.downstream);
    session.downstream?.sendResume();
  }
  if (downstream !== null) session.setDownstream(downstream);
  session.settle();
  session.inbound.unhold();
  proxy.start(session);
  return true;
}

function wake(proxy: WorkloadProxy, still: DetachedLeg | null, side: LegSide): TcpLeg | null {
  if (still === null) return null;
  return TcpLeg.attach(proxy.kernel, still.fd, side);
}
