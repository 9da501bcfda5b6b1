/** Objects of a Kubernetes API as the tests of a mesh write them: places of a laboratory as pods, which nobody runs. */
import type { ControlPlane, KubeObject } from "../kube/control-plane.ts";
import type { Place } from "../lab/lab.ts";
import { istioPort, NAMESPACE } from "./istio-objects.ts";
import { SERVED, type ServicePort } from "./several-workload.ts";

type Labels = Record<string, string>;
type At = Pick<Place, "name" | "address">;

/** the plural of each kind that is put */
const PLURALS: Record<string, string> = {
  EndpointSlice: "endpointslices",
  PeerAuthentication: "peerauthentications",
  Pod: "pods",
  Service: "services",
  ServiceAccount: "serviceaccounts",
  Sidecar: "sidecars",
};

/** As the injectors leave pods of an application with a proxy in each; of {@link SERVED}. */
export const INJECTED_BY_BOTH: Labels = {
  "holdfast.dev/injected": "1",
  "holdfast.dev/ports": SERVED.map(({ number, protocol }) => `${number}/${protocol}`).join(),
  "holdfast.dev/proxy": "sidecar",
  "sidecar.istio.io/status": "{}",
};
/** istiod speaks mutual TLS to pods that have it; the injector of its sidecar writes it */
const HAS_SIDECAR: Labels = { "security.istio.io/tlsMode": "istio" };

export interface PodOptions {
  account?: string;
  labels?: Labels;
  annotations?: Labels;
  /** default true */
  hasSidecar?: boolean;
}

/** A pod at a place, Ready. */
export function pod(app: string, { name, address }: At, options: PodOptions = {}): KubeObject {
  const { account = "default", labels, annotations = {}, hasSidecar = true } = options;
  return {
    ...{ apiVersion: "v1", kind: "Pod" },
    metadata: {
      ...{ name, namespace: NAMESPACE, annotations },
      labels: { app, ...(hasSidecar ? HAS_SIDECAR : {}), ...labels },
    },
    spec: {
      ...{ nodeName: "node", serviceAccountName: account },
      containers: [{ name: "app", image: "none" }],
    },
    status: {
      ...{ phase: "Running", podIP: address, podIPs: [{ ip: address }] },
      conditions: [{ type: "Ready", status: "True" }],
    },
  };
}

export function serviceAccount(name: string): KubeObject {
  return { apiVersion: "v1", kind: "ServiceAccount", metadata: { name, namespace: NAMESPACE } };
}

/** @param address of the Service; null: it is headless */
export function kubeService(
  app: string,
  address: string | null,
  ports: readonly ServicePort[],
  { labels = {}, annotations = {} }: { labels?: Labels; annotations?: Labels } = {},
): KubeObject {
  return {
    ...{ apiVersion: "v1", kind: "Service" },
    metadata: { name: app, namespace: NAMESPACE, labels, annotations },
    spec: {
      clusterIP: address ?? "None",
      selector: { app },
      ports: ports.map((port) => ({ ...named(port), port: port.number, targetPort: port.number })),
    },
  };
}

/** What Kubernetes' own controller would make of a Service and its pods. @param ends of them: still served, and not Ready any more */
export function endpointSlice(
  app: string,
  places: readonly At[],
  ports: readonly ServicePort[],
  ends: readonly At[] = [],
): KubeObject {
  return {
    ...{ apiVersion: "discovery.k8s.io/v1", kind: "EndpointSlice", addressType: "IPv4" },
    metadata: { name: app, namespace: NAMESPACE, labels: { "kubernetes.io/service-name": app } },
    endpoints: [...places, ...ends].map((place) => ({
      addresses: [place.address],
      conditions: ends.includes(place)
        ? { ready: false, serving: true, terminating: true }
        : { ready: true, serving: true, terminating: false },
      targetRef: { kind: "Pod", name: place.name, namespace: NAMESPACE },
    })),
    ports: ports.map((port) => ({ ...named(port), port: port.number })),
  };
}

/** @param ports modes of single ports; @param app whose pods; null: of all in the namespace */
export function peerAuthentication(
  name: string,
  mode: string,
  { app = null as string | null, ports = {} as Record<number, string> } = {},
): KubeObject {
  return {
    ...{ apiVersion: "security.istio.io/v1", kind: "PeerAuthentication" },
    metadata: { name, namespace: NAMESPACE },
    spec: {
      ...(app === null ? {} : { selector: { matchLabels: { app } } }),
      mtls: { mode },
      ...(Object.keys(ports).length === 0
        ? {}
        : {
            portLevelMtls: Object.fromEntries(
              Object.entries(ports).map(([port, one]) => [port, { mode: one }]),
            ),
          }),
    },
  };
}

/** Makes them, or makes them what these say; a pod with its status. */
export async function put(api: ControlPlane, ...objects: KubeObject[]): Promise<void> {
  for (const object of objects) {
    const apply = (subresource: string): Promise<KubeObject> =>
      api.api(
        "PATCH",
        `${pathOfObject(object)}${subresource}?fieldManager=test&force=true`,
        object,
        "application/apply-patch+yaml",
      );
    await apply("");
    if (object.status !== undefined) await apply("/status");
  }
}

export async function remove(api: ControlPlane, object: KubeObject): Promise<void> {
  await api.api("DELETE", pathOfObject(object));
}

/** Of all of that kind in the namespace. */
export async function allOf(api: ControlPlane, prefix: string, plural: string): Promise<KubeObject[]> {
  const { items } = await api.api("GET", `${prefix}/namespaces/${NAMESPACE}/${plural}`);
  return items as KubeObject[];
}

function pathOfObject({ apiVersion = "v1", kind = "", metadata }: KubeObject): string {
  const prefix = apiVersion.includes("/") ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  return `${prefix}/namespaces/${NAMESPACE}/${PLURALS[kind]}/${metadata.name}`;
}

function named(port: ServicePort): { name: string } {
  return { name: (istioPort(port) as { name: string }).name };
}
