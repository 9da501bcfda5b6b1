/**
 * What the node agent tells the proxy of one workload (over a Unix socket, framed by `channel.ts`), in the order of a
 * cutover. Every command carries the epoch; the proxy refuses one lower than it has seen (`PROXY_FENCED`).
 *
 * The proxy is a process of its own, so that it and its descriptors outlive an agent that dies.
 *
 *   first start     configure → serve
 *   move, source    hold → [criu freezes] → captureUpstream → [criu dumps; the target restores] → captureDownstream*
 *                   → [address off*, commit] → retire
 *   move, target    configure → standby → adoptUpstream (while criu restores) → [criu has left the tree stopped]
 *                   → adoptDownstream* (before the address is here) → [committed, marked released, address on*] → release
 *                   → [SIGCONT]
 *   failed move     source: rollback          target: discard
 *   restart         pause → [the application ends, another starts and listens] → resume
 *   (* takeover only)
 */
import type { ProxyLimits } from "./limits.ts";
import type { Endpoint } from "./snapshot.ts";

/**
 * Where clients' sockets are. takeover: they move along with the address; forward: they stay on the node that accepted them, which
 * links them to the owner; gateway: at gateways, which are no node's.
 */
export const DOWNSTREAMS = ["takeover", "forward", "gateway"] as const;
export type Downstream = (typeof DOWNSTREAMS)[number];

/** How a session gets its name, so that a client that connects again can be led to its workload. */
export interface SessionNaming {
  from: "cookie" | "header" | "query" | "subprotocol";
  /** name of the cookie, header or query parameter; of a subprotocol the prefix before the id ("session." of "session.42") */
  name: string;
  /** cookie only: a client that brings none is given a signed one with the first answer */
  issue: boolean;
}

/** In front of a port is a load balancer that says whom a connection is from, by a header of the PROXY protocol (versions 1 and 2). */
export interface ProxyProtocol {
  /** networks whose connections begin with a header; those of others are reset */
  from: { address: string; prefix: number }[];
  /** how long a header may take to be complete, from the accept on */
  headerMsMax: number;
}

export interface PortConfig {
  /** port number; the address is the VIP, else the node's */
  listen: number;
  upstream: Endpoint;
  /** auto: told from the first bytes. Says only what is observed: bytes pass unchanged in any case */
  protocol: "auto" | "tcp" | "http" | "websocket" | "h2" | "tls";
  /**
   * transplant: sessions survive moves. replay: those of HTTP and WebSocket survive the application's end as well: they are
   * held until it is back, and what it has not answered is sent again where that is safe.
   */
  continuity: "transplant" | "replay";
  /**
   * replay: what a move does with the connections to the application. transplant: they move along. replay: they are ended,
   * and the application at the target is connected anew, as after a restart; nothing is captured of them, so no TCP_REPAIR is
   * needed for it.
   */
  moveBy: "transplant" | "replay";
  /** replay, HTTP: send again also what the application may have acted upon (a complete POST without an answer) */
  replayUnsafe: boolean;
  /** replay, WebSocket: what becomes of messages that went to the application's old instance and were perhaps not processed */
  delivery: "atMostOnce" | "atLeastOnce";
  /**
   * replay, WebSocket: what a new instance gets of what the client said at first. auto: Close 1012 where its protocol is known to
   * need that; close: Close 1012; none: nothing; a number: so many of its first messages again
   */
  setUp: "auto" | "close" | "none" | number;
  naming: SessionNaming | null;
  /** sessions at a time; more clients are refused with RST and counted */
  sessionsMax: number;
  /** … and of one client's address (IPv6: its /64) */
  sessionsPerClientMax: number;
  /** silence after which a client's kernel is asked for a sign of life, and again as often (rounded up to seconds); 0: never */
  keepAliveMs: number;
  /**
   * how long a client's kernel may acknowledge nothing of what it is asked or sent, or take nothing of it (a window of 0), before its
   * session is reset; 0: as the node's kernel does (tcp(7), tcp_retries2: about 15 minutes)
   */
  userTimeoutMs: number;
  /** how long a session may pass no byte either way before both ends get a FIN; 0: for ever */
  idleMsMax: number;
  /** null: clients connect to this port themselves */
  proxyProtocol: ProxyProtocol | null;
  /** paths of HTTP health checks, answered by the proxy during a cutover or a restart with the application's last answer */
  probes: string[];
}

/**
 * Of a container's network namespace, made there by the agent and sent to `SOCKET.net` (SCM_RIGHTS): two TCP sockets of each
 * family that are nothing yet (blocking, with a time limit), one for sock_diag(7), one
 * for whole packets of each family. Those of IPv6 are missing where the node has none.
 */
export const HANDED_SOCKETS = [
  "listener4",
  "client4",
  "raw4",
  "diag",
  "listener6",
  "client6",
  "raw6",
] as const;
export type HandedSocket = (typeof HANDED_SOCKETS)[number];

/** What arrives at `SOCKET.net`, as JSON: what its descriptors are, in their order. */
export interface HandedMessage {
  /** that of the command `network` */
  token: string;
  sockets: HandedSocket[];
}

