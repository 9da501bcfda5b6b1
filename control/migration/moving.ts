/** What a node writes down of a move that is under way, and of one that the store has yet to be told of: both are in its journal. */
import { z } from "zod";
import { instanceSchema } from "../api/watches.ts";

export const processSchema = z.looseObject({ pid: z.number().int().positive(), startTicks: z.string() });

/** How far a move has come, as far as a restarted agent has to care. */
export const movingSchema = z.looseObject({
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
  criu: processSchema.nullable().default(null),
  /** without a freezer: inner PIDs that job control had stopped before the move, and that stay stopped after it */
  stopped: z.array(z.number().int()).default([]),
  /** source: the application has run after something was taken out of it, and was stopped again to have it back */
  ran: z.boolean().default(false),
  /** source: what instances of inotify held that are empty now, or about to be */
  watches: z.array(instanceSchema).default([]),
  /** source, forward: where the target's proxy takes links */
  link: z.looseObject({ address: z.string(), port: z.number().int() }).nullable().default(null),
  /** target: nodes whose proxies hold clients, once it owns the workload */
  anchors: z.array(z.string()).default([]),
});

/**
 * What the store has yet to be told, because it could not be reached when it was decided:
 *   cancelled   a reservation that came to nothing
 *   taken-back  this node went on after a move that failed
 *   released    this node went on after a move that succeeded
 */
export const outboxEntrySchema = z.looseObject({
  kind: z.enum(["cancelled", "taken-back", "released"]),
  migration: z.string(),
  /** at which this node goes on */
  epoch: z.number().int().nonnegative(),
});

/** Without the keys that nobody knows: those pass through and are not to be written by mistake. */
export type Known<T> = T extends readonly (infer E)[]
  ? Known<E>[]
  : T extends object
    ? { [K in keyof T as string extends K ? never : K]: Known<T[K]> }
    : T;

export type Moving = Known<z.infer<typeof movingSchema>>;
export type OutboxEntry = Known<z.infer<typeof outboxEntrySchema>>;
