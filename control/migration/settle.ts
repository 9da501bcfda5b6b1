/**
 * Who goes on when a move was cut off. The other node is asked first and the store second; one of them decides, so two agents
 * that can talk never wait for a silent store. Both sides ask here, in mid-move and after a restart.
 *
 *   not tried to commit          the source goes on: no target can come alive without a commit
 *   commit tried                 the target says "gave-up" or "released"; else `takeBack` in the store (the target can then no
 *                                longer mark itself released)
 *   the target is unsure         (it has asked the store to mark it released, and neither got an answer) the source gives its
 *                                word, which goes on record before it goes out
 *   the target was given word    (`grant`: it comes alive though the store is silent) only its own word counts
 *
 * A request to the store that nobody got an answer to may still be carried out. So what is decided without it has an epoch
 * above all that it may give out, and the record is raised to that.
 */
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { isUnanswered, type Ownership } from "#proxy/store/store.ts";
import { type OutcomeReply, outcomeReply } from "../api/migration.ts";
import type { Held, PeerAnswer } from "../api/owners.ts";
import type { MigrationHost } from "./host.ts";
import { eachOnce, untilDone } from "./steps.ts";

export const STORE_RETRY_MS = 200;
const PEER_MS_MAX = 1_000;
/** a target that cannot say yet what it came to says so after this */
export const OUTCOME_MS_MAX = 700;

/** The store did not answer, or has lost what it knew: no proof of anything, ask somebody else. */
export function isNoAnswer(error: unknown): boolean {
  return isUnanswered(error) || (error instanceof HoldfastError && error.code === "STORE_ABSENT");
}

/** The store knows that the move cannot be committed any more. */
function isRefused(error: unknown): boolean {
  return error instanceof HoldfastError && (error.code === "STORE_FENCED" || error.code === "STORE_ABSENT");
}

export interface Unclear {
  migration: string;
  peer: string;
  /** the target's */
  epoch: number;
  granted: boolean;
}

/** there: at which epoch the target goes on; here: at which this node does, and whether the store has been told */
export type Settled = { where: "here"; epoch: number; told: boolean } | { where: "there"; epoch: number };

/** above what the store may give to the source (`takeBack`) after this one was given out */
const GRANTED_ABOVE = 2;

/** At the source, after a commit that may have happened: asks until somebody knows. */
export async function decideAtSource(workload: MigrationHost, unclear: Unclear): Promise<Settled> {
  let { granted } = unclear;
  return settling(workload, async (attempt) => {
    const { seen } = workload.journal;
    if (workload.isForced) return { where: "here", epoch: seen + GRANTED_ABOVE, told: false };
    const word = await askTarget(workload, unclear, null);
    const told = fromWord(word, unclear) ?? (await askStore(workload, unclear, granted));
    if (told !== null) return told;
    if (word?.outcome === "unsure") {
      workload.recordMoving({ step: "granted" }); // before it is told
      granted = true;
      const grant = Math.max(seen, unclear.epoch) + GRANTED_ABOVE;
      const answer = fromWord(await askTarget(workload, unclear, grant), unclear);
      if (answer !== null) return answer;
    }
    if (attempt === 0)
      workload.context.log.warn(
        { workload: workload.name, migration: unclear.migration, peer: unclear.peer },
        "neither the other node nor the store says who has the workload: its clients wait until one does",
      );
    return null;
  });
}

function fromWord(word: OutcomeReply | null, { epoch }: Unclear): Settled | null {
  if (word?.outcome === "released") return { where: "there", epoch: Math.max(epoch, word.epoch) };
  if (word?.outcome === "gave-up") return { where: "here", epoch: epoch + 1, told: false };
  return null;
}

function askStore(workload: MigrationHost, unclear: Unclear, granted: boolean): Promise<Settled | null> {
  return granted ? hasReleased(workload, unclear) : takeBack(workload, unclear);
}

async function takeBack(workload: MigrationHost, unclear: Unclear): Promise<Settled | null> {
  const { context, name } = workload;
  const { migration } = unclear;
  try {
    const { epoch } = await context.store.takeBack({ workload: name, node: context.node, migration });
    return { where: "here", epoch, told: true };
  } catch (error) {
    // A record that says nothing of the target was thrown back by a fail-over, and proves nothing.
    if (error instanceof HoldfastError && error.code === "STORE_FENCED")
      return hasReleased(workload, unclear);
    if (!isNoAnswer(error)) throw error;
    return null;
  }
}

/** Only looks: the target may be alive without the store knowing it yet. Another owner since then is after the target. */
async function hasReleased(workload: MigrationHost, { epoch }: Unclear): Promise<Settled | null> {
  const { context, name } = workload;
  const found = await context.store.ownership(name).catch(() => null);
  if (found === null || found.owner === context.node || found.epoch < epoch) return null;
  return found.state === "committed" ? null : { where: "there", epoch: found.epoch };
}

