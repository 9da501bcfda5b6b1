/**
 * The network of a container that has a namespace of its own (`container.network: own`). The runtime makes the namespace with the
 * container, and it lives as long as its init: nothing of it has to be found or removed by name. What is added to it here:
 *
 *   container                 node
 *   lo, eth0 ── a veth pair ── hf-01234567 ── forwarded, masqueraded ── the node's other devices
 *
 * Out of the container it may connect wherever the node may, with the node's address. Into it nobody connects but the proxy,
 * whose sockets to the application are in the namespace (`proxy/kernel/network.ts`): the pair passes nothing that the container has not
 * begun. It is IPv4 only, as no IPv6 address can be translated without asking which the node may use; inside, ::1 is there.
 *
 * The node forwards from a device only what comes from a container or goes to one: forwarding is switched on for the devices that
 * need it (not ip_forward, which is for all), and what else such a device would forward from then on is dropped. Rules are in nftables'
 * tables of ours, one a container and one for the node; others' rules stay as they are, and may refuse more.
 */

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { NetworkPlan } from "../../config/container-network.ts";
import { runCommand } from "../command.ts";
import { insideNetworkOf } from "../network-namespace.ts";

/** The device in the container; its name is the same on every node. */
const INSIDE = "eth0";
const DEVICES = "hf-";
const GUARD = "holdfast_node";
const CONF = "/proc/sys/net/ipv4/conf";

export interface Instance {
  id: string;
  runDir: string;
  initPid: number;
}

/** What the node forwards depends on all that there are: one at a time. */
let last: Promise<unknown> = Promise.resolve();

function inTurn<T>(work: () => Promise<T>): Promise<T> {
  const turn = last.then(work, work);
  last = turn;
  return turn;
}

/**
 * Connects a container that has just been made, before anything runs in it.
 * @throws HoldfastError `CONTAINER_NETWORK`
 */
export function connectNetwork(instance: Instance, plan: NetworkPlan): Promise<void> {
  return inTurn(() => connect(instance, plan));
}

async function connect({ id, runDir, initPid }: Instance, plan: NetworkPlan): Promise<void> {
  const device = deviceOf(id);
  const mark = markOf(runDir);
  mkdirSync(dirname(mark), { recursive: true, mode: 0o700 });
  writeFileSync(mark, JSON.stringify(plan), { mode: 0o600 });
  try {
    await ip([], [`link add ${device} type veth peer name ${INSIDE} netns ${initPid}`]);
    setting(`ipv6/conf/${device}/disable_ipv6`, "1");
    insideNetworkOf(initPid, () => setting(`ipv6/conf/${INSIDE}/disable_ipv6`, "1"));
    await nft(rulesOf(id, plan));
    setting(`ipv4/conf/${device}/forwarding`, "1");
    await forwardFromOthers();
    await ip([], [`address add ${plan.gateway}/${plan.prefix} dev ${device}`, `link set ${device} up`]);
    await ip(
      ["nsenter", "-t", String(initPid), "-n"],
      [
        "link set lo up",
        `address add ${plan.address}/${plan.prefix} dev ${INSIDE}`,
        `link set ${INSIDE} up`,
        `route add default via ${plan.gateway}`,
      ],
    );
  } catch (cause) {
    throw fail(
      "CONTAINER_NETWORK",
      `the container's network cannot be made: ${messageOf(cause)} (it takes ip(8), nft(8), and a kernel with veth, nf_tables and NAT; or say container.network: host)`,
      { cause },
    );
  }
}

/**
 * Removes what {@link connectNetwork} has made for an instance outside of its namespace. May be repeated. What cannot be removed now
 * ({@link connectedInstances}) keeps nobody from anything: the instance goes all the same.
 */
export async function disconnectNetwork(id: string, runDir: string): Promise<void> {
  if (existsSync(markOf(runDir))) await inTurn(() => disconnect(id, runDir)).catch(() => {});
}

async function disconnect(id: string, runDir: string): Promise<void> {
  const mark = markOf(runDir);
  // gone with the namespace as a rule, unless a proxy's sockets still keep that
  await runCommand("ip", ["link", "delete", deviceOf(id)], { source: "container" }).catch(
    tolerate(/Cannot find/),
  );
  await nftDelete(`inet ${tableOf(id)}`, `ip ${tableOf(id)}`);
  rmSync(mark, { force: true });
  const devices = readdirSync(CONF);
  if (!devices.some((name) => name.startsWith(DEVICES))) await forwardNoMore();
  else await leaveForwardingToOthers();
}

/**
 * Somebody has made the node forward for all (ip_forward) since it forwards for our containers: what else a device forwards is for
 * them to say from now on, and whether it goes on when our containers have gone. To be called from time to time.
 */
