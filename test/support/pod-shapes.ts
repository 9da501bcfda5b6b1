/** Pods of many shapes (`test/pods`, one file each: the pod, and what injection is to make of it), and a JSON patch applied as the API server does. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseAllDocuments } from "yaml";
import { type Operation, stepsOf } from "#control/kubernetes/inject/json-patch.ts";
import type { Pod } from "#control/kubernetes/inject/pod.ts";

const folder = resolve(import.meta.dirname, "../pods");

export interface Expected {
  patch?: Operation[];
  warnings?: string[];
  unchanged?: string;
  refused?: string;
}

export interface PodShape {
  name: string;
  file: string;
  pod: Pod;
  expected: Expected | null;
}

export function podShapes(): PodShape[] {
  return readdirSync(folder)
    .toSorted()
    .map((name) => {
      const file = join(folder, name);
      const [pod, expected = null] = parseAllDocuments(readFileSync(file, "utf8")).map((document) => {
        assert.deepEqual("errors" in document ? document.errors : [], [], name);
        return document.toJS();
      });
      return { name: name.replace(/\.yaml$/, ""), file, pod, expected };
    });
}

/** RFC 6902, the three operations that we make. @throws AssertionError where the API server refuses a patch */
export function applied(value: unknown, patch: readonly Operation[]): unknown {
  let root = structuredClone(value);
  for (const operation of patch) {
    const steps = stepsOf(operation.path);
    const last = steps.pop();
    if (last === undefined) {
      assert.ok(operation.op === "replace", "the whole is replaced, if anything");
      root = operation.value;
      continue;
    }
    const parent = steps.reduce<unknown>((at, step) => {
      assert.ok(typeof at === "object" && at !== null && Object.hasOwn(at, step), operation.path);
      return (at as Record<string, unknown>)[step];
    }, root);
    if (Array.isArray(parent)) applyToList(parent, last, operation);
    else applyToObject(parent as Record<string, unknown>, last, operation);
  }
  return root;
}

function applyToList(list: unknown[], last: string, operation: Operation): void {
  const index = last === "-" ? list.length : Number(last);
  assert.ok(Number.isInteger(index) && index >= 0, operation.path);
  assert.ok(index < list.length + (operation.op === "add" ? 1 : 0), operation.path);
  if (operation.op === "remove") list.splice(index, 1);
  else list.splice(index, operation.op === "add" ? 0 : 1, structuredClone(operation.value));
}

function applyToObject(object: Record<string, unknown>, last: string, operation: Operation): void {
  if (operation.op !== "add") assert.ok(Object.hasOwn(object, last), operation.path);
  if (operation.op === "remove") delete object[last];
  else object[last] = structuredClone(operation.value);
}
