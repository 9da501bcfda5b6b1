/**
 * What is to be of Services whose clients come to gateways: their entries in the gateways' table, and their EndpointSlices. Pure. Such a
 * Service has no selector of its own, so Kubernetes gives it no endpoints; it gets those of the gateways, each of its ports at a
 * number of its own, by which a gateway knows whose client comes.
 */
import * as z from "zod";
import {
  PROXY_PROTOCOL_ANNOTATION,
  SELECTOR_ANNOTATION,
  SESSION_ANNOTATION,
  type ServiceEntry,
  serviceEntry,
} from "../../api/gateway-table.ts";
import {
  type EndpointSlice,
  isActive,
  isSelected,
  isTrue,
  type Pod,
  type Service,
} from "../client/objects.ts";
import { settingsOf } from "../inject/settings.ts";
import { lookAt, nameOf } from "../node/injected-pod.ts";
import { parseSelector } from "./adopt.ts";
import type { ServiceFinding } from "./findings.ts";

/** port numbers of gateways that are given to Services */
export const PORT_FIRST = 20_000;
export const PORT_LAST = 29_999;
/** etcd takes no larger object, and a ConfigMap none above 1 MiB */
const TABLE_BYTES_MAX = 1_000_000;
const NAMES_MAX = 5;

export const SERVICE_NAME_LABEL = "kubernetes.io/service-name";
export const MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by";
export const MANAGED_BY = "gateway.holdfast.dev";
/** Kubernetes' own, which leave behind what they made when a Service's selector is taken away (kube-controller-manager) */
export const MANAGED_BY_KUBERNETES = [
  "endpointslice-controller.k8s.io",
  "endpointslicemirroring-controller.k8s.io",
];

export interface ObservedServices {
  /** those with the label */
  services: readonly Service[];
  /** all there are */
  pods: readonly Pod[];
  /** pods of gateways */
  gateways: readonly Pod[];
  /** what gateways were told last: keys NAMESPACE.NAME */
  table: Readonly<Record<string, string>>;
}

export interface ServicesPlan {
  table: Record<string, string>;
  slices: SliceManifest[];
  /** why clients of a Service, or of one of its pods, are not led as somebody expects */
  findings: ServiceFinding[];
}

export type SliceManifest = Omit<EndpointSlice, "metadata"> & {
  metadata: {
    name: string;
    namespace: string;
    labels: Record<string, string>;
    ownerReferences: object[];
  };
};

type Tell = (reason: string, message: string) => void;

export function planServices({ services, pods, gateways, table }: ObservedServices): ServicesPlan {
  const plan: ServicesPlan = { table: {}, slices: [], findings: [] };
  const byNamespace = Map.groupBy(pods, ({ metadata }) => metadata.namespace ?? "");
  const endpoints = gateways.filter(isServing).map(endpointOf);
  const numbers = new PortNumbers();
  const kept = new Map<string, ServiceEntry>();
  const inOrder = [...services].sort((one, other) => keyOf(one).localeCompare(keyOf(other)));
  // numbers that clients come to stay whose they are
  for (const service of inOrder) {
    const before = entryIn(table[keyOf(service)]);
    if (before === null) continue;
    kept.set(keyOf(service), { ...before, ports: before.ports.filter(({ listen }) => numbers.keep(listen)) });
  }
  let bytes = 0;
  for (const service of inOrder) {
    const tell: Tell = (reason, message) => plan.findings.push({ service, reason, message });
    const before = kept.get(keyOf(service)) ?? null;
    const entry = entryOf(
      service,
      byNamespace.get(service.metadata.namespace ?? "") ?? [],
      before,
      numbers,
      tell,
    );
    if (entry === null) continue;
    const text = JSON.stringify(entry);
    bytes += keyOf(service).length + text.length;
    if (bytes > TABLE_BYTES_MAX) {
      tell(
        "TooManyServices",
        `all Services of gateways together come to more than ${TABLE_BYTES_MAX} bytes: this one is left out`,
      );
      continue;
    }
    plan.table[keyOf(service)] = text;
    plan.slices.push(sliceOf(service, entry, endpoints));
  }
  return plan;
}

/** In the table: neither part can have a dot that is not a namespace's end, as namespaces have none. */
export function keyOf({ metadata }: { metadata: { namespace?: string; name: string } }): string {
  return `${metadata.namespace ?? "default"}.${metadata.name}`;
}

