/** Paths of the API, and selectors as its query wants them. */
import { GROUP, VERSION } from "../../api/resources.ts";
import type { LabelSelector } from "./objects.ts";

const core = "/api/v1";
const ours = `/apis/${GROUP}/${VERSION}`;

/** the prefix of each kind's group and version, and its plural */
const KINDS = {
  pods: [core, "pods"],
  namespaces: [core, "namespaces"],
  nodes: [core, "nodes"],
  events: [core, "events"],
  persistentvolumeclaims: [core, "persistentvolumeclaims"],
  persistentvolumes: [core, "persistentvolumes"],
  statefulsets: ["/apis/apps/v1", "statefulsets"],
  replicasets: ["/apis/apps/v1", "replicasets"],
  deployments: ["/apis/apps/v1", "deployments"],
  services: [core, "services"],
  configmaps: [core, "configmaps"],
  endpoints: [core, "endpoints"],
  endpointslices: ["/apis/discovery.k8s.io/v1", "endpointslices"],
  sidecars: ["/apis/networking.istio.io/v1", "sidecars"],
  destinationrules: ["/apis/networking.istio.io/v1", "destinationrules"],
  virtualservices: ["/apis/networking.istio.io/v1", "virtualservices"],
  envoyfilters: ["/apis/networking.istio.io/v1alpha3", "envoyfilters"],
  poddisruptionbudgets: ["/apis/policy/v1", "poddisruptionbudgets"],
  leases: ["/apis/coordination.k8s.io/v1", "leases"],
  daemonsets: ["/apis/apps/v1", "daemonsets"],
  customresourcedefinitions: ["/apis/apiextensions.k8s.io/v1", "customresourcedefinitions"],
  mutatingwebhookconfigurations: ["/apis/admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations"],
  validatingwebhookconfigurations: [
    "/apis/admissionregistration.k8s.io/v1",
    "validatingwebhookconfigurations",
  ],
  selfsubjectaccessreviews: ["/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews"],
  /** of EvictionRequests; nothing to do with the subresource of pods */
  evictions: ["/apis/lifecycle.k8s.io/v1alpha1", "evictions"],
  migrations: [ours, "migrations"],
  continuitypolicies: [ours, "continuitypolicies"],
} as const;
export type Kind = keyof typeof KINDS;

export interface Where {
  /** null or missing: of all namespaces, or a kind that has none */
  namespace?: string | null;
  name?: string;
  subresource?: "status" | "eviction" | "log";
}

/** `pathOf("pods", {namespace: "shop", name: "chat-0"})` → `/api/v1/namespaces/shop/pods/chat-0` */
export function pathOf(kind: Kind, { namespace, name, subresource }: Where = {}): string {
  const [prefix, plural] = KINDS[kind];
  const parts = [
    ...(namespace ? ["namespaces", namespace] : []),
    plural,
    ...(name === undefined ? [] : [name]),
    ...(subresource === undefined ? [] : [subresource]),
  ];
  return `${prefix}/${parts.map(encodeURIComponent).join("/")}`;
}

/** As the query `labelSelector` wants it. */
export function selectorText({ matchLabels = {}, matchExpressions = [] }: LabelSelector): string {
  return [
    ...Object.entries(matchLabels).map(([key, value]) => `${key}=${value}`),
    ...matchExpressions.map(({ key, operator, values = [] }) => {
      if (operator === "Exists") return key;
      if (operator === "DoesNotExist") return `!${key}`;
      return `${key} ${operator === "In" ? "in" : "notin"} (${values.join(",")})`;
    }),
  ].join(",");
}
