/**
 * Where Istio's sidecar comes from when it leads a client, or its agent a probe, to an application in its pod (pilot/pkg/networking/core,
 * InboundPassthroughBindIpv4): over the loopback device, and from no address that anybody else has.
 */
export const FROM_MESH = { ip: "127.0.0.6", ip6: "::6" } as const;