async function askTarget(
  workload: MigrationHost,
  { peer, migration, epoch }: Unclear,
  grant: number | null,
): Promise<OutcomeReply | null> {
  try {
    const channel = await workload.context.dial(peer, PEER_MS_MAX);
    try {
      const params = { workload: workload.name, migration, epoch, grant };
      const { result } = await channel.call("outcome", params, { timeoutMs: PEER_MS_MAX });
      return outcomeReply.parse(result);
    } finally {
      channel.close();
    }
  } catch {
    return null;
  }
}

/**
 * At the target, when the source is gone: whether this node owns the workload. After "not-mine" no commit can follow;
 * a store that has forgotten everything has no commit either.
 * @param given true when the source has been told meanwhile that this node gave up
 */
export async function decideAtTarget(
  workload: MigrationHost,
  migration: string,
  epoch: number,
  given: () => boolean,
): Promise<"mine" | "not-mine"> {
  const { context, name } = workload;
  return settling(workload, async () => {
    if (given()) return "not-mine";
    try {
      const ownership = await context.store.cancel({ workload: name, migration });
      return ownership.owner === context.node && ownership.epoch === epoch ? "mine" : "not-mine";
    } catch (error) {
      if (isRefused(error)) return "not-mine";
      if (isNoAnswer(error)) return null;
      throw error;
    }
  });
}

/**
 * At the target's next agent, when the store may have been told that it is released: the source may have let go because of
 * that. So a store that was emptied or thrown back since proves nothing, and the source is asked. "mine" also when it has
 * given its word meanwhile, or a person has.
 */
export async function decideReleasing(
  workload: MigrationHost,
  { migration, peer, epoch }: { migration: string; peer: string; epoch: number },
): Promise<"mine" | "not-mine"> {
  const { node } = workload.context;
  return settling(workload, async () => {
    if (workload.isGranted) return "mine";
    const found = await whatIsKnown(workload, { migration, epoch });
    if (found !== null) return found.owner === node ? "mine" : "not-mine";
    return askPeers(workload, { peer, epoch });
  });
}

/**
 * As {@link decideReleasing}, where nothing is left that could go on: this node owns it, and begins it anew, only where nobody else may have it any
 * more. A commit alone can be taken back, and the source has the application.
 * @param given true when the source has been told meanwhile that this node gave up
 */
export async function decideLost(
  workload: MigrationHost,
  { migration, peer, epoch }: { migration: string; peer: string; epoch: number },
  given: () => boolean,
): Promise<"mine" | "not-mine"> {
  const { node } = workload.context;
  return settling(workload, async () => {
    if (given()) return "not-mine";
    const found = await whatIsKnown(workload, { migration, epoch });
    if (found !== null) return found.owner === node && found.state !== "committed" ? "mine" : "not-mine";
    return askPeers(workload, { peer, epoch });
  });
}

/** What the store has of a move that cannot be committed from now on. null: no answer, or one that was emptied or thrown back since */
async function whatIsKnown(
  { name, context }: MigrationHost,
  { migration, epoch }: { migration: string; epoch: number },
): Promise<Ownership | null> {
  try {
    const found = await context.store.cancel({ workload: name, migration });
    return found.epoch >= epoch ? found : null;
  } catch (error) {
    if (!isNoAnswer(error)) throw error;
    return null;
  }
}

/** What the other agents say of it. "mine": its source has let go, and nobody has it above this epoch. null: they do not know */
async function askPeers(
  { name, context }: MigrationHost,
  { peer, epoch }: { peer: string; epoch: number },
): Promise<"mine" | "not-mine" | null> {
  const answers = await context.owners.ask(name);
  const says = (of: PeerAnswer): Held | null => ("held" in of ? of.held : null);
  const isAbove = (held: Held | null): boolean => held?.has === "owner" && held.epoch > epoch;
  if (answers.some((answer) => isAbove(says(answer)))) return "not-mine";
  const source = answers.find((answer) => answer.peer === peer);
  if (source === undefined || !("held" in source) || (source.held?.has ?? "no") !== "no") return null;
  // it had taken the workload back, and has given it away or stopped it since
  return (source.held?.epoch ?? 0) > epoch ? "not-mine" : "mine";
}

// ---- how it ends, in mid-move and after a restart alike ----

/** A move as far as it had come at its source. */
export interface Departed extends Omit<Unclear, "granted"> {
  /** the store has been asked for a reservation */
  reserveTried: boolean;
  /** clients wait, and the application may be frozen */
  held: boolean;
  commitTried: boolean;
  granted: boolean;
}

