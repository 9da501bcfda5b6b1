/**
 * Container images without a registry: files of this machine as an OCI archive
 * (https://github.com/opencontainers/image-spec, image-layout.md), which containerd imports, and buildah for CRI-O (`image-store.ts`).
 *
 * An archive is kept in the checkout's `.cache/images` and made again when a file of it has changed.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { type Contents, copyContents } from "../../charts/images/contents.ts";
import { projectRoot } from "../lab/lab.ts";

const imagesDir = join(projectRoot, ".cache/images");
/** of an archive: nobody imports one that another has replaced for so long */
const OLD_MS = 3_600_000;

const TYPE = "application/vnd.oci.image";
const REF_NAME = "org.opencontainers.image.ref.name";
const PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

export interface Image {
  /** as a pod names it, e.g. "localhost/holdfast/pause:1" */
  name: string;
  /** whose layers are below its own, and what it says where this one says nothing */
  from?: Image;
  contents: () => Contents;
  entrypoint?: string[];
  env?: Record<string, string>;
  /** number of the user that it runs as, also with a group as "1:1"; default: root */
  user?: string;
}

/** What an image has on top of the one that it is made from. */
interface Layer {
  image: Image;
  contents: Contents;
  key: string;
}

/** A descriptor (image-spec, descriptor.md). */
interface Blob {
  mediaType: string;
  digest: string;
  size: number;
}

/** Path of the archive of the image and of those that it is made from. */
export async function archiveOf(image: Image): Promise<string> {
  const layers = layersOf(image);
  const name = image.name.replaceAll(/[^\w.-]+/g, "-");
  const archive = join(imagesDir, `${name}-${layers.at(-1)?.key}.tar`);
  if (existsSync(archive)) return archive;
  mkdirSync(imagesDir, { recursive: true });
  const work = mkdtempSync(join(imagesDir, "work-"));
  try {
    await writeLayout(
      join(work, "layout"),
      layers,
      layers.map((layer) => tarOf(layer, join(work, layer.key))),
    );
    tar(join(work, "archive"), join(work, "layout"));
    renameSync(join(work, "archive"), archive);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  removeOld(`${name}-`);
  return archive;
}

/** Of the images in an archive. */
export function namesIn(archive: string): string[] {
  const text = execFileSync("tar", ["-xOf", archive, "./index.json"], { encoding: "utf8" });
  const { manifests } = JSON.parse(text) as { manifests: { annotations: Record<string, string> }[] };
  return manifests.map(({ annotations }) => annotations[REF_NAME] ?? "");
}

/** The lowest first. */
function layersOf(image: Image): Layer[] {
  const below = image.from === undefined ? [] : layersOf(image.from);
  const contents = image.contents();
  const state = Object.entries(contents.files).map(([at, file]) => [at, stateOf(file)]);
  const all = [stateOf(import.meta.filename), image, contents, state, below.at(-1)?.key];
  const key = sha256(JSON.stringify(all)).slice(0, 16);
  return [...below, { image, contents, key }];
}

function tarOf({ contents }: Layer, root: string): string {
  mkdirSync(root);
  copyContents(contents, root);
  tar(`${root}.tar`, root);
  return `${root}.tar`;
}

/** Archives that others have replaced. */
function removeOld(prefix: string): void {
  for (const name of readdirSync(imagesDir).filter((one) => one.startsWith(prefix))) {
    const file = join(imagesDir, name);
    const { mtimeMs = Infinity } = statSync(file, { throwIfNoEntry: false }) ?? {};
    if (Date.now() - mtimeMs > OLD_MS) rmSync(file, { force: true });
  }
}

async function writeLayout(folder: string, layers: Layer[], tars: string[]): Promise<void> {
  const blobs = join(folder, "blobs/sha256");
  mkdirSync(blobs, { recursive: true });
  const below: Blob[] = [];
  const manifests = [];
  for (const [index, file] of tars.entries()) {
    const hash = createHash("sha256");
    for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 }))
      hash.update(chunk as Buffer);
    const digest = hash.digest("hex");
    below.push({ mediaType: `${TYPE}.layer.v1.tar`, digest: `sha256:${digest}`, size: statSync(file).size });
    renameSync(file, join(blobs, digest));
    manifests.push(writeManifest(blobs, (layers[index] as Layer).image, below));
  }
  writeFileSync(join(folder, "oci-layout"), JSON.stringify({ imageLayoutVersion: "1.0.0" }));
  const index = { schemaVersion: 2, mediaType: `${TYPE}.index.v1+json`, manifests };
  writeFileSync(join(folder, "index.json"), JSON.stringify(index));
}

function writeManifest(blobs: string, image: Image, layers: Blob[]): object {
  const blob = (kind: string, value: unknown): Blob => {
    const text = JSON.stringify(value);
    writeFileSync(join(blobs, sha256(text)), text);
    return {
      mediaType: `${TYPE}.${kind}.v1+json`,
      digest: `sha256:${sha256(text)}`,
      size: Buffer.byteLength(text),
    };
  };
  const platform = { architecture: process.arch === "x64" ? "amd64" : process.arch, os: "linux" };
  const { entrypoint, user, env } = { ...image.from, ...image };
  const config = blob("config", {
    ...platform,
    config: {
      Entrypoint: entrypoint,
      ...(user === undefined ? {} : { User: user }),
      Env: Object.entries({ PATH, ...env }).map(([name, value]) => `${name}=${value}`),
      WorkingDir: "/",
    },
    rootfs: { type: "layers", diff_ids: layers.map(({ digest }) => digest) },
  });
  const mediaType = `${TYPE}.manifest.v1+json`;
  return {
    ...blob("manifest", { schemaVersion: 2, mediaType, config, layers }),
    platform,
    // containerd's, and the specification's (annotations.md)
    annotations: { "io.containerd.image.name": image.name, [REF_NAME]: image.name },
  };
}

/** A file's or folder's state: a folder's is that of everything in it. */
function stateOf(file: string): string {
  if (!statSync(file).isDirectory()) {
    const { size, mtimeMs } = statSync(file);
    return `${size} ${mtimeMs}`;
  }
  return execFileSync("find", [file, "-printf", "%P %s %T@\n"], { encoding: "utf8" });
}

function tar(archive: string, folder: string): void {
  // the same files, the same bytes: layers that images share are stored once
  const same = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"];
  execFileSync("tar", [...same, "-cf", basename(archive), "-C", folder, "."], { cwd: dirname(archive) });
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
