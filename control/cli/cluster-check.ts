/**
 * `holdfast check --pre` and `holdfast check --cluster`: what would keep Holdfast from being installed in a cluster, and what keeps it from
 * working there; the cluster, then node by node. It only looks.
 */
import type { CheckAnswer } from "../api/admin.ts";
import { GATEWAY_ENABLED, GATEWAY_LABEL, TABLE_LABEL } from "../api/gateway-table.ts";
import { GROUP, VERSION } from "../api/resources.ts";
import { isCode, type KubernetesApi } from "../kubernetes/client/api.ts";
import {
  type ConfigMap,
  isTrue,
  type KubernetesObject,
  type Node,
  type Pod,
  type Service,
} from "../kubernetes/client/objects.ts";
import { type Kind, pathOf } from "../kubernetes/client/paths.ts";
import type { ServiceFinding } from "../kubernetes/services/findings.ts";
import { planServices } from "../kubernetes/services/plan.ts";
import { show } from "./check.ts";
import { type ClusterView, viewCluster } from "./cluster-view.ts";
import { serialiser } from "./output.ts";
import type { OutputFormat } from "./output-format.ts";
import type { Terminal } from "./terminal.ts";

type Finding = CheckAnswer["findings"][number];

export interface ClusterCheckRequest {
  /** before anything is installed */
  isBefore: boolean;
  /** where Holdfast is, or is to be */
  namespace: string;
  allow: string[];
}

/** What installing the chart makes, and upgrading and removing it, which the one who asks has to be allowed to. */
export const MADE: [group: string, resource: string, namespaced: boolean][] = [
  ["", "secrets", true],
  ["", "serviceaccounts", true],
  ["", "services", true],
  ["", "configmaps", true],
  ["apps", "deployments", true],
  ["apps", "daemonsets", true],
  ["batch", "jobs", true],
  ["networking.k8s.io", "networkpolicies", true],
  ["policy", "poddisruptionbudgets", true],
  ["rbac.authorization.k8s.io", "roles", true],
  ["rbac.authorization.k8s.io", "rolebindings", true],
  ["rbac.authorization.k8s.io", "clusterroles", false],
  ["rbac.authorization.k8s.io", "clusterrolebindings", false],
  ["apiextensions.k8s.io", "customresourcedefinitions", false],
  ["admissionregistration.k8s.io", "mutatingwebhookconfigurations", false],
  ["admissionregistration.k8s.io", "validatingwebhookconfigurations", false],
  ["scheduling.k8s.io", "priorityclasses", false],
];
/** as Chart.yaml has it */
const MINOR_MIN = 30;
const KERNEL_MAJOR_MIN = 6;
const ARCHITECTURES = ["amd64", "arm64"];
const PODS_SHOWN_MAX = 20;
const SERVICES_SHOWN_MAX = 20;

/** Beside what is seen of nodes and pods; null: it is not there, or may not be read. */
export interface Installation {
  namespace: KubernetesObject | null;
  /** of ours that are there, with whether they are served in the version that is wanted */
  crds: Map<string, boolean>;
  mutating: number;
  validating: number;
  /** what the one who asks may not make, as "RESOURCE.GROUP" */
  forbidden: string[];
  /** why clients of Services of gateways are not led as somebody expects */
  services: ServiceFinding[];
}

export async function checkCluster(
  api: KubernetesApi,
  request: ClusterCheckRequest,
  format: OutputFormat,
  terminal: Terminal,
): Promise<number> {
  const view = await viewCluster(api, null);
  const installation = await lookUp(api, request);
  return show(findingsOf(view, installation, request), request.allow, serialiser(format), terminal);
}

