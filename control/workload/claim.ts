/**
 * Whether a workload that does not run here may be started here: pure, from what the store, the other nodes and this node's
 * journal say. A store that was emptied, or was thrown back by a fail-over, does not say so; therefore "no record" is
 * nobody's permission, and neither is a record that is older than what some node remembers.
 */
import type { Ownership } from "#proxy/store/store.ts";
import type { PeerAnswer } from "../api/owners.ts";

export interface Known {
  workload: string;
  node: string;
  record: Ownership | null;
  /** one of each configured peer */
  peers: PeerAnswer[];
  journal: { epoch: number; seen: number };
  /** the store is the one that this agent knows to have all records */
  storeIsKnown: boolean;
}

/** A line that says what keeps a workload from being what it should be, and what a person can do. */
export interface Problem {
  /** as the finding of `check` that it is, see `finding.ts` */
  id?: `${string}.${string}`;
  what: string;
  cure: string;
}

/**
 *   resume  the record is this node's
 *   claim   nobody has it: at least this epoch
 *   raise   to this epoch, whatever the record says
 */
export interface Permission {
  kind: "resume" | "claim" | "raise";
  epoch: number;
}

export type Decision =
  | Permission
  | { kind: "other"; owner: string; problem: Problem }
  | { kind: "wait"; problem: Problem };

/**
 * An owner that could tell nobody may have gone one above the last number given out (a move rolled back without a store).
 * A forced start is above that, so that there are no two owners at one epoch.
 */
const FORCED_ABOVE = 2;

export function decideClaim(known: Known): Decision {
  const { record, node, journal } = known;
  const held = known.peers.flatMap((answer) => ("held" in answer && answer.held !== null ? [answer] : []));
  const [owner] = held
    .filter((answer) => answer.held?.has === "owner")
    .sort((one, other) => (other.held?.epoch ?? 0) - (one.held?.epoch ?? 0));
  const isMine = record !== null && record.owner === node && record.state !== "stopped";
  if (owner !== undefined) {
    const { peer } = owner;
    if (isMine && record.epoch > (owner.held?.epoch ?? 0))
      return wait(`node ${peer} has not let go of it yet`, "wait some seconds; see the log of its agent");
    return { kind: "other", owner: peer, problem: elsewhere(known.workload, peer) };
  }
  const moving = held.find((answer) => answer.held?.has === "moving");
  if (moving !== undefined)
    return wait(
      `node ${moving.peer} is settling a move of it`,
      `see \`holdfast status\` there; where the other node of that move is gone for good, \`holdfast start ${known.workload} --force\` there`,
    );
  if (record !== null && record.owner !== node && record.state !== "stopped")
    return { kind: "other", owner: record.owner, problem: elsewhere(known.workload, record.owner) };

  const next = highest(known) + 1;
  if (record?.state === "stopped") return { kind: "claim", epoch: next };
  if (isMine && record.state === "committed")
    return wait(
      `a move to this node was decided, nothing of it is left here, and node ${record.previous} has not taken it back`,
      `start the agent of node ${record.previous}; if that node is gone for good: \`holdfast start ${known.workload} --force\``,
    );
  // of epochs at which some node has owned it or handed it on, not of numbers that were only given out
  const had = Math.max(journal.epoch, ...held.map((answer) => answer.held?.epoch ?? 0));
  if (isMine && record.epoch >= had) return { kind: "resume", epoch: record.epoch };

  const silent = known.peers.filter((answer) => "silent" in answer);
  // what has once had an epoch has a record ever after, also when it is stopped
  const isNew = record === null && next === 1 && known.storeIsKnown;
  const proves = silent.length === 0 || isNew;
  if (proves) return { kind: isMine ? "raise" : "claim", epoch: next };
  const doubt =
    record === null ? "the store has no record of it" : `the store's record of it is older than epoch ${had}`;
  const names = silent.map(({ peer }) => peer).join(", ");
  const [one] = silent;
  const reason = one !== undefined && "silent" in one ? one.silent : "";
  return wait(
    `${doubt}, and node ${names} cannot be asked whether it runs there (${reason})`,
    `start the agent of node ${names}; if that node is gone for good: \`holdfast start ${known.workload} --force\``,
  );
}

/** Somebody says that no other node has it, or ever will again. Only what answers for itself is believed instead. */
export function decideForced(known: Known): Decision {
  for (const answer of known.peers) {
    if ("silent" in answer || answer.held === null || answer.held.has === "no") continue;
    if (answer.held.has === "owner")
      return { kind: "other", owner: answer.peer, problem: elsewhere(known.workload, answer.peer) };
    return wait(
      `node ${answer.peer} answers, and is settling a move of it`,
      `\`holdfast start ${known.workload} --force\` there, or stop its agent`,
    );
  }
  return { kind: "raise", epoch: highest(known) + FORCED_ABOVE };
}

/** Of all epochs that anybody who was asked knows of. */
function highest({ record, peers, journal }: Known): number {
  const told = peers.map((answer) =>
    "held" in answer ? Math.max(answer.held?.seen ?? 0, answer.held?.epoch ?? 0) : 0,
  );
  return Math.max(journal.seen, record?.epoch ?? 0, record?.migration?.epoch ?? 0, ...told);
}

function elsewhere(workload: string, owner: string): Problem {
  return {
    what: `it belongs to node ${owner}`,
    cure: `\`holdfast migrate ${workload} --to NODE\` on node ${owner}, or \`holdfast start ${workload}\` there; if that node is gone for good: \`holdfast start ${workload} --force\` here`,
  };
}

function wait(what: string, cure: string): Decision {
  return { kind: "wait", problem: { what, cure } };
}
