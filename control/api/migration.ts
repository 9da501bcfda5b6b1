/** What a move is called, reports and results in: shared by both sides, the admin interface and the command line. */
import { z } from "zod";
import type { Downstream } from "#proxy/contract/commands.ts";
import { departureFacts } from "./check.ts";
import type { CheckReport } from "./finding.ts";
import { instanceSchema } from "./watches.ts";

/**
 *   prepare   nothing has happened to any client; most of the memory and the files are copied
 *   hold      clients wait; the application finishes what it was sent
 *   capture   CRIU has frozen the application; what it still sent is passed on; its legs are read out of the kernel
 *   dump      CRIU dumps; the target adopts the legs meanwhile
 *   transfer  files that changed since the first copy, and all images but those of memory
 *   restore   memory that changed goes over; CRIU restores at the target, and leaves the application stopped
 *   commit    takeover: the clients' legs are captured and adopted; ownership moves, in one fenced write
 *   release   the target goes on: clients are answered again
 *   retire    the source lets go of what it kept for a rollback
 */
export const PHASES = [
  "prepare",
  "hold",
  "capture",
  "dump",
  "transfer",
  "restore",
  "commit",
  "release",
  "retire",
] as const;
export type Phase = (typeof PHASES)[number];

export interface PhaseEvent {
  type: "phase";
  /** undo: of a rehearsal */
  phase: Phase | "rollback" | "undo";
  state: "start" | "done";
  /** of this phase when done, else since the move began */
  ms: number;
  note?: string;
}
export type Report = (event: PhaseEvent) => void;

export interface Range {
  low: number;
  likely: number;
  high: number;
}

export interface PredictedPart {
  /** a phase of the move */
  phase: "hold" | "capture" | "dump" | "transfer" | "restore" | "commit" | "release";
  ms: Range;
  /** what it comes from, for people */
  from: string;
}

export interface Prediction {
  pauseMs: Range;
  parts: PredictedPart[];
}

/** who was at work: CRIU and the proxies as their agent sees them */
export const LANES = [
  "source agent",
  "source CRIU",
  "source proxy",
  "target agent",
  "target CRIU",
  "target proxy",
  "store",
] as const;
export type Lane = (typeof LANES)[number];

const timelineSpan = z.object({
  lane: z.enum(LANES),
  name: z.string().max(100),
  fromMs: z.number(),
  toMs: z.number(),
});
export type TimelineSpan = z.infer<typeof timelineSpan>;

/** The demo's fields for one move; what only clients can know is null here. */
export interface MoveResult {
  workload: string;
  from: string;
  to: string;
  downstream: Downstream;
  sessions: number;
  messages: null;
  lost: null;
  repeated: null;
  resets: null;
  blackoutMs: { p50: null; p99: null; max: null };
  /** hold to release, as the agents measured it */
  holdMs: number;
  phasesMs: Partial<Record<Phase | "rollback" | "undo", number>>;
  criuMs: { dump: number; restore: number };
  /** what comparing the application before and after took: at the source beside the capture, at the target in `restore` */
  auditMs: { source: number; target: number };
  /** what of the application could not be kept, each in a line; `check` names it beforehand */
  notKept: string[];
  /** microseconds a leg: average over this move's legs */
  legUs: { capture: number; adopt: number };
  /** memory sent before anybody was held, and images sent while clients waited */
  precopyBytes: number;
  /** … in rounds, each of what was written since the one before */
  precopyRounds: { bytes: number; ms: number }[];
  /** how fast the application wrote to memory that was at the target, in the last of them; null: there was one, or none */
  dirtyBytesPerSecond: number | null;
  imageBytes: number;
  /** whose memory was not compared: the kernel was asked what they wrote */
  trackedProcesses: number;
  /** rehearsed: prepared, and undone again */
  outcome: "moved" | "rolled-back" | "rehearsed";
  reason: string | null;
  /** what the checks before it said; with an error among them nothing was made */
  check?: CheckReport;
  /** made before the hold: how long clients would wait */
  prediction?: Prediction;
  /**
   * what each process was at while clients waited, in ms from the hold; absent: nobody was held. The target's spans may stand
   * too early by a round trip (`timeline.ts`), and one of the version before tells none
   */
  timeline?: TimelineSpan[];
}

// ---- what the source says to the target, in this order, on a channel of its own for each move; checked where it arrives ----

const epoch = z.number().int().positive();
const port = z.number().int().min(1).max(65_535);
const count = z.number().int().nonnegative();
const node = z.string().max(63);
const endpoint = z.strictObject({ address: z.ipv4().or(z.ipv6()), port });

export const prepareCall = z.strictObject({
  workload: z.string().max(63),
  migration: z.string().max(64),
  from: node,
  epoch,
  anchors: z.array(node).max(1_000),
  /** the restored tree needs every thread id up to this one free */
  highestTid: count.max(4_194_304),
  /** what the target looks at before it makes anything, as it has done when it was asked (`check`) */
  facts: departureFacts,
  /** owner number at the source now */
  ownerEpoch: epoch,
  /** eventfds with EFD_SEMAPHORE, which CRIU cannot make: the target's agent does */
  semaphores: count.max(10_000),
});
export type PrepareCall = z.infer<typeof prepareCall>;

/** event: a piece of a tar stream for `root` ("layer" or a tmpfs mount of the container); empty ends it */
export const filesEvent = z.strictObject({ root: z.string().max(4_096) });

/** `standby`, after the layer has been sent: link is null in takeover */
export const standbyReply = z.object({ link: endpoint.nullable() });
export type StandbyReply = z.infer<typeof standbyReply>;

