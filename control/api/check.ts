/** What agents ask each other for `check`: whether a workload of one could move to the other. */
import * as z from "zod";
import { checkReport } from "./finding.ts";

const word = z.string().max(200);

export const nodeProfile = z.strictObject({
  /** process.arch */
  arch: word,
  /** instructions that programs may use, as /proc/cpuinfo names them */
  cpuFlags: z.array(z.string().max(40)).max(2_000),
  /** uname -r */
  kernel: word,
  timeNamespaces: z.boolean(),
  cgroups: z.enum(["v1", "v1 with v2", "v2"]),
  criu: word,
  /** e.g. "runc 1.1.5" */
  runtime: word,
});
export type NodeProfile = z.infer<typeof nodeProfile>;

export const usedFile = z.strictObject({
  /** as the container sees it */
  path: z.string().max(4_096),
  kind: z.enum(["file", "folder", "other"]),
  /** null: on a mount that several nodes write to, where only its being there can be compared */
  bytes: z.number().int().nonnegative().nullable(),
  /** permission bits; null as `bytes` */
  mode: z.number().int().nonnegative().nullable(),
  /** SHA-256 of the content. null: not compared, too large or unreadable */
  digest: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .nullable(),
});
export type UsedFile = z.infer<typeof usedFile>;

export const USED_FILES_MAX = 20_000;

const count = z.number().int().nonnegative();
const port = z.number().int().min(1).max(65_535);

export const departureFacts = z.strictObject({
  profile: nodeProfile,
  agreement: z.record(z.string().max(300), z.string().regex(/^[0-9a-f]{64}$/)),
  files: z.array(usedFile).max(USED_FILES_MAX),
  upstreamPorts: z.array(port).max(64),
  /** where its Unix datagram sockets send to, outside the container */
  unixPeers: z.array(z.string().max(4_096)).max(1_000),
  /** memory of the application: what the images take, and then the application itself */
  imageBytes: count,
  /** address space of its private mappings, whether used or not */
  reservedBytes: count,
  /** files that travel: the writable layer and tmpfs mounts, both in memory at the target */
  layerBytes: count,
  tmpfsBytes: count,
  /** a process that is not root's, which CRIU restores only with CAP_SYS_RESOURCE */
  otherUser: z.strictObject({ pid: count, uid: count }).nullable(),
  /** labels of a security module that confine its processes */
  labels: z.array(z.string().max(1_000)).max(100),
});
export type DepartureFacts = z.infer<typeof departureFacts>;

export const checkCall = z.strictObject({
  workload: z.string().max(63),
  from: z.string().max(63),
  /** owner number at the source, as the store should know it too */
  epoch: count,
  facts: departureFacts,
});
export type CheckCall = z.infer<typeof checkCall>;

/** what a target says to `check` */
export const checkReply = z.strictObject({
  report: checkReport,
  /** its wall clock, ms since 1970, when it was asked and when it answered */
  receivedAtMs: z.number(),
  sentAtMs: z.number(),
});
export type CheckReply = z.infer<typeof checkReply>;
