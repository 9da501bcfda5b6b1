/**
 * The few messages of CRIU's RPC that Holdfast speaks, encoded by hand (images/rpc.proto and images/stats.proto of CRIU,
 * MIT; https://criu.org/RPC).
 *
 * Pure: bytes in, values out. What CRIU sends is treated as input that can be wrong.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { decodeFields, encodeFields, type Field } from "./protobuf.ts";

export type RequestType = "DUMP" | "RESTORE" | "NOTIFY" | "FEATURE_CHECK" | "VERSION";
const requestTypes: Record<RequestType, number> = {
  DUMP: 1,
  RESTORE: 2,
  NOTIFY: 6,
  FEATURE_CHECK: 9,
  VERSION: 10,
};

export interface InheritFd {
  /** e.g. `pipe[4711]`: the resource in the images */
  key: string;
  /** descriptor number inside the CRIU process */
  fd: number;
}

export interface CriuOptions {
  /** as CRIU sees it */
  imagesDir: string;
  /** root of the tree, in the container's PID namespace; dump only */
  pid?: number;
  logFile: string;
  /** 0 (quiet) .. 4 (debug) */
  logLevel: number;
  inheritFds?: InheritFd[];
  /** resources that somebody else brings, as `file[MNT_ID:INODE]`; dump only */
  external?: string[];
  /** seconds until CRIU gives up freezing */
  timeoutSeconds?: number;
  /** bytes an unlinked open file may have to be carried in the images */
  ghostLimitBytes: number;
  /** folder, relative to the images, of those of an earlier dump that this one builds on; dump only */
  parentDir?: string;
  /**
   * how CRIU leaves the tree: `running` where somebody else freezes it in a hook (`post-dump`, `pre-resume`) before CRIU lets
   * go of it; `stopped`: by SIGSTOP, which parents are told of
   */
  leave: "running" | "stopped";
  /** rst_sibling etc. are never used: the restored tree becomes a child of the container's init */
}

export interface CriuRequest {
  type: RequestType;
  options?: CriuOptions;
  notifySuccess?: boolean;
  keepOpen?: boolean;
}

export interface CriuResponse {
  type: number;
  success: boolean;
  /** hook name of a NOTIFY message: `pre-dump`, `post-dump`, … */
  notify: string | null;
  errno: number;
  message: string;
  /** of a FEATURE_CHECK: the kernel tells which pages were written */
  tracksMemory: boolean;
  /** of a VERSION: "4.2", "3.17.1" */
  version: string;
}

export const NOTIFY_TYPE = requestTypes.NOTIFY;

export function encodeRequest(request: CriuRequest): Buffer {
  const fields: Field[] = [[1, requestTypes[request.type]]];
  if (request.options !== undefined) fields.push([2, optionFields(request.options)]);
  if (request.notifySuccess !== undefined) fields.push([3, request.notifySuccess]);
  if (request.keepOpen !== undefined) fields.push([4, request.keepOpen]);
  if (request.type === "FEATURE_CHECK") fields.push([5, [[1, true]]]);
  return encodeFields(fields);
}

/** The options every dump and restore of ours has in common, see DESIGN "CRIU: facts". */
function optionFields(options: CriuOptions): Field[] {
  const networkLockSkip = 3;
  const manageCgroupsIgnore = 0;
  const fields: Field[] = [
    [1, -1], // images_dir_fd is required; -1 selects images_dir
    [68, options.imagesDir],
    [4, true], // ext_unix_sk
    [5, true], // tcp_established
    [7, true], // shell_job
    [8, true], // file_locks
    [9, options.logLevel],
    [10, options.logFile],
    [12, true], // notify_scripts
    [18, true], // link_remap
    [34, manageCgroupsIgnore],
    [35, options.ghostLimitBytes],
    [64, networkLockSkip],
  ];
  // Neither side goes on by itself: who does is decided outside of CRIU. A restored tree stays as it is when CRIU, its
  // parent, ends, because its root leads a session of its own (SIGHUP is for stopped orphans of the parent's session).
  fields.push(options.leave === "running" ? [3, true] : [69, true]); // leave_running, leave_stopped
  if (options.pid !== undefined) fields.push([2, options.pid]);
  if (options.parentDir !== undefined) fields.push([14, options.parentDir], [15, true]); // parent_img, track_mem
  if (options.timeoutSeconds !== undefined) fields.push([45, options.timeoutSeconds]);
  for (const external of options.external ?? []) fields.push([37, external]);
  for (const inherit of options.inheritFds ?? [])
    fields.push([
      27,
      [
        [1, inherit.key],
        [2, inherit.fd],
      ],
    ]);
  return fields;
}

