/**
 * Files of a container, deleted by the agent while somebody may write there: a container that shares the folder, which exchanges
 * a folder for a link at any time. A path of two components would follow that link into the agent's own root, as rm(1) of Node does.
 * So each folder is opened from the root by openat2(2), through no link, and what is in it goes by its one name there (unlink(2) and rmdir(2)
 * follow none). One folder is open at a time, however deep they are.
 */
import { closeSync, constants } from "node:fs";
import { readdir, rmdir, unlink } from "node:fs/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import * as files from "#proxy/kernel/files.ts";
import { below, nameBytes, nameText } from "./file-names.ts";
import { pathOf, using } from "./inside.ts";

const FOLDER = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/**
 * Deletes paths below `root` (a descriptor), and what is in them.
 * @throws HoldfastError `FILES_PATH` for a path that would leave it, by `..` or through a symbolic link, or that is too long to open; of the
 * kernel where somebody keeps writing there: `ENOTEMPTY`
 */
export async function removePaths(root: number, paths: string[]): Promise<void> {
  for (const path of paths) {
    const names = path.split("/");
    if (names.some((name) => name === ".." || name === "." || name === "")) throw outside(path);
    await remove(root, path);
  }
}

/** Deletes what is below `root` (a descriptor), but for some and the folders that they are in. @throws as {@link removePaths} */
export async function emptyBut(root: number, kept: readonly string[]): Promise<void> {
  const visit = async (folder: string): Promise<void> => {
    // a link on the way to what is kept leads there: it stays
    const open = (): number =>
      files.openInside(root, nameBytes(folder || "."), { flags: FOLDER, noSymlinks: true });
    for (const name of (await using(open, namesIn)) ?? []) {
      const path = folder === "" ? name : `${folder}/${name}`;
      if (kept.includes(path)) continue;
      if (kept.some((one) => one.startsWith(`${path}/`))) await visit(path);
      else await remove(root, path);
    }
  };
  await visit("");
}

async function remove(root: number, path: string): Promise<void> {
  const slash = path.lastIndexOf("/");
  const [parent, name] = [path.slice(0, Math.max(slash, 0)), path.slice(slash + 1)];
  const isFolder = await inFolder(root, parent, (folder) => unlinked(folder, nameBytes(name)));
  if (isFolder !== true) return;
  await empty(root, path);
  await inFolder(root, parent, (folder) => removed(folder, nameBytes(name)));
}

/** All that is below a folder. */
async function empty(root: number, path: string): Promise<void> {
  const folders = await inFolder(root, path, async (folder) => {
    const found: string[] = [];
    for (const name of await namesIn(folder)) if (await unlinked(folder, nameBytes(name))) found.push(name);
    return found;
  });
  if (folders === null || folders.length === 0) return;
  for (const name of folders) await empty(root, `${path}/${name}`);
  await inFolder(root, path, async (folder) => {
    for (const name of folders) await removed(folder, nameBytes(name));
  });
}

/** @returns null: it is not there */
async function inFolder<T>(
  root: number,
  path: string,
  use: (folder: string) => Promise<T>,
): Promise<T | null> {
  let fd: number;
  try {
    fd = files.openInside(root, nameBytes(path || "."), { flags: FOLDER, noSymlinks: true });
  } catch (error) {
    if ((error as HoldfastError).code === "ENOENT") return null;
    if ((error as HoldfastError).code === "ENAMETOOLONG") throw tooDeep(path, error);
    throw outside(path, error);
  }
  try {
    return await use(pathOf(fd));
  } finally {
    closeSync(fd);
  }
}

async function namesIn(folder: string): Promise<string[]> {
  return (await readdir(folder, { encoding: "buffer" })).map(nameText);
}

/** @returns true: it is a folder, and still there */
async function unlinked(folder: string, name: Buffer): Promise<boolean> {
  try {
    await unlink(below(folder, name));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EISDIR") return true; // may_delete, fs/namei.c
    if (code !== "ENOENT") throw error;
  }
  return false;
}

/** A folder that is empty; or what has come in its place. */
async function removed(folder: string, name: Buffer): Promise<void> {
  try {
    await rmdir(below(folder, name));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOTDIR") await unlinked(folder, name);
    else if (code !== "ENOENT") throw error;
  }
}

function outside(path: string, cause?: unknown): HoldfastError {
  return fail("FILES_PATH", `refused to delete outside the container: ${path.slice(0, 200)}`, { cause });
}

function tooDeep(path: string, cause: unknown): HoldfastError {
  return fail(
    "FILES_PATH",
    `folders of the container are too deep to be deleted, and no program can open them by their path: ${path.slice(0, 200)}…`,
    { cause },
  );
}
