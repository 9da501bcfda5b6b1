/**
 * Who connects to an application by its pod's address while it is moved: kubelet's probes, which come each second and do not come by the
 * proxy; where Istio has a sidecar, its agent in their place, over the loopback device (seen: a dump fails, "In-flight connection"), and clients that
 * it leads past the proxy. A connection that waits to be accepted cannot be dumped, so none begins: their first segment is dropped, as if it had been lost.
 *
 * A table of ours in the pod's network namespace (nft(8)) that looks at SYNs alone: connections that there are, and those of
 * the proxy over the loopback device, go on.
 */
import { runCommand } from "../command.ts";
import { FROM_MESH } from "../mesh-source.ts";

const TABLE = "inet holdfast_door";

/** May be repeated. @throws HoldfastError `COMMAND_FAILED` */
export async function closeDoor(initPid: number, ports: readonly number[]): Promise<void> {
  const from = ['iifname != "lo"', `ip saddr ${FROM_MESH.ip}`, `ip6 saddr ${FROM_MESH.ip6}`];
  const drop = `tcp dport { ${ports.join(", ")} } tcp flags & (fin | syn | rst | ack) == syn drop`;
  const rules = from.map((who) => `${who} ${drop}`).join("\n");
  const chain = `chain in { type filter hook input priority -300; policy accept; ${rules}\n}`;
  await nft(initPid, `table ${TABLE}\ndelete table ${TABLE}\ntable ${TABLE} {\n${chain}\n}\n`);
}

/** May be repeated. @throws HoldfastError `COMMAND_FAILED` */
export async function openDoor(initPid: number): Promise<void> {
  await nft(initPid, `table ${TABLE}\ndelete table ${TABLE}\n`);
}

async function nft(initPid: number, input: string): Promise<void> {
  const argv = ["-t", String(initPid), "-n", "--", "nft", "-f", "-"];
  await runCommand("nsenter", argv, { source: "container", input });
}
