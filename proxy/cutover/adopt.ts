/**
 * Adopt at the target: legs are built from their snapshots, silent until `release`.
 *
 * Forward: a session whose client is connected to *this* node is here already, as an anchor's; the adopted leg is kept
 * beside its link to the old owner until release.
 */
import { endpointText } from "#proxy/contract/address.ts";
import type { AdoptResult } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { AdoptionOptions } from "#proxy/contract/leg-surgeon.ts";
import type { LegSnapshot, SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { closeDetached } from "#proxy/workload/detached-legs.ts";
import type { LiveSession } from "#proxy/workload/live-session.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { sameCount } from "./surgery.ts";

/**
 * One leg that cannot be built costs its session, not the move, see {@link adoptDownstream}. Its application's end is restored all the same, so a
 * stand-in keeps it as silent as the others until the release; then it is reset, and the client too.
 * @throws HoldfastError `PROXY_ADOPT`: nothing of this call is left behind.
 */
export async function adoptUpstream(
  proxy: WorkloadProxy,
  snapshots: SessionSnapshot[],
): Promise<AdoptResult> {
  const start = process.hrtime.bigint();
  let legs = 0;
  const done: LiveSession[] = [];
  /** … whose legs cannot be built; when those that can have their addresses, which a stand-in would take from them */
  const standIns: [session: LiveSession, leg: LegSnapshot, why: unknown][] = [];
  const building: Building[] = [];
  try {
    for (const snapshot of snapshots) {
      checkPort(proxy, snapshot);
      const session = proxy.sessions.get(snapshot.id) ?? createAdopted(proxy, snapshot);
      if (session.adopted !== null) throw new Error(`session ${snapshot.id} occurs twice`);
      done.push(session);
      session.adopted = snapshot;
      // An anchor's own session goes on over its link until the release.
      if (snapshot.filter.length > 0 && session.state === "adopted")
        proxy.filters.attach(session, snapshot.filter);
      const { upstream } = snapshot;
      if (upstream === null) continue;
      if (!movable(upstream)) {
        session.lost = "upstream reset";
        if (couldNotBeCaptured(upstream)) standIns.push([session, upstream, "it could not be captured"]);
        continue;
      }
      building.push({ session, leg: upstream });
    }
    // CRIU lets the application's end speak while it restores what that end had not sent, and then puts its
    // windows back to what they were: answered meanwhile, the two ends would refuse each other's segments for good.
    const built = await build(proxy, building, "detachedUpstream", { side: "upstream", shielded: true });
    legs = built.legs;
    for (const { session, leg, why } of built.failed) standIns.push([session, leg, why]);
    await standInFor(proxy, standIns);
    if (standIns.length > 1 && legs === 0)
      throw new Error(`none of ${standIns.length} can be built here; the proxy's log says why`);
  } catch (cause) {
    for (const session of done) forgetAdopted(proxy, session);
    throw adoptError("upstream", cause);
  }
  proxy.counters.legsAdopted += legs;
  return { ...result(snapshots.length, legs, start), lost: standIns.length };
}

/** who is at the other end of a leg */
const SIDES = { upstream: "application", downstream: "client" } as const;

interface Building {
  session: LiveSession;
  leg: LegSnapshot;
}

/**
 * The legs belong to their sessions before a failure is looked at, so that what is undone undoes all of them. An anchor's own
 * session may end meanwhile: its leg is closed, silently.
 * @throws what no leg could be built with
 */
async function build(
  proxy: WorkloadProxy,
  building: readonly Building[],
  where: "detachedUpstream" | "detachedDownstream",
  options: AdoptionOptions,
): Promise<{ legs: number; failed: (Building & { why: unknown })[] }> {
  const outcomes = sameCount(
    await proxy.surgeon.adopt(
      building.map(({ leg }) => leg),
      options,
    ),
    building.length,
  );
  let legs = 0;
  const failed: (Building & { why: unknown })[] = [];
  for (const [index, outcome] of outcomes.entries()) {
    const { session, leg } = building[index] as Building;
    if (!outcome.ok) failed.push({ session, leg, why: outcome.error });
    else if (session.state === "closed") proxy.kernel.close(outcome.value);
    else {
      proxy.kernel.boundUnread(outcome.value, SIDES[options.side], promisedBytes(leg));
      session[where] = { fd: outcome.value, snapshot: leg };
      legs++;
    }
  }
  const ofNode = failed.find(({ why }) => isOfNode(why));
  if (ofNode !== undefined) throw ofNode.why;
  return { legs, failed };
}

/** What its peer may send because it was told so, and what lies before that. Of a closed window nothing is expected. */
function promisedBytes({ receive, window }: LegSnapshot): number {
  return window.rcv_wnd === 0 ? 0 : receive.bytes.length + window.rcv_wnd;
}

async function standInFor(
  proxy: WorkloadProxy,
  standIns: readonly [session: LiveSession, leg: LegSnapshot, why: unknown][],
): Promise<void> {
  for (const [session, leg, why] of standIns)
    if (session.state !== "closed") await standIn(proxy, session, leg, why);
}

async function standIn(
  proxy: WorkloadProxy,
  session: LiveSession,
  leg: LegSnapshot,
  why: unknown,
): Promise<void> {
  const { kernel, surgeon, counters, log } = proxy;
  try {
    const fd = kernel.bindUpstream(leg.local);
    const [shielded] = await surgeon.shield([fd]).catch((error) => [{ ok: false as const, error }]);
    if (!shielded?.ok) {
      kernel.close(fd);
      throw shielded?.error;
    }
    session.standIn = { fd: kernel.listen({ fd }, 1), leg }; // which closes it where it fails
  } catch (error) {
    throw new Error(
      `${endpointText(leg.local.address, leg.local.port)}, the proxy's end of a connection to the application, cannot be had here (${messageOf(error)}): end what listens there, or keep it out of net.ipv4.ip_local_port_range (${messageOf(why)})`,
    );
  }
  counters.legFailures++;
  session.lost = `upstream cannot be adopted: ${messageOf(why)}`;
  log.warn(
    { session: session.id, client: session.client, local: leg.local, err: why },
    "a connection to the application cannot be built here: its session is lost",
  );
}

/**
 * Takeover. One leg that cannot be built costs its session, not the move: it would not be built the next time either. A shortage
 * of the node, or that none can be, is the move's to fail for.
 * @throws HoldfastError `PROXY_ADOPT`
 *
 * The listener is there since `standby`, and refuses handshakes silently until release.
 */
export async function adoptDownstream(
  proxy: WorkloadProxy,
  snapshots: SessionSnapshot[],
): Promise<AdoptResult> {
  const start = process.hrtime.bigint();
  let legs = 0;
  let lost = 0;
  const building: Building[] = [];
  try {
    for (const snapshot of snapshots) {
      checkPort(proxy, snapshot);
      const session = proxy.sessions.get(snapshot.id) ?? createAdopted(proxy, snapshot);
      if (session.detachedDownstream !== null) {
        legs++; // asked for once more, by the next agent
        continue;
      }
      session.adopted = { ...snapshot, upstream: session.adopted?.upstream ?? null };
      if (snapshot.filter.length > 0) proxy.filters.attach(session, snapshot.filter);
      session.client = clientOf(snapshot);
      session.named = snapshot.client;
      if (snapshot.headerAwaited) proxy.entrance.awaitHeader(session, snapshot.pendingIn);
      else proxy.table.countClient(session);
      if (movable(snapshot.downstream)) building.push({ session, leg: snapshot.downstream });
      else if (snapshot.downstream !== null) session.lost = "downstream reset";
    }
    const built = await build(proxy, building, "detachedDownstream", {
      side: "downstream",
      shielded: true,
      addressAbsent: true,
      device: proxy.config.listenDevice,
    });
    legs += built.legs;
    for (const { session, why } of built.failed) {
      lost++;
      proxy.counters.legFailures++;
      session.lost = `downstream cannot be adopted: ${messageOf(why)}`;
      proxy.log.warn(
        { session: session.id, client: session.client, err: why },
        "a client's connection cannot be built here: its session is lost",
      );
    }
    if (lost > 1 && legs === 0)
      throw new Error(`none of ${lost} can be built here; the proxy's log says why`);
  } catch (cause) {
    throw adoptError("downstream", cause);
  }
  proxy.counters.legsAdopted += legs;
  return { ...result(snapshots.length, legs, start), lost };
}

/** Nothing is sent: legs in repair mode are closed silently. An anchor's session stays with its old owner. */
export function forgetAdopted(proxy: WorkloadProxy, session: LiveSession): void {
  closeDetached(proxy.kernel, session);
  session.adopted = null;
  session.filter = null;
  if (session.state === "adopted") session.forget();
  else session.lost = null; // an anchor's own, which goes on with its old owner
}

function createAdopted(proxy: WorkloadProxy, snapshot: SessionSnapshot): LiveSession {
  return proxy.table.create({
    id: snapshot.id,
    port: snapshot.port,
    // With takeover the client is connected to whoever owns the workload.
    anchor: proxy.config.downstream === "takeover" ? proxy.config.node : snapshot.anchor,
    client: clientOf(snapshot),
    acceptedAtMs: snapshot.acceptedAtMs,
    state: "adopted",
  });
}

/** What no leg could be built with, rather than this one not. */
export function isOfNode(error: unknown): boolean {
  return ["EPERM", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"].includes((error as { code?: string }).code ?? "");
}

/** A leg that its peer has reset does not know that peer any more. */
function couldNotBeCaptured({ state, remote }: LegSnapshot): boolean {
  return state === "CLOSE" && remote.port !== 0;
}

function movable(leg: LegSnapshot | null): leg is LegSnapshot {
  return leg !== null && leg.state !== "CLOSE";
}

function clientOf(snapshot: SessionSnapshot): string {
  if (snapshot.client !== "") return snapshot.client;
  const remote = snapshot.downstream?.remote;
  if (remote === undefined) return "";
  return remote.address.includes(":")
    ? `[${remote.address}]:${remote.port}`
    : `${remote.address}:${remote.port}`;
}

function checkPort(proxy: WorkloadProxy, snapshot: SessionSnapshot): void {
  const port = proxy.config.ports[snapshot.port];
  if (port === undefined) {
    throw new Error(
      `session ${snapshot.id} is of port number ${snapshot.port}, which this node's configuration lacks`,
    );
  }
  if (snapshot.headerAwaited && port.proxyProtocol === null)
    throw new Error(
      `port ${port.listen} has proxyProtocol at the source, and not in this node's configuration`,
    );
}

function adoptError(leg: string, cause: unknown): HoldfastError {
  return fail("PROXY_ADOPT", `a ${leg} leg could not be adopted: ${messageOf(cause)}`, { cause });
}

function result(sessions: number, legs: number, start: bigint): AdoptResult {
  return { sessions, legs, lost: 0, adoptUs: Math.round(Number(process.hrtime.bigint() - start) / 1000) };
}
