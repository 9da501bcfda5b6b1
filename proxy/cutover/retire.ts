/** Retire at the source: the target has released; what is still here falls silent, or serves as an anchor. */
import assert from "node:assert/strict";
import type { Retire } from "#proxy/contract/commands.ts";
import { RST_CODE } from "#proxy/link/link-codec.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import { closeDetached } from "#proxy/workload/detached-legs.ts";
import type { LiveSession } from "#proxy/workload/live-session.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";

/** Takeover, gateway: nothing is left. Forward: the clients' sockets stay, and their sessions go on over links. */
export function retire(proxy: WorkloadProxy, owner: Retire["owner"]): { sessions: number } {
  if (proxy.config.downstream !== "forward") {
    for (const session of [...proxy.sessions.values()]) {
      closeDetached(proxy.kernel, session);
      if (session.downstream instanceof LinkLeg) proxy.ownerLinks.leaving.push(session.downstream);
      session.silence();
    }
    if (proxy.config.downstream === "gateway") proxy.ownerLinks.leaving.push(...proxy.ownerLinks.unparkAll());
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
    else proxy.anchorLinks.awaitActive(session);
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
