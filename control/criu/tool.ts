/**
 * Finds a CRIU that is good enough: set-up keeps one, the system's own or a newer one, with its libraries
 * and its own dynamic loader in one folder, so that it runs in any container whatever C library that has.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { type CriuTool, SealedCriu } from "./sealed.ts";

/** All paths are relative to the manifest's folder, which a container can be shown as it is. */
const manifestSchema = z.object({
  version: z.string(),
  loader: z.string(),
  libraryPath: z.string(),
  binary: z.string(),
});

export interface FoundCriu {
  version: string;
  /** host folder with CRIU, its libraries and their loader */
  dir: string;
  /** CRIU as seen by somebody to whom that folder is `prefix` */
  at(prefix: string): CriuTool;
  /** CRIU as it is started in a container: made once, and kept as long as this process lives */
  sealed(): SealedCriu;
}

/** @throws HoldfastError `CRIU_MISSING` with the cure */
export async function findCriu(cacheDir: string): Promise<FoundCriu> {
  const dir = join(cacheDir, "criu-4.2");
  const missing = (why: string, cause?: unknown): HoldfastError =>
    fail("CRIU_MISSING", `no CRIU: ${why}; run scripts/setup.sh`, { cause });
  const text = await readFile(join(dir, "manifest.json"), "utf8").catch((cause: unknown) => {
    throw missing(`${dir}/manifest.json cannot be read`, cause);
  });
  const parsed = manifestSchema.safeParse(parseJson(text));
  if (!parsed.success) throw missing(`${dir}/manifest.json is not what set-up writes`);
  const { version, loader, libraryPath, binary } = parsed.data;
  const at = (prefix: string): CriuTool => ({
    loader: join(prefix, loader),
    libraryPath: join(prefix, libraryPath),
    binary: join(prefix, binary),
  });
  let sealed: SealedCriu | undefined;
  return { version, dir, at, sealed: () => (sealed ??= SealedCriu.make(at(dir))) };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
