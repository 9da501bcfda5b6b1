/** What a move is called, reports and results in: shared by both sides, the admin interface and the command line. */
import type { ImageManifest } from "../criu/images.ts";

/**
 *   prepare   nothing has happened to any client
 *   hold      clients wait; the application finishes what it was sent
 *   dump      CRIU freezes and dumps; memory travels meanwhile
 *   capture   what the application still sent is passed on; its legs are read out of the kernel
 *   restore   the target adopts the legs, CRIU restores and stops before the application runs
 *   commit    takeover: the clients' legs are captured; ownership moves, in one fenced write
 *   release   the target goes on: clients are answered again
 *   retire    the source lets go of what it kept for a rollback
 */
export const PHASES = [
  "prepare",
  "hold",
  "dump",
  "capture",
  "restore",
  "commit",
  "release",
  "retire",
] as const;
export type Phase = (typeof PHASES)[number];

export interface PhaseEvent {
  type: "phase";
  phase: Phase | "rollback";
  state: "start" | "done";
  /** of this phase when done, else since the move began */
  ms: number;
  note?: string;
}
export type Report = (event: PhaseEvent) => void;

/** The demo's fields for one move; what only clients can know is null here. */
export interface MoveResult {
  workload: string;
  from: string;
  to: string;
  downstream: "takeover" | "relay";
  sessions: number;
  messages: null;
  lost: null;
  repeated: null;
  resets: null;
  blackoutMs: { p50: null; p99: null; max: null };
  /** hold to release, as the agents measured it */
  holdMs: number;
  phasesMs: Partial<Record<Phase | "rollback", number>>;
  criuMs: { dump: number; restore: number };
  /** microseconds a leg: average over this move's legs */
  legUs: { capture: number; adopt: number };
  /** memory sent before anybody was held, and images sent while clients waited */
  precopyBytes: number;
  imageBytes: number;
  outcome: "moved" | "rolled-back";
  reason: string | null;
}

// ---- what the source says to the target, in this order, on a channel of its own for each move ----

export interface PrepareCall {
  workload: string;
  migration: string;
  from: string;
  epoch: number;
  edges: string[];
  /** what the target's tmpfs must have room for */
  residentBytes: number;
  /** the restored tree needs every thread id up to this one free */
  highestTid: number;
  upstreamPorts: number[];
}
/** events: a piece of a tar stream for `root` ("layer" or a tmpfs mount of the container); empty ends it */
export interface FilesEvent {
  root: string;
}
/** after the layer has been sent → `{ link, linkHost }` */
export interface StandbyReply {
  link: { address: string; port: number };
}
/** event: a piece of a memory image */
export interface ImageEvent {
  name: string;
  offset: number;
}
/** second round of files: what to delete before the next `files` events are unpacked */
export interface FilesGoneCall {
  root: string;
  gone: string[];
}
/** body: the upstream legs → AdoptResult */
export type AdoptCall = Record<string, never>;
/** Answered when the application is restored and waits, and its legs are adopted. */
export interface RestoreCall {
  manifest: ImageManifest;
  /** keys (`pipe:[N]`) of the source's standard output and error */
  outputPipes: string[];
}
/** takeover; body: the downstream legs → AdoptResult */
export type AdoptDownstreamCall = Record<string, never>;
/** Ownership has moved. Answered when clients are served again. */
export interface ReleaseReply {
  /** CRIU's own part: from the request to the hook where it waits, and from its leave to go on until the last hook */
  criuRestoreMs: number;
}