async function lookUp(
  api: KubernetesApi,
  { namespace, isBefore }: ClusterCheckRequest,
): Promise<Installation> {
  const crds = new Map<string, boolean>();
  for (const plural of ["migrations", "continuitypolicies"]) {
    const found = await readable(
      api.find<Crd>(pathOf("customresourcedefinitions", { name: `${plural}.${GROUP}` })),
    );
    if (found !== null)
      crds.set(
        plural,
        found.spec.versions.some(({ name, served }) => name === VERSION && served),
      );
  }
  const ours = async (kind: Kind): Promise<number> =>
    (await readable(api.list(pathOf(kind), { labelSelector: "app.kubernetes.io/name=holdfast" })))?.items
      .length ?? 0;
  const forbidden: string[] = [];
  if (isBefore)
    for (const [group, resource, namespaced] of MADE) {
      const resourceAttributes = { verb: "create", group, resource, ...(namespaced ? { namespace } : {}) };
      const body = {
        apiVersion: "authorization.k8s.io/v1",
        kind: "SelfSubjectAccessReview",
        spec: { resourceAttributes },
      };
      const { status } = await api.create<{ status: { allowed: boolean } }>(
        pathOf("selfsubjectaccessreviews"),
        body,
      );
      if (!status.allowed) forbidden.push(group === "" ? resource : `${resource}.${group}`);
    }
  return {
    namespace: await readable(api.find<KubernetesObject>(pathOf("namespaces", { name: namespace }))),
    crds,
    mutating: await ours("mutatingwebhookconfigurations"),
    validating: await ours("validatingwebhookconfigurations"),
    forbidden,
    services: isBefore ? [] : await lookAtServices(api),
  };
}

/** What the controller makes of them, too. */
async function lookAtServices(api: KubernetesApi): Promise<ServiceFinding[]> {
  const query = { labelSelector: `${GATEWAY_LABEL}=${GATEWAY_ENABLED}` };
  const services = (await readable(api.list<Service>(pathOf("services"), query)))?.items ?? [];
  if (services.length === 0) return [];
  const pods = (await api.list<Pod>(pathOf("pods"))).items;
  const gateways = pods.filter(({ metadata }) => metadata.labels?.[TABLE_LABEL] !== undefined);
  const { namespace = "", labels } = gateways[0]?.metadata ?? {};
  const name = labels?.[TABLE_LABEL];
  const table =
    name === undefined
      ? null
      : await readable(api.find<ConfigMap>(pathOf("configmaps", { namespace, name })));
  return planServices({ services, pods, gateways, table: table?.data ?? {} }).findings;
}

interface Crd extends KubernetesObject {
  spec: { versions: { name: string; served: boolean }[] };
}

async function readable<T>(asked: Promise<T>): Promise<T | null> {
  try {
    return await asked;
  } catch (error) {
    if (isCode(error, "KUBERNETES_FORBIDDEN")) return null;
    throw error;
  }
}

/** Pure. */
export function findingsOf(
  view: ClusterView,
  installation: Installation,
  { isBefore, namespace }: ClusterCheckRequest,
): CheckAnswer {
  const found = new Findings();
  const minor = Number(/^v1\.(\d+)/.exec(view.version)?.[1] ?? 0);
  found.look("Kubernetes");
  if (minor < MINOR_MIN)
    found.error(
      "cluster.version",
      `Kubernetes ${view.version} is too old`,
      `upgrade it to 1.${MINOR_MIN} or newer`,
    );
  found.look("namespace");
  const enforced = installation.namespace?.metadata.labels?.["pod-security.kubernetes.io/enforce"];
  if (installation.namespace === null)
    found.warn(
      "cluster.namespace",
      `there is no namespace ${namespace}`,
      `kubectl create namespace ${namespace}`,
    );
  else if (enforced !== undefined && enforced !== "privileged")
    found.error(
      "cluster.pod-security",
      `namespace ${namespace} enforces Pod Security ${enforced}, which keeps agents out`,
      `kubectl label --overwrite namespace ${namespace} pod-security.kubernetes.io/enforce=privileged`,
    );
  if (isBefore) {
    found.look("access");
    for (const resource of installation.forbidden)
      found.error(
        "cluster.access",
        `you may not create ${resource}`,
        "have somebody install the chart who may",
      );
  } else lookAtParts(found, view, installation);
  lookAtNodes(found, view, isBefore);
  if (!isBefore) lookAtPods(found, view);
  if (!isBefore) tellOfServices(found, installation);
  return found.answer;
}

