/** What a gateway is told: by its file (`control/config/gateway.ts`), or by a test. */
import type { PortConfig } from "./commands.ts";
import type { Endpoint } from "./snapshot.ts";

/** Where clients come. */
export interface GatewayListener
  extends Pick<
    PortConfig,
    "sessionsMax" | "sessionsPerClientMax" | "keepAliveMs" | "userTimeoutMs" | "idleMsMax" | "proxyProtocol"
  > {
  at: Endpoint;
  workload: string;
  /** `listen` of the workload's port they are led to */
  port: number;
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
}
