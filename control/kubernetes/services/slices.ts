/**
 * EndpointSlices of Services whose clients come to gateways: of those, and of pods themselves where gateways cannot have the clients. Such a
 * Service has no selector of its own, so nobody else makes them. Pure.
 */
import type { ServiceEntry } from "../../api/gateway-table.ts";
import { type EndpointSlice, isActive, isTrue, type Pod, type Service } from "../client/objects.ts";

export const SERVICE_NAME_LABEL = "kubernetes.io/service-name";
export const MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by";
export const MANAGED_BY = "gateway.holdfast.dev";
/** Kubernetes' own, which leave behind what they made when a Service's selector is taken away (kube-controller-manager) */
export const MANAGED_BY_KUBERNETES = [
  "endpointslice-controller.k8s.io",
  "endpointslicemirroring-controller.k8s.io",
];
/** as many as Kubernetes puts into one */
const ENDPOINTS_MAX = 100;

export type SliceManifest = Omit<EndpointSlice, "metadata"> & {
  metadata: {
    name: string;
    namespace: string;
    labels: Record<string, string>;
    ownerReferences: object[];
  };
};

export type ServicePort = NonNullable<Service["spec"]["ports"]>[number];

type SlicePort = { name: string; port: number; protocol: string };

/** Clients may be led there. */
export function isServing(pod: Pod): boolean {
  return isActive(pod) && isTrue(pod, "Ready") && pod.status?.podIP !== undefined;
}

/** @param gateways those that clients are led to; none: connections are refused at once, as with any Service without pods */
export function gatewaySlice(
  service: Service,
  { ports }: ServiceEntry,
  gateways: readonly Pod[],
): SliceManifest {
  const isSix = gateways.some(({ status }) => status?.podIP?.includes(":"));
  const numbers = ports.map(({ name, listen }) => ({ name, port: listen, protocol: "TCP" }));
  return sliceOf(service, "holdfast", isSix ? "IPv6" : "IPv4", gateways, numbers);
}

/** As Kubernetes itself would have them. @param pods that serve */
export function podSlices(
  service: Service,
  ports: readonly ServicePort[],
  pods: readonly Pod[],
): SliceManifest[] {
  const groups = new Map<string, { addressType: string; ports: SlicePort[]; pods: Pod[] }>();
  for (const pod of [...pods].sort((one, other) => one.metadata.name.localeCompare(other.metadata.name))) {
    const addressType = pod.status?.podIP?.includes(":") ? "IPv6" : "IPv4";
    const its = portsOf(pod, ports);
    if (its.length === 0) continue;
    const key = JSON.stringify([addressType, its]);
    const group = groups.get(key) ?? { addressType, ports: its, pods: [] };
    groups.set(key, group);
    group.pods.push(pod);
  }
  const slices: SliceManifest[] = [];
  for (const { addressType, ports: its, pods: all } of groups.values())
    for (let first = 0; first < all.length; first += ENDPOINTS_MAX) {
      const some = all.slice(first, first + ENDPOINTS_MAX);
      slices.push(sliceOf(service, `holdfast-pods-${slices.length}`, addressType, some, its));
    }
  return slices;
}

/** A port that the pod does not have by its name is left out. */
function portsOf(pod: Pod, ports: readonly ServicePort[]): SlicePort[] {
  return ports.flatMap(({ name = "", port, protocol = "TCP", targetPort = port }) => {
    const number = numberOf(pod, targetPort);
    return number === null ? [] : [{ name, port: number, protocol }];
  });
}

/** Of a container's port that is meant by its name. null: the pod has none of that name */
export function numberOf(pod: Pod, targetPort: number | string): number | null {
  if (typeof targetPort === "number") return targetPort;
  const declared = pod.spec.containers.flatMap(
    ({ ports = [] }) => ports as { name?: string; containerPort: number }[],
  );
  return declared.find(({ name }) => name === targetPort)?.containerPort ?? null;
}

function sliceOf(
  { metadata: { name, namespace = "default", uid } }: Service,
  suffix: string,
  addressType: string,
  pods: readonly Pod[],
  ports: SlicePort[],
): SliceManifest {
  return {
    apiVersion: "discovery.k8s.io/v1",
    kind: "EndpointSlice",
    metadata: {
      name: `${name}-${suffix}`,
      namespace,
      labels: { [SERVICE_NAME_LABEL]: name, [MANAGED_BY_LABEL]: MANAGED_BY },
      ownerReferences: [{ apiVersion: "v1", kind: "Service", name, uid, controller: true }],
    },
    addressType,
    endpoints: pods.map(endpointOf),
    ports,
  };
}

function endpointOf({ metadata, spec, status }: Pod): object {
  return {
    addresses: [status?.podIP as string],
    conditions: { ready: true, serving: true, terminating: false },
    ...(spec.nodeName === undefined ? {} : { nodeName: spec.nodeName }),
    targetRef: { kind: "Pod", namespace: metadata.namespace, name: metadata.name, uid: metadata.uid },
  };
}
