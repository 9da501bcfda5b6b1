/**
 * What is in each image, and the only list of it: the Dockerfile beside this file copies it in a build, and test clusters run the same
 * (`test/kube/images.ts`). Files are of the machine that this runs on, whose architecture the image has.
 *
 *   node charts/images/contents.ts control|agent|inside FOLDER    copies them
 */
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { LAUNCHERS, SUBREAPER } from "#control/runtime/launchers.ts";
import { subreaperProgram } from "#control/runtime/subreaper-program.ts";
import { COMPILED } from "#proxy/contract/compiled.ts";

export type ImageName = "control" | "agent" | "inside";

export interface Contents {
  /** path in the image → file or folder of this machine */
  files: Record<string, string>;
  /** path in the image → where the link leads */
  links?: Record<string, string>;
  /** its code is compiled when it has been copied (`proxy/contract/compiled.ts`) */
  isCompiled?: boolean;
}

const ROOT = resolve(import.meta.dirname, "../..");
/** as scripts/setup.sh has it */
const CACHE_DIR = process.env.HOLDFAST_CACHE ?? "/var/cache/holdfast";
/** where an agent looks for it */
const CRIU = "criu-4.2";
const FOLDERS = ["tmp", "proc", "sys", "dev", "etc", "run", "var", "root"];

/** as the Dockerfile has it */
const USER = 65_532;
const COMPILED_THERE = join("/holdfast", relative(ROOT, COMPILED));
const COMPILE_MS_MAX = 180_000;
/** All but those that begin a process. */
const COMPILE = `
import { globSync } from "node:fs";
const { keepCompiled } = await import("/holdfast/proxy/contract/compiled.ts");
keepCompiled();
const begin = new Set(["control/main.ts", "proxy/main.ts"]);
for (const file of globSync("{control,envoy,proxy}/**/*.ts", { cwd: "/holdfast" }))
  if (!begin.has(file)) await import("/holdfast/" + file);
`;

/** What an agent starts, where Debian has it. ldd(1) is a script of bash. */
const AGENT_PROGRAMS = [
  ...["/bin/sh", "/bin/bash", "/bin/cat", "/bin/dd", "/bin/mount", "/bin/umount", "/bin/mv", "/bin/readlink"],
  ...["/usr/bin/catatonit", "/usr/bin/dirname", "/usr/bin/ldd", "/usr/bin/nsenter", "/usr/bin/setpriv"],
  ...["/usr/bin/setsid", "/usr/bin/tar", "/usr/bin/unshare", "/usr/bin/wc"],
  ...["/usr/bin/crun", "/usr/sbin/ip", "/usr/sbin/nft", "/usr/sbin/runc"],
];

const made = new Map<ImageName, Contents>();

/** Libraries of programs, at the paths where their loader looks for them, are among the files. @throws Error: one is missing */
export function contentsOf(image: ImageName): Contents {
  const contents = made.get(image) ?? read(image);
  made.set(image, contents);
  return contents;
}

function read(image: ImageName): Contents {
  if (image === "inside")
    return withLibraries({ files: { ...below("/holdfast", inside()), "/bin/cp": "/bin/cp" } });
  if (image === "control") return withLibraries(product());
  const control = contentsOf("control");
  // on top of that of control: what both have is there once
  const { files } = withLibraries({ files: agent() });
  return { files: Object.fromEntries(Object.entries(files).filter(([at]) => !(at in control.files))) };
}

/** Everything that is Holdfast's, and Node: controller, webhook and gateway need nothing else, not even a shell. A sidecar needs cp(1). */
function product(): Contents {
  const paths = ["bin", "control", "envoy", "proxy", "package.json", ...packages()];
  const files = paths.map((path) => [`/holdfast/${path}`, join(ROOT, path)]);
  return {
    files: {
      ...Object.fromEntries(files),
      "/holdfast/node_modules/node/bin/node": join(ROOT, "node_modules/node/bin/node"),
      // which a sidecar puts into its pod itself
      ...below("/holdfast/inside", inside()),
      "/bin/cp": "/bin/cp",
    },
    links: { "/holdfast/node_modules/.bin/node": "../node/bin/node" },
    isCompiled: true,
  };
}

/** CRIU and the programs that an agent starts. */
function agent(): Record<string, string> {
  return {
    ...Object.fromEntries(AGENT_PROGRAMS.map((file) => [file, file])),
    [`/var/cache/holdfast/${CRIU}`]: join(CACHE_DIR, CRIU),
  };
}

/**
 * What a pod gets at /.holdfast, copied there by a sidecar or an init container, as any user: an owner, or times of a folder of root's, cannot be set.
 * @returns name → file
 */
