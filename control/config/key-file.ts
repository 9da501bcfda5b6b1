/**
 * The file of the keys that all nodes share: 32 bytes as they are (one key), or up to 8 lines of 64 hex digits, of which the
 * first proves and seals and all are accepted. Empty lines and those that begin with # do not count.
 */
import { readFileSync, statSync } from "node:fs";
import { KEY_BYTES, KEYS_MAX, type SharedKeys } from "#proxy/contract/shared-keys.ts";

const FILE_BYTES_MAX = 4_096;

/** @throws Error one line: what is expected, what was found, and the cure */
export function readKeyFile(path: string): SharedKeys {
  checkSecretFile(path, FILE_BYTES_MAX, `a file with ${KEY_BYTES} bytes`);
  return parseKeys(readFileSync(path), path);
}

/** @throws Error when others may read it, or it cannot be one */
export function checkSecretFile(path: string, bytesMax: number, expected: string): void {
  const found = statSync(path);
  if (!found.isFile()) throw new Error(`expected ${expected}: it is not a file`);
  if ((found.mode & 0o007) !== 0)
    throw new Error(
      `expected a file only its owner can read, got mode ${(found.mode & 0o777).toString(8)} (chmod 600 ${path})`,
    );
  if (found.size > bytesMax) throw new Error(`expected ${expected}: it has ${found.size} bytes`);
}

function parseKeys(bytes: Buffer, path: string): SharedKeys {
  if (bytes.length === KEY_BYTES) return [bytes];
  const text = bytes.toString("latin1");
  const isText = /^[\t\r\n -~]*$/.test(text);
  const lines = text.split("\n").map((line) => line.trim());
  const keys = new Map<string, Buffer>();
  for (const [index, line] of lines.entries()) {
    if (line === "" || line.startsWith("#")) continue;
    if (!isText || !/^[0-9A-Fa-f]{64}$/.test(line)) {
      const where = isText && lines.length > 2 ? `line ${index + 1} has ${line.length} characters` : "";
      throw new Error(
        `expected a file with ${KEY_BYTES} bytes or 64 hex digits, ${where || `got ${bytes.length} bytes`} (head -c 32 /dev/urandom > ${path})`,
      );
    }
    if (keys.has(line.toLowerCase())) throw new Error(`line ${index + 1} has the same key as one before it`);
    keys.set(line.toLowerCase(), Buffer.from(line, "hex"));
  }
  if (keys.size > KEYS_MAX) throw new Error(`it has ${keys.size} keys, at most ${KEYS_MAX} are read`);
  const [first, ...others] = keys.values();
  if (first === undefined)
    throw new Error(
      `expected a file with ${KEY_BYTES} bytes or 64 hex digits, got no key (head -c 32 /dev/urandom > ${path})`,
    );
  return [first, ...others];
}
