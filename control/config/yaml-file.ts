/** A configuration file of ours: YAML in, what its schema makes of it out. Every mistake is one line, `FILE: PATH: expected …, got …`. */
import { readFileSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { parseDocument } from "yaml";
import type * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { KEY_BYTES, type SharedKeys } from "#proxy/contract/shared-keys.ts";
import { readKeyFile } from "./key-file.ts";

const FILE_BYTES_MAX = 1_048_576;

/** Throws `CONFIG_INVALID` with the path of the key. */
export type Refuse = (at: string, message: string) => never;

/** @throws HoldfastError `CONFIG_INVALID` */
export function readFile(fileName: string): string {
  try {
    const { size } = statSync(fileName);
    if (size > FILE_BYTES_MAX) throw new Error(`it has ${size} bytes, at most ${FILE_BYTES_MAX} are read`);
    return readFileSync(fileName, "utf8");
  } catch (cause) {
    throw invalid(fileName, "", `cannot be read: ${messageOf(cause)}`, cause);
  }
}

/** @param fileName for messages. @throws HoldfastError `CONFIG_INVALID` */
export function parseFile<T>(schema: z.ZodType<T>, contents: string, fileName: string): T {
  return parseObject(schema, parseYaml(contents, fileName), fileName);
}

/** @param where for messages. @throws HoldfastError `CONFIG_INVALID` */
export function parseObject<T>(schema: z.ZodType<T>, raw: unknown, where: string): T {
  const parsed = schema.safeParse(raw);
  if (parsed.success) return parsed.data;
  const { at, message } = describeIssue(parsed.error.issues[0] as z.core.$ZodIssue, raw);
  throw invalid(where, at, message);
}

/** @throws HoldfastError `CONFIG_INVALID` */
export function parseYaml(contents: string, fileName: string): unknown {
  try {
    const document = parseDocument(contents, { logLevel: "silent" });
    const [error] = document.errors;
    // The parser's message goes on for several lines with a drawing of the place.
    if (error) throw new Error((error.message.split("\n")[0] ?? "").replace(/:$/, ""));
    return document.toJS({ maxAliasCount: 100 }) as unknown;
  } catch (cause) {
    throw invalid(fileName, "", `not YAML: ${messageOf(cause)}`, cause);
  }
}

function describeIssue(issue: z.core.$ZodIssue, raw: unknown): { at: string; message: string } {
  if (issue.code === "unrecognized_keys") {
    return { at: formatPath([...issue.path, issue.keys[0] ?? ""]), message: "unknown key" };
  }
  const at = formatPath(issue.path);
  if (issue.code === "invalid_key") {
    const inner = issue.issues[0]?.message ?? "";
    return { at, message: inner.startsWith("expected") ? inner : "expected a name without spaces or =" };
  }
  const value = valueAt(raw, issue.path);
  // A store's address may hold a password.
  if (at === "store" && value !== undefined) return { at, message: issue.message };
  return { at, message: `${issue.message}, got ${show(value)}` };
}

function valueAt(raw: unknown, steps: PropertyKey[]): unknown {
  let value = raw;
  for (const step of steps) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, step)) return undefined;
    value = (value as Record<PropertyKey, unknown>)[step];
  }
  return value;
}

function show(value: unknown): string {
  if (value === undefined || value === null) return "nothing";
  if (Array.isArray(value)) return value.length === 0 ? "an empty list" : "a list";
  if (typeof value === "object") return "a mapping";
  const shown = typeof value === "string" ? JSON.stringify(value) : String(value);
  return shown.length > 80 ? `${shown.slice(0, 80)}…` : shown;
}

function formatPath(steps: PropertyKey[]): string {
  return steps.reduce<string>((so, step) => {
    if (typeof step === "number") return `${so}[${step}]`;
    const key = String(step);
    const plain = /^[\w-]{1,60}$/.test(key) ? key : JSON.stringify(key.slice(0, 60));
    return so === "" ? plain : `${so}.${plain}`;
  }, "");
}

export function keyFileOf(key: string, fileName: string): string {
  return beside(fileName, key.slice("file:".length));
}

/** A path that is not absolute belongs to the folder of the configuration. */
export function beside(fileName: string, path: string): string {
  return resolve(dirname(fileName), path);
}

export function readKeys(key: string, fileName: string, fail: Refuse, at = "key"): SharedKeys {
  try {
    return readKeyFile(keyFileOf(key, fileName));
  } catch (error) {
    const isSystems = (error as NodeJS.ErrnoException).code !== undefined;
    return fail(at, `${isSystems ? `expected a file with ${KEY_BYTES} bytes: ` : ""}${messageOf(error)}`);
  }
}

export function invalid(fileName: string, at: string, message: string, cause?: unknown): HoldfastError {
  return fail("CONFIG_INVALID", [fileName, at, message].filter((part) => part !== "").join(": "), { cause });
}
