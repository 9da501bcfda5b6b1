/**
 * Eventfds with EFD_SEMAPHORE. CRIU 4.2 restores them without that flag (criu/eventfd.c makes them with no flags), and no call
 * sets it later. So they are made here and handed over: in the images the eventfd becomes a file of a name of ours, which CRIU
 * takes from a descriptor that it inherits (`--inherit-fd`, https://criu.org/Inheriting_FDs_on_restore). Flags that the file
 * description has, its count and whoever shares it stay as they were dumped.
 *
 * Image formats: images/{fdinfo,eventfd,regfile,core}.proto of CRIU (MIT); each entry is u32 LE length and a message.
 */
import { readdirSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { decodeImage, encodeImage, type ImageKind } from "./image-file.ts";
import { readImage, writeImage } from "./image-files.ts";
import { type DecodedField, decodeFields, encodeFields } from "./protobuf.ts";
import type { InheritFd } from "./protocol.ts";

const TYPE_REG = 1;
const TYPE_EVENTFD = 6;
/** of file_entry */
const FIELD_REG = 3;
const FIELD_EVENTFD = 8;
const O_NONBLOCK = 0o4000;

/** In the container's numbers. */
export interface SemaphoreEventfd {
  pid: number;
  fd: number;
  /** as fcntl(F_GETFL) says */
  flags: number;
  count: bigint;
}

/** Made before CRIU starts, which inherits them; the first of them become what the images need. */
export class SpareSemaphores {
  readonly fds: number[];

  constructor(count: number) {
    this.fds = Array.from({ length: count }, () =>
      descriptor.eventfd(0, descriptor.EFD_SEMAPHORE | descriptor.EFD_CLOEXEC),
    );
  }

  /**
   * Changes the images in `folder` so that CRIU takes ours.
   * @param firstFd number that the first of {@link fds} has in CRIU
   * @throws HoldfastError `SEMAPHORES_MANY`: more than were foreseen
   */
  install(folder: string, semaphores: SemaphoreEventfd[], firstFd: number): InheritFd[] {
    if (semaphores.length === 0) return [];
    const fdImages = new Map<string, Buffer>();
    const files = readImage(join(folder, "files.img"));
    const replaced = new Map<number, string>();
    const inherit: InheritFd[] = [];
    for (const semaphore of semaphores) {
      const fdImage = join(folder, `fdinfo-${filesIdOf(folder, semaphore.pid)}.img`);
      const image = fdImages.get(fdImage) ?? readImage(fdImage);
      fdImages.set(fdImage, image);
      const id = eventfdIdOf(image, semaphore.fd);
      if (replaced.has(id)) continue;
      const spare = this.fds[inherit.length];
      if (spare === undefined) throw tooMany(this.fds.length);
      descriptor.tryFcntl(spare, descriptor.F_SETFL, semaphore.flags & O_NONBLOCK);
      if (semaphore.count > 0n) writeSync(spare, countBytes(semaphore.count));
      const key = `holdfast-eventfd-${id}`;
      replaced.set(id, key);
      inherit.push({ key, fd: firstFd + inherit.length });
    }
    // every process that has one of them has it in its own image
    for (const name of readdirSync(folder)) {
      if (!/^fdinfo-\d+\.img$/.test(name)) continue;
      const path = join(folder, name);
      writeImage(
        path,
        rewrite("fdinfo", readImage(path), (entry) => asFileDescriptor(entry, replaced)),
      );
    }
    writeImage(
      join(folder, "files.img"),
      rewrite("files", files, (entry) => asFile(entry, replaced)),
    );
    return inherit;
  }

  close(): void {
    for (const fd of this.fds.splice(0)) descriptor.close(fd);
  }
}

function countBytes(count: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(count, 0);
  return bytes;
}

/** Pure: each entry of an image, replaced where `change` gives another. */
export function rewrite(kind: ImageKind, image: Buffer, change: (entry: Buffer) => Buffer | null): Buffer {
  return encodeImage(
    kind,
    decodeImage(kind, image).map((entry) => change(entry) ?? entry),
  );
}

/** fdinfo_entry {id, flags, type, fd}: of a replaced eventfd the type changes. */
export function asFileDescriptor(entry: Buffer, replaced: ReadonlyMap<number, string>): Buffer | null {
  const fields = decodeFields(entry);
  if (number(fields, 3) !== TYPE_EVENTFD || !replaced.has(number(fields, 1))) return null;
  return encodeFields(
    fields.map((field) =>
      field.number === 3 ? [3, TYPE_REG] : [field.number, field.isVarint ? field.varint : field.bytes],
    ),
  );
}

/** file_entry {type, id, efd}: becomes {type, id, reg} of a name of ours. */
export function asFile(entry: Buffer, replaced: ReadonlyMap<number, string>): Buffer | null {
  const fields = decodeFields(entry);
  const id = number(fields, 2);
  const name = replaced.get(id);
  const eventfd = fields.find((field) => field.number === FIELD_EVENTFD);
  if (number(fields, 1) !== TYPE_EVENTFD || name === undefined || eventfd === undefined) return null;
  const inside = decodeFields(eventfd.bytes);
  const owner = inside.find((field) => field.number === 3)?.bytes ?? Buffer.alloc(0);
  return encodeFields([
    [1, TYPE_REG],
    [2, id],
    [
      FIELD_REG,
      [
        [1, id],
        [2, number(inside, 2)],
        [3, 0],
        [5, owner],
        [6, `/${name}`],
      ],
    ],
  ]);
}

function number(fields: DecodedField[], name: number): number {
  return Number(fields.find((field) => field.number === name)?.varint ?? -1);
}

/** task_kobj_ids_entry.files_id of a process names its image of descriptors. */
function filesIdOf(folder: string, pid: number): number {
  const [entry] = decodeImage("ids", readImage(join(folder, `ids-${pid}.img`)));
  if (entry === undefined) throw malformed();
  return number(decodeFields(entry), 2);
}

function eventfdIdOf(image: Buffer, fd: number): number {
  for (const entry of decodeImage("fdinfo", image)) {
    const fields = decodeFields(entry);
    if (number(fields, 4) === fd && number(fields, 3) === TYPE_EVENTFD) return number(fields, 1);
  }
  throw malformed();
}

function tooMany(count: number): HoldfastError {
  return fail(
    "SEMAPHORES_MANY",
    `the application has more than the ${count} eventfds with EFD_SEMAPHORE it had when the move was prepared: move it again`,
  );
}

function malformed(): HoldfastError {
  return fail("CRIU_IMAGE_INVALID", "an image of CRIU is not in the form this version knows");
}
