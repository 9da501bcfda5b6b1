/**
 * Passwords of a host that a container is shown (shadow(5), gshadow(5)). The accounts are there, as sshd and others want them,
 * and nobody can log in by password or try one out: copies without the hashes stand in the container's writable layer. What an
 * application does to such a copy, even deleting it, does not bring back the file below.
 */
import { chmodSync, chownSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

const FILES = ["/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-"];
const MODE_BITS = 0o7777;

/** @param layer host path of a writable layer that nobody uses yet, over the host's own root */
export function hidePasswords(layer: string): void {
  for (const file of FILES) {
    const found = statSync(file, { throwIfNoEntry: false });
    if (found?.isFile() !== true) continue;
    const folder = statSync(dirname(file));
    const above = join(layer, dirname(file));
    mkdirSync(above, { recursive: true });
    chmodSync(above, folder.mode & MODE_BITS);
    chownSync(above, folder.uid, folder.gid);
    const copy = join(layer, file);
    writeFileSync(copy, withoutPasswords(readFileSync(file, "utf8")), { mode: 0o600 });
    chownSync(copy, found.uid, found.gid);
    chmodSync(copy, found.mode & MODE_BITS);
  }
}

/** Pure: each account with `*` in the place of its password, which no password matches. */
export function withoutPasswords(text: string): string {
  return text.replace(/^([^:\n]*):[^:\n]*/gm, "$1:*");
}
