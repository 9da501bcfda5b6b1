/**
 * What the project asks of a store, whoever keeps it: who owns a workload, what was held in a cutover, the registry of
 * sessions. Implementations: `redis.ts` (nodes share it) and `memory.ts` (one agent alone). The data path never waits
 * for it.
 *
 *              claim            reserve           commit             markReleased
 *   (absent) ────────▶ released ───────▶ released ───────▶ committed ───────────▶ released
 *                      A @ 1     ▲       A @ 1             B @ 2        B @ 2
 *                                │       → B @ 2             │
 *                                ├───────── cancel ──┘       │
 *                                └── A @ 3 ───── takeBack ───┘
 *
 *   released ── stop ──▶ stopped ── claim, at a higher epoch ──▶ released
 *   anything, also no record ── raise, at a higher epoch ──▶ released
 *
 * Epochs only rise, and a number is given out once: a migration that was cancelled leaves a gap, so always use
 * `migration.epoch` and never count yourself. Each of the steps is atomic. Each may be repeated when its outcome is
 * unknown. Every step but `claim` and `raise` of a workload without a record fails with `STORE_ABSENT`.
 *
 * A store can lose its last writes (a fail-over) or all (it was emptied). So nodes remember the highest epoch that they
 * have seen and give it to each step that makes a new one, and an owner whose record is lower than its own epoch raises it.
 */
import assert from "node:assert/strict";
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";

export interface Ownership {
  /** node name */
  owner: string;
  epoch: number;
  /** committed: the move is decided, and the target has not yet let the workload go on; stopped: nobody has it */
  state: "released" | "committed" | "stopped";
  /** the node that had it before the last move */
  previous: string | null;
  /** reserved (state released) or decided (state committed): `epoch` is the target's */
  migration: { id: string; target: string; epoch: number } | null;
}

export interface SessionRecord {
  id: string;
  [field: string]: unknown;
}

/** Where the proxy that owns a workload takes links, for gateways, and clients, for load balancers. */
export interface LinkRecord {
  node: string;
  /** the proxy's own, which links are greeted with; at most that of the ownership record */
  epoch: number;
  link: Endpoint;
  /** `listen` of the workload's ports, in their order: a link names one by its index */
  ports: number[];
  /** where clients of each port come to the owner itself, in their order; missing: they come elsewhere */
  clients?: Endpoint[] | undefined;
}

/** Until it is closed. */
export interface StoreWatch {
  close(): void;
}

