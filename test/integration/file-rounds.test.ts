/** Both rounds of a workload's files as a move sends them, where folders change places while tar reads. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  chownSync,
  closeSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { FilesIntake } from "#control/migration/arrival/files-intake.ts";
import { FileSender, LAYER } from "#control/migration/departure/file-sender.ts";
import type { Move } from "#control/migration/departure/move.ts";
import { nameText } from "#control/runtime/file-names.ts";
import { packPaths } from "#control/runtime/files.ts";
import { removePaths } from "#control/runtime/remove-files.ts";
import { cutShortIn } from "#control/runtime/tar-members.ts";
import type { Channel } from "#proxy/contract/channel.ts";

/** more than a pipe and a stream's buffer hold: tar stands in it until its pieces are taken */
const BIG = 8 << 20;

interface Rounds {
  source: string;
  target: string;
  /** @param meanwhile called when tar has read the first file in part */
  first(meanwhile: () => void): Promise<void>;
  second(): Promise<void>;
  /** bytes of tar in the last round */
  bytes: number;
}

async function withRounds(use: (rounds: Rounds) => Promise<void>): Promise<void> {
  const base = mkdtempSync(join(tmpdir(), "holdfast-rounds-"));
  const [source, target] = [join(base, "source"), join(base, "target")];
  mkdirSync(source);
  mkdirSync(target);
  const to = openSync(target, "r");
  const intake = new FilesIntake();
  let meanwhile = (): void => {};
  const rounds: Rounds = {
    source,
    target,
    bytes: 0,
    async first(then) {
      writeFileSync(join(source, "0"), Buffer.alloc(BIG, "x")); // names come sorted
      meanwhile = then;
      await sender.sendAll(LAYER);
    },
    async second() {
      rounds.bytes = 0;
      await sender.sendChanged();
    },
  };
  const move = {
    host: {
      container: { layerInUse: false, init: { pid: process.pid }, openLayer: () => openSync(source, "r") },
    },
    rehearsal: { timed: (_: string, step: () => unknown) => step() },
    stop: { call: (_: unknown, __: string, { gone }: { gone: string[] }) => removePaths(to, gone) },
  } as unknown as Move;
  const channel = {
    async send(_: string, { root }: { root: string }, body: Buffer) {
      rounds.bytes += body.length;
      const then = meanwhile;
      meanwhile = () => {};
      then();
      await intake.take(root, body, async () => ({ fd: openSync(target, "r"), initPid: null }));
    },
  } as unknown as Channel;
  const sender = new FileSender(move, channel, process.pid);
  try {
    await use(rounds);
  } finally {
    intake.close();
    closeSync(to);
    rmSync(base, { recursive: true, force: true });
  }
}

function exchange(one: string, other: string): void {
  renameSync(one, `${one}-there`);
  renameSync(other, one);
  renameSync(`${one}-there`, other);
}

function setXattr(path: string, name: string, value: string): void {
  execFileSync("python3", [
    "-c",
    "import os, sys; os.setxattr(*sys.argv[1:3], sys.argv[3].encode())",
    path,
    name,
    value,
  ]);
}

const LONG_AGO = new Date(1_000_000_000_000);

test("the files of a folder that was another one only while tar read it come in the second round", async () => {
  await withRounds(async ({ source, target, first, second }) => {
    const [blue, green] = [join(source, "blue"), join(source, "green")];
    for (const [folder, text] of [
      [blue, "blue!"],
      [green, "green"],
    ] as const) {
      mkdirSync(join(folder, "deeper"), { recursive: true });
      for (const name of ["x", "deeper/x"]) {
        writeFileSync(join(folder, name), text);
        utimesSync(join(folder, name), LONG_AGO, LONG_AGO);
      }
    }
    await first(() => exchange(blue, green));
    exchange(blue, green);
    await second();
    for (const name of ["blue/x", "blue/deeper/x", "green/x", "green/deeper/x"])
      assert.equal(readFileSync(join(target, name), "utf8"), readFileSync(join(source, name), "utf8"), name);
  });
});

test("the files of a folder that was away while tar read come in the second round", async () => {
  await withRounds(async ({ source, target, first, second }) => {
    mkdirSync(join(source, "a/deeper"), { recursive: true });
    for (const name of ["a/x", "a/deeper/x"]) writeFileSync(join(source, name), "text");
    linkSync(join(source, "a/x"), join(source, "linked"));
    // to where it is a file of none of these rounds
    const away = `${source}-away`;
    await first(() => renameSync(join(source, "a"), away));
    renameSync(away, join(source, "a"));
    await second();
    for (const name of ["a/x", "a/deeper/x", "linked"])
      assert.equal(readFileSync(join(target, name), "utf8"), "text", name);
    assert.equal(statSync(join(target, "a/x")).ino, statSync(join(target, "linked")).ino);
  });
});

