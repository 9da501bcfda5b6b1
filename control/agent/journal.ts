/**
 * What an agent must know after a restart, one small file per workload, replaced atomically (rename(2)).
 *
 * Not synced to the disk: it has to outlive the agent, not the machine, whose processes it speaks of.
 */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { z } from "zod";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { instanceSchema } from "../migration/watch-state.ts";

const processSchema = z.strictObject({ pid: z.number().int().positive(), startTicks: z.string() });
const containerSchema = z.strictObject({
  id: z.string(),
  runDir: z.string(),
  init: processSchema,
  tmpfs: z.array(z.string()),
  /** takes its output out of the pipe */
  reader: processSchema.optional(),
});

/** How far a move has come, as far as a restarted agent has to care. */
const movingSchema = z.strictObject({
  side: z.enum(["source", "target"]),
  id: z.string(),
  /** the other node */
  peer: z.string(),
  /** the target's epoch */
  epoch: z.number().int().positive(),
  /**
   * source: prepared → held (clients wait, CRIU may be at work) → committing (the outcome is the store's to tell) → granted
   * target: prepared → restored (stopped, with its upstream legs) → adopted (all legs are here) → releasing (the store may
   * have been told) → released, or gave-up
   */
  step: z.enum([
    "prepared",
    "held",
    "committing",
    "granted",
    "restored",
    "adopted",
    "releasing",
    "released",
    "gave-up",
  ]),
  /** the CRIU process that may still be at work on the tree */
  criu: processSchema.nullable(),
  /** without a freezer: inner PIDs that job control had stopped before the move, and that stay stopped after it */
  stopped: z.array(z.number().int()),
  /** source: what instances of inotify held that are empty now, or about to be */
  watches: z.array(instanceSchema),
  /** source, relay: where the target's proxy takes links */
  link: z.strictObject({ address: z.string(), port: z.number().int() }).nullable(),
  /** target: nodes whose proxies hold clients, once it owns the workload */
  edges: z.array(z.string()),
});

/**
 * What the store has yet to be told, because it could not be reached when it was decided:
 *   cancelled   a reservation that came to nothing
 *   taken-back  this node went on after a move that failed
 *   released    this node went on after a move that succeeded
 */
const debtSchema = z.strictObject({
  kind: z.enum(["cancelled", "taken-back", "released"]),
  migration: z.string(),
  /** at which this node goes on */
  epoch: z.number().int().nonnegative(),
});

/** How far a restart of the application has come; see `supervisor.ts`. */
const restartingSchema = z.strictObject({
  /** pausing: clients begin to wait → stopping: it may have been told to end → starting → resuming: it listens again */
  step: z.enum(["pausing", "stopping", "starting", "resuming"]),
});

const journalSchema = z.strictObject({
  role: z.enum(["none", "owner", "edge"]),
  epoch: z.number().int().nonnegative(),
  container: containerSchema.nullable(),
  /** root of the application's tree; null: not looked for yet, or none */
  application: processSchema.nullable(),
  proxy: z.strictObject({ process: processSchema, socketPath: z.string() }).nullable(),
  /** relay: nodes whose proxies hold clients of this workload */
  edges: z.array(z.string()),
  moving: movingSchema.nullable(),
  restarting: restartingSchema.nullable(),
  debt: debtSchema.nullable(),
  /** set by `stop`: not to be started again by itself */
  stopped: z.boolean(),
});

export type Journal = z.infer<typeof journalSchema>;
export type Moving = z.infer<typeof movingSchema>;
export type RestartStep = z.infer<typeof restartingSchema>["step"];
export type Debt = z.infer<typeof debtSchema>;

export const EMPTY_JOURNAL: Journal = {
  role: "none",
  epoch: 0,
  container: null,
  application: null,
  proxy: null,
  edges: [],
  moving: null,
  restarting: null,
  debt: null,
  stopped: false,
};

/** @throws HoldfastError `JOURNAL_INVALID`: a file that is not ours must not be guessed at */
export function readJournal(path: string): Journal {
  const damaged = (what: string, cause?: unknown): HoldfastError =>
    new HoldfastError(`${path} ${what}: look at what runs on this node, then delete it`, {
      code: "JOURNAL_INVALID",
      source: "config",
      cause,
    });
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return EMPTY_JOURNAL;
    throw damaged("cannot be read", error);
  }
  const parsed = journalSchema.safeParse(parseJson(text));
  if (!parsed.success) throw damaged("is damaged");
  return parsed.data;
}

export function writeJournal(path: string, journal: Journal): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  writeFileSync(`${path}.new`, JSON.stringify(journal), { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