export function decodeResponse(bytes: Buffer): CriuResponse {
  const response: CriuResponse = {
    type: -1,
    success: false,
    notify: null,
    errno: 0,
    message: "",
    tracksMemory: false,
    version: "",
  };
  for (const field of decodeFields(bytes)) {
    if (field.number === 1) response.type = Number(field.varint);
    else if (field.number === 2) response.success = field.varint === 1n;
    else if (field.number === 5) response.notify = firstString(field.bytes, 1);
    else if (field.number === 7) response.errno = Number(BigInt.asIntN(32, field.varint));
    else if (field.number === 8) response.tracksMemory = firstVarint(field.bytes, 1) === 1;
    else if (field.number === 9) response.message = field.bytes.toString("utf8");
    else if (field.number === 10) response.version = decodeVersion(field.bytes);
  }
  if (response.type === -1) throw fail("CRIU_PROTOCOL", "CRIU answered without a type");
  return response;
}

export interface DumpStats {
  /** microseconds, as CRIU measured them */
  freezingUs: number;
  frozenUs: number;
  memdumpUs: number;
  memwriteUs: number;
  pagesWritten: number;
}
export interface RestoreStats {
  forkingUs: number;
  restoreUs: number;
  pagesRestored: number;
}

/** Reads a `stats-dump` or `stats-restore` image: two magics, u32 LE length, one StatsEntry. */
export function decodeStats(image: Buffer): { dump: DumpStats | null; restore: RestoreStats | null } {
  const serviceMagic = 0x55105940;
  const statsMagic = 0x57093306;
  if (image.length < 12 || image.readUInt32LE(0) !== serviceMagic || image.readUInt32LE(4) !== statsMagic) {
    throw fail("CRIU_STATS_INVALID", "not a CRIU stats image");
  }
  const entry = image.subarray(12, 12 + image.readUInt32LE(8));
  const stats: { dump: DumpStats | null; restore: RestoreStats | null } = { dump: null, restore: null };
  for (const field of decodeFields(entry)) {
    const value = (number: number): number => firstVarint(field.bytes, number) ?? 0;
    if (field.number === 1) {
      stats.dump = {
        freezingUs: value(1),
        frozenUs: value(2),
        memdumpUs: value(3),
        memwriteUs: value(4),
        pagesWritten: value(7),
      };
    } else if (field.number === 2) {
      stats.restore = { forkingUs: value(3), restoreUs: value(4), pagesRestored: value(5) };
    }
  }
  return stats;
}

function firstVarint(bytes: Buffer, number: number): number | null {
  const field = decodeFields(bytes).find((candidate) => candidate.number === number);
  return field === undefined ? null : Number(field.varint);
}

function decodeVersion(bytes: Buffer): string {
  const part = (number: number): number => firstVarint(bytes, number) ?? 0;
  const [major, minor, sublevel] = [part(1), part(2), part(4)];
  return `${major}.${minor}${sublevel === 0 ? "" : `.${sublevel}`}`;
}

function firstString(bytes: Buffer, number: number): string | null {
  return (
    decodeFields(bytes)
      .find((field) => field.number === number)
      ?.bytes.toString("utf8") ?? null
  );
}
