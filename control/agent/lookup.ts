/**
 * Where a client finds its session again: the workload that has had one of that name, and the address its ports are
 * served at now. Any agent that knows the workload can tell, from the store.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { isName, type Ownership } from "#proxy/store/store.ts";
import type { AgentContext } from "../workload/context.ts";
import type { Workload } from "../workload/workload.ts";

export interface Found {
  name: string;
  workload: string;
  /** the owner */
  node: string;
  epoch: number;
  /** in forward mode the owner's own address; other nodes that clients came to serve it too */
  ports: { listen: number; address: string }[];
}

/** @throws HoldfastError `NAME_UNKNOWN`, `NAME_AMBIGUOUS`, `STORE_UNREACHABLE` */
export async function lookUp(
  name: string,
  workloads: ReadonlyMap<string, Workload>,
  context: AgentContext,
): Promise<Found> {
  const owners: [Workload, Ownership][] = [];
  const candidates = isName(name) ? [...workloads.values()] : [];
  await Promise.all(
    candidates.map(async (workload) => {
      const ownership = await context.store.lookup({ workload: workload.name, name });
      if (ownership !== null) owners.push([workload, ownership]);
    }),
  );
  const [found, ...others] = owners;
  if (found === undefined) {
    const known = [...workloads.keys()].join(", ") || "none";
    throw fail(
      "NAME_UNKNOWN",
      `no session of that name has been seen in the last hour; workloads that were asked: ${known}`,
    );
  }
  if (others.length > 0) {
    const which = owners.map(([workload]) => workload.name).sort();
    throw fail(
      "NAME_AMBIGUOUS",
      `sessions of that name belong to ${which.join(" and ")}: say which workload`,
    );
  }
  const [{ name: workload, config }, { owner, epoch }] = found;
  const address =
    config.vip?.address ?? (owner === context.node ? context.host : context.peers[owner]?.address);
  if (address === undefined) {
    throw fail(
      "NODE_UNKNOWN",
      `it is with ${workload} on node ${owner}, whose address is not in the configuration`,
    );
  }
  return {
    name,
    workload,
    node: owner,
    epoch,
    ports: config.ports.map(({ listen }) => ({ listen, address })),
  };
}
