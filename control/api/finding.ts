/**
 * What `check` says: findings, each with an id that stays the same, so that scripts can allow-list one. Whatever looks for findings is given an `Add`.
 */
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";

/** error: a move is impossible until it is cured. warning: a move goes, and something about it may surprise */
export const severity = z.enum(["error", "warning"]);
export type Severity = z.infer<typeof severity>;

/** What a finding is about, as the node it was found on numbers it. */
export const subject = z.strictObject({
  pid: z.number().int().optional(),
  fd: z.number().int().optional(),
  path: z.string().max(4_096).optional(),
});
export type Subject = z.infer<typeof subject>;

/** `KIND.CASE`, in small letters, e.g. `descriptor.io-uring`, `target.config-differs.ports`. Part of the contract of the command line. */
export type FindingId = `${string}.${string}`;

export const finding = z.strictObject({
  id: z
    .string()
    .max(100)
    .regex(/^[a-z0-9-]+(\.[A-Za-z0-9_-]+)+$/)
    .transform((id) => id as FindingId),
  /** the heading it is shown under, {@link Check.category} */
  category: z.string().max(40),
  /** the node that has to be cured */
  node: z.string().max(63),
  /** null: about the node, whatever runs on it */
  workload: z.string().max(63).nullable(),
  severity,
  what: z.string().max(4_096),
  cure: z.string().max(4_096),
  subject: subject.optional(),
});
export type Finding = z.infer<typeof finding>;

/**
 * Tells of one finding.
 * @param what a clause without a full stop: "process 7 has descriptor 3 of a kind CRIU cannot dump"
 * @param cure what to do about it, in the imperative
 */
export type Add = (id: FindingId, severity: Severity, what: string, cure: string, subject?: Subject) => void;

/** Something that is looked at. What it has no finding about is said to be well. */
export interface Check<Place> {
  /** e.g. "descriptors" */
  category: string;
  run(place: Place, add: Add): Promise<void>;
}

/** What has been looked at, whether or not it has findings. */
export const checked = z.strictObject({
  node: z.string().max(63),
  workload: z.string().max(63).nullable(),
  category: z.string().max(40),
});
export type Checked = z.infer<typeof checked>;

export const checkReport = z.strictObject({
  checked: z.array(checked).max(10_000),
  findings: z.array(finding).max(10_000),
});
export type CheckReport = z.infer<typeof checkReport>;

/** A thousand workers that all have the same are one problem. */
const ALIKE_MAX = 5;

export interface Scope {
  node: string;
  workload: string | null;
}

/** The one place that runs checks, in turn. A check that throws is a finding: what was not looked at is not well. */
export async function runChecks<Place>(
  checks: Check<Place>[],
  place: Place,
  scope: Scope,
): Promise<CheckReport> {
  const report: CheckReport = { checked: [], findings: [] };
  for (const { category, run } of checks) {
    const alike = new Map<string, number>();
    const add: Add = (id, severity, what, cure, subject) => {
      const count = (alike.get(id) ?? 0) + 1;
      alike.set(id, count);
      if (count > ALIKE_MAX) return;
      report.findings.push({
        id,
        category,
        ...scope,
        severity,
        what: clipped(what),
        cure: clipped(cure),
        ...(subject === undefined ? {} : { subject }),
      });
    };
    try {
      await run(place, add);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      add("check.failed", "error", `${category} could not be looked at: ${why}`, "look at the agent's log");
    }
    for (const [id, count] of alike) {
      const last = report.findings.findLast((finding) => finding.id === id);
      if (count > ALIKE_MAX && last !== undefined)
        last.what = clipped(`${last.what} (and ${count - ALIKE_MAX} more like it)`);
    }
    if (!report.checked.some((one) => one.category === category)) report.checked.push({ ...scope, category });
  }
  return report;
}

/** A node that was asked for two workloads is told of once. */
export function merged(...reports: CheckReport[]): CheckReport {
  const once = <T>(values: T[]): T[] => [
    ...new Map(values.map((one) => [JSON.stringify(one), one])).values(),
  ];
  return {
    checked: once(reports.flatMap(({ checked }) => checked)),
    findings: once(reports.flatMap(({ findings }) => findings)),
  };
}

export function blocking(findings: Finding[]): Finding[] {
  return findings.filter((finding) => finding.severity === "error");
}

/** What passes by itself, or when what is down comes back: nothing of the application, or of a node, has to be cured first. */
const PASSING: ReadonlySet<string> = new Set([
  "application.container-ended",
  "application.ended",
  "application.not-listening",
  "check.failed",
  "descriptor.folder-half-read",
  "node.store-silent",
  "session.not-accepted",
  "session.snapshot-limit",
  "socket.backlog",
  "socket.corked",
  "socket.error-before-datagrams",
  "socket.netlink-unread",
  "socket.unix-backlog",
  "socket.unix-credentials",
  "socket.unix-descriptors",
  "socket.unix-error",
  "socket.unix-message",
  "socket.unix-one-way",
  "socket.urgent-data",
  "start.waits",
  "target.busy",
  "target.epoch-passed",
  "target.no-container",
  // its store has come back empty, and is told
  "target.other-store",
  "target.unreachable",
  // its agent sees the standby a moment later
  "target.workload-unknown",
]);

/** It is worth a second look. */
export function passes(id: FindingId): boolean {
  return PASSING.has(id);
}

/** A move that met these alone may succeed when it is tried again. */
export function areToPass(findings: readonly Pick<Finding, "id">[]): boolean {
  return findings.every(({ id }) => passes(id));
}

/** Everything that stands in the way, as one error. @param here the node whose name need not be said */
export function refuse(findings: Finding[], here: string): void {
  const inTheWay = blocking(findings);
  if (inTheWay.length === 0) return;
  const lines = inTheWay.map(
    ({ node, what, cure }) => `${node === here ? "" : `node ${node}: `}${what}: ${cure}`,
  );
  throw fail("PREFLIGHT", `cannot be moved: ${lines.join("; ")}`);
}

function clipped(text: string): string {
  return text.length > 1_000 ? `${text.slice(0, 1_000)}…` : text;
}
