/** What a workload's container is like, from where its files come from, what is to run, and what nobody is to see. */
import { realpathSync } from "node:fs";
import { join, relative } from "node:path";
import type { OciSpec } from "../oci.ts";
import type { StandbyOptions } from "../runtime.ts";
import type { LoadedRootfs } from "./rootfs.ts";
import { adaptSpec, buildSpec } from "./spec.ts";

type SpecInput = LoadedRootfs & Pick<StandbyOptions, "criuDir" | "workload" | "secrets">;

/** What a container of the workload would be like; paths of an instance are not in it yet. */
export function plannedSpec(options: SpecInput): OciSpec {
  return specOf(options, "", "/");
}

export function specOf(options: SpecInput, id: string, runDir: string): OciSpec {
  const specOptions = {
    container: options.container,
    rootfs: join(runDir, "rootfs"),
    isHostView: options.rootfs.lower === "/",
    runDir,
    criuDir: options.criuDir,
    hostname: options.workload,
    secrets: options.secrets.flatMap((path) => [
      ...seenBelow(options.rootfs.lower, "/", path),
      ...options.container.mounts.flatMap(({ source, target }) => seenBelow(source, target, path)),
    ]),
    cgroupsPath: cgroupsPathOf(id),
  };
  return options.rootfs.bundle === null
    ? buildSpec(specOptions)
    : adaptSpec(specOptions, options.rootfs.bundle);
}

/** Where a container that has the host's `source` at `target` has a host path. */
function seenBelow(source: string, target: string, path: string): string[] {
  const below = relative(realPath(source), path);
  return below.startsWith("../") || below === ".." ? [] : [join(target, below)];
}

/** The path itself where there is nothing. */
function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}

export function cgroupsPathOf(id: string): string {
  return `/holdfast/${id}`;
}