function lookAtParts(
  found: Findings,
  { parts }: ClusterView,
  { crds, mutating, validating }: Installation,
): void {
  found.look("resources");
  for (const plural of ["migrations", "continuitypolicies"])
    if (crds.get(plural) !== true)
      found.error(
        `cluster.crd.${plural}`,
        `${plural}.${GROUP} is ${crds.has(plural) ? `not served as ${VERSION}` : "not there"}`,
        "kubectl apply -f charts/holdfast/crds",
      );
  for (const [component, what] of [
    ["webhook", "no pod is injected"],
    ["controller", "no Migration is carried out"],
  ] as const) {
    found.look(component);
    const all = parts.filter((part) => part.component === component);
    const ready = all.filter(({ isReady }) => isReady);
    if (ready.length === 0)
      found.error(
        `cluster.${component}`,
        all.length === 0 ? `there is no ${component}: ${what}` : `no ${component} is ready: ${what}`,
        all.length === 0 ? "install the chart" : `kubectl describe pods, and their logs, say why`,
      );
    else if (ready.length < all.length)
      found.warn(
        `cluster.${component}.replicas`,
        `${all.length - ready.length} of ${all.length} ${component}s are not ready`,
        "kubectl describe says why",
      );
  }
  found.look("admission");
  if (mutating === 0)
    found.error(
      "cluster.admission",
      "the API server asks no webhook of Holdfast's about pods",
      "install the chart",
    );
  if (validating === 0)
    found.warn(
      "cluster.evictions",
      "the API server asks nobody about evictions: kubectl drain does not wait for moves",
      "set controller.evictions.enabled, or use holdfast drain",
    );
}

