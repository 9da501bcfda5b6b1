import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { nameBytes, nameText } from "#control/runtime/file-names.ts";
import { besideMounts, confirmed, difference, type Scan, scan, withRoot } from "#control/runtime/files.ts";
import { emptyBut, removePaths } from "#control/runtime/remove-files.ts";
import { type TarMember, TarMembers } from "#control/runtime/tar-members.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

/** Small trees over the same few names, so that two of them have much in common. */
const tree: fc.Arbitrary<Scan> = fc
  .array(
    fc.tuple(
      fc.constantFrom("a", "b", "a/x", "a/y", "b/x", "c"),
      fc.constantFrom("1", "2", "directory 1", "directory 1 opaque", "whiteout"),
    ),
    { maxLength: 8 },
  )
  .map((entries) => new Map(entries));

test("what a difference deletes and changes makes a copy of the old state one of the new", () => {
  fc.assert(
    fc.property(tree, tree, (before, after) => {
      const copy = new Map(before);
      const { gone, changed } = difference(before, after);
      for (const path of gone) for (const known of [...copy.keys()]) if (known === path) copy.delete(known);
      for (const path of changed) copy.set(path, after.get(path) ?? "");
      // whiteouts are deletions at the other side, where the layer below is merged in
      const expected = new Map([...after].filter(([, state]) => state !== "whiteout"));
      for (const [path, state] of copy) if (state === "whiteout") copy.delete(path);
      assert.deepEqual(new Map([...copy].sort()), new Map([...expected].sort()));
    }),
  );
});

test("a difference deletes what is inside before what holds it", () => {
  const before: Scan = new Map([
    ["a", "directory 1"],
    ["a/x", "1"],
    ["a/x/y", "1"],
  ]);
  assert.deepEqual(difference(before, new Map()).gone, ["a/x/y", "a/x", "a"]);
});

test("a difference deletes what a file of another kind takes the place of: it could be a link to elsewhere", () => {
  const [file, link, folder] = ["10 33188 0 0", "11 41471 0 0", "directory 12 16877 0 0 "];
  const kinds = [file, link, folder] as const;
  for (const was of kinds)
    for (const is of kinds) {
      const { gone, changed } = difference(new Map([["a", was]]), new Map([["a", is]]));
      assert.deepEqual(gone, was === is ? [] : ["a"], `${was} → ${is}`);
      assert.deepEqual(changed, was === is ? [] : ["a"]);
    }
});

test("what comes in the place of a folder that is deleted comes with all that is below", () => {
  const before = new Map([
    ["a", "directory 1 16877 0 0 opaque"],
    ["a/x", "2 33188 0 0"],
  ]);
  const after = new Map(before).set("a", "directory 1 16832 0 0 opaque");
  assert.deepEqual(difference(before, after), { gone: ["a"], changed: ["a", "a/x"] });
});

