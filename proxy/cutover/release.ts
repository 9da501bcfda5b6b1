/**
 * Release at the target: the application runs here. In this order for each session: the upstream leg speaks again, what
 * the kernel did not take and what was pending goes first, then the client's end is joined and read.
 *
 * Discard: the move was given up before release; nothing adopted ever says a word.
 */
import type { AdoptedLeg, Outcome } from "#proxy/contract/leg-surgeon.ts";
import type { LegSnapshot, SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import type { LegSide } from "#proxy/stream/socket-kernel.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { closeDetached } from "#proxy/workload/detached-legs.ts";
import { beginLinkWait } from "#proxy/workload/link-wait.ts";
import type { DetachedLeg, LiveSession } from "#proxy/workload/live-session.ts";
import { switchUpstream } from "#proxy/workload/upstream-switch.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { forgetAdopted } from "./adopt.ts";
import { operate, sameCount } from "./surgery.ts";

const NO_BYTES = Buffer.alloc(0);

export interface ReleaseResult {
  sessions: number;
  legs: number;
  /** sessions whose client or application had gone, or whose leg could not be released: reset */
  lost: number;
  releaseUs: number;
}

/**
 * The role becomes `owner` when every leg speaks again: until then links are parked and what ends is noted. What a leg
 * receives before its session has it waits in the kernel.
 */
export async function release(proxy: WorkloadProxy, epoch = proxy.epoch): Promise<ReleaseResult> {
  const start = process.hrtime.bigint();
  const counts = { sessions: 0, legs: 0, lost: 0 };
  const speaking = await releaseLegs(proxy);
  proxy.role = "owner";
  proxy.epoch = epoch;
  proxy.owner = null;
  for (const session of [...proxy.sessions.values()]) {
    const { adopted } = session;
    if (adopted !== null) {
      counts.sessions++;
      releaseSession(proxy, session, { adopted, speaking }, counts);
    } else {
      resumeOwn(proxy, session);
    }
  }
  // Links of sessions that were not in the snapshots: new ones, or ones whose session has ended meanwhile.
  proxy.ownerLinks.takeParked();
  for (const listener of proxy.listeners) proxy.kernel.unshieldListener(listener.fd);
  return { ...counts, releaseUs: Math.round(Number(process.hrtime.bigint() - start) / 1000) };
}

/** A session of an anchor that has become the owner and has no upstream leg here: begun in mid-move, or lost. */
function resumeOwn(proxy: WorkloadProxy, session: LiveSession): void {
  if (session.state === "waiting") {
    session.nextLink?.release();
    session.nextLink = null;
    session.inbound.unhold();
    proxy.start(session);
  } else if (session.state === "open" && session.anchor === proxy.config.node) {
    // It was not captured: the old owner had no leg for it (its end is on the link), or has lost it.
    if (!session.inbound.finRead && !session.outbound.finRead) session.reset("not known to the old owner");
  }
}

function releaseSession(
  proxy: WorkloadProxy,
  session: LiveSession,
  { adopted, speaking }: { adopted: SessionSnapshot; speaking: Speaking },
  counts: { legs: number; lost: number },
): void {
  session.adopted = null;
  const moved = session.state === "adopted";
  try {
    if (session.lost !== null && session.detachedUpstream === null && session.detachedDownstream === null) {
      counts.lost++;
      resetAtAnchor(proxy, session, adopted);
      session.reset(session.lost);
      return;
    }
    const rests = [session.detachedUpstream, session.detachedDownstream].map((still) =>
      restOf(still, speaking),
    );
    const failed = speaking.failed.get(session);
    if (failed !== undefined) throw failed.error;
    const upstream = attach(proxy, session.detachedUpstream, rests[0], "application");
    session.detachedUpstream = null;
    const downstream = attach(proxy, session.detachedDownstream, rests[1], "client");
    session.detachedDownstream = null;
    if (downstream?.leg.isOpen) proxy.kernel.setPeerTimeouts(downstream.leg.fd, proxy.portOf(session));
    counts.legs += (upstream === null ? 0 : 1) + (downstream === null ? 0 : 1);
    if (moved) wakeMoved(proxy, session, adopted, upstream, downstream);
    else if (upstream !== null) takeBack(proxy, session, adopted, upstream);
    else if (adopted.upstream === null) takeBackUndialled(proxy, session, adopted);
    else session.reset(session.lost ?? "upstream reset");
    if (session.lost !== null) {
      counts.lost++;
      session.reset(session.lost);
    }
  } catch (error) {
    proxy.counters.legFailures++;
    counts.lost++;
    proxy.log.warn({ session: session.id, err: error }, "a leg could not be released; resetting the session");
    resetSpeaking(proxy, session, speaking);
    closeDetached(proxy.kernel, session);
    session.reset("release failed");
  }
}

/** Forward: the anchor has prepared a link, and waits to hear which byte comes next. */
function resetAtAnchor(proxy: WorkloadProxy, session: LiveSession, adopted: SessionSnapshot): void {
  const link = proxy.ownerLinks.parked.get(session.id);
  if (link?.isReady !== true) return;
  proxy.ownerLinks.unpark(session.id);
  link.sendActive({
    epoch: proxy.epoch,
    bytesIn: adopted.bytesIn,
    bytesOut: adopted.bytesOut - adopted.pendingOut.length,
  });
  link.reset();
}

interface Released {
  leg: TcpLeg;
  /** unsent bytes the kernel did not take; our FIN, if it was sent, comes again after them */
  rest: Buffer;
}

/** What became of the legs when they were told to speak. */
interface Speaking {
  /** unsent bytes the kernel did not take */
  rests: Map<DetachedLeg, Buffer>;
  failed: Map<LiveSession, { error: unknown }>;
}

/** Of both legs of a session, the application's first; what stood in for one is gone before. */
async function releaseLegs(proxy: WorkloadProxy): Promise<Speaking> {
  const speaking: Speaking = { rests: new Map(), failed: new Map() };
  const adopted = [...proxy.sessions.values()].filter((session) => session.adopted !== null);
  const absent: { session: LiveSession; leg: LegSnapshot }[] = [];
  const legs: { session: LiveSession; still: DetachedLeg; leg: AdoptedLeg }[] = [];
  for (const session of adopted) {
    if (session.standIn !== null) {
      proxy.kernel.close(session.standIn.fd);
      absent.push({ session, leg: session.standIn.leg });
      session.standIn = null;
    }
    for (const side of ["upstream", "downstream"] as const) {
      const still = side === "upstream" ? session.detachedUpstream : session.detachedDownstream;
      if (still === null || still.snapshot === null) continue;
      // a client lives, and has sent against the shield
      const leg = { fd: still.fd, snapshot: still.snapshot, side, probe: side === "downstream" };
      legs.push({ session, still, leg });
    }
  }
  if (absent.length > 0) {
    const provoked = await outcomesOf(absent.length, () =>
      proxy.surgeon.provoke(absent.map(({ leg }) => leg)),
    );
    for (const [index, outcome] of provoked.entries())
      if (!outcome.ok)
        speaking.failed.set((absent[index] as (typeof absent)[0]).session, { error: outcome.error });
  }
  const stills = legs.map(({ still }) => still);
  const released = await outcomesOf(legs.length, () =>
    operate(proxy, stills, () => proxy.surgeon.release(legs.map(({ leg }) => leg))),
  );
  for (const [index, outcome] of released.entries()) {
    const { session, still } = legs[index] as (typeof legs)[0];
    if (outcome.ok) speaking.rests.set(still, outcome.value);
    else speaking.failed.set(session, { error: outcome.error });
  }
  return speaking;
}

/** There is no way back: a call that rejects has failed for each leg. */
async function outcomesOf<T>(legs: number, work: () => Promise<Outcome<T>[]>): Promise<Outcome<T>[]> {
  try {
    return sameCount(await work(), legs);
  } catch (error) {
    return Array.from({ length: legs }, () => ({ ok: false, error }));
  }
}

function restOf(still: DetachedLeg | null, { rests }: Speaking): Buffer | undefined {
  return still === null ? undefined : rests.get(still);
}

function attach(
  proxy: WorkloadProxy,
  still: DetachedLeg | null,
  rest: Buffer | undefined,
  side: LegSide,
): Released | null {
  if (still === null || rest === undefined) return null;
  proxy.kernel.boundUnsent(still.fd, side);
  return { leg: TcpLeg.attach(proxy.kernel, still.fd, side), rest };
}

/** A leg that speaks already ends with RST where its session's other one failed. */
function resetSpeaking(proxy: WorkloadProxy, session: LiveSession, { rests }: Speaking): void {
  if (session.detachedUpstream !== null && rests.has(session.detachedUpstream)) {
    proxy.kernel.reset(session.detachedUpstream.fd);
    session.detachedUpstream = null;
  }
  if (session.detachedDownstream !== null && rests.has(session.detachedDownstream)) {
    proxy.kernel.reset(session.detachedDownstream.fd);
    session.detachedDownstream = null;
  }
}

function wakeMoved(
  proxy: WorkloadProxy,
  session: LiveSession,
  adopted: SessionSnapshot,
  upstream: Released | null,
  downstream: Released | null,
): void {
  const { inbound, outbound } = session;
  inbound.bytes = adopted.bytesIn;
  outbound.bytes = adopted.bytesOut;
  if (!adopted.headerAwaited) inbound.prepend(adopted.pendingIn);
  outbound.prepend(adopted.pendingOut);
  inbound.finRead = adopted.finIn !== "none";
  outbound.finRead = adopted.finOut !== "none";
  inbound.finSent = adopted.finIn === "sent" && (upstream === null || upstream.rest.length === 0);
  outbound.finSent = adopted.finOut === "sent" && (downstream === null || downstream.rest.length === 0);
  if (upstream !== null) inbound.prepend(upstream.rest);
  if (downstream !== null) outbound.prepend(downstream.rest);

  // It was reset between the two captures; a client that had read and said everything may go without a word.
  const clientGone =
    proxy.config.downstream === "takeover" && downstream === null && !(inbound.finSent && outbound.finSent);
  const isApart = upstream === null && adopted.upstream === null && !clientGone;
  // Told to go, and it has not gone yet: the application knows nothing of it.
  const hasEnded = inbound.finSent && outbound.finSent;
  const isToldToGo = isApart && outbound.finRead && !hasEnded;
  if (isApart && !isToldToGo && !hasEnded) {
    // Accepted while held: it has seen nothing of the application yet.
    session.step("renew");
    if (downstream !== null) session.setDownstream(downstream.leg);
    else joinParked(proxy, session);
    proxy.start(session);
    return;
  }
  if (upstream !== null) session.setUpstream(upstream.leg);
  if (downstream !== null) session.setDownstream(downstream.leg);
  if (clientGone) {
    session.lost ??= "client gone";
    return;
  }
  session.wake("release");
  if (isToldToGo && session.state === "open") session.endAfter(NO_BYTES);
  if (session.state !== "open" || downstream !== null || proxy.config.downstream === "takeover") return;
  joinParked(proxy, session);
}

function joinParked(proxy: WorkloadProxy, session: LiveSession): void {
  const link = proxy.ownerLinks.unpark(session.id);
  if (link?.isReady) proxy.ownerLinks.join(session, link);
  else if (session.anchor === proxy.config.node) session.reset("client gone");
  else beginLinkWait(proxy, session);
}

/** As {@link takeBack}, of a session the old owner had not dialled yet. */
function takeBackUndialled(proxy: WorkloadProxy, session: LiveSession, adopted: SessionSnapshot): void {
  const old = session.upstream;
  if (session.state !== "open") return;
  if (old instanceof LinkLeg) {
    session.inbound.removeSink(old.takeUnsent());
    old.listener = null;
    old.release();
  }
  session.upstream = null;
  session.outbound.setSource(null);
  if (session.inbound.bytes - session.inbound.pendingBytes !== adopted.bytesIn) {
    proxy.counters.linkMismatches++;
    session.reset("link mismatch");
    return;
  }
  const unobserved = adopted.filter.length === 0 ? null : session.inbound.takeBack();
  if (unobserved !== null) proxy.filters.attach(session, adopted.filter);
  session.inbound.prepend(adopted.pendingIn);
  session.inbound.finSent = false;
  session.step("renew");
  session.inbound.unhold();
  proxy.start(session);
  if (unobserved !== null && unobserved.length > 0) session.fromClient(unobserved);
}

/** The client is connected to this very node: anchor and owner become one. */
function takeBack(
  proxy: WorkloadProxy,
  session: LiveSession,
  adopted: SessionSnapshot,
  upstream: Released,
): void {
  if (session.state !== "open") {
    upstream.leg.reset();
    return;
  }
  session.nextLink?.close(RST_CODE.moved);
  session.nextLink = null;
  const { inbound, outbound } = session;
  if (session.upstream !== null && !(session.upstream instanceof TcpLeg)) {
    inbound.removeSink(session.upstream.takeUnsent());
  }
  inbound.finSent = adopted.finIn === "sent" && upstream.rest.length === 0;
  // What was read here and has not reached the old owner, it has not observed.
  const unobserved = inbound.takeBack();
  inbound.holdFin();
  if (adopted.filter.length > 0) proxy.filters.attach(session, adopted.filter);
  switchUpstream(proxy, session, upstream.leg, {
    bytesIn: adopted.bytesIn,
    bytesOut: adopted.bytesOut - adopted.pendingOut.length,
    prependIn: Buffer.concat([upstream.rest, adopted.pendingIn]),
    onComplete: () => {
      if (adopted.pendingOut.length > 0) outbound.receive(adopted.pendingOut);
      if (adopted.finOut === "none") return;
      outbound.receiveFin();
      upstream.leg.endedBefore();
    },
  });
  if (unobserved.length > 0) session.fromClient(unobserved);
  inbound.releaseFin();
}

export function discard(proxy: WorkloadProxy): { sessions: number } {
  let count = 0;
  for (const session of [...proxy.sessions.values()]) {
    if (session.adopted === null) continue;
    count++;
    forgetAdopted(proxy, session);
  }
  proxy.ownerLinks.closeParked(RST_CODE.moved);
  if (!proxy.isAnchor) proxy.closeListeners();
  return { sessions: count };
}
