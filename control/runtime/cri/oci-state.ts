/**
 * What runc or crun keeps of a pod's container (`ROOT/ID/state.json`, libcontainer's, or `ROOT/ID/status`, crun(1)). It is read as the
 * container's monitor sees it, containerd's shim or CRI-O's conmon, which is the parent of its init: the agent need not be in that mount
 * namespace, nor know which folder a runtime was given.
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { parseExactJson } from "../exact-json.ts";
import type { OciMount, OciSpec } from "../oci.ts";
import { parentOf } from "../processes.ts";

/** Where runtimes keep containers when their monitor's command line does not say it: containerd's runc, and the runtimes' own. */
const ROOTS = ["/run/containerd/runc/k8s.io", "/run/runc", "/run/crun"];

export interface OciState {
  program: "runc" | "crun";
  /** folder with {@link file} in it, as this process gets at it */
  folder: string;
  /** state.json or status */
  file: string;
  /** `config.json` of the container's bundle, as this process gets at it */
  config: string;
  /** the root folder of the monitor, as this process gets at it */
  node: string;
}

/** @param id as the container runtime knows it @throws HoldfastError `CONTAINER_ENDED` */
export async function stateOf(initPid: number, id: string): Promise<OciState> {
  const monitor = await parentOf(initPid);
  const node = `/proc/${monitor}/root`;
  const seen = (path: string): string => join(node, path);
  for (const root of [...rootsIn(monitor), ...ROOTS]) {
    const folder = seen(join(root, id));
    for (const [program, file] of [
      ["runc", "state.json"],
      ["crun", "status"],
    ] as const) {
      if (!existsSync(join(folder, file))) continue;
      const state = parseExactJson(await readFile(join(folder, file), "utf8")) as State;
      const label = state.config?.labels.find((one) => one.startsWith("bundle="));
      const bundle = state.bundle ?? label?.slice("bundle=".length) ?? "";
      return { program, folder, file, config: seen(join(bundle, "config.json")), node };
    }
  }
  throw fail("CONTAINER_ENDED", `neither runc nor crun knows container ${id} of process ${initPid}`, {
    retryable: true,
  });
}

/** The container's configuration, as the runtime was given it. */
export async function specOf({ config, program, node }: OciState): Promise<OciSpec> {
  const spec = parseExactJson(await readFile(config, "utf8")) as OciSpec;
  return { ...spec, madeBy: program, parts: partsOf(spec, node) };
}

function partsOf({ mounts = [] }: OciSpec, node: string): Required<OciSpec>["parts"] {
  const parts = mounts.filter(({ source = "" }) => isPart(source, node));
  const isFolder = ({ source = "" }: OciMount): boolean => statSync(join(node, source)).isDirectory();
  const pathsOf = (some: OciMount[]): string[] => some.map(({ destination }) => destination);
  return {
    folders: pathsOf(parts.filter(isFolder)),
    files: pathsOf(parts.filter((one) => !isFolder(one))),
  };
}

/** kubelet mounts an emptyDir from PODS/UID/volumes/kubernetes.io~empty-dir/NAME, and a part of a volume from PODS/UID/volume-subpaths/NAME/CONTAINER/NUMBER. */
function isPart(source: string, node: string): boolean {
  const [, pod, volume = ""] = /^(.+)\/volume-subpaths\/([^/]+)\/[^/]+\/\d+$/.exec(source) ?? [];
  return pod !== undefined && existsSync(join(node, pod, "volumes/kubernetes.io~empty-dir", volume));
}

/** As far as it is looked at: runc's has `config`, crun's `bundle`. */
interface State {
  bundle?: string;
  config?: { labels: string[] };
}

/** `conmon --runtime-arg --root=/run/runc` (conmon(8)); containerd's shim says nothing of it. */
function rootsIn(monitor: number | null): string[] {
  try {
    const argv = readFileSync(`/proc/${monitor}/cmdline`, "utf8").split("\0");
    return argv.filter((one) => one.startsWith("--root=")).map((one) => one.slice("--root=".length));
  } catch {
    return []; // it has ended
  }
}
