/**
 * Hold: no byte of a client goes towards the application any more, and none is on its way there.
 *
 *  1. Stop reading the downstream legs; ask the anchors (HOLD) to stop sending. New clients wait, undialled.
 *  2. Go on until every byte read is written, every dial is through, every anchor has answered HELD, every upstream leg is
 *     acknowledged, and the application has accepted all its connections; bounded by `holdMsMax`, for anchors by a little more
 *     with each link.
 *  3. What an application that does not read has left over is taken out of Node: from here on nothing of ours writes to
 *     an upstream leg, so what the dump finds and what the capture will find fit together.
 *
 * Application → client goes on throughout.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { HoldResult } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { LiveSession } from "#proxy/workload/live-session.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";

const POLL_MS = 1;
/** for each link, beside `holdMsMax`: its answer (HELD, COUNTED) takes a turn of both proxies */
export const LINK_MS = 1;

/** @throws HoldfastError `PROXY_QUIESCE` (retryable): an anchor has not answered; bytes may be on its link. Roll back. */
export async function hold(proxy: WorkloadProxy): Promise<HoldResult> {
  const { config } = proxy;
  const deadlineMs = performance.now() + config.limits.holdMsMax;
  proxy.counters.holds++;
  proxy.heldAtMs = performance.now();
  proxy.anchorLinks.releasedElsewhere = false;
  for (const session of proxy.sessions.values()) {
    session.inbound.hold();
    if (session.downstream instanceof LinkLeg) session.downstream.sendHold();
  }

  let restless: LiveSession[] = [...proxy.sessions.values()];
  const links = restless.filter(({ downstream }) => downstream instanceof LinkLeg).length;
  const anchorsDeadlineMs = deadlineMs + links * LINK_MS;
  let acceptBacklog = await countBacklog(proxy);
  let cutOff = 0;
  for (let poll = 0; ; poll++) {
    restless = restless.filter((session) => !isQuiet(session));
    cutOff = config.downstream === "gateway" ? cutOffLinks(proxy) : 0;
    if (restless.length === 0 && acceptBacklog === 0 && cutOff === 0) break;
    const nowMs = performance.now();
    if (nowMs >= anchorsDeadlineMs || (nowMs >= deadlineMs && !restless.some(hasSilentAnchor))) break;
    await delay(POLL_MS);
    // An application that only listens acknowledges late.
    if (poll === 1) for (const { upstream } of restless) if (upstream instanceof TcpLeg) upstream.nudge();
    if (acceptBacklog > 0) acceptBacklog = await countBacklog(proxy);
  }

  // Between two instances of the application: nobody could go on with what it waits for.
  for (const session of restless) {
    const replay = session.filter?.replay ?? null;
    if (replay?.isPending !== true) continue;
    session.reset("the application was unavailable at the hold");
  }
  restless = restless.filter((session) => session.state !== "closed");
  const silentAnchors = restless.filter(hasSilentAnchor);
  if (silentAnchors.length > 0) {
    const waitedMs = proxy.config.limits.holdMsMax + Math.round(links * LINK_MS);
    throw fail(
      "PROXY_QUIESCE",
      `${silentAnchors.length} of ${links} anchor links have not answered within ${waitedMs} ms; roll back and look at their nodes`,
    );
  }
  if (cutOff > 0)
    throw fail(
      "PROXY_QUIESCE",
      `gateways are cut off that have not confirmed the end of ${cutOff} sessions; roll back and look at the gateways and the network`,
    );
  let unackedLegs = 0;
  for (const session of restless) {
    if (session.state === "dialling") {
      session.dialling?.close();
      session.dialling = null;
      session.step("abort");
    }
    if (session.inbound.pendingBytes > 0) session.detachUpstreamLeg();
    if (session.state !== "waiting" && session.state !== "closed") unackedLegs++;
  }
  let sessions = 0;
  for (const session of proxy.sessions.values()) if (session.state !== "waiting") sessions++;
  return { sessions, unackedLegs, acceptBacklog };
}

/** Of sessions that are over: what they were sent last is confirmed when they are connected again, or never. */
function cutOffLinks({ ownerLinks }: WorkloadProxy): number {
  return [...ownerLinks.released].filter((link) => !link.isConnected).length;
}

/** It may still have bytes of its client on their way. */
function hasSilentAnchor({ state, downstream }: LiveSession): boolean {
  return state !== "closed" && downstream instanceof LinkLeg && !downstream.heldByAnchor;
}

function isQuiet(session: LiveSession): boolean {
  if (session.state === "closed") return true;
  if (hasSilentAnchor(session)) return false;
  if (session.filter?.replay?.isPending === true) return false;
  if (session.state === "waiting") return true;
  if (session.state === "dialling") return false;
  if (session.inbound.pendingBytes > 0) return false;
  return !(session.upstream instanceof TcpLeg) || session.upstream.unackedBytes() === 0;
}

async function countBacklog(proxy: WorkloadProxy): Promise<number> {
  let count = 0;
  for (const port of proxy.config.ports) count += await proxy.kernel.listenBacklog(port.upstream, "upstream");
  return count;
}
