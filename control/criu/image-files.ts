/**
 * Files in the folder of images, where CRIU works: that is a mount it has in the container, and whoever gets a file of his own in there
 * must get the agent neither to follow a link into the node's files nor to wait for a fifo.
 */
import { closeSync, constants, fstatSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";

/**
 * All of a file.
 * @param path its folder is the agent's own; only the name is not trusted
 * @throws HoldfastError `IMAGE_REFUSED`: it is a link, a fifo, or another that is no regular file; of Node's: `ENOENT` …
 */
export function readImage(path: string): Buffer {
  const fd = openRegular(path);
  try {
    return readFileSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** In place of what has that name, whatever it is: nothing is written through it. Readable for root alone. @throws of Node's: `EISDIR` … */
export function writeImage(path: string, content: Buffer | string): void {
  rmSync(path, { force: true });
  // O_EXCL follows no link (open(2))
  const fd = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
  try {
    writeFileSync(fd, content);
  } finally {
    closeSync(fd);
  }
}

function openRegular(path: string): number {
  let fd: number;
  try {
    // a fifo would wait for a writer
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ELOOP") throw notRegular(path, cause);
    throw cause;
  }
  if (fstatSync(fd).isFile()) return fd;
  closeSync(fd);
  throw notRegular(path);
}

function notRegular(path: string, cause?: unknown): Error {
  return fail("IMAGE_REFUSED", `memory image refused: ${basename(path)} is no regular file`, { cause });
}
