/**
 * Release at the target: the application runs here. In this order for each session: the upstream leg speaks again, what
 * the kernel did not take and what was pending goes first, then the client's end is joined and read.
 *
 * Discard: the move was given up before release; nothing adopted ever says a word.
 */
import type { LegSnapshot, SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { Side } from "#proxy/workload/leg-kernel.ts";
import type { DetachedLeg, LiveSession } from "#proxy/workload/live-session.ts";
import { closeDetached, type WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { forgetAdopted } from "./adopt.ts";

export interface ReleaseResult {
  sessions: number;
  legs: number;
  /** sessions whose client or application had gone, or whose leg could not be released: reset */
  lost: number;
  releaseUs: number;
}

/** Call with the role already `owner`. */
export function release(proxy: WorkloadProxy): ReleaseResult {
  const start = process.hrtime.bigint();
  const counts = { sessions: 0, legs: 0, lost: 0 };
  proxy.owner = null;
  for (const session of [...proxy.sessions.values()]) {
    const { adopted } = session;
    if (adopted !== null) {
      counts.sessions++;
      releaseSession(proxy, session, adopted, counts);
    } else {
      resumeOwn(proxy, session);
    }
  }
  // Links of sessions that were not in the snapshots: new ones, or ones whose session has ended meanwhile.
  for (const link of [...proxy.parked.values()]) proxy.takeLink(link);
  proxy.parked.clear();
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
  adopted: SessionSnapshot,
  counts: { legs: number; lost: number },
): void {
  session.adopted = null;
  const moved = session.state === "adopted";
  try {
    if (session.standIn !== null) {
      const { fd, leg } = session.standIn;
      session.standIn = null;
      proxy.kernel.close(fd);
      proxy.kernel.provoke(leg);
    }
    if (session.lost !== null && session.detachedUpstream === null && session.detachedDownstream === null) {
      counts.lost++;
      resetAtAnchor(proxy, session, adopted);
      session.reset(session.lost);
      return;
    }
    const upstream = releaseDetached(proxy, session.detachedUpstream, { side: "upstream", probe: false });
    session.detachedUpstream = null;
    if (upstream?.leg.isOpen)
      proxy.kernel.boundQueues(upstream.leg.fd, "application", promisedBytes(adopted.upstream));
    const downstream = releaseDetached(proxy, session.detachedDownstream, {
      side: "downstream",
      probe: true,
    });
    session.detachedDownstream = null;
    if (downstream?.leg.isOpen) {
      proxy.kernel.setPeerTimeouts(downstream.leg.fd, proxy.portOf(session));
      proxy.kernel.boundQueues(downstream.leg.fd, "client", promisedBytes(adopted.downstream));
    }
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
    closeDetached(proxy.kernel, session);
    session.reset("release failed");
  }
}

/** Forward: the anchor has prepared a link, and waits to hear which byte comes next. */
function resetAtAnchor(proxy: WorkloadProxy, session: LiveSession, adopted: SessionSnapshot): void {
  const link = proxy.parked.get(session.id);
  if (link?.isReady !== true) return;
  proxy.parked.delete(session.id);
  link.sendActive({
    epoch: proxy.epoch,
    bytesIn: adopted.bytesIn,
    bytesOut: adopted.bytesOut - adopted.pendingOut.length,
  });
  link.reset();
}

/** What its peer may send because it was told so, and what lies before that. Of a closed window nothing is expected. */
function promisedBytes(leg: LegSnapshot | null): number {
  return leg === null || leg.window.rcv_wnd === 0 ? 0 : leg.receive.bytes.length + leg.window.rcv_wnd;
}

interface Released {
  leg: TcpLeg;
  /** unsent bytes the kernel did not take; our FIN, if it was sent, comes again after them */
  rest: Buffer;
}

function releaseDetached(
  proxy: WorkloadProxy,
  still: DetachedLeg | null,
  options: { side: Side; probe: boolean },
): Released | null {
  if (still === null || still.snapshot === null) return null;
  const rest = proxy.kernel.releaseLeg(still.fd, still.snapshot, options);
  return {
    leg: TcpLeg.attach(proxy.kernel, still.fd, options.side === "upstream" ? "application" : "client"),
    rest,
  };
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
  if (
    upstream === null &&
    adopted.upstream === null &&
    !clientGone &&
    !(inbound.finSent && outbound.finSent)
  ) {
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
  if (session.state !== "open" || downstream !== null || proxy.config.downstream === "takeover") return;
  joinParked(proxy, session);
}

function joinParked(proxy: WorkloadProxy, session: LiveSession): void {
  const link = proxy.parked.get(session.id);
  proxy.parked.delete(session.id);
  if (link?.isReady) proxy.joinLink(session, link);
  else if (session.anchor === proxy.config.node) session.reset("client gone");
  else proxy.awaitLink(session);
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
  if (unobserved !== null) proxy.attachFilter(session, adopted.filter);
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
  if (adopted.filter.length > 0) proxy.attachFilter(session, adopted.filter);
  proxy.switchUpstream(session, upstream.leg, {
    bytesIn: adopted.bytesIn,
    bytesOut: adopted.bytesOut - adopted.pendingOut.length,
    prependIn: Buffer.concat([upstream.rest, adopted.pendingIn]),
    onComplete: () => {
      if (adopted.pendingOut.length > 0) outbound.receive(adopted.pendingOut);
      if (adopted.finOut !== "none") outbound.receiveFin();
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
  proxy.closeParked(RST_CODE.moved);
  if (!proxy.isAnchor) proxy.closeListeners();
  return { sessions: count };
}
