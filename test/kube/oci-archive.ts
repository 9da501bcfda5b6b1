/**
 * Container images without a registry: files of this machine as an OCI archive of one layer
 * (https://github.com/opencontainers/image-spec, image-layout.md), which containerd imports. Programs bring their libraries along.
 *
 * An archive is kept in the checkout's `.cache/images` and made again when a file of it has changed.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  cpSync,
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { projectRoot } from "../lab/lab.ts";

const imagesDir = join(projectRoot, ".cache/images");

export interface Image {
  /** as a pod names it, e.g. "localhost/holdfast/pause:1" */
  name: string;
  /** path in the image → file or folder of this machine */
  files: Record<string, string>;
  /** path in the image → where the link leads */
  links?: Record<string, string>;
  entrypoint: string[];
  env?: Record<string, string>;
  /** number of the user that it runs as; default: root */
  user?: string;
}

/** Path of the image's archive. */
export async function archiveOf(image: Image): Promise<string> {
  const files = withLibraries(image.files);
  const key = sha256(JSON.stringify([image, Object.entries(files).map(([at, file]) => [at, stateOf(file)])]));
  const name = image.name.replaceAll(/[^\w.-]+/g, "-");
  const archive = join(imagesDir, `${name}-${key.slice(0, 16)}.tar`);
  if (existsSync(archive)) return archive;
  mkdirSync(imagesDir, { recursive: true });
  const work = mkdtempSync(join(imagesDir, "work-"));
  try {
    await writeLayout(join(work, "layout"), image, layerOf(join(work, "root"), image, files));
    tar(join(work, "archive"), join(work, "layout"));
    renameSync(join(work, "archive"), archive);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return archive;
}

/** A tar file of the image's files, beside `root`. */
function layerOf(root: string, image: Image, files: Record<string, string>): string {
  for (const folder of ["tmp", "proc", "sys", "dev", "etc", "run", "var", "root"])
    mkdirSync(join(root, folder), { recursive: true });
  chmodSync(join(root, "tmp"), 0o1777);
  for (const [at, file] of Object.entries(files)) {
    mkdirSync(dirname(join(root, at)), { recursive: true });
    cpSync(file, join(root, at), { recursive: true, verbatimSymlinks: true });
  }
  for (const [at, target] of Object.entries(image.links ?? {})) {
    mkdirSync(dirname(join(root, at)), { recursive: true });
    symlinkSync(target, join(root, at));
  }
  const layer = `${root}.tar`;
  tar(layer, root);
  return layer;
}

async function writeLayout(folder: string, image: Image, layer: string): Promise<void> {
  const blobs = join(folder, "blobs/sha256");
  mkdirSync(blobs, { recursive: true });
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(layer, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  const layerDigest = hash.digest("hex");
  const layerSize = statSync(layer).size;
  renameSync(layer, join(blobs, layerDigest));
  const blob = (value: unknown): { digest: string; size: number } => {
    const text = JSON.stringify(value);
    writeFileSync(join(blobs, sha256(text)), text);
    return { digest: `sha256:${sha256(text)}`, size: Buffer.byteLength(text) };
  };
  const platform = { architecture: process.arch === "x64" ? "amd64" : process.arch, os: "linux" };
  const env = { PATH: "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", ...image.env };
  const type = "application/vnd.oci.image";
  const config = blob({
    ...platform,
    config: {
      Entrypoint: image.entrypoint,
      ...(image.user === undefined ? {} : { User: image.user }),
      Env: Object.entries(env).map(([name, value]) => `${name}=${value}`),
      WorkingDir: "/",
    },
    rootfs: { type: "layers", diff_ids: [`sha256:${layerDigest}`] },
  });
  const manifest = blob({
    schemaVersion: 2,
    mediaType: `${type}.manifest.v1+json`,
    config: { mediaType: `${type}.config.v1+json`, ...config },
    layers: [{ mediaType: `${type}.layer.v1.tar`, digest: `sha256:${layerDigest}`, size: layerSize }],
  });
  const index = {
    schemaVersion: 2,
    mediaType: `${type}.index.v1+json`,
    manifests: [
      {
        mediaType: `${type}.manifest.v1+json`,
        ...manifest,
        platform,
        annotations: { "io.containerd.image.name": image.name },
      },
    ],
  };
  writeFileSync(join(folder, "oci-layout"), JSON.stringify({ imageLayoutVersion: "1.0.0" }));
  writeFileSync(join(folder, "index.json"), JSON.stringify(index));
}

/** What programs need to run (ldd(1)), at the paths where their loader looks for it. */
function withLibraries(files: Record<string, string>): Record<string, string> {
  const all: Record<string, string> = {};
  for (const [at, file] of Object.entries(files)) {
    const real = realpathSync(file);
    all[at] = real;
    if (!statSync(real).isFile()) continue;
    const { stdout } = spawnSync("ldd", [real], { encoding: "utf8" });
    for (const [, library = ""] of (stdout ?? "").matchAll(/(?:=> )?(\/\S+) \(0x/g))
      all[library] = realpathSync(library);
  }
  return all;
}

/** One layer of a file's or folder's state: a folder's is that of everything in it. */
function stateOf(file: string): string {
  if (!statSync(file).isDirectory()) {
    const { size, mtimeMs } = statSync(file);
    return `${size} ${mtimeMs}`;
  }
  return execFileSync("find", [file, "-printf", "%P %s %T@\n"], { encoding: "utf8" });
}

function tar(archive: string, folder: string): void {
  const same = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner"];
  execFileSync("tar", [...same, "-cf", basename(archive), "-C", folder, "."], { cwd: dirname(archive) });
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
