/** Where a workload's files come from: this host, a folder, or an OCI bundle made by others. */
import { readFile, stat } from "node:fs/promises";
import { isAbsolute, join } from "node:path";
import { z } from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import type { WorkloadConfig } from "../../config/config.ts";
import { parseExactJson } from "../exact-json.ts";
import type { OciSpec } from "../oci.ts";
import type { ContainerPlan } from "./spec.ts";

export interface WorkloadRootfs {
  /** lower folder of the overlay: "/" for `rootfs: host` */
  lower: string;
  /** an OCI configuration made by others, or null */
  bundle: OciSpec | null;
}

/** Where the files come from, and what is to run. */
export interface LoadedRootfs {
  rootfs: WorkloadRootfs;
  container: ContainerPlan;
}

/** The parts of a bundle's config.json that are relied on; everything else passes unchanged. */
const bundleSchema = z.looseObject({
  ociVersion: z.string(),
  process: z.looseObject({ args: z.array(z.string()).min(1), cwd: z.string() }),
  root: z.looseObject({ path: z.string() }),
});

const NO_CHANGE = { add: [], drop: [] };

/** @throws HoldfastError `BUNDLE_INVALID`, `ROOTFS_MISSING` */
export async function loadRootfs(config: WorkloadConfig): Promise<LoadedRootfs> {
  if (config.container !== null) {
    const { rootfs, ...container } = config.container;
    const lower = rootfs === "host" ? "/" : rootfs;
    await requireFolder(lower);
    return { rootfs: { lower, bundle: null }, container };
  }
  const folder = config.bundle ?? "";
  const file = join(folder, "config.json");
  const invalid = (why: string, cause?: unknown): HoldfastError =>
    fail("BUNDLE_INVALID", `${file} is not an OCI configuration: ${why}`, { cause });
  let parsed: unknown;
  try {
    parsed = parseExactJson(await readFile(file, "utf8"));
  } catch (cause) {
    throw invalid("it cannot be read as JSON", cause);
  }
  const checked = bundleSchema.safeParse(parsed);
  if (!checked.success) throw invalid(checked.error.issues[0]?.path.join(".") ?? "");
  const bundle = checked.data as unknown as OciSpec;
  const lower = isAbsolute(bundle.root.path) ? bundle.root.path : join(folder, bundle.root.path);
  await requireFolder(lower);
  return {
    rootfs: { lower, bundle },
    container: {
      command: bundle.process.args,
      cwd: bundle.process.cwd,
      env: {},
      mounts: [],
      capabilities: NO_CHANGE,
      network: null,
    },
  };
}

async function requireFolder(path: string): Promise<void> {
  const found = await stat(path).catch(() => null);
  if (found?.isDirectory() !== true) throw fail("ROOTFS_MISSING", `rootfs ${path} is not a folder`);
}