/**
 * `network: own` only: the application is in another network namespace from now on, and so are connections to it that are
 * made later. Sent after the sockets themselves; again whenever there is another container.
 */
export interface TakeNetwork {
  token: string;
}

/** Where a pod's proxy is: a process of the node's agent, or a container of the pod. */
export const PROXY_PLACES = ["node", "sidecar"] as const;
/** … of pods that do not say it; auto: by what else they say */
export const PROXY_DEFAULTS = ["auto", ...PROXY_PLACES] as const;
export type ProxyDefault = (typeof PROXY_DEFAULTS)[number];

/** Where a proxy that is a container of the application's pod has its sockets, and spills to. */
export const SIDECAR_FOLDER = "/run/holdfast";
export const SIDECAR_SOCKET = `${SIDECAR_FOLDER}/proxy.sock`;
/** … its name there, and the port of its `/healthz`, `/readyz` and `/metrics` */
export const SIDECAR_NAME = "holdfast-proxy";
export const SIDECAR_HTTP_PORT = 15_899;
/** … and where gateways' and other proxies' links arrive: one that rules of the cluster's network, or of a mesh, can name */
export const SIDECAR_LINK_PORT = 15_898;

/** Where the proxy listens with `listenIn: container`: the ports that clients come to may be the application's own. */
export const CONTAINER_PORT_FIRST = 15_900;

export interface Configure {
  workload: string;
  node: string;
  /** own: the application has a network namespace of its own, see {@link TakeNetwork} */
  network: "host" | "own";
  downstream: Downstream;
  /** where clients connect: VIP or node address; gateway: nobody does */
  listenAddress: string;
  /**
   * container: clients come to the application's network, where they are led to {@link CONTAINER_PORT_FIRST} and
   * the ports after it, one for each of `ports`. Absent: node
   */
  listenIn?: "node" | "container" | undefined;
  /** takeover: the device of the VIP on this node, where clients with link-local addresses are; null: not known */
  listenDevice: string | null;
  ports: PortConfig[];
  /** where other proxies' links arrive; port 0 chosen by the kernel and told by `standby`/`serve` */
  linkAddress: string;
  /** encrypted: under TLS wherever the other proxy speaks it */
  links: "encrypted" | "plain";
  /** where held bytes are spilled to, in files without a name */
  spillDir: string;
  limits: ProxyLimits;
  /** body: what authenticates links between the proxies of this workload, see {@link ProxyCommands.keys} */
}

/** → `{ link: Endpoint }`: listening for clients and dialling the application. */
export interface Serve {
  epoch: number;
}

/**
 * → `{ link: Endpoint | null }`: ready to adopt at `epoch`. Listens for clients from here on and drops their SYNs until
 * `release`; an anchor goes on serving its own. `discard` closes what this opened. Fails with `PROXY_LISTEN` where a port is
 * taken and `PROXY_NOT_ABLE` where a connection cannot be adopted: nobody is held yet.
 */
export interface Standby {
  epoch: number;
}

/**
 * Forward, at an anchor: dial the links the sessions will use after the switch. Gateway, at the source: have gateways do so. →
 * {@link PrepareLinksResult}
 */
export interface PrepareLinks {
  epoch: number;
  target: Endpoint;
}
export interface PrepareLinksResult {
  /** that are ready */
  links: number;
  /** anchors (nodes, gateways) that hold sessions and reach `target` with none. Absent: a proxy of the version before */
  unreachable?: string[];
}

/** → {@link ShortenResult}. Before `hold`, while everything passes. Resolves when there is less to carry, or after 50 ms. */
export interface Shorten {
  epoch: number;
}
export interface ShortenResult {
  /** legs whose queues had grown */
  shortened: number;
  /** … and hold what their clients have not read */
  long: number;
}

/** → {@link HoldResult}. Resolves when quiet, or when `holdMsMax` is over. */
export interface Hold {
  epoch: number;
}
export interface HoldResult {
  sessions: number;
  /** upstream legs that still have unacknowledged bytes: the application is not reading; they move with their queue */
  unackedLegs: number;
  /** connections the application has not accepted: it cannot be dumped with them */
  acceptBacklog: number;
}

/**
 * The application is frozen, and its sockets are not dumped yet: captured later, a leg could have taken what the dumped
 * socket believes not acknowledged. → {@link CaptureResult}, body: encoded SessionSnapshot[] without downstream legs, as many as fit.
 */
export interface CaptureUpstream {
  epoch: number;
}
export interface CaptureResult {
  sessions: number;
  legs: number;
  /** time spent inside the kernel calls of the capture, for the benchmark */
  captureUs: number;
  /** sessions that are not in this body: see {@link TakeCaptured} */
  left: number;
}

/** What the last capture has found and its body had no room for. → {@link CapturedPiece}, body: encoded SessionSnapshot[] */
export interface TakeCaptured {
  epoch: number;
}
export interface CapturedPiece {
  /** sessions that are still to be taken */
  left: number;
}

/**
 * Gateway, before the commit: resolves when gateways have all that was sent to them, so that nothing of it ends with this node. Fails with
 * `PROXY_QUIESCE` where one does not say so in time.
 */