export async function lookAfterForwarding(): Promise<void> {
  const hasContainers = readdirSync(CONF).some((name) => name.startsWith(DEVICES));
  if (hasContainers) await inTurn(leaveForwardingToOthers);
}

/** as it was looked at last; null: never */
let forwardsForAll: boolean | null = null;

async function leaveForwardingToOthers(): Promise<void> {
  const before = forwardsForAll;
  forwardsForAll = readFileSync(`${CONF}/../ip_forward`, "utf8").trim() === "1";
  if (forwardsForAll && before !== true) await nftDelete(`inet ${GUARD}`);
}

/** Instances of which something of their network is left. */
export function connectedInstances(stateDir: string): string[] {
  const folder = join(stateDir, "networks");
  return existsSync(folder) ? readdirSync(folder) : [];
}

// ---- the node's side ----

function deviceOf(id: string): string {
  return `${DEVICES}${id.slice(-8)}`;
}

function tableOf(id: string): string {
  return `holdfast_${id.slice(-8)}`;
}

/** On disk, so that an agent that finds nothing else of an instance removes its network too. */
function markOf(runDir: string): string {
  return join(dirname(runDir), "..", "networks", basename(runDir));
}

function rulesOf(id: string, { address, gateway }: NetworkPlan): string {
  const device = deviceOf(id);
  return `
table inet ${tableOf(id)} {
  chain from {
    type filter hook prerouting priority raw; policy accept;
    iifname "${device}" meta nfproto ipv6 drop
    iifname "${device}" ip saddr != ${address} drop
  }
  chain to_node {
    type filter hook input priority filter; policy accept;
    iifname "${device}" meta pkttype != unicast drop
    iifname "${device}" ip daddr ${gateway} ct state new drop
  }
  chain from_node {
    type filter hook output priority filter; policy accept;
    oifname "${device}" ct state new drop
  }
  chain through {
    type filter hook forward priority filter; policy accept;
    iifname "${device}" oifname "${DEVICES}*" drop
    oifname "${device}" ct state new,invalid drop
  }
}
table ip ${tableOf(id)} {
  chain out {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ${address} oifname != "${device}" masquerade
  }
}
`;
}

/**
 * What comes back from others arrives at their device, so that has to forward as well (IN_DEV_FORWARD() in net/ipv4/route.c). One that
 * did not before goes on forwarding nothing else.
 */
async function forwardFromOthers(): Promise<void> {
  await leaveForwardingToOthers();
  const others = readdirSync(CONF).filter(
    (name) => !["all", "default", "lo"].includes(name) && !name.startsWith(DEVICES),
  );
  const silent = others.filter((name) => readFileSync(`${CONF}/${name}/forwarding`, "utf8").trim() === "0");
  if (silent.length === 0) return;
  const rules = `
table inet ${GUARD} {
  set opened { type ifname; }
  chain through {
    type filter hook forward priority filter; policy accept;
  }
}
flush chain inet ${GUARD} through
add rule inet ${GUARD} through iifname @opened meta nfproto ipv4 oifname != "${DEVICES}*" drop
${silent.map((name) => `add element inet ${GUARD} opened { "${name}" }`).join("\n")}
`;
  await nft(rules);
  for (const name of silent) setting(`ipv4/conf/${name}/forwarding`, "1");
}

/** The last container with a network of its own has gone: as it was before the first. */
async function forwardNoMore(): Promise<void> {
  const listed = await runCommand("nft", ["-j", "list", "set", "inet", GUARD, "opened"], {
    source: "container",
  }).catch(() => "");
  if (listed === "") return;
  const { nftables } = JSON.parse(listed) as { nftables: { set?: { elem?: string[] } }[] };
  for (const name of nftables.flatMap(({ set }) => set?.elem ?? []))
    if (existsSync(`${CONF}/${name}`)) setting(`ipv4/conf/${name}/forwarding`, "0");
  await nftDelete(`inet ${GUARD}`);
}

/** Also where there is none. */
async function nftDelete(...tables: string[]): Promise<void> {
  await nft(tables.map((table) => `add table ${table}\ndelete table ${table}\n`).join(""));
}

async function nft(input: string): Promise<void> {
  await runCommand("nft", ["-f", "-"], { source: "container", input });
}

function tolerate(expected: RegExp): (error: unknown) => void {
  return (error) => {
    if (!expected.test(messageOf(error))) throw error;
  };
}

function setting(name: string, value: string): void {
  const path = `/proc/sys/net/${name}`;
  if (!existsSync(path)) return; // a kernel without IPv6
  writeFileSync(path, value);
}

/** @param prefix of the command, as `nsenter` with its options */
async function ip(prefix: string[], lines: string[]): Promise<void> {
  const [program, ...args] = [...prefix, "ip", "-batch", "-"];
  await runCommand(program as string, args, { source: "container", input: `${lines.join("\n")}\n` });
}
