/**
 * What the source of a move has to do with gateways (`downstream: gateway`), all of it over their sessions' links: it tells them where
 * the sessions go, asks before the commit whether they have all that was sent, and then leaves nothing behind.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { PrepareLinksResult } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import type { LiveSession } from "#proxy/workload/live-session.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { prepareMsMax } from "./anchors.ts";
import { LINK_MS } from "./hold.ts";

const POLL_MS = 1;
/** a move has begun by then, or come to nothing */
const MOVING_MS_MAX = 60_000;
/** what of the last frames is still written when this proxy ends */
const LEAVE_MS_MAX = 250;

/** Sends MOVE on each link, and on those that come until the move is over. Resolves when the gateways have prepared theirs. */
export async function announceMove(
  proxy: WorkloadProxy,
  { target, epoch }: { target: Endpoint; epoch: number },
): Promise<PrepareLinksResult> {
  const movingTo = { epoch, link: target };
  proxy.ownerLinks.movingTo = movingTo;
  setTimeout(() => {
    if (proxy.ownerLinks.movingTo === movingTo) proxy.ownerLinks.movingTo = null;
  }, MOVING_MS_MAX).unref();
  const asked = linksOf(proxy);
  const links = asked.map(({ link }) => link);
  for (const link of links) link.sendMove(movingTo);
  const deadlineMs = performance.now() + prepareMsMax(links.length);
  let waiting = links;
  while (waiting.length > 0 && performance.now() < deadlineMs) {
    await delay(POLL_MS);
    waiting = waiting.filter((link) => link.isOpen && link.prepared === null);
  }
  return { links: links.filter(isPrepared).length, unreachable: cutOff(asked) };
}

function isPrepared(link: LinkLeg): boolean {
  return link.isOpen && link.prepared === "ready";
}

/** Gateways that say of some of their sessions that they cannot go there, and of none that it can. One that says nothing may have gone. */
function cutOff(asked: { session: LiveSession; link: LinkLeg }[]): string[] {
  const reach = new Map<string, boolean>();
  for (const { session, link } of asked) {
    if (isPrepared(link)) reach.set(session.anchor, true);
    else if (link.isOpen && link.prepared === "unreachable" && !reach.has(session.anchor))
      reach.set(session.anchor, false);
  }
  return [...reach].filter(([, canReach]) => !canReach).map(([gateway]) => gateway);
}

/** When nothing more is sent on them. The answers are looked at by {@link settleLinks}. */
export function askCounts(proxy: WorkloadProxy): void {
  for (const { link } of linksOf(proxy)) link.sendCount();
}

/** @throws HoldfastError `PROXY_QUIESCE` (retryable): bytes may be on their way to a gateway. Roll back. */
export async function settleLinks(proxy: WorkloadProxy): Promise<void> {
  let waiting = linksOf(proxy);
  // sessions that have ended are not asked: what they were sent, they confirm by themselves
  const { released } = proxy.ownerLinks;
  const waitMs = proxy.config.limits.holdMsMax + Math.round((waiting.length + released.size) * LINK_MS);
  const deadlineMs = performance.now() + waitMs;
  for (;;) {
    waiting = waiting.filter(({ session, link }) => link.isOpen && link.countedBytes < sentBytes(session));
    if (waiting.length === 0 && released.size === 0) return;
    if (performance.now() >= deadlineMs) break;
    await delay(POLL_MS);
  }
  throw fail(
    "PROXY_QUIESCE",
    `gateways have not confirmed what ${waiting.length + released.size} sessions were sent within ${waitMs} ms; roll back and look at the gateways and the network`,
  );
}

/** The target has released: gateways that have not switched look for it. */
export async function leaveGateways(proxy: WorkloadProxy): Promise<void> {
  const { leaving, released } = proxy.ownerLinks;
  const links = leaving.splice(0);
  for (const link of links) link.close(RST_CODE.moved);
  await Promise.race([
    Promise.all([...links, ...released].map((link) => link.flushed())),
    delay(LEAVE_MS_MAX, undefined, { ref: false }),
  ]);
}

/** What a gateway has when all has arrived. */
function sentBytes({ outbound }: LiveSession): number {
  return outbound.bytes - outbound.pendingBytes;
}

function linksOf(proxy: WorkloadProxy): { session: LiveSession; link: LinkLeg }[] {
  const found: { session: LiveSession; link: LinkLeg }[] = [];
  for (const session of proxy.sessions.values()) {
    const { downstream: link } = session;
    if (link instanceof LinkLeg && link.isOpen) found.push({ session, link });
  }
  return found;
}