/** null: its pods are not known, or none of its ports is of use */
function entryOf(
  service: Service,
  pods: readonly Pod[],
  before: ServiceEntry | null,
  numbers: PortNumbers,
  tell: Tell,
): ServiceEntry | null {
  const labels = selectorOf(service, tell);
  if (labels === null) return null;
  const { annotations = {} } = service.metadata;
  const session = sessionOf(annotations[SESSION_ANNOTATION], tell);
  const served = servedPods(
    pods.filter(({ metadata }) => isSelected({ matchLabels: labels }, metadata.labels)),
    tell,
  );
  // one that is not Ready, as in the middle of a move, is better than none: clients wait for it
  const ready = served.filter(({ pod }) => isTrue(pod, "Ready"));
  const chosen = ready.length > 0 ? ready : served;
  const ports = portsOf(service, chosen, before, numbers, tell);
  if (ports.length === 0) return null;
  return {
    ports,
    workloads: [...new Set(chosen.map(({ workload }) => workload))].sort(),
    ...(session === undefined ? {} : { session }),
    ...(annotations[PROXY_PROTOCOL_ANNOTATION] === "true" ? { sendProxyProtocol: true } : {}),
  };
}

function selectorOf({ metadata, spec }: Service, tell: Tell): Record<string, string> | null {
  const { name, namespace } = metadata;
  if (spec.type === "ExternalName" || spec.clusterIP === "None") {
    tell(
      "NoAddress",
      "expected a Service with an address (clusterIP): of this one clients come to ports that gateways do not have",
    );
    return null;
  }
  const own = Object.entries(spec.selector ?? {})
    .map(([key, value]) => `${key}=${value}`)
    .join(",");
  if (own !== "") {
    tell(
      "HasSelector",
      `expected no selector: Kubernetes leads clients to its pods themselves, and a move resets them. kubectl -n ${namespace} annotate service ${name} ${SELECTOR_ANNOTATION}=${own}; ` +
        `kubectl -n ${namespace} patch service ${name} --type=json -p '[{"op":"remove","path":"/spec/selector"}]'`,
    );
    return null;
  }
  const text = metadata.annotations?.[SELECTOR_ANNOTATION];
  const labels = text === undefined ? null : parseSelector(text);
  if (labels === null)
    tell(
      "NoSelector",
      `expected which pods it is for in annotation ${SELECTOR_ANNOTATION}, as app=chat,tier=game, got ${text ?? "nothing"}`,
    );
  return labels;
}

function sessionOf(text: string | undefined, tell: Tell): unknown {
  if (text === undefined) return undefined;
  try {
    // what it means is the gateway's to read
    return z.record(z.string(), z.string()).parse(JSON.parse(text));
  } catch {
    tell(
      "SessionInvalid",
      `expected annotation ${SESSION_ANNOTATION} as {"cookie":"sid"}, got ${text.slice(0, 100)}`,
    );
    return undefined;
  }
}

interface ServedPod {
  pod: Pod;
  workload: string;
  /** where clients come, and where the application listens */
  ports: { listen: number; upstream: number }[];
}

/** Those that gateways lead clients to. */
function servedPods(pods: readonly Pod[], tell: Tell): ServedPod[] {
  const served: ServedPod[] = [];
  const foreign: string[] = [];
  const forwarding: string[] = [];
  for (const pod of pods) {
    const { name } = pod.metadata;
    if (!isActive(pod)) continue;
    const seen = seenOf(pod);
    if (seen === null) foreign.push(name);
    else if (!seen.isOfGateways) forwarding.push(name);
    else served.push({ pod, ...seen });
  }
  if (foreign.length > 0)
    tell(
      "NotInjected",
      `no client is led to ${shown(foreign)}: not injected (label holdfast.dev/inject: enabled on the namespace, or on the pod, before it is made)`,
    );
  if (forwarding.length > 0)
    tell(
      "NotGateway",
      `no client is led to ${shown(forwarding)}: made with holdfast.dev/mode: forward, or before this Service was; make them anew`,
    );
  return served;
}

interface SeenPod extends Omit<ServedPod, "pod"> {
  isOfGateways: boolean;
}
/** There are thousands of pods, and few of them are others the next time. */
const seenPods = new WeakMap<Pod, SeenPod | null>();

/** null: it was not injected, or says what nobody understands */
function seenOf(pod: Pod): SeenPod | null {
  const known = seenPods.get(pod);
  if (known !== undefined) return known;
  const found = lookAt(pod)?.pod ?? null;
  const settings = settingsOf(saidOf(pod));
  const seen =
    found === null || "message" in settings
      ? null
      : {
          workload: nameOf(found),
          ports: settings.ports ?? [],
          isOfGateways: found.annotations.mode === "gateway",
        };
  seenPods.set(pod, seen);
  return seen;
}

/** What `settingsOf` looks at. */
export function saidOf({ metadata: { namespace, annotations } }: Pod): Parameters<typeof settingsOf>[0] {
  return { metadata: { namespace, annotations }, spec: { containers: [] } };
}

