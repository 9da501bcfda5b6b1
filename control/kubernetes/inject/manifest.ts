/**
 * Manifests: YAML of several documents, or JSON, in which pods and the templates of pods are changed and everything else is left as it
 * is written, comments too.
 *
 * What a scalar means is what it means to kubectl (YAML 1.1 as sigs.k8s.io/yaml reads it): 0644 is octal, yes is true.
 */
import { type Document, isMap, isSeq, type Node, parseAllDocuments, type ScalarTag, visit } from "yaml";
import type * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Outcome } from "./inject.ts";
import { type Operation, patchOf, stepsOf } from "./json-patch.ts";
import { neverMoves, ownedBy } from "./obstacles.ts";
import { type Pod, podSchema } from "./pod.ts";

type Place = (string | number)[];

/** Something about one object: "document 2, Deployment chat", and what is said of it. */
export interface Remark {
  where: string;
  message: string;
}

export interface EditedManifest {
  /** the documents with their comments */
  yaml: string;
  /** what they are */
  objects: unknown[];
  /** pods and templates that were changed */
  changed: number;
  /** pods and templates that stay as they are, and warnings */
  notes: Remark[];
  refused: Remark[];
}

const ALIASES_MAX = 100;
/** Where a kind has its template, by API group and kind. */
const TEMPLATES: Record<string, Place> = {
  "/Pod": [],
  "/ReplicationController": ["spec", "template"],
  "apps/Deployment": ["spec", "template"],
  "apps/ReplicaSet": ["spec", "template"],
  "apps/StatefulSet": ["spec", "template"],
  "apps/DaemonSet": ["spec", "template"],
  "batch/Job": ["spec", "template"],
  "batch/CronJob": ["spec", "jobTemplate", "spec", "template"],
};

const octal: ScalarTag = {
  tag: "tag:yaml.org,2002:int",
  default: true,
  format: "OCT",
  identify: (value) => Number.isInteger(value),
  test: /^[-+]?0[0-7]+$/,
  resolve: (text) => Number.parseInt(text, 8),
  stringify: ({ source, value }) => source ?? String(value),
};
const wordOfTruth: ScalarTag = {
  tag: "tag:yaml.org,2002:bool",
  default: true,
  format: "WORD",
  identify: (value) => typeof value === "boolean",
  test: /^(?:[Yy]es|YES|[Oo]n|ON|[Nn]o|NO|[Oo]ff|OFF)$/,
  resolve: (text) => /^(yes|on)$/i.test(text),
  stringify: ({ source, value }) => source ?? String(value),
};

/** @param edit {@link inject} or {@link uninject}. @throws HoldfastError `MANIFEST_INVALID`: document and field first */
export function editManifest(text: string, edit: (pod: Pod) => Outcome): EditedManifest {
  const edited: EditedManifest = { yaml: "", objects: [], changed: 0, notes: [], refused: [] };
  const parts: string[] = [];
  let end = 0;
  for (const [index, document] of documentsIn(text).entries()) {
    const where = `document ${index + 1}`;
    const value = contentOf(document, where);
    const source = text.slice(end, document.range[2]);
    end = document.range[2];
    if (value === null || value === undefined) continue;
    const before = edited.changed;
    const after = editObject(value, [], where, edit, edited);
    edited.objects.push(after);
    parts.push(edited.changed === before ? sourceOf(source) : rewritten(document, value, after));
  }
  edited.yaml = parts.map((part) => `${part.trim()}\n`).join("---\n");
  return edited;
}

function documentsIn(text: string): Document.Parsed[] {
  const documents = parseAllDocuments(text, {
    logLevel: "silent",
    merge: true,
    customTags: (tags) => [octal, wordOfTruth, ...tags],
  });
  return "empty" in documents ? [] : documents;
}

function contentOf(document: Document.Parsed, where: string): unknown {
  const [error] = document.errors;
  try {
    if (error !== undefined) throw new Error((error.message.split("\n")[0] ?? "").replace(/:$/, ""));
    return document.toJS({ maxAliasCount: ALIASES_MAX }) as unknown;
  } catch (cause) {
    throw invalid(where, `not YAML: ${messageOf(cause)}`);
  }
}