/** of an image that was sent before */
const place = z.strictObject({ name: z.string().max(200), offset: count });

/**
 * event: pieces of memory images, their bytes one after the other in the body; those of a piece with `from` are not there, as
 * the target has them already, in that place
 */
export const imagesEvent = z.strictObject({
  pieces: z
    .array(z.strictObject({ name: z.string().max(200), offset: count, bytes: count, from: place.optional() }))
    .max(1_000),
});
export type ImagesEvent = z.infer<typeof imagesEvent>;

/** `imagesOpen`, when images can be sent. A target of the version before says nothing. */
export const imagesOpenReply = z.object({
  /** it begins to restore without images of memory */
  memoryLast: z.boolean().default(false),
  /** the newest fingerprint that it compares (`audit/fingerprint.ts`) */
  fingerprintFormat: count.default(1),
});
export type ImagesOpenReply = z.infer<typeof imagesOpenReply>;

/** second round of files: what to delete before the next `files` events are unpacked */
export const filesGoneCall = z.strictObject({
  root: z.string().max(4_096),
  gone: z.array(z.string().max(4_096)).max(10_000_000),
});

/** `adopt`, `adoptDownstream`: body: legs → AdoptResult */
export const adoptCall = z.strictObject({
  /** nothing of the kind follows; a source of the version before sends all at once, and does not say so */
  last: z.boolean().default(true),
});

const manifest = z.record(z.string().max(200), count);

/**
 * After `fingerprint` (body: the frozen application's, as JSON). Answered when the application is restored, is what it was, and
 * waits, and its legs (`adopt`) are adopted. Body: its POSIX message queues (`posix-queues.ts`).
 */
export const restoreCall = z.strictObject({
  manifest,
  /** images of memory are not in the manifest: `memory` says when they are there. Only to a target that has said {@link imagesOpenReply} */
  memoryFollows: z.boolean().default(false),
  /** inner PID of the application's root */
  root: count.positive(),
  /** keys (`pipe:[N]`) of the source's standard output and error */
  outputPipes: z.array(z.string().regex(/^pipe:\[\d{1,20}\]$/)).max(2),
  /** see `stopped` of the journal */
  stopped: z.array(count).max(100_000),
  /** message queues it has open: what CRIU calls them, and their names */
  openQueues: z
    .array(
      z.strictObject({
        key: z.string().regex(/^file\[[0-9a-f]{1,8}:[0-9a-f]{1,16}\]$/),
        name: z.string().regex(/^\/[^/]{1,254}$/),
      }),
    )
    .max(10_000),
  /** what the instances of inotify, empty in the images, have to hold before anything runs */
  watches: z.array(instanceSchema).max(10_000),
});
export type RestoreCall = z.infer<typeof restoreCall>;

/** while `restore` is under way: the images of memory are there */
export const memoryCall = z.strictObject({ manifest });
export type MemoryCall = z.infer<typeof memoryCall>;

export const restoreReply = z.object({
  auditMs: z.number().nonnegative(),
  /** what of the application could not be kept, each in a line: nothing that confines it */
  notKept: z.array(z.string().max(2_000)).max(10_000),
});
export type RestoreReply = z.infer<typeof restoreReply>;

/** takeover, `adoptDownstream`: body: the downstream legs → AdoptResult. Then `release`, when ownership has moved: */
export const releaseReply = z.object({
  /** CRIU's own part of the restore */
  criuRestoreMs: z.number().nonnegative(),
  /** in ms from when `release` was received. A move that is done fails by no word of this: of another version's there is none */
  timeline: z.array(timelineSpan).max(1_000).catch([]),
});
export type ReleaseReply = z.infer<typeof releaseReply>;

/** When the target goes on: what was sent to the frozen application since the commit, by its own numbers. */
export const signalsCall = z.strictObject({
  sent: z
    .array(
      z.strictObject({
        process: count.positive(),
        /** null: whichever thread takes it */
        thread: count.positive().nullable(),
        signal: count.positive().max(64),
      }),
    )
    .max(100_000),
});
export type SignalsCall = z.infer<typeof signalsCall>;
export type SentSignal = SignalsCall["sent"][number];

/**
 * `abort`, `outcome`: which of the two it came to, for good; or `unsure`: the store was asked to mark it released and has not
 * answered, so that it may be.
 */
export const outcomeReply = z.object({
  outcome: z.enum(["gave-up", "released", "unsure"]),
  /** released: at which the target goes on */
  epoch: z.number().int().nonnegative(),
});
export type OutcomeReply = z.infer<typeof outcomeReply>;

/**
 * @property grant not null: the source's word that it will not take the workload back, whatever it has asked of the store
 * before, so the target goes on at this epoch, above any that the store may still give to the source
 */
export const outcomeCall = z.strictObject({
  workload: z.string(),
  migration: z.string().max(64),
  epoch,
  grant: epoch.nullable().default(null),
});
export type OutcomeCall = z.infer<typeof outcomeCall>;

// ---- what the owner's agent says to the agents of anchors ----

export const anchorPrepareCall = z.strictObject({ workload: z.string(), epoch, target: endpoint });
/** Of a version before: nothing. */
export interface AnchorPrepareReply {
  /** the anchor itself, where it holds sessions and reaches `target` with none */
  unreachable: string[];
}
export const anchorSwitchCall = z.strictObject({
  workload: z.string(),
  epoch,
  owner: z.strictObject({ node, link: endpoint }),
});