export interface Store {
  /** @throws HoldfastError `STORE_UNREACHABLE` */
  ping(): Promise<void>;
  ownership(workload: string): Promise<Ownership | null>;
  /**
   * Creates `{owner: node, epoch, released}` where there is nothing or the workload is stopped, else returns what is there,
   * unchanged: it is the caller's to start only where `owner` is its node *and* `state` is "released". Committed to this
   * node means that the source may still take it back. `epoch` (default 1) is at least one above all that the caller has
   * seen; a higher one is given where the record knows of higher ones.
   */
  claim(request: { workload: string; node: string; epoch?: number }): Promise<Ownership>;
  /**
   * The node owns the workload at `epoch`, whatever a lower record says: one that was lost, or that a fail-over has
   * brought back. A record of the same node at a higher epoch is returned unchanged.
   * @throws `STORE_FENCED`: another node has that epoch or a higher one, or the workload was stopped there
   */
  raise(request: Owned): Promise<Ownership>;
  /** @throws `STORE_FENCED` (not owner at that epoch, or this migration was cancelled), `STORE_BUSY` (another one) */
  reserve(request: Reserve): Promise<Ownership>;
  /** Not committed: never will be. Committed: changes nothing; look at `owner`. */
  cancel(request: { workload: string; migration: string }): Promise<Ownership>;
  /** Ownership changes, and the held bytes are there from then on, in one step. @throws `STORE_FENCED` */
  commit(request: Commit): Promise<Ownership>;
  /**
   * The target lets the workload go on: from here nothing can be taken back, and the held bytes are gone.
   * @throws `STORE_FENCED`
   */
  markReleased(request: Owned): Promise<Ownership>;
  /**
   * The source goes on, at an epoch above every one given out, and the held bytes are gone. @throws `STORE_FENCED` when
   * the target has released, or this migration is none of ours
   */
  takeBack(request: { workload: string; node: string; migration: string }): Promise<Ownership>;
  /** What was committed with `epoch`; null when it has expired, or is no longer needed. */
  held(request: { workload: string; epoch: number }): Promise<Buffer | null>;
  /**
   * Nobody has the workload any more. The epoch stays on record, and its sessions do not.
   * @throws `STORE_FENCED`, `STORE_BUSY` (a migration is under way)
   */
  stop(request: Owned): Promise<Ownership>;
  /**
   * A word that says which store this is; null: none was set, as in a new store or one that was emptied. Also null where
   * one word cannot speak for all of it (a Cluster, whose servers are emptied one by one).
   */
  mark(): Promise<string | null>;
  /** Sets the mark unless there is one. Resolves with the one that there is then. */
  setMark(mark: string): Promise<string | null>;
  /**
   * What has changed in the registry of a workload's sessions, and that all of it is true for another `ttlMs`.
   * @throws `STORE_FENCED`
   */
  putSessions(request: PutSessions): Promise<void>;
  sessions(workload: string): Promise<SessionRecord[]>;
  /**
   * Sessions of these names have just been seen. Each is remembered for `ttlMs` after it was seen last, whatever becomes of
   * its session and wherever the workload goes; of more than `namesMax` those seen longest ago are forgotten.
   * @throws `STORE_FENCED`
   */
  putNames(request: PutNames): Promise<void>;
  /** Who owns the workload, if it has had a session of that name. null: it has not, or too long ago. */
  lookup(request: { workload: string; name: string }): Promise<Ownership | null>;
  /** Tells gateways where the owner takes links. @throws `STORE_FENCED` */
  putLink(request: PutLink): Promise<void>;
  /** The last that was told, by whoever owned the workload then. null: nobody has, or the workload was stopped */
  link(workload: string): Promise<LinkRecord | null>;
  /**
   * Calls back when the link record of a workload has changed; with null when any may have: at the beginning, and after the store was
   * away. What is told in a fail-over may be missed, so whoever depends on it looks now and then, too.
   */
  watchLinks(onChange: (workload: string | null) => void): StoreWatch;
  close(): Promise<void>;
}

export interface Owned {
  workload: string;
  node: string;
  epoch: number;
}
export interface Reserve extends Owned {
  /** chosen by the caller, unique */
  migration: string;
  target: string;
  /** the number given out is at least this: the caller has seen all below it */
  epochMin?: number;
}
export interface Commit extends Owned {
  migration: string;
  held: Buffer;
  /** the held bytes vanish after this */
  ttlMs: number;
}
export interface PutSessions extends Owned {
  /** new ones, and those that are not what they were; at most {@link SESSIONS_BATCH_MAX} */
  sessions: readonly SessionRecord[];
  /** ids of those that have ended; as many at most */
  gone: readonly string[];
  /** nothing that was told before counts any more */
  anew: boolean;
  ttlMs: number;
}

export interface PutLink extends Owned {
  record: LinkRecord;
}

export interface PutNames extends Owned {
  /** at most {@link NAMES_BATCH_MAX}; see {@link isName} */
  names: readonly string[];
  ttlMs: number;
  namesMax: number;
}

/** It did not answer, or refuses this node (NOAUTH, NOPERM), which it may take in later: nothing is decided. */
export function isUnanswered(error: unknown): error is HoldfastError {
  return error instanceof HoldfastError && (error.retryable || error.code === "STORE_UNREACHABLE");
}

/** How a step on the ownership record ended, the same in Lua and in memory. */
export type Status = "ok" | "fenced" | "busy" | "absent" | "corrupt";

export type Step =
  | "read"
  | "claim"
  | "reserve"
  | "cancel"
  | "commit"
  | "markReleased"
  | "takeBack"
  | "raise"
  | "stop"
  | "sessions"
  | "names"
  | "link"
  | "lookup";

