/** What a policy comes to: documents, each with the reasons for its parts, and what objects that are there already are to carry. Pure. */

export interface Resource {
  apiVersion: string;
  kind: string;
  metadata: {
    name: string;
    namespace: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
  spec: Record<string, unknown>;
}

/** Why there is what is at `path`; it becomes a comment. */
export interface Reason {
  path: (string | number)[];
  text: string;
}

/** A Kubernetes object, or the bootstrap of an Envoy. */
export interface Document {
  object: Resource | Record<string, unknown>;
  reasons: Reason[];
}

/** What is to be on objects that somebody else made. */
export interface Mark {
  /** pods: of the policy's selector, by the template that they are made of */
  on: "pods" | "service" | "route";
  name: string;
  /** of pods */
  selector?: Record<string, string>;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  /** of a route's rules */
  fields?: Record<string, unknown>;
  why: string;
}

export interface Rendered {
  documents: Document[];
  marks: Mark[];
}

/** on everything that is made of a policy: its name */
export const POLICY_LABEL = "holdfast.dev/policy";
/** `PORT:PROXY/PROTOCOL[@SERVICEPORT]`, with commas between */
export const PORTS_ANNOTATION = "holdfast.dev/mesh-ports";
/** of Istio, on pods: what their sidecar is started with */
export const PROXY_CONFIG_ANNOTATION = "proxy.istio.io/config";
/** of Istio, on Services */
export const PERSISTENT_SESSION_LABEL = "istio.io/persistent-session";

/** where EnvoyFilters of ours come among others: after those of priority 0, which most have */
export const PRIORITY = 10;

export const PROXY_V2_SOCKET = {
  name: "envoy.transport_sockets.upstream_proxy_protocol",
  typed_config: {
    "@type":
      "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
    config: { version: "V2" },
    transport_socket: {
      name: "envoy.transport_sockets.raw_buffer",
      typed_config: {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
      },
    },
  },
};

/** How a protobuf Duration is written in JSON. */
export function duration(seconds: number): string {
  return `${seconds}s`;
}

export function socketAddress(address: string, port: number): object {
  return { socket_address: { address, port_value: port } };
}
