/** `holdfast status`: the node, its store and peers, and a line for each workload. */
import { type StatusAnswer, statusSchema } from "../api/admin.ts";
import { EXIT } from "../api/exit-status.ts";
import type { AdminClient } from "./admin-client.ts";
import { duration, plain, type Terminal, table } from "./terminal.ts";

export async function showStatus(agent: AdminClient, json: boolean, terminal: Terminal): Promise<number> {
  const status = await agent.ask("GET", "/v1/status", statusSchema);
  terminal.out.write(json ? `${JSON.stringify(status)}\n` : render(status));
  return EXIT.ok;
}

function render(status: StatusAnswer): string {
  const { store, keys, peers, workloads } = status;
  const lines = [`node ${plain(status.node)}  pid ${status.pid ?? "-"}  up ${duration(status.uptimeMs)}\n`];
  if (store !== undefined) {
    const state = store.ok ? "reachable" : `NOT REACHABLE: ${plain(store.reason ?? "no reason given")}`;
    lines.push(`store ${plain(store.url ?? "")}  ${state}\n`);
  }
  if (keys !== undefined && (keys.ids.length > 1 || keys.problem))
    lines.push(`keys ${keys.ids.map(plain).join(" ")}${keys.problem ? `  ${plain(keys.problem)}` : ""}\n`);
  if (keys !== undefined && keys.revoked.length > 0)
    lines.push(`revoked ${keys.revoked.map(plain).join(" ")}\n`);
  for (const peer of peers) {
    const state = peer.connected
      ? "connected"
      : `not connected${peer.reason ? `: ${plain(peer.reason)}` : ""}`;
    lines.push(`peer ${plain(peer.node)} ${plain(peer.address ?? "")}  ${state}\n`);
  }
  if (workloads.length === 0) return `${lines.join("")}\nno workloads\n`;
  const rows = workloads.map((one) => [
    plain(one.name),
    plain(one.role ?? "-"),
    plain(one.owner ?? "-"),
    `${one.epoch ?? "-"}`,
    plain(one.state ?? "-"),
    plain(one.downstream ?? "-"),
    `${one.sessions ?? "-"}`,
    one.moving ? `to ${plain(one.moving.to)}${one.moving.step ? `, ${plain(one.moving.step)}` : ""}` : "-",
  ]);
  const head = ["WORKLOAD", "HERE", "OWNER", "EPOCH", "STATE", "DOWNSTREAM", "SESSIONS", "MOVE"];
  const problems = workloads.flatMap(({ name, problem }) =>
    problem ? [`${plain(name)}: ${plain(problem.what)}\n  ${plain(problem.cure)}\n`] : [],
  );
  return `${lines.join("")}\n${table(head, rows)}${problems.length > 0 ? "\n" : ""}${problems.join("")}`;
}
