/** EnvoyFilters that istiod takes and that come to nothing, or to less than they say, one of each kind; and who is to have them. */
import type { Reason } from "#envoy/verify/result.ts";
import { envoyFilter } from "./istio-objects.ts";
import { PORTS } from "./several-workload.ts";

export interface WrongPatch {
  reason: Reason;
  /** the place whose sidecar it is for */
  place: string;
  filter: object;
}

const HCM = "envoy.filters.network.http_connection_manager";
const TYPES = "type.googleapis.com/envoy.extensions";
export const RAW_SOCKET = {
  name: "envoy.transport_sockets.raw_buffer",
  typed_config: { "@type": `${TYPES}.transport_sockets.raw_buffer.v3.RawBuffer` },
};
export const BUFFER = {
  name: "envoy.filters.http.buffer",
  typed_config: { "@type": `${TYPES}.filters.http.buffer.v3.Buffer`, max_request_bytes: 1_000_001 },
};

function cluster(reason: Reason, app: string, match: object, value: object): object {
  const patch = { operation: "MERGE", value };
  return envoyFilter(`wrong-${reason}`, app, [{ applyTo: "CLUSTER", match, patch }]);
}

function httpFilter(
  reason: Reason,
  app: string,
  context: string,
  filterChain: object,
  operation: string,
): object {
  const match = { context, listener: { portNumber: PORTS.http.number, filterChain } };
  const patch = { operation, value: BUFFER };
  return envoyFilter(`wrong-${reason}`, app, [{ applyTo: "HTTP_FILTER", match, patch }]);
}

const inbound = (port: number) => ({ context: "SIDECAR_INBOUND", cluster: { portNumber: port } });
const outbound = (port: number, service: string) => ({
  context: "SIDECAR_OUTBOUND",
  cluster: { portNumber: port, service },
});

/** @param host of a service with mutual TLS */
export function wrongPatches(host: string): WrongPatch[] {
  const wrong = (reason: Reason, place: string, filter: object): WrongPatch => ({ reason, place, filter });
  return [
    wrong(
      "lb-policy",
      "plain",
      cluster("lb-policy", "plain", inbound(PORTS.http.number), {
        type: "STATIC",
        load_assignment: {
          cluster_name: `inbound|${PORTS.http.number}||`,
          endpoints: [
            {
              lb_endpoints: [
                { endpoint: { address: { socket_address: { address: "127.0.0.1", port_value: 15_900 } } } },
              ],
            },
          ],
        },
      }),
    ),
    wrong(
      "beside-transport-socket",
      "plain",
      cluster("beside-transport-socket", "plain", inbound(PORTS.tcp.number), {
        connect_timeout: "7s",
        transport_socket: RAW_SOCKET,
      }),
    ),
    wrong(
      "enum-zero",
      "client",
      cluster("enum-zero", "client", outbound(PORTS.http.number, host), { lb_policy: "ROUND_ROBIN" }),
    ),
    wrong(
      "auto-mtls",
      "client",
      cluster("auto-mtls", "client", outbound(PORTS.tcp.number, host), { transport_socket: RAW_SOCKET }),
    ),
    wrong(
      "relative",
      "client",
      httpFilter(
        "relative",
        "client",
        "SIDECAR_OUTBOUND",
        { filter: { name: HCM, subFilter: { name: "istio.metadata_exchange" } } },
        "INSERT_BEFORE",
      ),
    ),
    wrong(
      "old-name",
      "client",
      httpFilter(
        "old-name",
        "client",
        "SIDECAR_OUTBOUND",
        { filter: { name: "envoy.http_connection_manager" } },
        "INSERT_FIRST",
      ),
    ),
    wrong(
      "chain-name",
      "a",
      httpFilter(
        "chain-name",
        "chat",
        "SIDECAR_INBOUND",
        { name: `0.0.0.0_${PORTS.http.number}`, filter: { name: HCM } },
        "INSERT_FIRST",
      ),
    ),
  ];
}
