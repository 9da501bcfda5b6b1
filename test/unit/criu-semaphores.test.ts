import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { decodeImage, encodeImage } from "#control/criu/image-file.ts";
import { decodeFields, encodeFields, type Field } from "#control/criu/protobuf.ts";
import { SpareSemaphores } from "#control/criu/semaphores.ts";

const REG = 1;
const EVENTFD = 6;

/** fdinfo_entry */
const descriptor = (id: number, type: number, fd: number): Buffer =>
  encodeFields([
    [1, id],
    [2, 1],
    [3, type],
    [4, fd],
  ]);
/** file_entry with eventfd_file_entry */
const eventfd = (id: number, flags: number, count: number): Buffer =>
  encodeFields([
    [1, EVENTFD],
    [2, id],
    [
      8,
      [
        [1, id],
        [2, flags],
        [3, [[1, 0] as Field, [3, 9] as Field]],
        [4, count],
      ],
    ],
  ]);

function values(message: Buffer): Record<number, number | string> {
  return Object.fromEntries(
    decodeFields(message).map(({ number, isVarint, varint, bytes }) => [
      number,
      isVarint ? Number(varint) : bytes.toString("latin1"),
    ]),
  );
}

/** A folder of images: process 12 and its child 13 share eventfd 7, 12 has another one and a third that is no semaphore. */
function withImages(use: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "hf-images-"));
  const write = (name: string, kind: "ids" | "fdinfo" | "files", messages: Buffer[]): void =>
    writeFileSync(join(folder, name), encodeImage(kind, messages));
  try {
    write("ids-12.img", "ids", [
      encodeFields([
        [1, 1],
        [2, 3],
      ]),
    ]);
    write("fdinfo-3.img", "fdinfo", [
      descriptor(7, EVENTFD, 5),
      descriptor(8, EVENTFD, 6),
      descriptor(9, EVENTFD, 8),
      descriptor(10, REG, 9),
    ]);
    write("fdinfo-4.img", "fdinfo", [descriptor(7, EVENTFD, 77)]);
    write("files.img", "files", [eventfd(7, 0o4002, 5), eventfd(8, 2, 0), eventfd(9, 2, 1)]);
    use(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const one = { pid: 12, fd: 5, flags: 0o4002, count: 5n };
const other = { pid: 12, fd: 6, flags: 2, count: 0n };

describe("eventfds that count as semaphores", () => {
  it("become files that CRIU inherits, in each process that has them, and nothing else does", () => {
    withImages((folder) => {
      const spares = new SpareSemaphores(4);
      try {
        assert.deepEqual(spares.install(folder, [one, other], 5), [
          { key: "holdfast-eventfd-7", fd: 5 },
          { key: "holdfast-eventfd-8", fd: 6 },
        ]);
        const types = (name: string): unknown[] =>
          decodeImage("fdinfo", readFileSync(join(folder, name))).map((message) => values(message)[3]);
        assert.deepEqual(types("fdinfo-3.img"), [REG, REG, EVENTFD, REG]);
        assert.deepEqual(types("fdinfo-4.img"), [REG]);
        const [first = Buffer.alloc(0), , third = Buffer.alloc(0)] = decodeImage(
          "files",
          readFileSync(join(folder, "files.img")),
        );
        assert.equal(values(first)[1], REG);
        const file = decodeFields(first).find(({ number }) => number === 3)?.bytes ?? Buffer.alloc(0);
        const { 1: id, 2: flags, 6: name, 5: owner } = values(file);
        assert.deepEqual([id, flags, name], [7, 0o4002, "/holdfast-eventfd-7"]);
        assert.deepEqual(values(Buffer.from(String(owner), "latin1")), { 1: 0, 3: 9 });
        assert.deepEqual(third, eventfd(9, 2, 1));
        const info = (fd: number | undefined): string => readFileSync(`/proc/self/fdinfo/${fd}`, "utf8");
        assert.match(info(spares.fds[0]), /flags:\s*0?2004002\n.*eventfd-count:\s*5\n.*semaphore: 1/s);
        assert.match(info(spares.fds[1]), /flags:\s*0?2000002\n.*eventfd-count:\s*0\n.*semaphore: 1/s);
      } finally {
        spares.close();
      }
    });
  });

  it("that are more than were foreseen are refused, with the images as they were", () => {
    withImages((folder) => {
      const before = readFileSync(join(folder, "files.img"));
      const spares = new SpareSemaphores(1);
      try {
        assert.throws(() => spares.install(folder, [one, other], 5), { code: "SEMAPHORES_MANY" });
        assert.deepEqual(readFileSync(join(folder, "files.img")), before);
      } finally {
        spares.close();
      }
    });
  });

  it("in images of another form are refused", () => {
    withImages((folder) => {
      writeFileSync(join(folder, "fdinfo-3.img"), "not an image");
      const spares = new SpareSemaphores(1);
      try {
        assert.throws(() => spares.install(folder, [one], 5), { source: "criu" });
      } finally {
        spares.close();
      }
    });
  });
});
