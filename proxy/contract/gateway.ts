/** What a gateway is told: by its file (`control/config/gateway.ts`), or by a test. */
import type { PortConfig, SessionNaming } from "./commands.ts";
import type { Endpoint } from "./snapshot.ts";

/**
 * Whom clients are led to, by what they say first: of TLS the name (SNI), of HTTP/1 the first request of the connection. What a route does
 * not name matters not. At most one of the two kinds is named.
 */
export interface GatewayRoute {
  /** lower case; "*.example" stands for every name below example. null: any, and none */
  sni: readonly string[] | null;
  host: readonly string[] | null;
  /** begins with "/"; matches itself and what is below it */
  path: string | null;
  /** where a session's name is: its client is led to that workload of several which has it */
  session: SessionNaming | null;
  /** at least one; of several a client whose session is not known gets the one with the fewest */
  workloads: readonly string[];
  /** `listen` of the workload's port they are led to */
  port: number;
}

/** Where clients come. */
export interface GatewayListener
  extends Pick<
    PortConfig,
    "sessionsMax" | "sessionsPerClientMax" | "keepAliveMs" | "userTimeoutMs" | "idleMsMax" | "proxyProtocol"
  > {
  at: Endpoint;
  /** the first that matches; at least one */
  routes: readonly GatewayRoute[];
  /** each connection to the application begins with a header of the PROXY protocol (version 2), which says whose it is */
  sendProxyProtocol: boolean;
}

export interface GatewayConfig {
  name: string;
  listeners: GatewayListener[];
  /** encrypted: under TLS wherever the proxy speaks it */
  links: "encrypted" | "plain";
  /** clients of a workload that wait for an owner; more are refused with RST */
  heldSessionsMax: number;
  /** how long a client may wait for an owner, and an ended session's last bytes to be acknowledged */
  ownerMsMax: number;
  /** when the gateway is told to end: how long it waits for its sessions to end */
  drainMsMax: number;
  /** how long a session may be without the connection to its owner; 0: it ends with it */
  linkResumeMsMax: number;
  /** sessions of a workload that share a connection to its owner; 0: each has its own */
  trunkSessionsMax: number;
}

/** Nothing that a client could say makes a difference. */
export function isAnyRoute({ sni, host, path, session }: GatewayRoute): boolean {
  return sni === null && host === null && path === null && session === null;
}