test("only what tar read in the state of the scan is in the copy for certain", () => {
  const before: Scan = new Map([
    [".", "directory 1 16877 0 0 "],
    ["a", "directory 2 16877 0 0 "],
    ["a/x", "3 33188 0 0 5 100 100 0"],
    ["a/y", "4 33188 0 0 5 200 200 0"],
    ["b", "directory 5 16877 0 0 "],
    ["b/x", "6 33188 0 0 5 100 100 0"],
    ["b/z", "4 33188 0 0 5 200 200 0"],
    ["c", "7 33188 0 0 5 100 100 0"],
    ["w", "whiteout"],
  ]);
  const found = (changes: Record<string, Partial<TarMember> | null> = {}): Map<string, TarMember> => {
    const all = new Map<string, TarMember>();
    for (const [path, state] of before) {
      const [isFolder, fields] = [state.startsWith("directory"), state.split(" ")];
      if (changes[path] === null) continue;
      all.set(path, {
        isFolder,
        isOpaque: false,
        owned: state === "whiteout" ? "8192 0 0" : fields.slice(isFolder ? 2 : 1, isFolder ? 5 : 4).join(" "),
        content: state === "whiteout" ? "0 1 1 0" : fields.slice(4).join(" "),
        ...changes[path],
      });
    }
    return all;
  };
  const again = (changes: Record<string, Partial<TarMember> | null>): ReturnType<typeof difference> =>
    difference(confirmed(before, before.keys(), found(changes)), before);
  // one of the other folder would look the same
  const twins = ["a/x", "b/x"];
  assert.deepEqual(again({}), { gone: twins, changed: ["a", "a/x", "b", "b/x"] });
  assert.deepEqual(again({ c: { content: "5 100 101 0" } }).changed, ["a", "a/x", "b", "b/x", "c"]);
  assert.deepEqual(again({ c: null }), { gone: twins, changed: ["a", "a/x", "b", "b/x", "c"] });
  assert.deepEqual(again({ w: null }).gone, [...twins, "w"]);
  // all names of a file together
  assert.deepEqual(again({ "b/z": null }).changed, ["a", "a/x", "a/y", "b", "b/x", "b/z"]);
  // a link was there: it goes first, and nothing is looked for where it leads
  assert.equal(again({ b: { isFolder: false } }).gone[0], "b");
  assert.deepEqual(again({ b: { owned: "16832 0 0" } }).changed, ["a", "a/x", "a/y", "b", "b/x", "b/z"]);
  // a mount's own folder is never deleted
  assert.ok(!again({ ".": { owned: "16832 0 0" } }).gone.includes("."));
  assert.ok(again({ ".": { owned: "16832 0 0" } }).changed.includes("."));
  // what was not sent is known otherwise
  assert.deepEqual(difference(confirmed(before, [], new Map()), before), { gone: [], changed: [] });
});