function lookAtNodes(found: Findings, { nodes, parts }: ClusterView, isBefore: boolean): void {
  const kinds = new Map<string, number>();
  for (const node of nodes) {
    const { name } = node.metadata;
    const { architecture, kernelVersion, operatingSystem, containerRuntimeVersion, kubeletVersion } =
      infoOf(node);
    found.look("node", name);
    kinds.set(architecture, (kinds.get(architecture) ?? 0) + 1);
    if (operatingSystem !== "linux") {
      found.warn("node.os", `it runs ${operatingSystem}`, "its pods do not move", name);
      continue;
    }
    if (!isTrue(node, "Ready"))
      found.warn(
        "node.not-ready",
        "kubelet does not report it Ready",
        "kubectl describe node says why",
        name,
      );
    if (!ARCHITECTURES.includes(architecture))
      found.error(
        "node.architecture",
        `CRIU and Holdfast are not made for ${architecture}`,
        "set agent.nodeSelector so that it is left out",
        name,
      );
    if (Number(kernelVersion.split(".", 1)[0]) < KERNEL_MAJOR_MIN)
      found.warn(
        "node.kernel",
        `its kernel ${kernelVersion} was not tried`,
        `upgrade it to ${KERNEL_MAJOR_MIN} or newer`,
        name,
      );
    if (!/^(containerd|cri-o):\/\//.test(containerRuntimeVersion))
      found.error(
        "node.runtime",
        `its container runtime is ${containerRuntimeVersion || "not known"}`,
        "use containerd or CRI-O",
        name,
      );
    if (Number(/^v1\.(\d+)/.exec(kubeletVersion)?.[1] ?? 0) < MINOR_MIN)
      found.warn(
        "node.kubelet",
        `its kubelet is ${kubeletVersion}`,
        `upgrade it to 1.${MINOR_MIN} or newer`,
        name,
      );
    if (isBefore) continue;
    const agent = parts.find((part) => part.component === "agent" && part.node === name);
    if (agent === undefined)
      found.error(
        "node.no-agent",
        "no agent runs there: its pods do not move, and none moves there",
        "see agent.nodeSelector and agent.tolerations of the chart",
        name,
      );
    else if (!agent.isReady)
      found.error(
        "node.agent",
        `its agent ${agent.pod} is not ready`,
        `kubectl -n ${agent.namespace} logs ${agent.pod} says why`,
        name,
      );
  }
  found.look("nodes");
  if (![...kinds.values()].some((count) => count > 1))
    found.error(
      "cluster.nodes",
      "no two nodes have the same architecture",
      "a pod moves between two of one kind: add a node",
    );
}

function lookAtPods(found: Findings, { pods }: ClusterView): void {
  found.look("pods");
  const missed = pods.filter(({ injection }) => injection === "missed");
  const refused = pods.filter(({ injection }) => injection === "refused");
  const fixed = pods.filter(({ movable }) => movable !== null && !movable.isMovable);
  const nameOf = ({ namespace, pod }: { namespace: string; pod: string }): string => `${namespace}/${pod}`;
  for (const pod of missed.slice(0, PODS_SHOWN_MAX))
    found.warn(
      "pod.missed",
      `pod ${nameOf(pod)} is to be injected and is not`,
      `kubectl -n ${pod.namespace} delete pod ${pod.pod}: what made it makes it anew, injected`,
    );
  for (const pod of refused.slice(0, PODS_SHOWN_MAX))
    found.warn("pod.refused", `pod ${nameOf(pod)} cannot be injected`, pod.message);
  for (const pod of fixed.slice(0, PODS_SHOWN_MAX))
    found.warn("pod.not-movable", `pod ${nameOf(pod)} could not move now`, pod.movable?.message ?? "");
  const more = [missed, refused, fixed].reduce(
    (sum, { length }) => sum + Math.max(0, length - PODS_SHOWN_MAX),
    0,
  );
  if (more > 0) found.warn("pod.more", `${more} pods more`, "holdfast status --cluster -o wide has all");
}

function tellOfServices(found: Findings, { services }: Installation): void {
  found.look("services");
  for (const { service, reason, message } of services.slice(0, SERVICES_SHOWN_MAX)) {
    const { namespace = "", name } = service.metadata;
    found.warn(
      `service.${reason.replaceAll(/(?<!^)[A-Z]/g, (letter) => `-${letter}`).toLowerCase()}`,
      `service ${namespace}/${name}: ${message}`,
      `see "Services whose clients come to gateways" of control/kubernetes`,
    );
  }
  const more = services.length - SERVICES_SHOWN_MAX;
  if (more > 0)
    found.warn("service.more", `${more} findings about Services more`, "kubectl describe shows their Events");
}

function infoOf(
  node: Node,
): Record<
  "architecture" | "kernelVersion" | "operatingSystem" | "containerRuntimeVersion" | "kubeletVersion",
  string
> {
  const { nodeInfo } = (node.status ?? {}) as { nodeInfo?: Record<string, string> };
  const text = (name: string): string => nodeInfo?.[name] ?? "";
  return {
    architecture: text("architecture"),
    kernelVersion: text("kernelVersion"),
    operatingSystem: text("operatingSystem"),
    containerRuntimeVersion: text("containerRuntimeVersion"),
    kubeletVersion: text("kubeletVersion"),
  };
}

class Findings {
  readonly answer: CheckAnswer = { findings: [], checked: [] };
  #category = "";

  /** @param node undefined: the cluster */
  look(category: string, node?: string): void {
    this.#category = category;
    this.answer.checked.push({ category, workload: null, ...(node === undefined ? {} : { node }) });
  }

  error(id: string, what: string, cure: string, node?: string): void {
    this.#add({ id, what, cure, severity: "error" }, node);
  }

  warn(id: string, what: string, cure: string, node?: string): void {
    this.#add({ id, what, cure, severity: "warning" }, node);
  }

  #add(finding: Pick<Finding, "id" | "what" | "cure" | "severity">, node: string | undefined): void {
    const where = { category: this.#category, workload: null, ...(node === undefined ? {} : { node }) };
    this.answer.findings.push({ ...finding, ...where });
  }
}
