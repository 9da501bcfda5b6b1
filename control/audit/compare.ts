/**
 * Two fingerprints of one tree: what is not the same. Pure.
 */
import type { Facts, Fingerprint } from "./fingerprint.ts";
import { type Circumstances, type Difference, harmlessRule, NOTHING_DONE } from "./harmless.ts";
import { timerDifferences } from "./timer-facts.ts";

export interface Compared {
  /** what has to be repaired, or the move rolls back */
  differences: Difference[];
  /** what cannot be kept and confines nothing: told, and known beforehand */
  losses: Difference[];
}

/**
 * In the order of the first; what is harmless left out.
 */
export function compareFingerprints(
  before: Fingerprint,
  after: Fingerprint,
  circumstances: Circumstances = NOTHING_DONE,
): Compared {
  if (before.format !== after.format) {
    const [was, is] = [String(before.format), String(after.format)];
    return {
      differences: [{ subject: "fingerprint", name: "format", before: was, after: is }],
      losses: [],
    };
  }
  const found: Difference[] = [];
  for (const subject of union(before.subjects, after.subjects)) {
    const was = before.subjects[subject];
    const is = after.subjects[subject];
    if (was === undefined || is === undefined) {
      found.push({ subject, name: "", before: nameOf(was), after: nameOf(is) });
      continue;
    }
    const moving = timerDifferences(subject, was, is, circumstances.rearmed.has(subject));
    found.push(...moving.differences);
    // A thread has only those facts that differ from its process's: what is told on one side only is the process's on the other.
    const process = /^thread (\d+)\//.exec(subject)?.[1];
    const valueIn = (of: Fingerprint, name: string): string | null =>
      of.subjects[subject]?.[name] ?? of.subjects[`process ${process}`]?.[name] ?? null;
    for (const name of union(was, is)) {
      const [first, second] = [valueIn(before, name), valueIn(after, name)];
      if (first === second || moving.names.has(name)) continue;
      found.push({ subject, name, before: first, after: second });
    }
  }
  found.push(...clocksGoneBack(before, after));
  const compared: Compared = { differences: [], losses: [] };
  for (const difference of found) {
    const rule = harmlessRule(difference, before, after, circumstances);
    if (rule === null) compared.differences.push(difference);
    else if (rule.isLoss) compared.losses.push(difference);
  }
  return compared;
}

function* union(one: Record<string, unknown>, other: Record<string, unknown>): Generator<string> {
  yield* Object.keys(one);
  for (const key of Object.keys(other)) if (!(key in one)) yield key;
}

/** What a subject that is there only once is. */
function nameOf(facts: Facts | undefined): string | null {
  return facts === undefined ? null : (facts.file ?? facts.name ?? "there");
}

/** A clock that counts from some beginning never runs backwards; the tree's own must not either. */
function clocksGoneBack(before: Fingerprint, after: Fingerprint): Difference[] {
  return (["monotonic", "boottime"] as const)
    .filter((clock) => BigInt(after.clocks[clock]) < BigInt(before.clocks[clock]))
    .map((clock) => ({
      subject: "container",
      name: `CLOCK_${clock.toUpperCase()}`,
      before: before.clocks[clock],
      after: after.clocks[clock],
    }));
}

/** How many are told in one line. */
const TOLD_MAX = 3;
const VALUE_CHARS_MAX = 120;
/** … before the first difference of two long values, and behind it at least */
const CHARS_AROUND = 40;

/** One line: process, thing, before, after. */
export function describeDifferences(differences: Difference[], before: Fingerprint): string {
  const told = differences.slice(0, TOLD_MAX).map((difference) => describe(difference, before));
  const more = differences.length - told.length;
  return `${told.join("; ")}${more > 0 ? `; and ${more} more` : ""}`;
}

function describe({ subject, name, before, after, refused }: Difference, fingerprint: Fingerprint): string {
  const [, kind = subject, inner = "", part = ""] = /^(\w+) (\d+)(?:\/(\d+))?$/.exec(subject) ?? [];
  const program = fingerprint.subjects[`process ${inner}`]?.name;
  const process = program === undefined ? `process ${inner}` : `process ${inner} (${program})`;
  const file = fingerprint.subjects[subject]?.file;
  const where =
    inner === ""
      ? kind
      : kind === "process"
        ? process
        : kind === "descriptor"
          ? `${process} descriptor ${part}${file === undefined ? "" : ` (${short(file)})`}`
          : `${process} ${kind}${part === "" ? "" : ` ${part}`}`;
  if (name === "") return before === null ? `${where} is there only after` : `${where} is gone`;
  const why = refused === undefined ? "" : ` (${refused})`;
  const at = before === null || after === null ? 0 : firstDifference(before, after);
  return `${where}: ${name} was ${valueText(before, at)} and is ${valueText(after, at)}${why}`;
}

/** @param at what has to be seen of a long one */
function valueText(value: string | null, at: number): string {
  return value === null ? "not there" : short(value === "" ? "empty" : value, at);
}

function firstDifference(one: string, other: string): number {
  let at = 0;
  while (at < one.length && one[at] === other[at]) at++;
  return at;
}

/** Its beginning; where `at` is not in that, what is around it. */
function short(text: string, at = 0): string {
  const from = at < VALUE_CHARS_MAX - CHARS_AROUND ? 0 : at - CHARS_AROUND;
  const end = from + VALUE_CHARS_MAX;
  return `${from > 0 ? "…" : ""}${text.slice(from, end)}${end < text.length ? "…" : ""}`;
}
