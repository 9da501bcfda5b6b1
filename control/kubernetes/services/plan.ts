/**
 * What is to be of Services whose clients come to gateways: their entries in the gateways' table, and their EndpointSlices. Pure. Each port of
 * such a Service has a number of its own at the gateways, by which these know whose client comes. Clients that gateways cannot have are
 * led to the pods themselves, as without Holdfast: a label on a Service turns nobody away.
 */
import {
  PROXY_PROTOCOL_ANNOTATION,
  SELECTOR_ANNOTATION,
  SESSION_ANNOTATION,
  type ServiceEntry,
  serviceEntry,
} from "../../api/gateway-table.ts";
import { checkEntrySession } from "../../config/gateway.ts";
import { isActive, isSelected, isTrue, type Pod, type Service } from "../client/objects.ts";
import { settingsOf } from "../inject/settings.ts";
import { lookAt, nameOf } from "../node/injected-pod.ts";
import { parseSelector } from "./adopt.ts";
import type { ServiceFinding } from "./findings.ts";
import { isPortNumber, PORT_FIRST, PORT_LAST, PortNumbers } from "./port-numbers.ts";
import { gatewaySlice, isServing, numberOf, podSlices, type SliceManifest } from "./slices.ts";

/** a ConfigMap takes none above 1 MiB, and etcd no larger object */
export const TABLE_BYTES_MAX = 1_000_000;
/** … of which Services that are new leave so much to those that are there: they get more pods */
const GROWTH_BYTES = 100_000;
const SESSION_CHARS_MAX = 1_000;
const NAMES_MAX = 5;

export interface ObservedServices {
  /** those with the label */
  services: readonly Service[];
  /** all there are */
  pods: readonly Pod[];
  /** pods of gateways */
  gateways: readonly Pod[];
  /** what gateways were told last: keys NAMESPACE.NAME */
  table: Readonly<Record<string, string>>;
  /** the number that was given out last, as the table has it beside ({@link LAST_PORT_ANNOTATION}) */
  lastPort?: string | undefined;
  /** keys of those that are none any more, to whose numbers clients are led yet */
  leaving?: ReadonlySet<string>;
}

/** Where a Service's clients are led. */
export const LEADS = ["gateways", "pods", "nowhere"] as const;
export type Lead = (typeof LEADS)[number];

export interface ServicesPlan {
  table: Record<string, string>;
  tableBytes: number;
  /** the number that has been given out last, to be kept with the table. null: none ever was */
  lastPort: number | null;
  slices: SliceManifest[];
  /** why clients of a Service, or of one of its pods, are not led as somebody expects */
  findings: ServiceFinding[];
  /** how many Services there are of each */
  leads: Record<Lead, number>;
}

type Tell = (reason: string, message: string) => void;

export function planServices({
  services,
  pods,
  gateways,
  table,
  lastPort,
  leaving = new Set(),
}: ObservedServices): ServicesPlan {
  const plan: ServicesPlan = {
    ...{ table: {}, tableBytes: 0, slices: [], findings: [], lastPort: lastGiven(table, lastPort) },
    leads: { gateways: 0, pods: 0, nowhere: 0 },
  };
  const byNamespace = Map.groupBy(pods, ({ metadata }) => metadata.namespace ?? "");
  const serving = gateways.filter(isServing);
  const numbers = new PortNumbers(plan.lastPort);
  const kept = new Map<string, ServiceEntry>();
  const inOrder = [...services].sort((one, other) => keyOf(one).localeCompare(keyOf(other)));
  // numbers that clients come to stay whose they are
  for (const service of inOrder) {
    const before = entryIn(table[keyOf(service)]);
    if (before === null) continue;
    kept.set(keyOf(service), { ...before, ports: before.ports.filter(({ listen }) => numbers.keep(listen)) });
  }
  for (const key of leaving) {
    const [text = "", before] = [table[key], entryIn(table[key])];
    if (before === null) continue;
    for (const { listen } of before.ports) numbers.keep(listen);
    put(plan, key, text);
  }
  // … and so does the room in the table
  const [known = [], fresh = []] = [true, false].map((isKnown) =>
    inOrder.filter((service) => kept.has(keyOf(service)) === isKnown),
  );
  for (const service of [...known, ...fresh]) {
    const key = keyOf(service);
    const tell: Tell = (reason, message) => plan.findings.push({ service, reason, message });
    const labels = selectorOf(service, tell);
    if (labels === null) {
      plan.leads.nowhere++;
      continue;
    }
    const selected = (byNamespace.get(service.metadata.namespace ?? "") ?? []).filter(
      (pod) => isActive(pod) && isSelected({ matchLabels: labels }, pod.metadata.labels),
    );
    const { served, others } = sortOut(selected);
    const ready = served.filter(({ pod }) => isTrue(pod, "Ready"));
    const isDirect = ready.length === 0 && others.some(({ pod }) => isServing(pod));
    tellOfOthers(others, isDirect, tell);
    // one that is not Ready, as in the middle of a move, is better than none: clients wait for it
    const chosen = ready.length > 0 ? ready : served;
    const entry = entryOf(service, chosen, kept.get(key) ?? null, numbers, tell);
    const text = JSON.stringify(entry);
    const isFull =
      plan.tableBytes + bytesOf(key, text) > TABLE_BYTES_MAX - (kept.has(key) ? 0 : GROWTH_BYTES);
    const isLed = entry.ports.length > 0 && !isFull;
    if (isFull)
      tell(
        "TooManyServices",
        `clients come to the pods themselves, and a move resets them: all Services of gateways with their pods are ${TABLE_BYTES_MAX} bytes at most, and this one had no room; take the label from others`,
      );
    if (isLed) {
      put(plan, key, text);
      // those of a Service that has no room have never been anybody's: each round would give it others
      plan.lastPort = lastNew(entry, kept.get(key)) ?? plan.lastPort;
      const hasClients = !isDirect && chosen.length > 0;
      if (hasClients && serving.length === 0)
        tell("NoGateway", "no gateway is Ready: clients are refused, but for those that are connected");
      plan.slices.push(gatewaySlice(service, entry, hasClients ? serving : []));
    }
    const names = new Set(isLed && !isDirect ? entry.ports.map(({ name }) => name) : []);
    const left = (service.spec.ports ?? []).filter(({ name = "" }) => !names.has(name));
    plan.slices.push(...podSlices(service, left, selected.filter(isServing)));
    plan.leads[isLed && !isDirect ? "gateways" : "pods"]++;
  }
  return plan;
}

