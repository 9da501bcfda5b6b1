import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { readImage, writeImage } from "#control/criu/image-files.ts";
import { ImageReceiver } from "#control/criu/images.ts";
import { writeBeside } from "#control/migration/beside-images.ts";
import { readOwnSockets } from "#control/migration/own-sockets.ts";
import { neededNumbers } from "#control/migration/tree-numbers.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

async function inImages(use: (images: string, outside: string) => void): Promise<void> {
  const base = mkdtempSync(join(tmpdir(), "holdfast-planted-"));
  try {
    const [images, outside] = [join(base, "images"), join(base, "outside")];
    mkdirSync(images);
    writeFileSync(outside, "keep");
    use(images, outside);
    assert.equal(readFileSync(outside, "utf8"), "keep");
  } finally {
    rmSync(base, { recursive: true, force: true });
  }
}

const isRefused = (error: unknown): boolean =>
  error instanceof HoldfastError && error.code === "IMAGE_REFUSED";

test("a link, a fifo or a device among the images is refused: the agent neither follows it nor waits for it", async () => {
  const plants: Record<string, (path: string, outside: string) => void> = {
    link: (path, outside) => symlinkSync(outside, path),
    fifo: (path) => execFileSync("mkfifo", [path]),
    endless: (path) => execFileSync("mknod", [path, "c", "1", "5"]),
    folder: (path) => mkdirSync(path),
  };
  for (const plant of Object.values(plants))
    await inImages((images, outside) => {
      for (const name of ["own-sockets.json", "pstree.img", "criu.kdat"]) plant(join(images, name), outside);
      assert.throws(() => readOwnSockets(images), isRefused);
      assert.throws(() => neededNumbers(images), isRefused);
      assert.throws(() => readImage(join(images, "criu.kdat")), isRefused);
    });
});

test("what the agent writes among the images takes the place of a link, and does not go where it leads", async () => {
  await inImages((images, outside) => {
    for (const name of ["criu.kdat", "own-sockets.json.new", "files.img"])
      symlinkSync(outside, join(images, name));
    for (const name of ["criu.kdat", "files.img"]) {
      writeImage(join(images, name), "ours");
      assert.equal(readImage(join(images, name)).toString(), "ours");
    }
    writeBeside(images, "own-sockets.json", { sockets: [] });
    assert.deepEqual(readOwnSockets(images), { sockets: [] });
  });
});

test("an image that is another file by its name than the one that was received is refused", async () => {
  await inImages((images) => {
    const receiver = new ImageReceiver(images, 1_000);
    const manifest = { "pstree.img": 8, "layer-1/pages-1.img": 8 };
    for (const name of Object.keys(manifest)) receiver.write(name, 0, Buffer.from("received"));
    receiver.verifySome(manifest);
    writeFileSync(join(images, "other"), "received");
    renameSync(join(images, "other"), join(images, "pstree.img"));
    assert.throws(() => receiver.verifySome({ "pstree.img": 8 }), isRefused);
    renameSync(join(images, "layer-1"), join(images, "aside"));
    symlinkSync("aside", join(images, "layer-1"));
    assert.throws(() => receiver.verifySome({ "layer-1/pages-1.img": 8 }), isRefused);
    assert.throws(() => receiver.write("layer-1/pages-2.img", 0, Buffer.from("x")), { code: "ELOOP" });
    receiver.close();
  });
});
