/** By which programs an application is started in its container: they are put there for that, and none of them stays. Pure. */

export interface Launcher {
  /** in the container, with {@link LAUNCHERS} and {@link SUBREAPER} */
  folder: string;
  /** a C library for those, as the container may have none */
  loader: string;
  libraryPath: string;
  subreaper: boolean;
}

/** Programs that start an application: name in the launcher's folder → where Debian has it. */
export const LAUNCHERS = { setsid: "/usr/bin/setsid", nice: "/usr/bin/nice" } as const;
/** {@link subreaperProgram} there */
export const SUBREAPER = "subreaper";

/**
 * `setsid --fork` leaves it to the container's init as a child. nice(1) changes nothing: it looks for the command where execvp(3) does, and says
 * what is wrong with it.
 */
export function launchArgs(
  args: readonly string[],
  { folder, loader, libraryPath, subreaper }: Launcher,
): string[] {
  const run = (name: keyof typeof LAUNCHERS, ...own: string[]): string[] => [
    ...[loader, "--library-path", libraryPath, `${folder}/${name}`],
    ...own,
  ];
  const first = subreaper ? [`${folder}/${SUBREAPER}`, ...run("nice", "-n", "0", "--")] : [];
  return [...run("setsid", "--fork", "--"), ...first, ...args];
}