export interface SettleLinks {
  epoch: number;
}

/** Takeover: shield, then capture. → {@link CaptureResult}, body: encoded SessionSnapshot[], downstream legs and pending bytes filled in. */
export interface CaptureDownstream {
  epoch: number;
}

/** body: from captureUpstream, a piece a call. Legs stay silent. → {@link AdoptResult} */
export interface AdoptUpstream {
  epoch: number;
}
/**
 * body: from captureDownstream, a piece a call. Legs stay silent and shielded. → {@link AdoptResult}
 * Before the address is on this node: with the address but without the leg a client's segment would be answered with RST.
 */
export interface AdoptDownstream {
  epoch: number;
}
export interface AdoptResult {
  sessions: number;
  legs: number;
  /** sessions whose client's leg cannot be built here: they are reset at the release */
  lost: number;
  adoptUs: number;
}

/**
 * This node owns the workload and nobody can take it back, the address is here, the application is restored and stopped.
 * Legs speak again and are read; the application is continued (SIGCONT) when this has been answered.
 */
export interface Release {
  epoch: number;
}
/** Source, before commit or with proof that the target gave up: go on as if nothing had happened, at `epoch`. */
export interface Rollback {
  epoch: number;
}
/** Target: forget everything adopted, silently (nothing is sent to any peer). */
export interface Discard {
  epoch: number;
}
/** Source, after the target released. takeover, gateway: close all and exit. forward: go on as an anchor of `owner`. */
export interface Retire {
  epoch: number;
  /** where the links of forward mode go; null otherwise: nothing is left */
  owner: { node: string; link: Endpoint } | null;
}
/**
 * The application is about to be restarted here: new requests, messages and clients of `replay` ports wait. Answers when those
 * under way are answered, or `drainMs` is over. → {@link PauseResult}. Sessions of `transplant` ports go on until it ends.
 */
export interface Pause {
  epoch: number;
  drainMs: number;
}
export interface PauseResult {
  /** that will survive the restart */
  sessions: number;
  /** requests that are still without an answer */
  requestsInFlight: number;
}
/**
 * The application listens again. Also right when it had ended without a `pause`. → {@link ResumeResult}: what has been done
 * since the pause, or since the application ended.
 */
export interface Resume {
  epoch: number;
}
export interface ResumeResult {
  /** sessions that go on */
  sessions: number;
  /** requests or messages sent again */
  replayed: number;
  /** requests answered 503, WebSockets closed with 1012 or 1013 */
  refused: number;
  /** sessions reset: their state was the application's, or an answer had begun */
  reset: number;
}

/** Forward: a third node's anchor learns of the new owner; prepared links come alive. */
export interface SwitchOwner {
  epoch: number;
  owner: { node: string; link: Endpoint };
}

/** At most `max` sessions that came after number `after`, the oldest first. → {@link SessionPage} */
export interface ListSessions {
  after?: number;
  max?: number;
}
export interface SessionPage {
  sessions: SessionInfo[];
  /** `after` of the next page; null: this was the last */
  next: number | null;
}

export interface SessionInfo {
  id: string;
  port: number;
  client: string;
  anchor: string;
  /** "here": both legs are local; "anchor": the owner is elsewhere; "owner": the client's socket is elsewhere */
  place: "here" | "anchor" | "owner";
  /** unavailable: its application has ended, and the session waits for the next */
  state: "open" | "held" | "half-closed" | "lingering" | "unavailable";
  bytesIn: number;
  bytesOut: number;
  ageMs: number;
  /** what the bytes are; "detecting" until the first of them, "tcp" when they are nothing we know or are not to be looked at */
  protocol: "detecting" | "tcp" | "tls" | "h2" | "http" | "websocket" | "tunnel";
  continuity: "transplant" | "replay";
  /** session id from cookie, header, query or subprotocol; null without */
  name: string | null;
  /** HTTP: sent and not completely answered */
  requestsInFlight: number;
  /** HTTP requests so far, or WebSocket messages of the client */
  requests: number;
}

export interface ProxyCommands {
  configure: Configure;
  network: TakeNetwork;
  /** body: link keys of 32 bytes, one after the other: the first dials, all are accepted (`shared-keys.ts`); at any time */
  keys: Record<string, never>;
  serve: Serve;
  standby: Standby;
  prepareLinks: PrepareLinks;
  shorten: Shorten;
  hold: Hold;
  captureUpstream: CaptureUpstream;
  captureDownstream: CaptureDownstream;
  takeCaptured: TakeCaptured;
  settleLinks: SettleLinks;
  adoptUpstream: AdoptUpstream;
  adoptDownstream: AdoptDownstream;
  release: Release;
  rollback: Rollback;
  discard: Discard;
  retire: Retire;
  switchOwner: SwitchOwner;
  pause: Pause;
  resume: Resume;
  sessions: ListSessions;
  /** → `{ role, epoch, sessions, pid, link, rssBytes, counters }` */
  status: Record<string, never>;
  /** reset every session with RST, close, exit */
  stop: Record<string, never>;
}
