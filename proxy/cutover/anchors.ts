/** What a move elsewhere comes to at an anchor (forward) and at a gateway: links are prepared, and the owner is another one. */
import assert from "node:assert/strict";
import { once } from "node:events";
import type { PrepareLinksResult, SwitchOwner } from "#proxy/contract/commands.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import type { LiveSession } from "#proxy/workload/live-session.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";

const PREPARE_MS_MAX = 3_000;
/** … and more for each session: TLS costs each end of a link about 1 ms of CPU */
const PREPARE_MS_SESSION = 2;
/** at a time, so that none runs into the time a greeting may take */
const DIALS_MAX = 128;

/** A link that is not there by then is dialled at the switch. Nobody waits meanwhile. */
export function prepareMsMax(links: number): number {
  return PREPARE_MS_MAX + PREPARE_MS_SESSION * links;
}

/** Forward, at an anchor: links for the sessions that are here, to the node that is about to own them. */
export async function prepareLinks(
  proxy: WorkloadProxy,
  options: { target: { address: string; port: number }; epoch: number },
): Promise<PrepareLinksResult> {
  const own = proxy.linkEndpoint;
  if (own !== null && own.address === options.target.address && own.port === options.target.port) {
    return { links: 0, unreachable: [] };
  }
  const { node } = proxy.config;
  const to = { link: options.target, epoch: options.epoch };
  const sessions = [...proxy.sessions.values()];
  const late = AbortSignal.timeout(prepareMsMax(sessions.length));
  const waiting = sessions.values();
  let links = 0;
  let dialled = 0;
  const dialInTurn = async (): Promise<void> => {
    for (const session of waiting) {
      if (late.aborted) return;
      if (session.anchor !== node || session.downstream === null) continue;
      if (session.state !== "open" && session.state !== "captured") continue;
      dialled++;
      if (await proxy.anchorLinks.reaches(session, to)) links++;
      else if (links === 0) return; // nobody has got there yet
    }
  };
  const all = Promise.all(Array.from({ length: DIALS_MAX }, dialInTurn));
  await Promise.race([all, once(late, "abort")]);
  return { links, unreachable: dialled > 0 && links === 0 ? [node] : [] };
}

/** Forward, at a third node's anchor. */
export function switchOwner(proxy: WorkloadProxy, owner: SwitchOwner["owner"]): { sessions: number } {
  assert(owner !== null, "forward mode goes on to somewhere");
  proxy.owner = owner;
  for (const session of [...proxy.sessions.values()]) {
    // one that cannot be led there keeps no other from it
    if (session.anchor === proxy.config.node) session.guard(() => lead(proxy, session, owner.link));
  }
  return { sessions: proxy.sessions.size };
}

function lead(proxy: WorkloadProxy, session: LiveSession, to: Endpoint): void {
  if (session.state === "waiting") {
    if (leadsTo(session.nextLink, to)) return;
    session.nextLink?.release();
    session.nextLink = null;
    proxy.start(session);
  } else if (session.state === "open" && session.upstream instanceof LinkLeg) {
    if (leadsTo(session.upstream, to) || session.switchAt !== null) return;
    if (session.nextLink === null) proxy.anchorLinks.relink(session, false);
    else proxy.anchorLinks.awaitActive(session);
  } else if (session.state === "open" && session.upstream === null && session.nextLink === null) {
    proxy.anchorLinks.relink(session, false);
  }
}

function leadsTo(link: LinkLeg | null, { address, port }: Endpoint): boolean {
  return link?.dialledTo?.address === address && link.dialledTo.port === port;
}
