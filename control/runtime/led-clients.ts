/**
 * Clients that come to a port of a container's network are led to the proxy, which listens at another one there: what they come to is
 * often the application's own. nft(8), from outside; the pod needs no capability for it.
 *
 * Only what begins a connection is looked at: one that there was before goes on with the application (seen: a plain rule resets it). What
 * is led has to stay led: taking the last such rule away ends connection tracking in the namespace, and resets all (seen), so the
 * first table keeps that on, and rules are only ever replaced. Over the loopback device, by which the proxy comes to the application,
 * nobody is led but a mesh's.
 *
 * Where a mesh has a proxy in the pod, clients are its first: its redirections have the priority `dstnat`, and of two rules the first holds (seen:
 * with the same priority the one that was made last, ours, so that its mutual TLS came to our proxy). What it takes comes to the
 * application's port out of it, and is led from there.
 */
import { runCommand } from "./command.ts";
import { FROM_MESH } from "./mesh-source.ts";

/** after a mesh's; ours is another table than that of agents before, which had `dstnat` */
const AFTER_MESH = "dstnat + 10";
/** … by number, as nft(8) has no such name for the hook output */
const AFTER_MESH_OUT = -90;

/** @param ports where clients come → where the proxy listens. May be repeated. @throws HoldfastError `COMMAND_FAILED` */
export async function leadClients(initPid: number, ports: ReadonlyMap<number, number>): Promise<void> {
  const led = (who: string): string[] =>
    [...ports].map(
      ([from, to]) =>
        `${who} tcp dport ${from} tcp flags & (fin | syn | rst | ack) == syn redirect to :${to}`,
    );
  // one transaction: what is flushed is there again before it is missed
  const input = [
    ...chain("holdfast_tracked", "filter hook input priority 0", ["ct state established accept"]),
    ...chain("holdfast_clients", `nat hook prerouting priority ${AFTER_MESH}`, led('iifname != "lo"')),
    ...chain("holdfast_mesh", `nat hook output priority ${AFTER_MESH_OUT}`, led(`ip saddr ${FROM_MESH.ip}`)),
  ].join("\n");
  const argv = ["-t", String(initPid), "-n", "--", "nft", "-f", "-"];
  await runCommand("nsenter", argv, { source: "container", input: `${input}\n` });
}

/** With these rules and no others, whether or not it is there. */
function chain(table: string, type: string, rules: readonly string[]): string[] {
  return [
    `add table ip ${table}`,
    `add chain ip ${table} main { type ${type}; policy accept; }`,
    `flush chain ip ${table} main`,
    ...rules.map((rule) => `add rule ip ${table} main ${rule}`),
  ];
}
