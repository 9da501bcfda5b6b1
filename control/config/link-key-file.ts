/**
 * Keys of links alone, for gateways that are not to have the key that nodes share: a line for each key, `WORKLOAD HEX`. Of several lines of a
 * workload the first is what it dials with, as in the nodes' key file. Empty lines and those that begin with # do not count. Made by
 * `holdfast keys links`.
 */
import { readFileSync } from "node:fs";
import { KEY_BYTES, KEYS_MAX, linkKeysOf, type SharedKeys } from "#proxy/contract/shared-keys.ts";
import { checkSecretFile, readKeyFile } from "./key-file.ts";

const FILE_BYTES_MAX = 1_048_576;

/** Where a gateway has its keys from: the file that nodes share, or one of links alone. */
export interface LinkKeySource {
  kind: "key" | "linkKeys";
  path: string;
}

/** @throws Error one line: what is expected, what was found, and the cure */
export function readLinkKeys(
  { kind, path }: LinkKeySource,
  workloads: readonly string[],
): ReadonlyMap<string, SharedKeys> {
  if (kind === "key") {
    const shared = readKeyFile(path);
    return new Map(workloads.map((workload) => [workload, linkKeysOf(shared, workload)]));
  }
  checkSecretFile(path, FILE_BYTES_MAX, "a file with a line `WORKLOAD HEX` for each key");
  const found = parseLines(readFileSync(path, "latin1"), path);
  return new Map(
    workloads.map((workload) => {
      const [first, ...others] = found.get(workload) ?? [];
      if (first === undefined)
        throw new Error(
          `expected a key of workload ${workload}, which clients are led to: \`holdfast keys links ${workload} --key FILE\`, on a node, prints it for ${path}`,
        );
      if (others.length >= KEYS_MAX)
        throw new Error(`workload ${workload} has ${others.length + 1} keys, at most ${KEYS_MAX} are read`);
      return [workload, [first, ...others]];
    }),
  );
}

/** What goes into such a file. */
export function linkKeyLines(shared: SharedKeys, workloads: readonly string[]): string {
  return workloads
    .flatMap((workload) => linkKeysOf(shared, workload).map((key) => `${workload} ${key.toString("hex")}\n`))
    .join("");
}

function parseLines(text: string, path: string): Map<string, Buffer[]> {
  const found = new Map<string, Buffer[]>();
  const expected = new RegExp(`^([a-z0-9.-]{1,63})\\s+([0-9A-Fa-f]{${KEY_BYTES * 2}})$`);
  for (const [index, whole] of text.split("\n").entries()) {
    const line = whole.trim();
    if (line === "" || line.startsWith("#")) continue;
    const [, workload, hex] = expected.exec(line) ?? [];
    if (workload === undefined || hex === undefined)
      throw new Error(
        `expected lines \`WORKLOAD HEX\` with ${KEY_BYTES * 2} hex digits, line ${index + 1} of ${path} is another`,
      );
    found.set(workload, [...(found.get(workload) ?? []), Buffer.from(hex, "hex")]);
  }
  return found;
}