function inside(): Record<string, string> {
  const libraries = librariesOf("/usr/bin/setsid");
  const library = (name: RegExp): string =>
    libraries.find((path) => name.test(path)) ?? raise(`setsid(1) needs no ${name} here`);
  return {
    init: "/usr/bin/catatonit",
    ...LAUNCHERS,
    [SUBREAPER]: subreaper(),
    loader: library(/\/ld-linux[^/]*$/),
    "libc.so.6": library(/\/libc\.so\.6$/),
  };
}

function below(folder: string, files: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(files).map(([name, file]) => [join(folder, name), file]));
}

/** → where it is */
function subreaper(): string {
  const file = join(CACHE_DIR, SUBREAPER);
  mkdirSync(CACHE_DIR, { recursive: true });
  writeFileSync(file, subreaperProgram(), { mode: 0o755 });
  return file;
}

/** Folders of npm packages that the product needs; of FFI also its file, which brings its libraries. */
function packages(): string[] {
  const lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")) as {
    packages: Record<string, { dev?: boolean }>;
  };
  const ffi = `node_modules/@koromix/koffi-linux-${process.arch}/linux_${process.arch}/koffi.node`;
  return Object.entries(lock.packages)
    .filter(([path, { dev }]) => path !== "" && dev !== true && !/node_modules\/(node$|@types)/.test(path))
    .map(([path]) => path)
    .concat(ffi)
    .filter((path) => existsSync(join(ROOT, path)));
}

/** … and of each program what it needs to run. */
export function withLibraries({ files, ...more }: Contents): Contents {
  const all: Record<string, string> = {};
  for (const [at, file] of Object.entries(files)) {
    const real = realpathSync(file);
    all[at] = real;
    if (statSync(real).isFile())
      for (const library of librariesOf(real)) all[library] = realpathSync(library);
  }
  return { files: all, ...more };
}

/** ldd(1): "libacl.so.1 => /lib/…/libacl.so.1 (0x…)", and the loader without an arrow */
function librariesOf(file: string): string[] {
  const { stdout } = spawnSync("ldd", [file], { encoding: "utf8" });
  const missing = /^\s*(\S+) => not found/m.exec(stdout ?? "");
  if (missing !== null) raise(`${file} needs ${missing[1]}, which is not here`);
  return [...(stdout ?? "").matchAll(/(?:=> )?(\/\S+) \(0x/g)].map(([, library = ""]) => library);
}

/** Into a folder that is there; beside the folders that every image has. */
export function copyContents({ files, links = {}, isCompiled = false }: Contents, folder: string): void {
  for (const one of FOLDERS) mkdirSync(join(folder, one), { recursive: true });
  chmodSync(join(folder, "tmp"), 0o1777);
  for (const [at, file] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, at)), { recursive: true });
    cpSync(file, join(folder, at), { recursive: true, verbatimSymlinks: true });
  }
  for (const [at, target] of Object.entries(links)) {
    mkdirSync(dirname(join(folder, at)), { recursive: true });
    symlinkSync(target, join(folder, at));
  }
  if (isCompiled) compile(folder);
}

/** Where the files are to be: what is kept goes by their paths. An image without it starts its processes all the same, later. */
function compile(folder: string): void {
  const node = "/holdfast/node_modules/node/bin/node";
  const { status, stderr, error } = spawnSync(
    "/usr/sbin/chroot",
    [folder, node, "--input-type=module", "--eval", COMPILE],
    // where this process keeps its own, it would keep that of the image
    { encoding: "utf8", timeout: COMPILE_MS_MAX, env: {} },
  );
  const kept = join(folder, COMPILED_THERE);
  if (status !== 0 || !existsSync(kept)) {
    process.stderr.write(`contents: nothing is compiled beforehand: ${error?.message ?? stderr}\n`);
    return;
  }
  // Node lets nobody else read it
  for (const name of readdirSync(kept, { recursive: true, encoding: "utf8" }))
    chmodSync(join(kept, name), 0o755);
  for (const name of readdirSync(kept))
    if (name.endsWith("-0")) symlinkSync(name, join(kept, name.replace(/-0$/, `-${USER}`)));
}

function raise(message: string): never {
  throw new Error(message);
}

if (import.meta.main) {
  const [image, folder] = process.argv.slice(2);
  if ((image !== "control" && image !== "agent" && image !== "inside") || folder === undefined)
    raise("usage: contents.ts control|agent|inside FOLDER");
  mkdirSync(folder, { recursive: true });
  copyContents(contentsOf(image), folder);
}
