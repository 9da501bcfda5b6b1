/**
 * Images for CRI-O without a registry: a store of containers/storage (https://github.com/containers/storage, docs/containers-storage.md) that
 * buildah fills from archives, once for all nodes of a cluster, which read it beside their own.
 */
import { execFile } from "node:child_process";
import { existsSync, globSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { CACHE_DIR } from "./kube-tools.ts";
import { namesIn } from "./oci-archive.ts";

const TOOLS = join(CACHE_DIR, "build-tools");
const IMPORT_MS_MAX = 300_000;

/** The program, with libraries of its own, that writes to a store below a folder. */
export function buildahFor(folder: string): { argv: string[]; env: NodeJS.ProcessEnv } {
  const store = [
    "--root",
    join(folder, "store"),
    "--runroot",
    join(folder, "run"),
    "--storage-driver",
    "overlay",
  ];
  const libraries = ["usr/lib", "lib"].flatMap((path) => globSync(join(TOOLS, path, "*-linux-gnu")));
  return {
    argv: [join(TOOLS, "usr/bin/buildah"), ...store, "--registries-conf", "/dev/null"],
    env: { ...process.env, LD_LIBRARY_PATH: libraries.join(":") },
  };
}

/**
 * Images of archives as a store at `FOLDER/store`. @throws Error with the cure, when set-up has not brought buildah
 * @param policy file that says whose images are taken (containers-policy.json(5))
 */
export async function fillStore(folder: string, archives: string[], policy: string): Promise<void> {
  mkdirSync(join(folder, "tmp"), { recursive: true });
  const { argv, env } = buildahFor(folder);
  const [program = ""] = argv;
  if (!existsSync(program)) throw new Error(`no ${program}: run scripts/setup.sh kube`);
  for (const archive of archives)
    for (const name of namesIn(archive)) {
      // what it mounts is its own, and so is what it remembers of blobs in /var/lib/containers
      const alone = ["--mount", "--", "sh", "-c", 'mount -t tmpfs tmpfs /var/lib && exec "$@"', "sh"];
      const pull = [
        ...argv,
        "pull",
        "--quiet",
        "--signature-policy",
        policy,
        `oci-archive:${archive}:${name}`,
      ];
      await promisify(execFile)("unshare", [...alone, ...pull], {
        env: { ...env, TMPDIR: join(folder, "tmp") },
        timeout: IMPORT_MS_MAX,
      });
    }
}
