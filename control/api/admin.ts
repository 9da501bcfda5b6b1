/**
 * What the agent's admin API answers, as the command line reads it (HTTP/1.1 over the agent's Unix socket, or loopback).
 *
 *   GET  /v1/status                        → StatusAnswer
 *   GET  /v1/workloads/:name/sessions      → SessionsAnswer
 *   GET  /v1/workloads/:name/logs          → bytes of its application's log; ?lines=COUNT of its end, &follow=1: and what comes
 *   GET  /v1/lookup/:name                  → LookupAnswer; ?workload= where several have such a session
 *   GET  /v1/check[?workload=W][&to=NODE]  → CheckAnswer
 *   POST /v1/workloads/:name/check         {to} → lines of Progress: a rehearsal
 *   POST /v1/workloads/:name/migrate       {to, deadlineMs?} → lines of Progress
 *   POST /v1/workloads/:name/restart       {drainMs?} → lines of Progress
 *   POST /v1/workloads/:name/cancel        → {} ; the outcome comes on the stream of the move or restart
 *   POST /v1/workloads/:name/start         {force?} → as stop
 *   POST /v1/workloads/:name/stop          → lines of Progress, or one JSON object
 *   refusals                               4xx/5xx with {error: {code, message}}
 *
 * Lines are NDJSON. Command line and agent may be of different versions: what is not needed to go on is optional, and
 * unknown fields pass through to `--json`.
 */
import * as z from "zod";
import type { SessionInfo } from "#proxy/contract/commands.ts";

const errorPart = z.looseObject({ code: z.string(), message: z.string() });

export const refusalSchema = z.looseObject({ error: errorPart });

const workloadStatus = z.looseObject({
  name: z.string(),
  /** what this node is to it: "owner", "anchor", "none" … */
  role: z.string().optional(),
  owner: z.string().nullish(),
  epoch: z.number().nullish(),
  state: z.string().nullish(),
  downstream: z.string().optional(),
  sessions: z.number().nullish(),
  /** a move under way */
  moving: z.looseObject({ to: z.string(), step: z.string().optional() }).nullish(),
  /** what keeps it from being what the configuration says */
  problem: z.looseObject({ id: z.string().optional(), what: z.string(), cure: z.string() }).nullish(),
});

export const statusSchema = z.looseObject({
  node: z.string(),
  pid: z.number().optional(),
  uptimeMs: z.number().optional(),
  store: z
    .looseObject({ url: z.string().optional(), ok: z.boolean(), reason: z.string().nullish() })
    .optional(),
  /** ids of those that the agent uses, the first one first, and why its file is not what it uses */
  keys: z
    .looseObject({
      ids: z.array(z.string()).default([]),
      problem: z.string().nullish(),
      revoked: z.array(z.string()).default([]),
    })
    .optional(),
  peers: z
    .array(
      z.looseObject({
        node: z.string(),
        address: z.string().optional(),
        connected: z.boolean(),
        reason: z.string().nullish(),
      }),
    )
    .default([]),
  workloads: z.array(workloadStatus).default([]),
});
export type StatusAnswer = z.infer<typeof statusSchema>;

/** Fields as in {@link SessionInfo}. */
export const sessionsSchema = z.looseObject({
  sessions: z.array(z.custom<Partial<SessionInfo>>((value) => typeof value === "object" && value !== null)),
});
export type SessionsAnswer = z.infer<typeof sessionsSchema>;

export const lookupSchema = z.looseObject({
  name: z.string(),
  workload: z.string(),
  node: z.string(),
  epoch: z.number(),
  ports: z.array(z.looseObject({ listen: z.number(), address: z.string() })),
});
export type LookupAnswer = z.infer<typeof lookupSchema>;

const range = z.looseObject({ low: z.number(), likely: z.number(), high: z.number() });

export const checkSchema = z.looseObject({
  findings: z.array(
    z.looseObject({
      /** stays the same from version to version, e.g. `descriptor.io-uring`: what `--allow` takes */
      id: z.string().default("unknown"),
      /** the heading it belongs to */
      category: z.string().optional(),
      /** the node that has to be cured */
      node: z.string().optional(),
      /** null: about the node */
      workload: z.string().nullable(),
      /** error: a move is impossible until it is cured */
      severity: z.enum(["error", "warning"]),
      what: z.string(),
      cure: z.string(),
    }),
  ),
  /** what was looked at */
  checked: z
    .array(
      z.looseObject({
        node: z.string().optional(),
        workload: z.string().nullable(),
        category: z.string(),
      }),
    )
    .default([]),
  /** --dry-run: everything up to the hold was done and undone */
  rehearsed: z.boolean().optional(),
  /** … and how long clients would wait in a move */
  prediction: z
    .looseObject({
      pauseMs: range,
      parts: z
        .array(z.looseObject({ phase: z.string(), ms: range, from: z.string().default("") }))
        .default([]),
    })
    .optional(),
});
export type CheckAnswer = z.infer<typeof checkSchema>;

const figure = z.number().nullable().default(null);

/** One move, with the fields of the demo. What an agent cannot know (what clients saw) is null. */
export const moveSchema = z.looseObject({
  from: z.string(),
  to: z.string(),
  downstream: z.string(),
  sessions: figure,
  messages: figure,
  lost: figure,
  repeated: figure,
  resets: figure,
  blackoutMs: z
    .looseObject({ p50: figure, p99: figure, max: figure })
    .default({ p50: null, p99: null, max: null }),
  phasesMs: z.record(z.string(), z.number()).default({}),
  criuMs: z.looseObject({ dump: figure, restore: figure }).default({ dump: null, restore: null }),
  /** what of the application could not be kept, each in a line */
  notKept: z.array(z.string()).default([]),
  outcome: z.enum(["moved", "rolled-back"]),
  reason: z.string().nullable().default(null),
  /** what the checks before it said; with an error among them it did not begin */
  check: checkSchema.optional(),
});
export type Move = z.infer<typeof moveSchema>;

/** One restart of an application in its place. */
export const restartSchema = z.looseObject({
  workload: z.string(),
  node: z.string(),
  /** that went on; sent again; told to come later; reset */
  sessions: figure,
  replayed: figure,
  refused: figure,
  reset: figure,
  pauseMs: figure,
  phasesMs: z.record(z.string(), z.number()).default({}),
  outcome: z.enum(["restarted", "cancelled"]),
  reason: z.string().nullable().default(null),
});
export type Restart = z.infer<typeof restartSchema>;

export const progressSchema = z.discriminatedUnion("type", [
  z.looseObject({
    type: z.literal("phase"),
    phase: z.string(),
    state: z.enum(["start", "done"]),
    ms: z.number().optional(),
    note: z.string().optional(),
  }),
  z.looseObject({
    type: z.literal("result"),
    move: moveSchema.optional(),
    restart: restartSchema.optional(),
    check: checkSchema.optional(),
  }),
  z.looseObject({ type: z.literal("error"), error: errorPart }),
]);
export type Progress = z.infer<typeof progressSchema>;
export type PhaseLine = Extract<Progress, { type: "phase" }>;
