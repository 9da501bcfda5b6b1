/** Resources of Istio as the tests of a mesh write them. */
import { render } from "#envoy/generate/render.ts";
import { type Mode, policySchema } from "#envoy/policy.ts";
import { CONTAINER_PORT_FIRST } from "#proxy/contract/commands.ts";
import type { Place } from "../lab/lab.ts";
import type { ServicePort } from "./several-workload.ts";

export const NAMESPACE = "demo";

/** Without a protocol Istio looks at what comes. */
export type IstioPort = Pick<ServicePort, "number"> & Partial<ServicePort>;

const PROTOCOLS = { http: "HTTP", tcp: "TCP", h2: "GRPC" } as const;

/** "chat.demo.svc.cluster.local" */
export function hostOf(app: string): string {
  return `${app}.${NAMESPACE}.svc.cluster.local`;
}

/** As a Sidecar's ingress has it; a service says at which port of its pods, too. */
export function istioPort({ number, protocol }: IstioPort): object {
  if (protocol === undefined) return { number, name: `any-${number}` };
  const name = PROTOCOLS[protocol];
  return { number, name: `${name.toLowerCase()}-${number}`, protocol: name };
}

export function object(
  kind: string,
  name: string,
  spec: object,
  apiVersion = "networking.istio.io/v1",
): object {
  return { apiVersion, kind, metadata: { name, namespace: NAMESPACE }, spec };
}

/** A service of pods with the label `app`. */
export function service(app: string, address: string, ports: readonly IstioPort[]): object {
  return object("ServiceEntry", app, {
    hosts: [hostOf(app)],
    addresses: [address],
    location: "MESH_INTERNAL",
    resolution: "STATIC",
    ports: ports.map((port) => ({ ...istioPort(port), targetPort: port.number })),
    workloadSelector: { labels: { app } },
  });
}

/** A pod of a service. @param account of its sidecar; null: it has none, and is spoken to without TLS */
export function endpoint(
  app: string,
  { name, address }: Pick<Place, "name" | "address">,
  { account = "default" as string | null, labels = {} as Record<string, string> } = {},
): object {
  return object("WorkloadEntry", `${app}-${name}`, {
    address,
    labels: { app, ...labels },
    ...(account === null ? {} : { serviceAccount: account }),
  });
}

/**
 * What `holdfast envoy render` makes of a policy for the pods with the label `app`: their ports come to Holdfast, from `proxyFirst` on in the
 * order given, some with headers of the PROXY protocol.
 */
export function rendered(
  app: string,
  ports: readonly ServicePort[],
  { mode = "sidecar" as Mode, proxyFirst = CONTAINER_PORT_FIRST, withHeader = [] as ServicePort[] } = {},
): object[] {
  const policy = policySchema.parse({
    name: app,
    namespace: NAMESPACE,
    selector: { app },
    ports: ports.map((port, index) => ({
      port: port.number,
      protocol: port.protocol,
      proxy: proxyFirst + index,
      identity: withHeader.includes(port) ? "proxy-v2" : "none",
    })),
  });
  return render(policy, mode).documents.map((document) => document.object);
}

/** @param app whose pods; null: of all in the namespace */
export function envoyFilter(name: string, app: string | null, configPatches: object[]): object {
  return object(
    "EnvoyFilter",
    name,
    { ...(app === null ? {} : { workloadSelector: { labels: { app } } }), configPatches },
    "networking.istio.io/v1alpha3",
  );
}
