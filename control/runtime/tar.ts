/**
 * tar(1) at work on a container's files, in its mount namespace: a link that the application has put in the way then leads to
 * a file of the container, as it does for the application, and never to one of the host. Of the container's own programs
 * and libraries none takes part: tar, its libraries and their loader are inherited as a descriptor, which is a mount that
 * is seen nowhere.
 *
 * Nor does a link by way of /proc lead it to what belongs to another process (CRIU's folder of images, `/proc/N/cwd`): of root's powers it
 * keeps those over files, and the kernel shows a process to one with other capabilities only where that can trace (ptrace(2),
 * "Ptrace access mode checking"). It gives them up inside: nsenter(1) needs some.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import { joinThenExec } from "../criu/join-cgroups.ts";
import { SealedCriu, withoutHostFolders } from "../criu/sealed.ts";
import { runCommand } from "./command.ts";

const TAR = "/usr/bin/tar";
const SETPRIV = "/usr/bin/setpriv";
const FOLDER_FD = 3;
const PROGRAM_FD = 4;
/** sys_admin: attributes of trusted.* (xattr(7)), which a layer's opaque folders have */
const POWERS = "-all,+chown,+dac_override,+dac_read_search,+fowner,+fsetid,+mknod,+setfcap,+sys_admin";
const PRIVILEGES = [
  "--bounding-set",
  POWERS,
  "--inh-caps",
  "-all",
  "--ambient-caps",
  "-all",
  "--no-new-privs",
];

let sealed: Promise<number> | undefined;

/**
 * Starts tar with its working directory at `folder`, in the mount and PID namespaces (its /proc shows the descriptors) of
 * process `initPid`; null: in ours.
 * @param folder a descriptor, which the caller may close when this has resolved
 * @param cgroupProcs `cgroup.procs` files of the groups that pay for what it writes; where they have no memory, it is what the kernel ends
 * @throws HoldfastError `FILES_TOOL`
 */
export async function startTar(
  initPid: number | null,
  folder: number,
  args: string[],
  cgroupProcs: readonly string[] = [],
): Promise<ChildProcess> {
  sealed ??= seal();
  const program = await sealed.catch((error: unknown) => {
    sealed = undefined;
    throw error;
  });
  const inside = `/proc/self/fd/${PROGRAM_FD}`;
  const load = [`${inside}/loader`, "--inhibit-cache", "--library-path", inside];
  const command = [
    "/usr/bin/nsenter",
    ...(initPid === null ? [] : ["-t", String(initPid), "-m", "-p"]),
    `--wd=/proc/self/fd/${FOLDER_FD}`,
    "--",
    ...load,
    `${inside}/setpriv`,
    ...PRIVILEGES,
    "--",
    ...load,
    `${inside}/tar`,
    ...args,
  ];
  const child = spawn("/bin/sh", joinThenExec(cgroupProcs, command, { isVictim: true }), {
    stdio: ["pipe", "pipe", "pipe", folder, program],
    cwd: "/",
    env: { ...SealedCriu.environment, LC_ALL: "C" },
  });
  // for want of descriptors it has no pipes
  if (child.pid === undefined) throw (await once(child, "error"))[0];
  return child;
}

/** A read-only folder in memory with both programs, their libraries and the loader of these. */
async function seal(): Promise<number> {
  try {
    // "libacl.so.1 => /lib/x86_64-linux-gnu/libacl.so.1 (0x…)", and the loader without an arrow
    const listed = await runCommand("ldd", [TAR, SETPRIV], { source: "container" });
    const libraries = [...listed.matchAll(/=> (\/\S+) \(0x/g)].map((match) => match[1] ?? "");
    const loader = /^\s*(\/\S+) \(0x/m.exec(listed)?.[1];
    if (loader === undefined) throw new Error(`ldd tells of no loader: ${listed.trim().slice(0, 200)}`);
    const mount = mounts.newMount("tmpfs");
    try {
      const folder = `/proc/self/fd/${mount}`;
      const options = { mode: 0o555 };
      mkdirSync(folder, { recursive: true });
      for (const library of new Set(libraries))
        writeFileSync(`${folder}/${basename(library)}`, readFileSync(library), options);
      writeFileSync(`${folder}/loader`, withoutHostFolders(readFileSync(loader)), options);
      for (const program of [TAR, SETPRIV])
        writeFileSync(`${folder}/${basename(program)}`, readFileSync(program), options);
      mounts.setReadOnly(mount, true);
      return mount;
    } catch (error) {
      closeSync(mount);
      throw error;
    }
  } catch (cause) {
    throw fail(
      "FILES_TOOL",
      `tar cannot be taken into containers: ${messageOf(cause)}; apt-get install tar util-linux libc-bin`,
      { cause },
    );
  }
}