test("what tar read as it was is sent once: any kind of file, by any name", async () => {
  await withRounds(async (rounds) => {
    const { source, first, second } = rounds;
    const deep = join(source, "d".repeat(200), "e".repeat(200));
    mkdirSync(deep, { recursive: true });
    writeFileSync(join(deep, "x"), "text");
    linkSync(join(deep, "x"), join(source, "linked"));
    symlinkSync("f".repeat(300), join(source, "link"));
    symlinkSync("\u00e9", join(source, "short link"));
    writeFileSync(Buffer.concat([Buffer.from(`${source}/`), Buffer.from([0xff, 0x0a, 0x5c])]), "bytes");
    writeFileSync(join(source, "sparse"), "end");
    truncateSync(join(source, "sparse"), 1 << 30);
    execFileSync("mkfifo", [join(source, "fifo")]);
    execFileSync("mknod", [join(source, "device"), "b", "259", "1000"]);
    execFileSync("mknod", [join(source, "whiteout"), "c", "0", "0"]);
    setXattr(deep, "trusted.overlay.opaque", "y");
    setXattr(join(deep, "x"), "user.note", "n".repeat(2000));
    chmodSync(join(source, "sparse"), 0o4711);
    chownSync(join(source, "sparse"), 3_000_000, 4_000_000);
    utimesSync(join(source, "sparse"), -1.5, -1.5);
    utimesSync(join(source, "fifo"), 10, 10);
    await first(() => {});
    await second();
    assert.equal(rounds.bytes, 0);
  });
});

test("a name that is another file's by now is no name of the one that it was linked to", async () => {
  await withRounds(async ({ source, target, first, second }) => {
    writeFileSync(join(source, "one"), "as it was");
    linkSync(join(source, "one"), join(source, "other"));
    await first(() => {});
    writeFileSync(join(source, "new"), "new");
    renameSync(join(source, "new"), join(source, "one"));
    await second();
    assert.equal(readFileSync(join(target, "one"), "utf8"), "new");
    assert.equal(readFileSync(join(target, "other"), "utf8"), "as it was");
  });
});

/** A disk with these files, mounted at a folder: most of what is big of them cannot be read any more once it fails. */
async function onDisk(
  mounted: string,
  files: Record<string, Buffer>,
  use: (fails: () => void) => Promise<void>,
): Promise<void> {
  const base = mkdtempSync(join(tmpdir(), "holdfast-disk-"));
  const [content, disk] = [join(base, "content"), join(base, "disk")];
  mkdirSync(content);
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(content, name), bytes);
  writeFileSync(disk, "");
  truncateSync(disk, 8 << 20);
  execFileSync("mkfs.ext4", ["-q", "-O", "^has_journal", "-d", content, disk]);
  mkdirSync(mounted);
  execFileSync("mount", ["-o", "loop,ro", disk, mounted]);
  try {
    await use(() => truncateSync(disk, 2 << 20));
  } finally {
    execFileSync("umount", [mounted]);
    rmSync(base, { recursive: true });
  }
}

test("a file that a failing disk ends in the middle of is told by its name, and fails where all has to be read", async () => {
  const base = mkdtempSync(join(tmpdir(), "holdfast-mounted-"));
  const mounted = join(base, "mounted");
  const name = "fi\\le\n: File shrank by ü";
  const files = { [name]: randomBytes(4 << 20), "a whole one": Buffer.from("small") };
  await onDisk(mounted, files, async (fails) => {
    const folder = openSync(mounted, "r");
    fails();
    const paths = [nameText(Buffer.from(name)), "a whole one"];
    const pack = async (live: boolean): Promise<string[]> => {
      const { stream, done } = await packPaths({ fd: folder, initPid: null }, paths, live);
      stream.resume();
      return [...(await done)];
    };
    try {
      assert.deepEqual(await pack(true), [nameText(Buffer.from(name))]);
      await assert.rejects(pack(false), { code: "FILES_TAR" });
    } finally {
      closeSync(folder);
    }
  });
  rmSync(base, { recursive: true });
});

test("what a failing disk cut short in the first round is not in the copy: the second reads it again, and fails", () =>
  withRounds(async (rounds) => {
    await onDisk(join(rounds.source, "z"), { big: randomBytes(4 << 20) }, async (fails) => {
      await rounds.first(fails);
      await assert.rejects(rounds.second(), { code: "FILES_TAR" });
    });
  }));

test("what was cut short counts as unknown, and a read error as that", () => {
  assert.equal(
    cutShortIn("tar: ./a/b: Warning: Read error at byte 0, while reading 512 bytes: Invalid argument"),
    "a/b",
  );
  assert.equal(cutShortIn("tar: ./a: Warning: Cannot open: Permission denied"), null);
});
