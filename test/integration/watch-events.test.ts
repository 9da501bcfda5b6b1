/** Unread events of inotify(7), taken out of one instance and put into another: on the real kernel. */
import assert from "node:assert/strict";
import {
  chmodSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import type { WatchEvent } from "#control/api/watches.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as files from "#proxy/kernel/files.ts";
import { deedsFor, putEvents, putOverflow, takeEvents } from "../../control/migration/watch-events.ts";
import { readWatches } from "../../control/migration/watched-files.ts";

const ALL = 0xfff;

describe("events that were not read", () => {
  let dir = "";
  let scratch = "";
  let from = -1;
  let to = -1;

  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), "hf-watch-"));
    scratch = join(dir, "scratch");
    mkdirSync(scratch);
    from = files.inotifyInit();
    to = files.inotifyInit();
  });
  afterEach(() => {
    descriptor.close(from);
    descriptor.close(to);
    rmSync(dir, { recursive: true });
  });

  function watch(path: string, mask = ALL): number {
    const file = files.openPath(path);
    try {
      return files.inotifyAdd(from, file, mask);
    } finally {
      closeSync(file);
    }
  }

  function assertCarried(events: WatchEvent[]): void {
    assert.ok(events.length > 0);
    assert.equal(putEvents(to, events, scratch), true);
    assert.deepEqual(readWatches(readFileSync(`/proc/self/fdinfo/${to}`, "latin1")), [], "a watch is left");
    assert.deepEqual(readdirSync(scratch), []);
    assert.deepEqual(withoutCookies(takeEvents(to)), withoutCookies(events));
  }

  test("come in their order, with names and folders told apart", () => {
    const folder = join(dir, "folder");
    mkdirSync(folder);
    watch(folder);
    writeFileSync(join(folder, "file"), "text");
    mkdirSync(join(folder, "below"));
    readFileSync(join(folder, "file"));
    readdirSync(join(folder, "below"));
    chmodSync(join(folder, "file"), 0o600);
    chmodSync(folder, 0o700);
    readdirSync(folder);
    renameSync(join(folder, "file"), join(folder, "new"));
    renameSync(join(folder, "new"), join(dir, "unavailable"));
    renameSync(join(dir, "unavailable"), join(folder, "back"));
    writeFileSync(join(folder, `ü ${"x".repeat(200)}`), "");
    unlinkSync(join(folder, "back"));
    rmdirSync(join(folder, "below"));
    const events = takeEvents(from);
    assert.ok(events.length >= 25, JSON.stringify(events));
    assertCarried(events);
  });

  test("of several watches, some of which are gone, keep their numbers", () => {
    for (const name of ["one", "two", "three"]) writeFileSync(join(dir, name), "text");
    mkdirSync(join(dir, "folder"));
    const [one, two, three] = ["one", "two", "three"].map((name) => watch(join(dir, name)));
    const folder = watch(join(dir, "folder"), files.IN_DELETE_SELF | files.IN_MOVE_SELF);
    writeFileSync(join(dir, "three"), "other");
    unlinkSync(join(dir, "one"));
    files.inotifyRemove(from, two ?? -1);
    renameSync(join(dir, "three"), join(dir, "four"));
    renameSync(join(dir, "folder"), join(dir, "moved"));
    rmdirSync(join(dir, "moved"));
    const events = takeEvents(from);
    assert.deepEqual(new Set(events.map(({ wd }) => wd)), new Set([one, two, three, folder]));
    assertCarried(events);
  });

  test("of a rename between two watched folders are a pair", () => {
    for (const name of ["left", "right"]) {
      mkdirSync(join(dir, name));
      watch(join(dir, name), files.IN_MOVED_FROM | files.IN_MOVED_TO);
    }
    mkdirSync(join(dir, "left", "thing"));
    renameSync(join(dir, "left", "thing"), join(dir, "right", "thing"));
    const events = takeEvents(from);
    assert.equal(events.length, 2);
    assert.equal(putEvents(to, events, scratch), true);
    const [first, second] = takeEvents(to);
    assert.equal(first?.cookie, second?.cookie);
    assert.notEqual(first?.cookie, 0);
  });

  test("that cannot be made to happen again are told as an overflow", () => {
    const unmounted = { wd: 1, mask: files.IN_UNMOUNT, cookie: 0, name: "" };
    assert.equal(putEvents(to, [unmounted], scratch), false);
    assert.deepEqual(takeEvents(to), [{ wd: -1, mask: files.IN_Q_OVERFLOW, cookie: 0, name: "" }]);
    putOverflow(to, scratch);
    assert.deepEqual(
      takeEvents(to).map(({ mask }) => mask),
      [files.IN_Q_OVERFLOW],
    );
    assert.deepEqual(readWatches(readFileSync(`/proc/self/fdinfo/${to}`, "latin1")), []);
  });

  test("leave the next watch any number", () => {
    writeFileSync(join(dir, "file"), "");
    watch(join(dir, "file"), files.IN_ATTRIB);
    chmodSync(join(dir, "file"), 0o600);
    assertCarried(takeEvents(from));
    files.inotifySetNext(to, 41);
    const file = openSync(join(dir, "file"), "r");
    assert.equal(files.inotifyAdd(to, file, files.IN_ATTRIB), 41);
    closeSync(file);
  });
});

describe("what is done for events to come about", () => {
  const event = (mask: number, name = "", cookie = 0, wd = 1): WatchEvent => ({ wd, mask, cookie, name });

  test("takes the two of a rename together, and the end of a file with that of its watch", () => {
    const events = [
      event(files.IN_MOVED_FROM, "a", 7),
      event(files.IN_MOVED_TO, "b", 7, 2),
      event(files.IN_DELETE_SELF),
      event(files.IN_IGNORED),
      event(files.IN_MOVED_TO, "c", 8),
    ];
    assert.deepEqual(
      deedsFor(events)?.map(({ kind }) => kind),
      ["renamed", "gone", "one"],
    );
  });

  test("is nothing known for an overflow, an unmount or too many", () => {
    assert.equal(deedsFor([event(files.IN_Q_OVERFLOW, "", 0, -1)]), null);
    assert.equal(deedsFor([event(files.IN_UNMOUNT)]), null);
    assert.equal(deedsFor([event(files.IN_DELETE_SELF)]), null);
    assert.equal(deedsFor(Array.from({ length: 5_000 }, () => event(files.IN_OPEN))), null);
  });
});

/** Which number pairs them is the kernel's to say. */
function withoutCookies(events: WatchEvent[]): WatchEvent[] {
  return events.map((event) => ({ ...event, cookie: event.cookie === 0 ? 0 : 1 }));
}
