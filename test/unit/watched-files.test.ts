/** What the kernel tells of watches, read: from fdinfo files of a real machine. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { readEvents } from "../../control/migration/watch-events.ts";
import { readWatches, unwrapOverlayHandle } from "../../control/migration/watched-files.ts";

const fdinfo = `pos:	0
flags:	02004000
mnt_id:	15
ino:	1057
inotify wd:1f ino:c sdev:54 mask:80000102 ignored_mask:0 fhandle-bytes:24 fhandle-type:f8 f_handle:00000000fb210401d04bdd74fe124f4290b8c9146e03bb4ac58745cd0c00000000000000
inotify wd:2 ino:9b203a sdev:fe00000 mask:4000102 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:3a209b0082e91d00
inotify wd:1 ino:80000000009b203a sdev:33 mask:2 ignored_mask:0 
`;

describe("watches of an fdinfo file", () => {
  test("are read with their flags, with or without a handle", () => {
    const [one, two, three] = readWatches(fdinfo);
    assert.equal(one?.wd, 0x1f);
    assert.equal(one?.mask, 0x80000102);
    assert.equal(one?.device, 0x54);
    assert.equal(two?.handle.toString("hex"), "3a209b0082e91d00");
    assert.equal(two?.ino, 0x9b203an);
    assert.equal(three?.ino, 0x80000000009b203an);
    assert.equal(three?.handle.length, 0);
    assert.equal(new Set([one, two, three].map((watch) => watch?.identity)).size, 3);
  });

  test("on an overlay have the handle of the file below", () => {
    const [upper] = readWatches(fdinfo);
    assert.deepEqual(unwrapOverlayHandle(upper?.handle ?? Buffer.alloc(0)), {
      isUpper: true,
      type: 1,
      handle: Buffer.from("c58745cd0c00000000000000", "hex"),
    });
    const lower = Buffer.from("00000000fb1d0001000000000000000000000000000000006302000000000000", "hex");
    assert.deepEqual(unwrapOverlayHandle(lower), {
      isUpper: false,
      type: 1,
      handle: Buffer.from("6302000000000000", "hex"),
    });
  });

  test("with a handle of another form have none", () => {
    for (const handle of ["", "00000000", "00000000fa1d0001", `00000000fbff0001${"00".repeat(24)}`])
      assert.equal(unwrapOverlayHandle(Buffer.from(handle, "hex")), null, handle);
  });
});

describe("events as they are read", () => {
  test("end where the bytes end, names without their padding", () => {
    const event = Buffer.alloc(32);
    event.writeInt32LE(7, 0);
    event.writeUInt32LE(0x40000100, 4);
    event.writeUInt32LE(16, 12);
    event.write("name", 16);
    assert.deepEqual(readEvents(Buffer.concat([event, event.subarray(0, 8)])), [
      { wd: 7, mask: 0x40000100, cookie: 0, name: "name" },
    ]);
  });
});