function portsOf(
  service: Service,
  served: readonly ServedPod[],
  before: ServiceEntry | null,
  numbers: PortNumbers,
  tell: Tell,
): ServiceEntry["ports"] {
  const ports: ServiceEntry["ports"] = [];
  for (const { name = "", port, protocol = "TCP", targetPort = port } of service.spec.ports ?? []) {
    const asked = before?.ports.find((one) => one.name === name);
    if (protocol !== "TCP") {
      tell("NotTcp", `port ${name || port}: expected TCP, got ${protocol}: gateways do not have it`);
      continue;
    }
    const found = served.map(({ pod, ports: its }) => ({ pod, port: portIn(pod, its, targetPort) }));
    const wanted = found.find((one) => one.port !== null)?.port ?? asked?.port ?? null;
    const without = found
      .filter(({ port: its }) => its === null || its !== wanted)
      .map(({ pod }) => pod.metadata.name);
    if (without.length > 0)
      tell(
        "NoSuchPort",
        `targetPort ${targetPort}: expected it as port ${wanted ?? targetPort} in annotation holdfast.dev/ports of ${shown(without)}: their clients are reset`,
      );
    const listen = asked?.listen ?? numbers.next();
    if (listen === null) {
      tell("NoPortLeft", `ports ${PORT_FIRST}-${PORT_LAST} of gateways are all given out`);
      continue;
    }
    // as long as there is no pod nobody is led anywhere
    ports.push({ name, listen, port: wanted ?? (typeof targetPort === "number" ? targetPort : port) });
  }
  return ports;
}

/** What clients call the port that a Service means. null: there is none */
function portIn(pod: Pod, ports: ServedPod["ports"], targetPort: number | string): number | null {
  const number =
    typeof targetPort === "number"
      ? targetPort
      : pod.spec.containers
          .flatMap(({ ports: declared = [] }) => declared as { name?: string; containerPort: number }[])
          .find(({ name }) => name === targetPort)?.containerPort;
  const found =
    ports.find(({ listen }) => listen === number) ?? ports.find(({ upstream }) => upstream === number);
  return found?.listen ?? null;
}

function shown(names: readonly string[]): string {
  const rest = names.length - NAMES_MAX;
  return `${names.slice(0, NAMES_MAX).join(", ")}${rest > 0 ? ` and ${rest} more` : ""}`;
}

function entryIn(text: string | undefined): ServiceEntry | null {
  if (text === undefined) return null;
  try {
    return serviceEntry.parse(JSON.parse(text));
  } catch {
    return null; // of another version, or somebody's hand: it is made anew
  }
}

/** Each is one Service port's at a time. A number that has become free is given out again as late as can be. */
class PortNumbers {
  readonly #taken = new Set<number>();
  #last = PORT_FIRST - 1;

  /** False: another has it. */
  keep(number: number): boolean {
    if (number < PORT_FIRST || number > PORT_LAST || this.#taken.has(number)) return false;
    this.#taken.add(number);
    this.#last = Math.max(this.#last, number);
    return true;
  }

  /** null: none is left */
  next(): number | null {
    const count = PORT_LAST - PORT_FIRST + 1;
    if (this.#taken.size >= count) return null;
    do this.#last = this.#last >= PORT_LAST ? PORT_FIRST : this.#last + 1;
    while (this.#taken.has(this.#last));
    this.#taken.add(this.#last);
    return this.#last;
  }
}

function isServing(pod: Pod): boolean {
  return isActive(pod) && isTrue(pod, "Ready") && pod.status?.podIP !== undefined;
}

function endpointOf({ metadata, spec, status }: Pod): { addresses: string[]; [field: string]: unknown } {
  return {
    addresses: [status?.podIP as string],
    conditions: { ready: true, serving: true, terminating: false },
    ...(spec.nodeName === undefined ? {} : { nodeName: spec.nodeName }),
    targetRef: { kind: "Pod", namespace: metadata.namespace, name: metadata.name, uid: metadata.uid },
  };
}

function sliceOf(
  { metadata: { name, namespace = "default", uid } }: Service,
  { ports, workloads }: ServiceEntry,
  endpoints: ReturnType<typeof endpointOf>[],
): SliceManifest {
  const isSix = endpoints.some(({ addresses }) => addresses[0]?.includes(":"));
  return {
    apiVersion: "discovery.k8s.io/v1",
    kind: "EndpointSlice",
    metadata: {
      name: `${name}-holdfast`,
      namespace,
      labels: { [SERVICE_NAME_LABEL]: name, [MANAGED_BY_LABEL]: MANAGED_BY },
      ownerReferences: [{ apiVersion: "v1", kind: "Service", name, uid, controller: true }],
    },
    addressType: isSix ? "IPv6" : "IPv4",
    // without pods a connection is refused at once, as with any Service
    endpoints: workloads.length === 0 ? [] : endpoints,
    ports: ports.map(({ name: port, listen }) => ({ name: port, port: listen, protocol: "TCP" })),
  };
}
