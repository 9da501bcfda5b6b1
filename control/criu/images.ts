/**
 * Memory images on their way from one node to the other, sent while CRIU still writes them.
 *
 * CRIU appends to `pages-*.img` from the moment the tree is frozen; these are followed as they grow. Everything else is
 * small and is sent when the dump is over, with a manifest of every size.
 */
import { closeSync, constants, fstatSync, openSync, readdirSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { HoldfastError } from "#proxy/contract/errors.ts";

/** file name → bytes */
export type ImageManifest = Record<string, number>;

/** Sends one piece; resolves when the next may follow. */
export type SendImage = (name: string, offset: number, bytes: Buffer) => Promise<void>;

const PIECE_BYTES = 1 << 20;
/** between two looks at the growing files */
const FOLLOW_MS = 2;
const GROWING = /^pages-\d+\.img$/;
const IMAGE_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,120}$/;

interface OpenImage {
  fd: number;
  sentBytes: number;
}

export class ImageSender {
  #dir: string;
  #send: SendImage;
  #images = new Map<string, OpenImage>();
  #dumping = true;
  #following: Promise<void>;
  #error: unknown = null;

  /** Starts following at once. `dir` may still be empty. */
  constructor(dir: string, send: SendImage) {
    this.#dir = dir;
    this.#send = send;
    this.#following = this.#follow().catch((error: unknown) => {
      this.#error = error;
    });
  }

  /** After the dump: sends what is left of everything. */
  async finish(): Promise<ImageManifest> {
    this.#dumping = false;
    await this.#following;
    if (this.#error !== null) throw this.#error;
    const manifest: ImageManifest = {};
    for (const name of readdirSync(this.#dir)) {
      if (name.endsWith(".log")) continue;
      manifest[name] = await this.#sendGrowth(name);
    }
    return manifest;
  }

  /** Safe at any time. */
  async close(): Promise<void> {
    this.#dumping = false;
    await this.#following;
    for (const image of this.#images.values()) closeSync(image.fd);
    this.#images.clear();
  }

  async #follow(): Promise<void> {
    while (this.#dumping) {
      for (const name of readdirSync(this.#dir)) if (GROWING.test(name)) await this.#sendGrowth(name);
      await delay(FOLLOW_MS);
    }
  }

  async #sendGrowth(name: string): Promise<number> {
    let image = this.#images.get(name);
    if (image === undefined) {
      image = {
        fd: openSync(join(this.#dir, name), constants.O_RDONLY | constants.O_NOFOLLOW),
        sentBytes: 0,
      };
      this.#images.set(name, image);
    }
    const sizeBytes = fstatSync(image.fd).size;
    if (sizeBytes === 0) await this.#send(name, 0, Buffer.alloc(0));
    while (image.sentBytes < sizeBytes) {
      const piece = Buffer.allocUnsafe(Math.min(PIECE_BYTES, sizeBytes - image.sentBytes));
      const length = readSync(image.fd, piece, 0, piece.length, image.sentBytes);
      await this.#send(name, image.sentBytes, piece.subarray(0, length));
      image.sentBytes += length;
    }
    return image.sentBytes;
  }
}

/** Writes what an {@link ImageSender} of a peer sends. Everything the peer says is checked. */
export class ImageReceiver {
  #dir: string;
  #bytesMax: number;
  #bytes = 0;
  #images = new Map<string, OpenImage>();

  constructor(dir: string, bytesMax: number) {
    this.#dir = dir;
    this.#bytesMax = bytesMax;
  }

  /** @throws HoldfastError `IMAGE_REFUSED` (a bad name, a gap), `IMAGES_SPACE` */
  write(name: string, offset: number, bytes: Buffer): void {
    if (!IMAGE_NAME.test(name)) throw refused(`bad file name ${JSON.stringify(name).slice(0, 80)}`);
    let image = this.#images.get(name);
    if (image === undefined) {
      const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
      image = { fd: openSync(join(this.#dir, name), flags, 0o600), sentBytes: 0 };
      this.#images.set(name, image);
    }
    if (offset !== image.sentBytes) throw refused(`${name}: expected byte ${image.sentBytes}, got ${offset}`);
    this.#bytes += bytes.length;
    if (this.#bytes > this.#bytesMax) throw noSpace(this.#bytesMax, undefined);
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(image.fd, bytes, at, bytes.length - at);
    } catch (cause) {
      throw noSpace(this.#bytesMax, cause);
    }
    image.sentBytes += bytes.length;
  }

  /** Everything has arrived, or HoldfastError `IMAGE_REFUSED`. */
  verify(manifest: ImageManifest): void {
    for (const [name, bytes] of Object.entries(manifest)) {
      const got = this.#images.get(name)?.sentBytes;
      if (got !== bytes) throw refused(`${name}: ${got ?? "no"} of ${bytes} bytes arrived`);
    }
    if (this.#images.size !== Object.keys(manifest).length)
      throw refused("files that the manifest does not name");
  }

  close(): void {
    for (const image of this.#images.values()) closeSync(image.fd);
    this.#images.clear();
  }
}

function refused(why: string): HoldfastError {
  return new HoldfastError(`memory image refused: ${why}`, { code: "IMAGE_REFUSED", source: "peer" });
}

function noSpace(bytesMax: number, cause: unknown): HoldfastError {
  return new HoldfastError(
    `no space for the memory images (limit ${Math.round(bytesMax / 1e6)} MB): raise limits.imagesMbMax`,
    {
      code: "IMAGES_SPACE",
      source: "migration",
      cause,
    },
  );
}