/** as Kubernetes may call a node: `ip-10-0-1-2.eu-central-1.compute.internal` */
export const NODE_NAME = /^(?=.{1,63}$)[a-z0-9-]+(\.[a-z0-9-]+)*$/;
/** a pod's is NAMESPACE.POD */
export const WORKLOAD_NAME = NODE_NAME;
export const MIGRATION_ID = /^[A-Za-z0-9._:-]{1,64}$/;
export const MARK = /^[A-Za-z0-9-]{1,64}$/;
/** of the last migrations that were cancelled, the ids kept so that a late commit or reserve is known */
export const CANCELLED_MAX = 8;

/** one call is over soon, and others wait no longer for it */
export const NAMES_BATCH_MAX = 1_000;
export const SESSIONS_BATCH_MAX = 1_000;
export const NAME_CHARS_MAX = 200;

/** Clients choose session names: what is empty, long, or not text in full is none. */
export function isName(name: string): boolean {
  return name.length > 0 && name.length <= NAME_CHARS_MAX && name.isWellFormed();
}

const name = z.string().regex(NODE_NAME);
const epoch = z.number().int().min(1).max(Number.MAX_SAFE_INTEGER);

export const ownershipSchema: z.ZodType<Ownership> = z.strictObject({
  owner: name,
  epoch,
  state: z.enum(["released", "committed", "stopped"]),
  previous: name.nullable(),
  migration: z.strictObject({ id: z.string().regex(MIGRATION_ID), target: name, epoch }).nullable(),
});

const port = z.number().int().min(1).max(65_535);
const endpoint = z.object({ address: z.union([z.ipv4(), z.ipv6()]), port });

/** What a later version says beside is not read: its agents tell gateways of an earlier one, too. */
export const linkRecordSchema: z.ZodType<LinkRecord> = z.object({
  node: name,
  epoch,
  link: endpoint,
  ports: z.array(port).min(1).max(1_024),
  clients: z.array(endpoint).max(1_024).optional(),
});

export const sessionsSchema: z.ZodType<SessionRecord[]> = z
  .array(z.looseObject({ id: z.string().min(1).max(200) }))
  .max(1_000_000);

/** Callers' mistakes, not the store's: these strings become keys and fields. */
export function assertRequest(request: {
  workload: string;
  node?: string;
  target?: string;
  migration?: string;
  epoch?: number;
  epochMin?: number;
  ttlMs?: number;
  names?: readonly string[];
  namesMax?: number;
  sessions?: readonly SessionRecord[];
  gone?: readonly string[];
}): void {
  assert.match(request.workload, WORKLOAD_NAME);
  if (request.node !== undefined) assert.match(request.node, NODE_NAME);
  if (request.target !== undefined) assert.match(request.target, NODE_NAME);
  if (request.node !== undefined)
    assert.notEqual(request.node, request.target, "a workload moves to another node");
  if (request.migration !== undefined) assert.match(request.migration, MIGRATION_ID);
  for (const positive of [request.epoch, request.epochMin, request.ttlMs, request.namesMax])
    if (positive !== undefined) assert.ok(Number.isSafeInteger(positive) && positive > 0);
  if (request.names !== undefined)
    assert.ok(request.names.length <= NAMES_BATCH_MAX && request.names.every(isName));
  for (const batch of [request.sessions, request.gone])
    if (batch !== undefined) assert.ok(batch.length <= SESSIONS_BATCH_MAX);
}

/** The error for a step that was refused. */
export function refusal(
  status: Status,
  step: Step,
  workload: string,
  found: Ownership | null,
): HoldfastError {
  if (found === null) {
    // Not fenced: that nothing is known is no proof that another node has it.
    return fail(
      "STORE_ABSENT",
      `workload ${workload}: ${step} refused: the store has no record of it. Was Redis emptied, or restarted without persistence? Ask each node with \`holdfast status\``,
    );
  }
  const busy = status === "busy";
  const now =
    `it belongs to node ${found.owner} at epoch ${found.epoch} (${found.state})` +
    (found.migration === null ? "" : `, migration ${found.migration.id} to ${found.migration.target}`);
  return fail(
    busy ? "STORE_BUSY" : "STORE_FENCED",
    `workload ${workload}: ${step} refused: ${busy ? "a migration is under way, " : ""}${now}`,
  );
}

export function corrupt(key: string, what: string): HoldfastError {
  return fail(
    "STORE_CORRUPT",
    `key ${key} in the store is damaged: ${what}. Look at it; delete it if nothing of it is needed`,
  );
}
