/** `holdfast inject` and `uninject`: what the webhook does to pods, to manifests on their way to kubectl. */
import { readFileSync, statSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { EXIT } from "../api/exit-status.ts";
import { type InjectOptions, inject, uninject } from "../kubernetes/inject/inject.ts";
import { type EditedManifest, editManifest } from "../kubernetes/inject/manifest.ts";
import { plain, type Terminal } from "./terminal.ts";

export type Format = "yaml" | "json";

export interface ManifestSource {
  /** "-": what comes on standard input */
  file: string;
  format: Format;
  readInput: () => Promise<string>;
}

/** of a file, or of what comes on standard input */
export const MANIFEST_BYTES_MAX = 16_777_216;

/** Prints everything that is in the file, or nothing. @throws HoldfastError `MANIFEST_INVALID`, `INJECT_REFUSED` */
export async function injectManifest(
  source: ManifestSource,
  options: InjectOptions,
  terminal: Terminal,
): Promise<number> {
  return show(
    editManifest(await read(source), (pod) => inject(pod, options)),
    source.format,
    terminal,
  );
}

/** @throws HoldfastError `MANIFEST_INVALID`, `INJECT_REFUSED` */
export async function uninjectManifest(source: ManifestSource, terminal: Terminal): Promise<number> {
  return show(editManifest(await read(source), uninject), source.format, terminal);
}

async function read({ file, readInput }: ManifestSource): Promise<string> {
  try {
    if (file === "-") return await readInput();
    const { size } = statSync(file);
    if (size > MANIFEST_BYTES_MAX)
      throw new Error(`it has ${size} bytes, at most ${MANIFEST_BYTES_MAX} are read`);
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw fail("MANIFEST_INVALID", `${file}: cannot be read: ${messageOf(cause)}`, { cause });
  }
}

/** Of a manifest that is half injected kubectl would make half of what was asked for. */
function show({ yaml, objects, notes, refused }: EditedManifest, format: Format, terminal: Terminal): number {
  const lines = (remarks: { where: string; message: string }[]): string[] =>
    remarks.map(({ where, message }) => plain(`${where}: ${message}`));
  for (const line of lines(notes)) terminal.err.write(`${line}\n`);
  if (refused.length > 0)
    throw fail(
      "INJECT_REFUSED",
      `nothing is printed, since not all can be done: ${lines(refused).join("; ")}`,
    );
  const [only] = objects;
  const object = objects.length === 1 ? only : { apiVersion: "v1", kind: "List", items: objects };
  terminal.out.write(format === "json" ? `${JSON.stringify(object)}\n` : yaml);
  return EXIT.ok;
}
