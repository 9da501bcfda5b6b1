/** `holdfast status --cluster`: Holdfast's own parts, and the pods that move, with their Migrations. */
import { EXIT } from "../api/exit-status.ts";
import { isFinal } from "../api/resources.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import { type ClusterView, type SeenPod, viewCluster } from "./cluster-view.ts";
import { print } from "./output.ts";
import type { OutputFormat } from "./output-format.ts";
import { plain, type Terminal, table } from "./terminal.ts";

/** @param namespace null: pods of all */
export async function showClusterStatus(
  api: KubernetesApi,
  namespace: string | null,
  format: OutputFormat,
  terminal: Terminal,
): Promise<number> {
  const view = await viewCluster(api, namespace);
  const { nodes, ...shown } = view;
  print(
    { ...shown, nodes: nodes.map(({ metadata }) => metadata.name) },
    (isWide) => render(view, isWide),
    format,
    terminal,
  );
  return EXIT.ok;
}

function render(
  { version, namespace, parts, pods, migrations, nodes }: ClusterView,
  isWide: boolean,
): string {
  const lines = [`Kubernetes ${plain(version)}  ${nodes.length} nodes\n`];
  if (namespace === null) lines.push("Holdfast is not installed\n");
  for (const component of [...new Set(parts.map((part) => part.component))].sort()) {
    const all = parts.filter((part) => part.component === component);
    const ready = all.filter(({ isReady }) => isReady).length;
    lines.push(`${plain(component)}  ${ready}/${all.length} ready${ready < all.length ? "  !" : ""}\n`);
  }
  const moving = new Map(
    migrations.filter(({ status }) => !isFinal(status.phase)).map((one) => [one.metadata.name, one]),
  );
  if (pods.length === 0) return `${lines.join("")}\nno injected pods\n`;
  const head = [
    "NAMESPACE",
    "POD",
    "NODE",
    "STATE",
    "MOVABLE",
    "MOVE",
    ...(isWide ? ["WORKLOAD", "WHY"] : []),
  ];
  const rows = pods.map((pod) => {
    const migration = pod.migration === null ? undefined : moving.get(pod.migration);
    const to = migration?.status.target?.node ?? migration?.spec.target?.node;
    const move =
      migration === undefined
        ? "-"
        : `${migration.status.phase ?? "Pending"}${to === undefined ? "" : ` to ${to}`}`;
    const why = pod.injection === "injected" ? (pod.movable?.message ?? "-") : pod.message;
    const more = isWide ? [pod.workload, why || "-"] : [];
    return [pod.namespace, pod.pod, pod.node || "-", stateOf(pod), movableOf(pod), move, ...more].map(plain);
  });
  return `${lines.join("")}\n${table(head, rows)}`;
}

function stateOf({ injection, isStandby, isServing }: SeenPod): string {
  if (injection === "missed") return "not injected";
  if (injection === "refused") return "cannot be injected";
  if (isStandby) return "standby";
  return isServing ? "serving" : "starting";
}

function movableOf({ injection, movable }: SeenPod): string {
  if (injection !== "injected") return "no";
  if (movable === null) return "-";
  return movable.isMovable ? "yes" : "no";
}
