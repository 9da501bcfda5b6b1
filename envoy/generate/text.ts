/** What is printed of what a policy comes to: YAML with the reasons as comments, or JSON. Pure. */
import { isMap, isNode, isScalar, type Node, Document as YamlDocument } from "yaml";
import type { Document, Mark, Rendered } from "./resource.ts";

const WIDTH = 140;

/** For kubectl (or Envoy, which reads it alike): one document after the other. */
export function yamlOf({ documents, marks }: Rendered, namespace: string): string {
  const head = marks.map((mark) => markText(mark, namespace).replace(/^/gm, "# ")).join("\n#\n");
  const texts = documents.map(documentText);
  return `${head === "" ? "" : `${head}\n`}${texts.join("---\n")}`;
}

/** One object, a List of several. */
export function jsonOf({ documents }: Rendered): string {
  const objects = documents.map(({ object }) => object);
  const one = objects.length === 1 ? objects[0] : { apiVersion: "v1", kind: "List", items: objects };
  return `${JSON.stringify(one)}\n`;
}

/** What is to be put on an object that is there already, and how. */
export function markText({ on, name, labels, annotations, fields, why }: Mark, namespace: string): string {
  const pairs = (all: Record<string, string>) =>
    Object.entries(all).map(([key, value]) => `  ${key}: ${value.includes("{") ? `'${value}'` : value}`);
  const lines: string[] = [];
  if (annotations !== undefined)
    lines.push(
      `Annotations of the pods, in the template that they are made of; they hold for pods that are made then:`,
      ...pairs(annotations),
    );
  if (labels !== undefined)
    lines.push(
      `kubectl -n ${namespace} label --overwrite ${on} ${name} ${Object.entries(labels)
        .map(([key, value]) => `${key}=${value}`)
        .join(" ")}`,
    );
  if (fields !== undefined) lines.push(`In the rules of HTTPRoute ${name}: ${JSON.stringify(fields)}`);
  return [...lines, why].join("\n");
}

function documentText({ object, reasons }: Document): string {
  // kubectl reads YAML 1.1, in which a bare yes, on or 1_000 is no string
  const document = new YamlDocument(object, { aliasDuplicateObjects: false, compat: "yaml-1.1" });
  for (const { path, text } of reasons) {
    const node = commented(document, path);
    if (node !== null) node.commentBefore = text.replace(/^/gm, " ");
  }
  return document.toString({ lineWidth: WIDTH, flowCollectionPadding: true });
}

/** A key's comment stands before the key; that of an item before it. */
function commented(document: YamlDocument, path: (string | number)[]): Node | null {
  const last = path.at(-1);
  const parent = document.getIn(path.slice(0, -1), true);
  if (typeof last === "string" && isMap(parent)) {
    const pair = parent.items.find(({ key }) => isScalar(key) && key.value === last);
    return isScalar(pair?.key) ? pair.key : null;
  }
  const item = document.getIn(path, true);
  return isNode(item) ? item : null;
}
