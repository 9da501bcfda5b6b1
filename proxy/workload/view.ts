/** A proxy and its sessions as people see them: `holdfast status`, and `holdfast sessions`, a page at a time. */
import type { PortConfig, SessionInfo } from "#proxy/contract/commands.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Role } from "#proxy/session/role.ts";
import type { Counters } from "./counters.ts";
import type { LiveSession } from "./live-session.ts";

/** What is seen of a proxy. */
export interface StatusHost {
  readonly role: Role;
  readonly epoch: number;
  readonly sessions: { readonly size: number };
  /** where links arrive */
  readonly linkEndpoint: Endpoint | null;
  readonly owner: { node: string; link: Endpoint } | null;
  readonly listeners: readonly { readonly port: number }[];
  readonly counters: Counters;
  readonly filters: { readonly budget: { readonly memoryBytes: number; readonly spilledBytes: number } };
}

export function statusOf(host: StatusHost): Record<string, unknown> {
  const { budget } = host.filters;
  return {
    role: host.role,
    epoch: host.epoch,
    sessions: host.sessions.size,
    pid: process.pid,
    link: host.linkEndpoint,
    owner: host.owner,
    rssBytes: process.memoryUsage.rss(),
    ports: host.listeners.map((listener) => listener.port),
    counters: host.counters,
    heldBytes: budget.memoryBytes,
    spilledBytes: budget.spilledBytes,
  };
}

/** Whose sessions they are. */
export interface ViewHost {
  readonly config: { readonly node: string };
  readonly sessions: ReadonlyMap<string, LiveSession>;
  readonly owner: object | null;
  readonly availabilities: readonly { readonly isAbsent: boolean }[];
  portOf(session: LiveSession): PortConfig;
}

/** Those that came after the session with this number, the oldest first; next: the number to go on with, null at the end. */
export function sessionPage(
  host: ViewHost,
  after: number,
  max: number,
): { sessions: SessionInfo[]; next: number | null } {
  const sessions: SessionInfo[] = [];
  let last = after;
  for (const session of host.sessions.values()) {
    if (session.number <= after) continue;
    if (sessions.length === max) return { sessions, next: last };
    sessions.push(infoOf(host, session));
    last = session.number;
  }
  return { sessions, next: null };
}

function infoOf(host: ViewHost, session: LiveSession): SessionInfo {
  return {
    id: session.id,
    port: session.port,
    client: session.client,
    anchor: session.anchor,
    place: placeOf(host, session),
    state: shownState(host, session),
    bytesIn: session.inbound.bytes,
    bytesOut: session.outbound.bytes,
    ageMs: Date.now() - session.acceptedAtMs,
    protocol: "tcp",
    continuity: host.portOf(session).continuity,
    name: null,
    requestsInFlight: 0,
    requests: 0,
    ...session.filter?.info,
  };
}

function placeOf({ config, owner }: ViewHost, session: LiveSession): SessionInfo["place"] {
  if (session.anchor !== config.node) return "owner";
  return owner !== null && session.adopted === null ? "anchor" : "here";
}

function shownState({ availabilities }: ViewHost, session: LiveSession): SessionInfo["state"] {
  if (session.state === "lingering") return "lingering";
  if (session.header !== null) return "open";
  const replay = session.filter?.replay ?? null;
  if (replay?.isUnavailable === true) return "unavailable";
  // Between two requests nobody misses the connection.
  if (replay !== null && session.isWaiting && session.wasConnected)
    return availabilities[session.port]?.isAbsent === true ? "unavailable" : "open";
  if (session.state !== "open" || session.inbound.held) return "held";
  return session.inbound.finRead || session.outbound.finRead ? "half-closed" : "open";
}
