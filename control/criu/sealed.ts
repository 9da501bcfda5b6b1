/**
 * CRIU as it is started in a container: from descriptors, and so that it takes nothing from the container's files. It has
 * every capability there, and the application may have written any file that it would look for.
 *
 * | CRIU, or its loader, would take           | instead                                                                |
 * | ----------------------------------------- | ---------------------------------------------------------------------- |
 * | loader, libraries, binary                 | inherited descriptors; the library folder is all there is              |
 * | `/etc/ld.so.preload`, default folders     | the names are struck out of a copy of the loader; `--inhibit-cache`    |
 * | `/usr/lib/criu/*.so` (plug-ins)           | `--libdir`: an empty folder                                            |
 * | `/etc/criu/default.conf`, `$HOME/.criu`   | `--no-default-config`, an environment of our own                       |
 * | `/run/criu.kdat` (its cache)              | a name in its working folder, the images, where the agent has put one  |
 * | `sh`, `iptables`, `ip`, `tar` in `$PATH`  | a PATH where nobody can put anything: dumps of ours need none of them  |
 * | `/etc/gnutls/config`                      | the library is not initialised: CRIU needs it for page servers only    |
 *
 * The descriptors are mounts that are seen nowhere: an application that gets CRIU to follow a link to them finds a public
 * program, and no way up into the host's files.
 *
 * Sources: glibc elf/rtld.c (`preload_file`), elf/dl-load.c (`system_dirs`); CRIU criu/{plugin,config,kerndat,util}.c.
 */
import { closeSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import * as mounts from "#proxy/kernel/mounts.ts";

/** A program that is started through a dynamic loader of its own (ld.so(8)), wherever that folder is to be seen. */
export interface CriuTool {
  loader: string;
  libraryPath: string;
  binary: string;
}

const LOADER = "loader";
const BINARY = "criu";
const NOTHING = "nothing";

/** CRIU's cache of what the kernel can, below the folder of the images. */
export const KERNEL_CACHE = "criu.kdat";

export class SealedCriu {
  /** a folder with the programs */
  readonly #programs: number;
  readonly #libraries: number;

  private constructor(programs: number, libraries: number) {
    this.#programs = programs;
    this.#libraries = libraries;
  }

  /** @throws HoldfastError `CRIU_UNFIT` */
  static make(tool: CriuTool): SealedCriu {
    const programs = mounts.newMount("tmpfs");
    try {
      const folder = `/proc/self/fd/${programs}`;
      mkdirSync(`${folder}/${NOTHING}`, { mode: 0o555 });
      const options = { mode: 0o555 };
      writeFileSync(`${folder}/${LOADER}`, withoutHostFolders(readFileSync(tool.loader)), options);
      writeFileSync(`${folder}/${BINARY}`, withOwnCache(readFileSync(tool.binary)), options);
      mounts.setReadOnly(programs, true);
      const libraries = mounts.openTree(tool.libraryPath);
      mounts.setReadOnly(libraries, true);
      return new SealedCriu(programs, libraries);
    } catch (cause) {
      closeSync(programs);
      throw cause instanceof HoldfastError && cause.source === "criu" ? cause : unfit(cause);
    }
  }

  /** To be inherited, in this order, by what runs {@link command}. */
  get descriptors(): number[] {
    return [this.#programs, this.#libraries];
  }

  /** @param first number that the first of {@link descriptors} has there */
  command(first: number): string[] {
    const programs = `/proc/self/fd/${first}`;
    return [
      `${programs}/${LOADER}`,
      "--inhibit-cache",
      "--library-path",
      `/proc/self/fd/${first + 1}`,
      `${programs}/${BINARY}`,
      "--no-default-config",
      "--libdir",
      `${programs}/${NOTHING}`,
    ];
  }

  /** In /proc, where no application can make a file or a folder. */
  static readonly environment: NodeJS.ProcessEnv = { PATH: "/proc/0", GNUTLS_NO_IMPLICIT_INIT: "1" };
}

/** Pure: a dynamic loader that knows no folder and no list but those it is given. One without such names stays as it is. */
export function withoutHostFolders(loader: Buffer): Buffer {
  const changed = Buffer.from(loader);
  // a name that is empty is the name of no file (path_resolution(7))
  for (const { at, text } of stringsOf(loader, /^\/etc\/ld\.so\.preload$/))
    changed.fill(0, at, at + text.length);
  // all of them end with a slash; /sys is the kernel's
  for (const { at, text } of stringsOf(loader, /^\/(usr\/)?lib(x?32|64)?\/([\w.-]+\/)?$/))
    changed.write(text.length === 5 ? "/sys/" : `/sys/${"-".repeat(text.length - 6)}/`, at, "latin1");
  return changed;
}

/** Pure: a CRIU whose cache is in its working folder. @throws HoldfastError `CRIU_UNFIT` */
export function withOwnCache(binary: Buffer): Buffer {
  const changed = Buffer.from(binary);
  const names = stringsOf(binary, /^\/[\w./-]+\/criu\.kdat$/);
  if (names.length === 0)
    throw fail(
      "CRIU_UNFIT",
      "this CRIU does not keep its cache where others do, and could read one of the application's: run scripts/setup.sh for another",
    );
  for (const { at, text } of names) changed.fill(0, at, at + text.length).write(KERNEL_CACHE, at, "latin1");
  return changed;
}

/** Strings with a zero before and behind that match. */
function stringsOf(bytes: Buffer, pattern: RegExp): { at: number; text: string }[] {
  const text = bytes.toString("latin1");
  return [...text.matchAll(/(?<=\0)\/[!-~]{4,100}(?=\0)/g)]
    .map((match) => ({ at: match.index, text: match[0] }))
    .filter((found) => pattern.test(found.text));
}

function unfit(cause: unknown): HoldfastError {
  return fail(
    "CRIU_UNFIT",
    `CRIU cannot be kept apart from containers: ${cause instanceof Error ? cause.message : String(cause)}; Linux 5.12 or newer and CAP_SYS_ADMIN are needed`,
    { cause },
  );
}
