/** What a source writes down beside the images: it goes to the target with them, and outlives an agent. */
import { renameSync } from "node:fs";
import { join } from "node:path";
import type * as z from "zod";
import { type ErrorCode, fail } from "#proxy/contract/error-codes.ts";
import { readImage, writeImage } from "../criu/image-files.ts";
import { innerPid } from "../runtime/processes.ts";

/** Whole or not at all: what a rollback puts back is what stands there. */
export function writeBeside(imagesDir: string, file: string, value: object): void {
  const path = join(imagesDir, file);
  writeImage(`${path}.new`, JSON.stringify(value));
  renameSync(`${path}.new`, path);
}

/** null: there is none. @throws HoldfastError `code`: it is not what a source writes */
export function readBeside<T>(
  imagesDir: string,
  file: string,
  schema: z.ZodType<T>,
  code: ErrorCode,
): T | null {
  let text: string;
  try {
    text = readImage(join(imagesDir, file)).toString("utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
  const parsed = schema.safeParse(parseJson(text));
  if (parsed.success) return parsed.data;
  throw fail(code, `${file} is not what a source writes`, { cause: parsed.error });
}

/** Processes by their numbers in the container, by which a source names them. @param pids as the agent numbers them */
export async function byInnerPid(pids: number[]): Promise<Map<number, number>> {
  const found = new Map<number, number>();
  for (const pid of pids) found.set((await innerPid(pid)) ?? -1, pid);
  return found;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