/**
 * At the source: the application goes on here, or is found to have gone on at the target. In both cases the workload has one owner
 * then, and this node's journal says so where it is this node.
 * @param word what the target has said to `abort`; null: nothing, or it has not been asked
 * @param beforeGoingOn what has to end first, once it is known that it goes on here
 */
export async function goBack(
  host: MigrationHost,
  departed: Departed,
  word: OutcomeReply | null = null,
  beforeGoingOn: () => Promise<unknown> = async () => {},
): Promise<{ where: "here" } | { where: "there"; epoch: number }> {
  const { migration, held, commitTried, reserveTried } = departed;
  // without a commit the target cannot come alive
  const decision = commitTried
    ? (fromWord(word, departed) ?? (await decideAtSource(host, departed)))
    : { where: "here" as const, epoch: departed.epoch + 1, told: false };
  if (decision.where === "there") return decision;
  const epoch = held ? decision.epoch : host.journal.epoch;
  if (held) {
    await beforeGoingOn();
    await host.goOnHere(epoch);
  }
  await noted(host, () => host.record({ epoch, moving: null }));
  if (!decision.told && reserveTried)
    await noted(host, () => host.outbox.put({ kind: held ? "taken-back" : "cancelled", migration, epoch }));
  return { where: "here" };
}

/** What is decided: where there is no room on the disk, as soon as there is. */
function noted(host: MigrationHost, step: () => void): Promise<void> {
  const onFailure = (error: unknown): void =>
    host.context.log.error(
      { workload: host.name, reason: messageOf(error) },
      "how a move ends is not on record yet",
    );
  return untilDone(step, onFailure, () => host.throwIfClosed());
}

/** At the target: what makes it known that nobody can take the workload back. */
export interface Releasing {
  migration: string;
  /** the target's */
  epoch: number;
  /** Tells the store. @throws HoldfastError */
  mark(): Promise<unknown>;
  /** Whether the source lets go, asked where the store does not answer, or has forgotten. */
  grants(): Promise<boolean>;
  /** the epoch of a word that the source, or a person, has given meanwhile */
  word(): number | null;
}

/**
 * Asks the store and the source until one of them has answered: the first try may have succeeded unseen.
 * @returns the epoch at which this node goes on
 * @throws HoldfastError of a store that has decided otherwise; `AGENT_CLOSING`
 */
export async function release(host: MigrationHost, releasing: Releasing): Promise<number> {
  const { migration, epoch } = releasing;
  const without = async (granted: number): Promise<number> => {
    // before the store is told: the next agent is to go on at the same epoch
    await noted(host, () => host.recordMoving({ step: "released", epoch: granted }));
    await noted(host, () => host.outbox.put({ kind: "released", migration, epoch: granted }));
    return granted;
  };
  for (;;) {
    const given = releasing.word();
    if (given !== null) return without(given);
    try {
      await releasing.mark();
      return epoch;
    } catch (error) {
      if (!isNoAnswer(error)) throw error;
      if (await releasing.grants()) return without(epoch);
    }
    if (releasing.word() === null) await delay();
    host.throwIfClosed();
  }
}

/**
 * Whether the source has retired for this epoch, and nobody knows of a higher one: then it has not taken the workload back, and will not.
 * Every agent has to answer, since one that is silent may have it.
 */
export async function hasLetGo(
  { name, context }: MigrationHost,
  { peer, epoch }: { peer: string; epoch: number },
): Promise<boolean> {
  const answers = await context.owners.ask(name);
  const isBelow = (answer: PeerAnswer): boolean =>
    "held" in answer && (answer.held === null || Math.max(answer.held.epoch, answer.held.seen) <= epoch);
  const source = answers.find((answer) => answer.peer === peer);
  const hasRetired =
    source !== undefined && "held" in source && source.held?.has === "no" && source.held.epoch === epoch;
  return hasRetired && answers.every(isBelow);
}

/**
 * Asks until there is an answer; `status` says meanwhile that it is waited for, and a person may decide instead. What fails is no answer, whatever
 * the reason: a store that refuses this node today may take it in tomorrow, and nobody else would ask again.
 */
async function settling<T>(workload: MigrationHost, ask: (attempt: number) => Promise<T | null>): Promise<T> {
  const { context, name } = workload;
  const tell = eachOnce((error) =>
    context.log.error(
      { workload: name, reason: messageOf(error) },
      "who has the workload cannot be asked: its clients wait",
    ),
  );
  const failed = (error: unknown): null => {
    workload.throwIfClosed();
    tell(error);
    return null;
  };
  workload.settling(true);
  try {
    for (let attempt = 0; ; attempt++) {
      const answer = await ask(attempt).catch(failed);
      if (answer !== null) return answer;
      await delay();
      workload.throwIfClosed();
    }
  } finally {
    workload.settling(false);
  }
}

export function delay(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, STORE_RETRY_MS));
}