/** The object with its pods edited; itself where nothing is changed. */
function editObject(
  value: unknown,
  at: Place,
  where: string,
  edit: (pod: Pod) => Outcome,
  edited: EditedManifest,
): unknown {
  const object = value as { apiVersion?: unknown; kind?: unknown; metadata?: { name?: unknown } | null };
  if (typeof value !== "object" || value === null || typeof object.kind !== "string")
    throw invalid(
      where,
      `${at.length === 0 ? "" : `${shown(at)}: `}expected an object of Kubernetes with apiVersion and kind`,
    );
  const { kind } = object;
  const group = groupOf(object.apiVersion);
  const items = (value as { items?: unknown }).items;
  if (kind.endsWith("List") && Array.isArray(items)) {
    const after = items.map((item, index) => editObject(item, [...at, "items", index], where, edit, edited));
    return after.every((item, index) => item === items[index]) ? value : { ...value, items: after };
  }
  const place = TEMPLATES[`${group}/${kind}`];
  if (place === undefined) return value;
  const name = typeof object.metadata?.name === "string" ? ` ${object.metadata.name}` : "";
  const who = `${where}, ${kind}${name}`;
  const reason = neverMoves(kind);
  if (reason !== null) {
    edited.notes.push({ where: who, message: ownedBy(kind, reason) });
    return value;
  }
  const pod = valueAt(value, place);
  const parsed = podSchema.safeParse(pod);
  if (!parsed.success) throw badShape(parsed.error.issues[0] as z.core.$ZodIssue, [...at, ...place], who);
  // unparsed: what the schema does not know keeps its place
  const outcome = edit(pod as Pod);
  if (outcome.kind === "injected") {
    edited.changed++;
    edited.notes.push(...outcome.warnings.map((message) => ({ where: who, message })));
    return withValueAt(value, place, outcome.pod);
  }
  if (outcome.kind === "unchanged") edited.notes.push({ where: who, message: outcome.reason });
  else {
    const { at: field, message } = outcome.problem;
    edited.refused.push({
      where: who,
      message: `${shown([...at, ...place])}${place.length + at.length > 0 ? "." : ""}${field}: ${message}`,
    });
  }
  return value;
}

/** "apps" of "apps/v1", "" of "v1" */
function groupOf(apiVersion: unknown): string {
  const [group, version] = String(apiVersion).split("/");
  return version === undefined ? "" : (group ?? "");
}

function valueAt(value: unknown, place: Place): unknown {
  return place.reduce<unknown>(
    (at, step) => (at as Record<string, unknown> | null | undefined)?.[step],
    value,
  );
}

function withValueAt(value: unknown, [step, ...rest]: Place, inner: unknown): unknown {
  if (step === undefined) return inner;
  const object = value as Record<string, unknown>;
  return { ...object, [step]: withValueAt(object[step], rest, inner) };
}

/** As it is written, with the comments before it and without the lines that begin it. */
function sourceOf(text: string): string {
  return text.replace(/^\s*(%[^\n]*\n)*---[ \t]*(\n|$)/, "");
}

/** As few changes to what is written as there are to what it means. */
function rewritten(document: Document.Parsed, before: unknown, after: unknown): string {
  let hasAliases = false;
  visit(document, {
    Alias: () => {
      hasAliases = true;
      return visit.BREAK;
    },
  });
  // an alias stands for a node elsewhere, which is not to be changed with it
  if (hasAliases) document.contents = document.createNode(after) as never;
  else for (const operation of patchOf(before, after)) applyTo(document, operation);
  return document.toString({ lineWidth: 0, directives: false });
}

function applyTo(document: Document.Parsed, operation: Operation): void {
  const steps = stepsOf(operation.path);
  const last = steps.pop() ?? "";
  const parent = steps.reduce<unknown>((at, step) => {
    if (isSeq(at)) return at.items[Number(step)];
    return isMap(at) ? at.get(step, true) : undefined;
  }, document.contents as Node);
  if (isSeq(parent)) {
    const index = last === "-" ? parent.items.length : Number(last);
    if (operation.op === "remove") parent.items.splice(index, 1);
    else parent.items.splice(index, operation.op === "add" ? 0 : 1, document.createNode(operation.value));
  } else if (isMap(parent)) {
    if (operation.op === "remove") parent.delete(last);
    else parent.set(last, document.createNode(operation.value));
  }
}

function badShape(issue: z.core.$ZodIssue, at: Place, who: string): HoldfastError {
  const path = [...at, ...(issue.path as Place)];
  const message = issue.message.startsWith("expected") ? issue.message : "expected what Kubernetes has there";
  return invalid(who, `${path.length === 0 ? "" : `${shown(path)}: `}${message}`);
}

function shown(place: Place): string {
  return place
    .map((step, index) => (typeof step === "number" ? `[${step}]` : `${index === 0 ? "" : "."}${step}`))
    .join("");
}

function invalid(where: string, message: string): HoldfastError {
  return fail("MANIFEST_INVALID", `${where}: ${message}`);
}