async function inFolder(use: (root: string, outside: string, fd: number) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-files-"));
  try {
    const [root, outside] = [join(folder, "root"), join(folder, "outside")];
    mkdirSync(root);
    mkdirSync(outside);
    writeFileSync(join(outside, "x"), "keep");
    const fd = openSync(root, "r");
    await use(root, outside, fd).finally(() => closeSync(fd));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test("deleting never leaves the root, neither by dots nor through a symbolic link", async () => {
  await inFolder(async (root, outside, fd) => {
    symlinkSync(outside, join(root, "d"));
    for (const path of ["d/x", "../outside/x", "/etc/x", "a/../../outside/x", "a//x"]) {
      await assert.rejects(
        removePaths(fd, [path]),
        (error) => error instanceof HoldfastError && error.code === "FILES_PATH",
        path,
      );
    }
    assert.ok(existsSync(join(outside, "x")));
    await removePaths(fd, ["d"]); // the link itself may go
    assert.ok(!existsSync(join(root, "d")) && existsSync(join(outside, "x")));
    await removePaths(fd, ["not/there"]);
  });
});

test("a scan follows no link, and goes on when a folder is one by now", async () => {
  await inFolder(async (root, outside, fd) => {
    symlinkSync(outside, join(root, "d"));
    assert.deepEqual([...(await scan(fd)).keys()], ["d"]);
  });
});

test("names of files are any bytes, also as text, in JSON and where files are deleted", async () => {
  const name = fc.uint8Array({ minLength: 1, maxLength: 12 }).map((bytes) => Buffer.from(bytes));
  fc.assert(
    fc.property(name, (bytes) => {
      const text = nameText(bytes);
      assert.ok(nameBytes(JSON.parse(JSON.stringify(text))).equals(bytes));
      if (text.isWellFormed()) assert.equal(text, bytes.toString("utf8"));
    }),
  );
  await inFolder(async (root, _, fd) => {
    const names = ["plain", "\u00e9", "\udcff\n", "d\udce9"];
    for (const one of names) writeFileSync(Buffer.concat([Buffer.from(`${root}/`), nameBytes(one)]), "");
    const deep = Buffer.concat([Buffer.from(`${root}/`), nameBytes("folder \udc80")]);
    mkdirSync(deep);
    writeFileSync(Buffer.concat([deep, Buffer.from("/x")]), "");
    assert.deepEqual(
      [...(await scan(fd)).keys()].sort(),
      [...names, "folder \udc80", "folder \udc80/x"].sort(),
    );
    await removePaths(fd, ["\udcff\n", "folder \udc80"]);
    assert.deepEqual([...(await scan(fd)).keys()].sort(), ["d\udce9", "plain", "\u00e9"].sort());
  });
});

test("a scan tells a changed file, and leaves sockets and CRIU's cache out", async () => {
  await inFolder(async (root, _, fd) => {
    mkdirSync(join(root, "d"));
    writeFileSync(join(root, "d", "x"), "one");
    writeFileSync(join(root, "criu.kdat"), "");
    const before = await scan(fd);
    assert.deepEqual([...before.keys()].sort(), ["d", "d/x"]);
    writeFileSync(join(root, "d", "x"), "other");
    assert.deepEqual(difference(before, await scan(fd)), { gone: [], changed: ["d", "d/x"] });
  });
});

test("a folder is emptied but for what is mounted in it, and the folders that lead there", async () => {
  await inFolder(async (root, outside, fd) => {
    for (const folder of ["etc/deep/mount", "etc/other", "gone"])
      mkdirSync(join(root, folder), { recursive: true });
    for (const file of ["x", "etc/x", "etc/deep/x", "etc/deep/mount/x", "gone/x"])
      writeFileSync(join(root, file), "");
    symlinkSync(outside, join(root, "link"));
    await emptyBut(fd, ["etc/deep/mount", "link/x"]);
    assert.deepEqual([...(await scan(fd)).keys()].sort(), [
      "etc",
      "etc/deep",
      "etc/deep/mount",
      "etc/deep/mount/x",
      "link",
    ]);
    assert.ok(existsSync(join(outside, "x")));
    await emptyBut(fd, []);
    assert.deepEqual([...(await scan(fd)).keys()], []);
    assert.ok(existsSync(join(outside, "x")));
  });
});

test("what is mounted in a mount is none of its files, and its own mode and owner travel", async () => {
  await inFolder(async (root, _, fd) => {
    mkdirSync(join(root, "etc"));
    for (const file of ["etc/mounted", "etc/x"]) writeFileSync(join(root, file), "");
    const before = withRoot(besideMounts(await scan(fd), ["etc/mounted"]), fd);
    assert.deepEqual([...before.keys()], [".", "etc", "etc/x"]);
    chmodSync(root, 0o750);
    const after = withRoot(besideMounts(await scan(fd), ["etc/mounted"]), fd);
    assert.deepEqual(difference(before, after), { gone: [], changed: ["."] });
  });
});

test("an opaque folder that has mounts in it is in the copy as any other", () => {
  const layer: Scan = new Map([
    ["d", "directory 1 16877 0 0 opaque"],
    ["d/file", "2 33188 0 0 5 100 100 0"],
    ["d/mount", "directory 3 16877 0 0 "],
  ]);
  const before = besideMounts(layer, ["d/mount"]);
  const found = new Map<string, TarMember>([
    ["d", { isFolder: true, isOpaque: true, owned: "16877 0 0", content: "" }],
    ["d/file", { isFolder: false, isOpaque: false, owned: "33188 0 0", content: "5 100 100 0" }],
  ]);
  const known = confirmed(before, before.keys(), found);
  assert.deepEqual(difference(known, besideMounts(layer, ["d/mount"])), { gone: [], changed: [] });
});

test("a file with more attributes than travel is told, and none of them is kept", () => {
  const header = Buffer.alloc(512);
  header.write("./PaxHeaders/x");
  header.write("00200000000\0", 124); // 32 MiB
  header.write("x", 156);
  const members = new TarMembers();
  members.take(header.subarray(0, 100));
  assert.throws(() => members.take(header.subarray(100)), { code: "FILES_TAR", message: /33554432 bytes/ });
});

test("what tar says of a file is the same in pieces of any size", () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-members-"));
  try {
    const name = "p".repeat(200);
    writeFileSync(join(folder, name), "x".repeat(700));
    writeFileSync(join(folder, "last"), "");
    const stream = execFileSync("tar", ["-C", folder, "--xattrs", "-cf", "-", `./${name}`, "./last"]);
    const found = [1, 511, 513, stream.length].map((size) => {
      const members = new TarMembers();
      for (let at = 0; at < stream.length; at += size) members.take(stream.subarray(at, at + size));
      return Object.fromEntries(members.found);
    });
    assert.deepEqual(Object.keys(found[0] ?? {}), [name, "last"]);
    assert.match(found[0]?.[name]?.content ?? "", /^700 \d{16,} \d{16,} 0$/);
    for (const one of found) assert.deepEqual(one, found[0]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
