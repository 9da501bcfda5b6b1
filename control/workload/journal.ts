/**
 * What an agent must know after a restart, one small file per workload, replaced atomically (rename(2)).
 *
 * It is synced to the disk, as epochs and outbox have to outlive the machine; the processes that it speaks of do not, and those of
 * an earlier boot are read as ones that have ended. While a move is under way that happens in the background: clients wait.
 *
 * Agents of several versions read it, an older one too after a downgrade. Keys that one does not know it keeps, those that are
 * missing have a default; a change that is more than another key raises {@link VERSION}.
 */
import assert from "node:assert/strict";
import {
  close,
  closeSync,
  fsync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { z } from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { type Known, movingSchema, outboxEntrySchema, processSchema } from "../migration/moving.ts";
import { bootId } from "../runtime/boot-id.ts";
import { isShortage } from "../runtime/read-text.ts";

const containerSchema = z.looseObject({
  id: z.string(),
  runDir: z.string(),
  init: processSchema,
  tmpfs: z.array(z.string()),
  /** takes its output out of the pipe */
  reader: processSchema.optional(),
});

/** How far a restart of the application has come; see `supervisor.ts`. */
const restartingSchema = z.looseObject({
  /** pausing: clients begin to wait → stopping: it may have been told to end → starting → resuming: it listens again */
  step: z.enum(["pausing", "stopping", "starting", "resuming"]),
});

const journalSchema = z.looseObject({
  role: z.enum(["none", "owner", "anchor"]),
  /** owner: at which it owns the workload; anchor: of the owner it has links to; none: at which it last had to do with it */
  epoch: z.number().int().nonnegative(),
  /** the highest at which this node has been owner */
  owned: z.number().int().nonnegative().default(0),
  /** the highest that this node knows to have been given out: never falls, whatever else is forgotten */
  seen: z.number().int().nonnegative().default(0),
  container: containerSchema.nullable().default(null),
  /** root of the application's tree; null: not looked for yet, or none */
  application: processSchema.nullable().default(null),
  proxy: z
    .looseObject({ process: processSchema, socketPath: z.string(), isSidecar: z.boolean().default(false) })
    .nullable()
    .default(null),
  /** forward: nodes whose proxies hold clients of this workload */
  anchors: z.array(z.string()).default([]),
  moving: movingSchema.nullable().default(null),
  restarting: restartingSchema.nullable().default(null),
  owed: outboxEntrySchema.nullable().default(null),
  /** set by `stop`: not to be started again by itself */
  stopped: z.boolean().default(false),
});

export type Journal = Known<z.infer<typeof journalSchema>>;
export type RestartStep = z.infer<typeof restartingSchema>["step"];

/** Of the file. An agent refuses one with a higher number, and one with a lower number than it can read: 1 has other words. */
const VERSION = 2;
const VERSION_MIN = 2;
/** No process has this number (include/linux/threads.h, PID_MAX_LIMIT is 4,194,304): what an earlier boot had has ended. */
const ENDED = { pid: 4_194_305, startTicks: "0" };

const headSchema = z.looseObject({
  role: z.string(),
  epoch: z.number(),
  /** absent: written before there were versions */
  version: z.number().int().default(1),
  boot: z.string().nullable().default(null),
});

export const EMPTY_JOURNAL: Journal = {
  role: "none",
  epoch: 0,
  owned: 0,
  seen: 0,
  container: null,
  application: null,
  proxy: null,
  anchors: [],
  moving: null,
  restarting: null,
  owed: null,
  stopped: false,
};

/**
 * @throws Error a shortage (`isShortage`), which says nothing of the file
 * @throws HoldfastError `JOURNAL_INVALID`: a file that is not ours, or damaged, must not be guessed at. It costs this workload, and
 * no other.
 */
export function readJournal(path: string): Journal {
  const damaged = (what: string, cause?: unknown): HoldfastError =>
    fail("JOURNAL_INVALID", `${path} ${what}: look at what runs on this node, then delete it`, { cause });
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return EMPTY_JOURNAL;
    if (isShortage(error)) throw error;
    throw damaged("cannot be read", error);
  }
  const raw = parseJson(text);
  // what has been in it since the first version; without it anything may be missing
  const head = headSchema.safeParse(raw);
  if (!head.success) throw damaged("is damaged");
  const { version, boot, ...rest } = head.data;
  if (version > VERSION) {
    throw fail(
      "JOURNAL_INVALID",
      `${path} was written by a newer version of Holdfast (format ${version}, this one knows ${VERSION}): start that one, and stop the workload there before going back`,
    );
  }
  // of a workload that has nothing to do with this node only epochs are known, which are called as they were
  if (version < VERSION_MIN && !isOfNothing(rest)) {
    throw fail(
      "JOURNAL_INVALID",
      `${path} was written by an older version of Holdfast (format ${version}, this one reads ${VERSION_MIN} to ${VERSION}): stop the workload with that one, delete the file, and start this one`,
    );
  }
  const isOtherBoot = boot !== null && boot !== bootId();
  const parsed = journalSchema.safeParse(isOtherBoot ? withoutProcesses(rest) : rest);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw damaged(`is damaged (${issue?.path.join(".") ?? ""}: ${issue?.message ?? ""})`);
  }
  return nextJournal({ ...EMPTY_JOURNAL, ...parsed.data }, {});
}

function isOfNothing({ role, ...rest }: { role: string } & Record<string, unknown>): boolean {
  return (
    role === "none" && ["container", "proxy", "moving", "debt"].every((key) => (rest[key] ?? null) === null)
  );
}

/** What is written next: of epochs that a node has owned or seen none is forgotten. */
export function nextJournal(before: Readonly<Journal>, patch: Partial<Journal>): Journal {
  const after = { ...before, ...patch };
  assert(
    patch.epoch === undefined || after.role !== "owner" || after.epoch >= before.owned,
    "an owner's epoch never falls below one that it has owned",
  );
  return {
    ...after,
    owned: Math.max(before.owned, after.owned, after.role === "owner" ? after.epoch : 0),
    seen: Math.max(before.seen, after.seen, after.epoch),
  };
}

export function writeJournal(path: string, journal: Journal): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const text = JSON.stringify({ version: VERSION, boot: bootId(), ...journal });
  const next = `${path}.new`;
  const file = openSync(next, "w", 0o600);
  if (journal.moving !== null) {
    try {
      writeFileSync(file, text);
      renameSync(next, path);
    } catch (error) {
      closeSync(file);
      throw error;
    }
    fsync(file, () => close(file, () => {}));
    return;
  }
  try {
    writeFileSync(file, text);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  renameSync(next, path);
  const folder = openSync(dirname(path), "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

/** Every process in it as one that has ended. */
function withoutProcesses(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutProcesses);
  if (typeof value !== "object" || value === null) return value;
  if ("pid" in value && "startTicks" in value) return { ...value, ...ENDED };
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, withoutProcesses(part)]));
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
