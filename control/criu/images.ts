/**
 * Memory images on their way from one node to the other: layers of them before the hold (`precopy.ts`), and what the dump
 * adds. Where there are no layers, `pages-*.img` are followed as CRIU appends to them from the moment the tree is frozen.
 * Everything else is small and goes first when the dump is over: CRIU at the target begins with it while memory is on its way. Each of the
 * two has a manifest of every size.
 */
import {
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  symlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import * as files from "#proxy/kernel/files.ts";
import { type Place, Precopy } from "./precopy.ts";
import type { PrecopyRounds } from "./precopy-rounds.ts";
import type { TracedProcess } from "./process-memory.ts";
import { KERNEL_CACHE } from "./sealed.ts";

/** file name → bytes */
export type ImageManifest = Record<string, number>;

/** Some bytes of one image. Pieces of a file come in order and without a gap. */
export interface ImagePiece {
  name: string;
  offset: number;
  bytes: Buffer;
  /** the target has these bytes already, in this place of another image: they need not travel */
  from?: Place;
}

/** The processes of the tree as it is now, parents first. */
export type ListProcesses = () => Promise<TracedProcess[]>;

/** Sends some pieces at once; resolves when the next may follow. */
export type SendImages = (pieces: ImagePiece[]) => Promise<void>;

const PIECE_BYTES = 1 << 20;
const BATCH_BYTES = 256 * 1024;
const BATCH_PIECES = 1_000;
/** between two looks at the growing files */
const FOLLOW_MS = 2;
const GROWING = /^pages-\d+\.img$/;
/** what CRIU reads last, when it has made namespaces and processes; also of layers */
const OF_MEMORY = /(^|\/)page(s|map)-/;
const IMAGE_NAME = /^(layer-([1-9]\d?)\/)?[A-Za-z0-9][A-Za-z0-9._-]{0,120}$/;

interface OpenImage {
  fd: number;
  sentBytes: number;
}

export class ImageSender {
  #dir: string;
  #send: SendImages;
  #images = new Map<string, OpenImage>();
  #manifest: ImageManifest = {};
  #batch: ImagePiece[] = [];
  #batchBytes = 0;
  #sentBytes = 0;
  #precopy: Precopy | null = null;
  #dumping = false;
  #following: Promise<void> = Promise.resolve();
  #error: unknown = null;

  /** `dir`: where CRIU will write. */
  constructor(dir: string, send: SendImages) {
    this.#dir = dir;
    this.#send = send;
  }

  /**
   * Sends the memory of running processes, in rounds. Resolves when another would not be worth it.
   * @param bytesMax how much of it may be kept here for comparison
   * @param rounds is told of each
   * @param trackedBytesMin as of {@link Precopy}; only where {@link lookAt} follows
   */
  async sendLayers(
    list: ListProcesses,
    bytesMax: number,
    rounds: PrecopyRounds,
    signal: AbortSignal,
    trackedBytesMin?: number,
  ): Promise<void> {
    this.#precopy = new Precopy(bytesMax, trackedBytesMin);
    while (rounds.isAnother()) {
      signal.throwIfAborted();
      await this.sendLayer(list, rounds);
    }
  }

  /** One round more, of what was written since the last. */
  async sendLayer(list: ListProcesses, rounds: PrecopyRounds): Promise<void> {
    const atMs = performance.now();
    const idleMs = rounds.idleMs(atMs);
    const bytes = (await this.#precopy?.round(await list(), this.#put)) ?? 0;
    await this.#flush();
    rounds.add({ bytes, ms: performance.now() - atMs }, idleMs);
  }

  /** Bytes that travelled: without those that the target had in other images. */
  get sentBytes(): number {
    return this.#sentBytes;
  }

  /** Memory is at the target that pages can be compared with. */
  get hasLayers(): boolean {
    return this.#precopy !== null;
  }

  /** Of processes that are frozen: see {@link Precopy.endTracking}. */
  async endTracking(): Promise<void> {
    await this.#precopy?.endTracking();
  }

  get trackedProcesses(): number {
    return this.#precopy?.trackedProcesses ?? 0;
  }

  /** Of processes that are frozen: see {@link Precopy.lookAt}. */
  async lookAt(processes: TracedProcess[]): Promise<void> {
    await this.#precopy?.lookAt(processes);
  }

  /** The dump begins. @param leavesPages CRIU writes next to none, and what it writes is looked at afterwards */
  start(leavesPages: boolean): void {
    if (this.#precopy !== null) {
      if (!leavesPages) this.#precopy.follow(this.#dir); // only what is new will travel
      return;
    }
    this.#dumping = true;
    this.#following = this.#follow().catch((error: unknown) => {
      this.#error = error;
    });
  }

  /** After the dump: sends everything but memory. Resolves with the manifest of that. */
  async sendOthers(): Promise<ImageManifest> {
    await this.#endFollowing();
    for (const name of this.#names()) if (!OF_MEMORY.test(name)) await this.#sendGrowth(name);
    await this.#flush();
    return this.#manifestOf((name) => !OF_MEMORY.test(name));
  }

  /** After {@link sendOthers}: sends what is left of memory. Resolves with the manifest of that. `list`: what was dumped. */
  async finish(list: ListProcesses): Promise<ImageManifest> {
    await this.#endFollowing();
    const reduced = await this.#precopy?.reduce(this.#dir, await list(), this.#put);
    for (const name of this.#names())
      if (OF_MEMORY.test(name) && reduced?.has(name) !== true) await this.#sendGrowth(name);
    await this.#flush();
    return this.#manifestOf((name) => OF_MEMORY.test(name));
  }

  /** The dump has failed: nothing reads the tree, or what CRIU has written of it, any more. Safe at any time. */
  async abandon(): Promise<void> {
    this.#dumping = false;
    await this.#precopy?.giveUp();
  }

  /** Safe at any time. */
  async close(): Promise<void> {
    await this.abandon();
    await this.#following;
    for (const image of this.#images.values()) closeSync(image.fd);
    this.#images.clear();
    this.#precopy = null;
  }

  /** Gathers small pieces: a message for each of dozens of files costs more than what is in them. */
  #put = async (name: string, offset: number, bytes: Buffer, from: Place | null): Promise<void> => {
    this.#manifest[name] = offset + bytes.length;
    this.#batch.push(from === null ? { name, offset, bytes } : { name, offset, bytes, from });
    this.#batchBytes += bytes.length;
    if (from === null) this.#sentBytes += bytes.length;
    if (this.#batchBytes >= BATCH_BYTES || this.#batch.length >= BATCH_PIECES) await this.#flush();
  };

  async #endFollowing(): Promise<void> {
    this.#dumping = false;
    await this.#following;
    if (this.#error !== null) throw this.#error;
  }

  /** Images in the folder itself. */
  #names(): string[] {
    return readdirSync(this.#dir, { withFileTypes: true })
      .filter((entry) => entry.isFile() && !entry.name.endsWith(".log") && entry.name !== KERNEL_CACHE)
      .map(({ name }) => name);
  }

  #manifestOf(isMeant: (name: string) => boolean): ImageManifest {
    return Object.fromEntries(Object.entries(this.#manifest).filter(([name]) => isMeant(name)));
  }

  async #flush(): Promise<void> {
    const batch = this.#batch;
    this.#batch = [];
    this.#batchBytes = 0;
    if (batch.length > 0) await this.#send(batch);
  }

  async #follow(): Promise<void> {
    while (this.#dumping) {
      for (const name of readdirSync(this.#dir)) if (GROWING.test(name)) await this.#sendGrowth(name);
      await this.#flush();
      await delay(FOLLOW_MS);
    }
  }

  async #sendGrowth(name: string): Promise<void> {
    let image = this.#images.get(name);
    if (image === undefined) {
      image = {
        fd: openSync(join(this.#dir, name), constants.O_RDONLY | constants.O_NOFOLLOW),
        sentBytes: 0,
      };
      this.#images.set(name, image);
    }
    const sizeBytes = fstatSync(image.fd).size;
    if (sizeBytes === 0) await this.#put(name, 0, Buffer.alloc(0), null);
    while (image.sentBytes < sizeBytes) {
      const piece = Buffer.allocUnsafe(Math.min(PIECE_BYTES, sizeBytes - image.sentBytes));
      const length = readSync(image.fd, piece, 0, piece.length, image.sentBytes);
      await this.#put(name, image.sentBytes, piece.subarray(0, length), null);
      image.sentBytes += length;
    }
  }
}

/** Writes what an {@link ImageSender} of a peer sends. Everything the peer says is checked. */
export class ImageReceiver {
  #dir: string;
  #bytesMax: number;
  #bytes = 0;
  #images = new Map<string, OpenImage>();
  #layers = new Set<string>();
  #verified = new Set<string>();

  constructor(dir: string, bytesMax: number) {
    this.#dir = dir;
    this.#bytesMax = bytesMax;
  }

  /**
   * Writes bytes that are in another image already.
   * @throws HoldfastError `IMAGE_REFUSED` (they are not), and as {@link write}
   */
  copy(name: string, offset: number, length: number, from: Place): void {
    const source = this.#images.get(from.name);
    if (source === undefined || length > PIECE_BYTES || from.offset + length > source.sentBytes)
      throw refused(
        `${name}: no bytes ${from.offset}+${length} in ${JSON.stringify(from.name).slice(0, 80)}`,
      );
    const bytes = Buffer.allocUnsafe(length);
    if (readSync(source.fd, bytes, 0, length, from.offset) !== length)
      throw refused(`${from.name} is shorter than it was`);
    this.write(name, offset, bytes);
  }

  /** @throws HoldfastError `IMAGE_REFUSED` (a bad name, a gap), `IMAGES_SPACE` */
  write(name: string, offset: number, bytes: Buffer): void {
    if (!IMAGE_NAME.test(name)) throw refused(`bad file name ${JSON.stringify(name).slice(0, 80)}`);
    let image = this.#images.get(name);
    if (image === undefined) {
      if (name.includes("/")) this.#needLayer(name.slice(0, name.indexOf("/")));
      const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
      const fd = this.#inDir((dir) => files.openInside(dir, name, { flags, mode: 0o600, noSymlinks: true }));
      image = { fd, sentBytes: 0 };
      this.#images.set(name, image);
    }
    if (this.#verified.has(name)) throw refused(`${name} was complete`);
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

  /** What of a manifest of some images has arrived as it is there; or HoldfastError `IMAGE_REFUSED`. They may change from here on. */
  verifySome(manifest: ImageManifest): void {
    for (const [name, bytes] of Object.entries(manifest)) {
      const image = this.#images.get(name);
      if (image?.sentBytes !== bytes)
        throw refused(`${name}: ${image?.sentBytes ?? "no"} of ${bytes} bytes arrived`);
      // a CRIU that is short of memory pages waits for them for ever
      const { size, ino, dev } = fstatSync(image.fd, { bigint: true });
      if (size !== BigInt(bytes)) throw refused(`${name}: ${bytes} bytes were written, ${size} are there`);
      const named = this.#statOf(name);
      if (named?.ino !== ino || named.dev !== dev) throw refused(`${name} is not what was written by now`);
      this.#verified.add(name);
    }
  }

  /** All that has not been verified is in this manifest, and has arrived; or HoldfastError `IMAGE_REFUSED`. */
  verify(manifest: ImageManifest): void {
    this.verifySome(manifest);
    if (this.#images.size !== this.#verified.size) throw refused("files that the manifest does not name");
  }

  /** Each layer builds on the one before it; CRIU's own images build on the last. */
  linkLayers(): void {
    const layers = [...this.#layers].sort((one, other) => layerNumber(one) - layerNumber(other));
    for (const [index, layer] of layers.entries()) {
      const below = layers[index - 1];
      if (below === undefined) continue;
      const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
      const folder = this.#inDir((dir) => files.openInside(dir, layer, { flags, noSymlinks: true }));
      try {
        symlinkSync(`../${below}`, `/proc/self/fd/${folder}/parent`);
      } finally {
        closeSync(folder);
      }
    }
    const last = layers.at(-1);
    if (last !== undefined) symlinkSync(last, join(this.#dir, "parent"));
  }

  close(): void {
    for (const image of this.#images.values()) closeSync(image.fd);
    this.#images.clear();
  }

  /** Of what has that name, which CRIU will open; null: nothing, or by way of a link. */
  #statOf(name: string): BigIntStats | null {
    let fd: number;
    try {
      fd = this.#inDir((dir) => files.openPathBelow(dir, Buffer.from(name)));
    } catch {
      return null;
    }
    try {
      return fstatSync(fd, { bigint: true });
    } finally {
      closeSync(fd);
    }
  }

  #inDir<T>(use: (dir: number) => T): T {
    const dir = openSync(this.#dir, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
    try {
      return use(dir);
    } finally {
      closeSync(dir);
    }
  }

  #needLayer(layer: string): void {
    if (this.#layers.has(layer)) return;
    mkdirSync(join(this.#dir, layer), { mode: 0o700 });
    this.#layers.add(layer);
  }
}

function layerNumber(layer: string): number {
  return Number(layer.slice("layer-".length));
}

function refused(why: string): HoldfastError {
  return fail("IMAGE_REFUSED", `memory image refused: ${why}`);
}

function noSpace(bytesMax: number, cause: unknown): HoldfastError {
  return fail(
    "IMAGES_SPACE",
    `no space for the memory images (limit ${Math.round(bytesMax / 1e6)} MB): raise limits.imagesMbMax`,
    { cause },
  );
}
