/**
 * Rollback at the source: everything that was held, taken out or captured goes on as if nothing had happened.
 * Retire at the source: the target has released; what is still here falls silent, or serves as an anchor.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import type { Retire, SwitchOwner } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { Outcome } from "#proxy/contract/leg-surgeon.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import type { LegSide } from "#proxy/stream/socket-kernel.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import { closeDetached } from "#proxy/workload/detached-legs.ts";
import { beginLinkWait } from "#proxy/workload/link-wait.ts";
import type { DetachedLeg, LiveSession } from "#proxy/workload/live-session.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { operate } from "./surgery.ts";

/** A link that is not there by then is dialled again at the switch. */
const PREPARE_MS_MAX = 3_000;
/** … and more for each session: TLS costs each end of a link about 1 ms of CPU. Nobody waits meanwhile. */
const PREPARE_MS_SESSION = 2;
/** at a time, so that none runs into the time a greeting may take */
const DIALS_MAX = 128;

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
    // Captured with the downstream legs only: it was lingering, or never dialled.
    if (session.upstream === null && upstream === null && !session.inbound.finSent) {
      session.step("abort");
    } else session.step("resume");
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

/** Takeover, gateway: nothing is left. Forward: the clients' sockets stay, and their sessions go on over links. */
export function retire(proxy: WorkloadProxy, owner: Retire["owner"]): { sessions: number } {
  if (proxy.config.downstream !== "forward") {
    for (const session of [...proxy.sessions.values()]) {
      closeDetached(proxy.kernel, session);
      if (session.downstream instanceof LinkLeg) proxy.ownerLinks.leaving.push(session.downstream);
      session.silence();
    }
    if (proxy.config.downstream === "gateway")
      proxy.ownerLinks.leaving.push(...proxy.ownerLinks.parked.values());
    proxy.ownerLinks.parked.clear();
    proxy.closeDoors();
    return { sessions: 0 };
  }
  assert(owner !== null, "forward mode goes on to somewhere");
  proxy.owner = owner;
  for (const session of [...proxy.sessions.values()]) {
    if (session.anchor === proxy.config.node) becomeAnchor(proxy, session);
    else handOver(proxy, session);
  }
  proxy.ownerLinks.closeParked(RST_CODE.moved);
  return { sessions: proxy.sessions.size };
}

function becomeAnchor(proxy: WorkloadProxy, session: LiveSession): void {
  session.dropWatch();
  if (session.state === "captured") {
    if (session.lost !== null || session.downstream === null) {
      closeDetached(proxy.kernel, session);
      session.nextLink?.reset();
      session.reset(session.lost ?? "client gone");
      return;
    }
    if (session.inbound.finSent && session.outbound.finSent) {
      // Only the client's last bytes are left, and they are here.
      closeDetached(proxy.kernel, session);
      session.nextLink?.release();
      session.nextLink = null;
      session.wake("resume");
      return;
    }
    // ACTIVE may still be on its way on the prepared link; without one, dial again.
    if (session.nextLink === null) proxy.anchorLinks.relink(session, false);
    else beginLinkWait(proxy, session);
  } else if (session.state === "waiting") {
    session.inbound.unhold();
    proxy.start(session);
  }
}

/** The client is at another anchor: that one has, or gets, its link to the new owner. Ours ends when the anchor ends it. */
function handOver(proxy: WorkloadProxy, session: LiveSession): void {
  closeDetached(proxy.kernel, session);
  const link = session.downstream;
  session.forget();
  if (link instanceof LinkLeg) proxy.ownerLinks.releaseLater(link);
}

/** Forward, at an anchor: links for the sessions that are here, to the node that is about to own them. */
export async function prepareLinks(
  proxy: WorkloadProxy,
  options: { target: { address: string; port: number }; epoch: number },
): Promise<{ links: number }> {
  const own = proxy.linkEndpoint;
  if (own !== null && own.address === options.target.address && own.port === options.target.port) {
    return { links: 0 };
  }
  const sessions = [...proxy.sessions.values()];
  const late = AbortSignal.timeout(PREPARE_MS_MAX + PREPARE_MS_SESSION * sessions.length);
  const waiting = sessions.values();
  let links = 0;
  const dialInTurn = async (): Promise<void> => {
    for (const session of waiting) {
      if (late.aborted) return;
      if (session.anchor !== proxy.config.node || session.downstream === null) continue;
      if (session.state !== "open" && session.state !== "captured") continue;
      if (await proxy.anchorLinks.dial(session, { to: options.target, epoch: options.epoch, fresh: false }))
        links++;
    }
  };
  const all = Promise.all(Array.from({ length: DIALS_MAX }, dialInTurn));
  await Promise.race([all, once(late, "abort")]);
  return { links };
}

/** Forward, at a third node's anchor. */
export function switchOwner(proxy: WorkloadProxy, owner: SwitchOwner["owner"]): { sessions: number } {
  assert(owner !== null, "forward mode goes on to somewhere");
  proxy.owner = owner;
  for (const session of [...proxy.sessions.values()]) {
    if (session.anchor !== proxy.config.node) continue;
    if (session.state === "waiting") {
      if (leadsTo(session.nextLink, owner.link)) continue;
      session.nextLink?.release();
      session.nextLink = null;
      proxy.start(session);
    } else if (session.state === "open" && session.upstream instanceof LinkLeg) {
      const switched = leadsTo(session.upstream, owner.link);
      if (!switched && session.nextLink === null && session.switchAt === null)
        proxy.anchorLinks.relink(session, false);
    } else if (session.state === "open" && session.upstream === null && session.nextLink === null) {
      proxy.anchorLinks.relink(session, false);
    }
  }
  return { sessions: proxy.sessions.size };
}

function leadsTo(link: LinkLeg | null, { address, port }: Endpoint): boolean {
  return link?.dialledTo?.address === address && link.dialledTo.port === port;
}
