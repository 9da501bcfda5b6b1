/**
 * tar(1) at work on a container's files, in its mount namespace: a link that the application has put in the way then leads to
 * a file of the container, as it does for the application, and never to one of the host. Of the container's own programs
 * and libraries none takes part: tar, its libraries and their loader are inherited as a descriptor, which is a mount that
 * is seen nowhere.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import { SealedCriu, withoutHostFolders } from "../criu/sealed.ts";
import { runCommand } from "./command.ts";

const TAR = "/usr/bin/tar";
const FOLDER_FD = 3;
const PROGRAM_FD = 4;

let sealed: Promise<number> | undefined;

/**
 * Starts tar with its working directory at `folder`, in the mount and PID namespaces (its /proc shows the descriptors) of
 * process `initPid`; null: in ours.
 * @param folder a descriptor, which the caller may close when this has resolved
 * @throws HoldfastError `FILES_TOOL`
 */
export async function startTar(
  initPid: number | null,
  folder: number,
  args: string[],
): Promise<ChildProcess> {
  sealed ??= seal();
  const program = await sealed.catch((error: unknown) => {
    sealed = undefined;
    throw error;
  });
  const inside = `/proc/self/fd/${PROGRAM_FD}`;
  const argv = [
    ...(initPid === null ? [] : ["-t", String(initPid), "-m", "-p"]),
    `--wd=/proc/self/fd/${FOLDER_FD}`,
    "--",
    `${inside}/loader`,
    "--inhibit-cache",
    "--library-path",
    inside,
    `${inside}/tar`,
    ...args,
  ];
  const child = spawn("/usr/bin/nsenter", argv, {
    stdio: ["pipe", "pipe", "pipe", folder, program],
    cwd: "/",
    env: { ...SealedCriu.environment, LC_ALL: "C" },
  });
  // for want of descriptors it has no pipes
  if (child.pid === undefined) throw (await once(child, "error"))[0];
  return child;
}

/** A read-only folder in memory with tar, its libraries and their loader. */
async function seal(): Promise<number> {
  try {
    // "libacl.so.1 => /lib/x86_64-linux-gnu/libacl.so.1 (0x…)", and the loader without an arrow
    const listed = await runCommand("ldd", [TAR], { source: "container" });
    const libraries = [...listed.matchAll(/=> (\/\S+) \(0x/g)].map((match) => match[1] ?? "");
    const loader = /^\s*(\/\S+) \(0x/m.exec(listed)?.[1];
    if (loader === undefined) throw new Error(`ldd tells of no loader: ${listed.trim().slice(0, 200)}`);
    const mount = mounts.newMount("tmpfs");
    try {
      const folder = `/proc/self/fd/${mount}`;
      const options = { mode: 0o555 };
      mkdirSync(folder, { recursive: true });
      for (const library of libraries)
        writeFileSync(`${folder}/${basename(library)}`, readFileSync(library), options);
      writeFileSync(`${folder}/loader`, withoutHostFolders(readFileSync(loader)), options);
      writeFileSync(`${folder}/tar`, readFileSync(TAR), options);
      mounts.setReadOnly(mount, true);
      return mount;
    } catch (error) {
      closeSync(mount);
      throw error;
    }
  } catch (cause) {
    throw fail(
      "FILES_TOOL",
      `tar cannot be taken into containers: ${messageOf(cause)}; apt-get install tar libc-bin`,
      { cause },
    );
  }
}
