/**
 * The JSON patch (RFC 6902) from one value to another: `add`, `replace` and `remove` only. Small where lists have grown at an end, which is
 * what injection does; a list that has changed otherwise is replaced whole.
 */
import { isDeepStrictEqual } from "node:util";

export type Operation =
  | { op: "add" | "replace"; path: string; value: unknown }
  | { op: "remove"; path: string };

/** Both are JSON: no undefined, no functions. */
export function patchOf(before: unknown, after: unknown, path = ""): Operation[] {
  if (isDeepStrictEqual(before, after)) return [];
  if (Array.isArray(before) && Array.isArray(after)) return ofLists(before, after, path);
  if (isObject(before) && isObject(after)) return ofObjects(before, after, path);
  return [{ op: "replace", path, value: after }];
}

/** The steps of a path: "/metadata/annotations/holdfast.dev~1ports" */
export function stepsOf(path: string): string[] {
  return path
    .split("/")
    .slice(1)
    .map((step) => step.replaceAll("~1", "/").replaceAll("~0", "~"));
}

function ofObjects(
  before: Record<string, unknown>,
  after: Record<string, unknown>,
  path: string,
): Operation[] {
  const removed = Object.keys(before).filter((key) => !Object.hasOwn(after, key));
  const changed = Object.entries(after).flatMap(([key, value]): Operation[] => {
    const at = `${path}/${escapeStep(key)}`;
    return Object.hasOwn(before, key) ? patchOf(before[key], value, at) : [{ op: "add", path: at, value }];
  });
  return [
    ...removed.map((key): Operation => ({ op: "remove", path: `${path}/${escapeStep(key)}` })),
    ...changed,
  ];
}

function ofLists(before: unknown[], after: unknown[], path: string): Operation[] {
  const more = after.length - before.length;
  if (more === 0) return before.flatMap((one, index) => patchOf(one, after[index], `${path}/${index}`));
  if (more > 0 && isDeepStrictEqual(after.slice(0, before.length), before))
    return after.slice(before.length).map((value) => ({ op: "add", path: `${path}/-`, value }));
  if (more > 0 && isDeepStrictEqual(after.slice(more), before))
    return after.slice(0, more).map((value, index) => ({ op: "add", path: `${path}/${index}`, value }));
  const removed = removedFrom(before, after);
  if (removed !== null)
    return removed.reverse().map((index): Operation => ({ op: "remove", path: `${path}/${index}` }));
  return [{ op: "replace", path, value: after }];
}

/** Indices of what is not in `after`; null: it is not what is left of `before`. */
function removedFrom(before: unknown[], after: unknown[]): number[] | null {
  const removed: number[] = [];
  let kept = 0;
  for (const [index, value] of before.entries()) {
    if (kept < after.length && isDeepStrictEqual(value, after[kept])) kept++;
    else removed.push(index);
  }
  return kept === after.length ? removed : null;
}

function escapeStep(step: string): string {
  return step.replaceAll("~", "~0").replaceAll("/", "~1");
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
