/**
 * Code that was compiled before: most of what a process takes to start is to strip types and to compile (seen: 1.1 s of CPU for a proxy, 0.4 s with
 * what was kept). Node keeps it by the text of each file, so what has changed is compiled again.
 *
 * Sources: nodejs.org/api/module.html ("Module compile cache"); GetCacheVersionTag() in Node's src/compile_cache.cc (VERSION-ARCH-TAG-UID).
 */
import { mkdirSync, readdirSync, symlinkSync } from "node:fs";
import { enableCompileCache } from "node:module";
import { join, resolve } from "node:path";

/** of the whole installation: who may write there may write its code, too */
export const COMPILED = resolve(import.meta.dirname, "../../node_modules/.cache/holdfast");
const OF_ROOT = /-0$/;

/**
 * Of what is imported from here on. Where it cannot be read or written, nothing is kept. NODE_COMPILE_CACHE says another folder.
 * @param own where this user may write, and nobody else: it reads what root has kept by a link there. null: there is none
 */
export function keepCompiled(own: string | null = null): void {
  enableCompileCache((own === null ? null : linkedIn(own)) ?? COMPILED);
}

/** Each user has a folder of its own, whose name ends with its number; an image's is root's. */
function linkedIn(own: string): string | null {
  const uid = process.getuid?.() ?? 0;
  try {
    const names = readdirSync(COMPILED).filter((name) => name.startsWith(`${process.version}-`));
    const ofRoot = names.find((name) => OF_ROOT.test(name));
    if (ofRoot === undefined) return null;
    const name = ofRoot.replace(OF_ROOT, `-${uid}`);
    if (names.includes(name)) return null;
    const folder = join(own, "compiled");
    mkdirSync(folder, { recursive: true });
    if (!readdirSync(folder).includes(name)) symlinkSync(join(COMPILED, ofRoot), join(folder, name));
    return folder;
  } catch {
    return null; // it starts without
  }
}
