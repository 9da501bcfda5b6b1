/** What agents tell each other of the workloads they have. */
import { z } from "zod";

const WORKLOADS_MAX = 10_000;

const epoch = z.number().int().nonnegative();

export const heldSchema = z.object({
  workload: z.string().max(63),
  /** moving: a move to or from this node is under way, or was cut off and is not settled yet */
  has: z.enum(["owner", "moving", "no"]),
  /** owner: at which */
  epoch,
  /** the highest the node knows of */
  seen: epoch,
  /** forward, owner: where its proxy takes links */
  link: z.object({ address: z.ipv4().or(z.ipv6()), port: z.number().int().min(1).max(65_535) }).nullable(),
});
export type Held = z.infer<typeof heldSchema>;

export const ownersCall = z.object({ workloads: z.array(heldSchema).max(WORKLOADS_MAX) });

/** held null: the peer does not have the workload in its configuration */
export type PeerAnswer = { peer: string; held: Held | null } | { peer: string; silent: string };
