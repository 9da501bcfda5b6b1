/**
 * The policies that a cluster asks for without saying so: of each Service whose pods were injected by Holdfast and by Istio. Pure. The Service's
 * selector, its ports and the pods' own annotations say all but what somebody wants: that is in the Service's annotation
 * `holdfast.dev/mesh`, as JSON of the rest of a policy.
 */
import { ISTIO_STATUS, MESH_ANNOTATION } from "#control/api/mesh.ts";
import { isActive, isSelected, type Pod, type Service } from "#control/kubernetes/client/objects.ts";
import { INJECTED, MADE, SETTINGS } from "#control/kubernetes/inject/names.ts";
import { type InjectedPort, settingsOf } from "#control/kubernetes/inject/settings.ts";
import { saidOf } from "#control/kubernetes/services/plan.ts";
import { numberOf } from "#control/kubernetes/services/slices.ts";
import { CONTAINER_PORT_FIRST } from "#proxy/contract/commands.ts";
import { reachIn, type SidecarObject } from "./default-sidecar.ts";
import { type Policy, type PolicyPort, policySchema } from "./policy.ts";

export interface LeftOut {
  service: Service;
  /** CamelCase */
  reason: string;
  message: string;
}

export interface FoundPolicies {
  policies: { service: Service; policy: Policy }[];
  /** Services that ask for something which cannot be had */
  leftOut: LeftOut[];
}

/** @param sidecars of Istio, of these namespaces and of istiod's own: what pods may reach by them they may by the policy, where it does not say otherwise */
export function policiesOf(
  services: readonly Service[],
  pods: readonly Pod[],
  sidecars: readonly SidecarObject[] = [],
): FoundPolicies {
  const found: FoundPolicies = { policies: [], leftOut: [] };
  const byNamespace = Map.groupBy(pods, ({ metadata }) => metadata.namespace);
  for (const service of services) {
    const selector = service.spec.selector ?? {};
    if (Object.keys(selector).length === 0) continue;
    const of = (byNamespace.get(service.metadata.namespace) ?? []).filter(
      (pod) => isActive(pod) && isSelected({ matchLabels: selector }, pod.metadata.labels),
    );
    const ours = of.filter(isOurs);
    const meshed = of.filter(({ metadata }) => metadata.annotations?.[ISTIO_STATUS] !== undefined);
    const both = meshed.filter(isOurs);
    const isAsked = service.metadata.annotations?.[MESH_ANNOTATION] !== undefined;
    const leave = (reason: string, message: string): void =>
      void found.leftOut.push({ service, reason, message });
    if (both.length === 0) {
      if (isAsked)
        leave(
          ours.length === 0 ? "NotInjected" : "NoSidecar",
          ours.length === 0
            ? "none of its pods is injected by Holdfast: label them holdfast.dev/inject: enabled, and make them anew"
            : "none of its pods has Istio's sidecar",
        );
      continue;
    }
    // its sidecar would lead clients to where nobody listens
    const other = meshed.find((pod) => !isOurs(pod));
    if (other !== undefined) {
      leave(
        "NotInjected",
        `pod ${other.metadata.name} has Istio's sidecar and is not injected by Holdfast: label it holdfast.dev/inject: enabled, and make it anew`,
      );
      continue;
    }
    const policy = policyOf(service, selector, both, leave);
    if (policy === null) continue;
    const reach = reachIn(policy.namespace, sidecars);
    const { egress, outboundTrafficPolicy } = policy;
    found.policies.push({
      service,
      policy: {
        ...policy,
        egress: egress ?? reach.egress,
        outboundTrafficPolicy: outboundTrafficPolicy ?? reach.outboundTrafficPolicy,
      },
    });
  }
  return found;
}

function isOurs({ metadata }: Pod): boolean {
  return metadata.annotations?.[MADE.injected] === INJECTED;
}

type Leave = (reason: string, message: string) => void;

function policyOf(
  service: Service,
  selector: Record<string, string>,
  pods: readonly Pod[],
  leave: Leave,
): Policy | null {
  const { name, namespace = "default", annotations = {} } = service.metadata;
  const unled = pods.find((pod) => !isLedInPod(pod));
  if (unled !== undefined) {
    leave(
      "NotInPod",
      `pod ${unled.metadata.name} has no proxy that takes clients in it: annotate pods holdfast.dev/proxy: sidecar or holdfast.dev/listen: pod, in forward mode, and make them anew`,
    );
    return null;
  }
  const texts = new Set(pods.map((pod) => JSON.stringify(injectedPorts(pod))));
  const [first] = pods;
  const ports = first === undefined ? null : injectedPorts(first);
  if (texts.size !== 1 || first === undefined || ports === null) {
    leave("PortsDiffer", "its pods do not all have the same holdfast.dev/ports");
    return null;
  }
  const wanted = ports.map((one, index) => portOf(one, index, service, first));
  let more: unknown = {};
  try {
    more = JSON.parse(annotations[MESH_ANNOTATION] ?? "{}");
  } catch {
    leave("PolicyInvalid", `expected annotation ${MESH_ANNOTATION} as JSON, as {"idleSeconds":86400}`);
    return null;
  }
  // what the cluster says is not to be said otherwise
  const whole = { ...(more as object), ...{ name, namespace, selector, service: name, ports: wanted } };
  const parsed = policySchema.safeParse(whole);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const isUnknown = issue?.code === "unrecognized_keys";
  const path = [...(issue?.path ?? []), ...(isUnknown ? issue.keys.slice(0, 1) : [])].join(".");
  const message = isUnknown ? "unknown key" : issue?.message;
  leave("PolicyInvalid", `annotation ${MESH_ANNOTATION}: ${path || "the whole"}: ${message}`);
  return null;
}

/** Where Envoy finds Holdfast's proxy on the loopback device: in forward mode, and not at the node's address. */
function isLedInPod({ metadata: { annotations = {} } }: Pod): boolean {
  const { [SETTINGS.mode]: mode, [SETTINGS.proxy]: proxy, [SETTINGS.listen]: listen } = annotations;
  return mode !== "gateway" && (proxy === "sidecar" || listen === "pod");
}

function injectedPorts(pod: Pod): InjectedPort[] | null {
  const settings = settingsOf(saidOf(pod));
  return "ports" in settings ? settings.ports : null;
}

function portOf(
  { listen, protocol }: InjectedPort,
  index: number,
  service: Service,
  pod: Pod,
): Omit<PolicyPort, "identity"> {
  const of = (service.spec.ports ?? []).find(
    ({ port, targetPort = port, protocol = "TCP" }) =>
      protocol === "TCP" && numberOf(pod, targetPort) === listen,
  );
  return {
    port: listen,
    proxy: CONTAINER_PORT_FIRST + index,
    protocol: protocolOf(protocol, of),
    ...(of === undefined ? {} : { servicePort: of.port }),
  };
}

/** As Istio tells it, where the pod leaves it to the first bytes: by appProtocol, or by what the port's name begins with. */
function protocolOf(
  protocol: InjectedPort["protocol"],
  port: { name?: string; appProtocol?: string } | undefined,
): PolicyPort["protocol"] {
  if (protocol === "http" || protocol === "websocket" || protocol === "h2" || protocol === "tcp")
    return protocol;
  const word = (port?.appProtocol ?? port?.name?.split("-")[0] ?? "").toLowerCase();
  if (protocol === "tls" || word === "") return "tcp";
  if (/^(http2|grpc|kubernetes\.io\/h2c)$/.test(word)) return "h2";
  if (/^(kubernetes\.io\/)?wss?$/.test(word)) return "websocket";
  return word === "http" ? "http" : "tcp";
}