/** By its annotation; a table of a version that has none, or somebody's hand: the highest in it, also of those that leave it now. */
function lastGiven(table: Readonly<Record<string, string>>, annotation: string | undefined): number | null {
  if (annotation !== undefined && isPortNumber(Number(annotation))) return Number(annotation);
  const given = Object.values(table).flatMap(
    (text) => entryIn(text)?.ports.map(({ listen }) => listen) ?? [],
  );
  return given.filter(isPortNumber).reduce<number | null>((last, one) => Math.max(last ?? 0, one), null);
}

/** The last number of it that it did not have before. */
function lastNew({ ports }: ServiceEntry, before: ServiceEntry | undefined): number | undefined {
  const had = new Set(before?.ports.map(({ listen }) => listen));
  return ports.findLast(({ listen }) => !had.has(listen))?.listen;
}

function put(plan: ServicesPlan, key: string, text: string): void {
  plan.table[key] = text;
  plan.tableBytes += bytesOf(key, text);
}

function bytesOf(key: string, text: string): number {
  return key.length + Buffer.byteLength(text);
}

/** In the table: neither part can have a dot that is not a namespace's end, as namespaces have none. */
export function keyOf({ metadata }: { metadata: { namespace?: string | undefined; name: string } }): string {
  return `${metadata.namespace ?? "default"}.${metadata.name}`;
}

/** @param chosen pods that gateways lead clients to */
function entryOf(
  service: Service,
  chosen: readonly ServedPod[],
  before: ServiceEntry | null,
  numbers: PortNumbers,
  tell: Tell,
): ServiceEntry {
  const { annotations = {} } = service.metadata;
  const session = sessionOf(annotations[SESSION_ANNOTATION], tell);
  return {
    ports: portsOf(service, chosen, before, numbers, tell),
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
    if (text.length > SESSION_CHARS_MAX) throw new Error("it is too long");
    const session: unknown = JSON.parse(text);
    // by the gateways' own reader: one that they refuse would lead nobody anywhere
    checkEntrySession(session, SESSION_ANNOTATION);
    return session;
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

/** Of a Service's pods those that gateways can lead clients to, and others. */
function sortOut(pods: readonly Pod[]): {
  served: ServedPod[];
  others: { pod: Pod; isInjected: boolean }[];
} {
  const served: ServedPod[] = [];
  const others: { pod: Pod; isInjected: boolean }[] = [];
  for (const pod of pods) {
    const seen = seenOf(pod);
    if (seen?.isOfGateways) served.push({ pod, ...seen });
    else others.push({ pod, isInjected: seen !== null });
  }
  return { served, others };
}

/** @param isDirect there is no better one: clients are led to them, by themselves */
function tellOfOthers(others: ReturnType<typeof sortOut>["others"], isDirect: boolean, tell: Tell): void {
  const what = (names: string[]): string =>
    isDirect
      ? `clients come to ${shown(names)} without a gateway, as without the label:`
      : `no client is led to ${shown(names)}:`;
  for (const [reason, isInjected, cure] of [
    [
      "NotInjected",
      false,
      "not injected (label holdfast.dev/inject: enabled on the namespace, or on the pod, before it is made)",
    ],
    [
      "NotGateway",
      true,
      "made with holdfast.dev/mode: forward or holdfast.dev/listen, or while there were no gateways; make them anew (kubectl rollout restart)",
    ],
  ] as const) {
    const names = others.filter((one) => one.isInjected === isInjected).map(({ pod }) => pod.metadata.name);
    if (names.length > 0) tell(reason, `${what(names)} ${cure}`);
  }
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
      tell(
        "NotTcp",
        `clients of port ${name || port} come to the pods themselves: it is ${protocol}, and gateways have TCP`,
      );
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
      tell(
        "NoPortLeft",
        `clients of port ${name || port} come to the pods themselves, and a move resets them: ports ${PORT_FIRST}-${PORT_LAST} of gateways are all given out`,
      );
      continue;
    }
    // as long as there is no pod nobody is led anywhere
    ports.push({ name, listen, port: wanted ?? (typeof targetPort === "number" ? targetPort : port) });
  }
  return ports;
}

/** What clients call the port that a Service means. null: there is none */
function portIn(pod: Pod, ports: ServedPod["ports"], targetPort: number | string): number | null {
  const number = numberOf(pod, targetPort);
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
