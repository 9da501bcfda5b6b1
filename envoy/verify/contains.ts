/** Whether what was merged into a message is there. Pure. Source: protobuf's Merge: scalars replaced, lists appended, zeros left out. */
import { asObject, type Json, type JsonObject } from "../config-dump.ts";

/** names of enum values that are 0, of the enums that mesh patches touch */
const ZEROS: ReadonlySet<string> = new Set([
  "ROUND_ROBIN",
  "AUTO",
  "V1",
  "DEFAULT",
  "UNKNOWN",
  "HTTP1",
  "STRING",
  "APPEND_IF_EXISTS_OR_ADD",
]);

export interface Difference {
  /** as `load_assignment.endpoints` */
  path: string;
  wanted: Json;
  found: Json | undefined;
  /** a merge cannot have set it */
  isZero: boolean;
}

/** @returns where `found` does not have what `wanted` has */
export function differences(wanted: Json, found: Json | undefined, path = ""): Difference[] {
  const wants = asObject(wanted);
  if (wants !== null) {
    const has = asObject(found);
    if (has === null)
      return found === undefined && Object.keys(wants).length === 0 ? [] : [difference(wanted, found, path)];
    return Object.entries(wants).flatMap(([key, value]) =>
      differences(value, fieldOf(has, key), path === "" ? key : `${path}.${key}`),
    );
  }
  if (Array.isArray(wanted)) {
    const list = Array.isArray(found) ? found : [];
    const isThere = wanted.every((one) => list.some((other) => differences(one, other).length === 0));
    return isThere ? [] : [difference(wanted, found, path)];
  }
  if (found === undefined && isZero(wanted, path)) return [];
  return isSame(wanted, found) ? [] : [difference(wanted, found, path)];
}

/** By its name in protobuf or in its JSON. */
export function fieldOf(object: JsonObject, key: string): Json | undefined {
  return object[key] ?? object[camel(key)] ?? object[snake(key)];
}

function difference(wanted: Json, found: Json | undefined, path: string): Difference {
  return { path, wanted, found, isZero: isZero(wanted, path) };
}

/** A type is one of a oneof, whose zero is told apart from nothing. */
function isZero(wanted: Json, path: string): boolean {
  if (path === "type") return false;
  return (
    wanted === null ||
    wanted === 0 ||
    wanted === false ||
    wanted === "" ||
    (typeof wanted === "string" && ZEROS.has(wanted))
  );
}

/** Envoy writes 64-bit numbers as strings, and durations without needless zeros. */
function isSame(wanted: Json, found: Json | undefined): boolean {
  if (found === undefined) return false;
  const text = (value: Json): string =>
    typeof value === "string"
      ? value.replace(/^(\d+)(\.\d*?)?0*s$/, "$1$2s").replace(/\.s$/, "s")
      : String(value);
  return text(wanted) === text(found);
}

function camel(key: string): string {
  return key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

function snake(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
