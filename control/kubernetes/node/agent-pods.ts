/** Where the agents of other nodes are, by their pods: one on each node, in the node's network (`hostNetwork`). Pure. */
import { z } from "zod";
import type { Endpoint } from "#proxy/contract/snapshot.ts";

const podSchema = z.looseObject({
  metadata: z.looseObject({ name: z.string() }),
  spec: z.looseObject({ nodeName: z.string().optional() }),
  status: z.looseObject({ hostIP: z.string().optional() }).optional(),
});

/**
 * By the node's name. Whatever the pod's state: an agent that does not run at the moment is a peer that does not answer, and may own
 * workloads all the same.
 * @param pods of agents (core/v1) @param port where each of them listens
 */
export function agentsAt(pods: readonly unknown[], port: number): Map<string, Endpoint> {
  const found = new Map<string, Endpoint>();
  for (const pod of pods) {
    const { spec, status } = podSchema.parse(pod);
    // one that no node has yet, or whose kubelet has not said where it is
    if (spec.nodeName !== undefined && status?.hostIP !== undefined)
      found.set(spec.nodeName, { address: status.hostIP, port });
  }
  return found;
}
