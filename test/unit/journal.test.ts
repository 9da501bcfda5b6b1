import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { EMPTY_JOURNAL, nextJournal, readJournal, writeJournal } from "#control/agent/journal.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

function inFolder(use: (path: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-journal-"));
  try {
    use(join(folder, "w", "journal.json"));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test("no journal is an empty one; a written one is read back", () => {
  inFolder((path) => {
    assert.deepEqual(readJournal(path), EMPTY_JOURNAL);
    const journal = { ...EMPTY_JOURNAL, role: "owner" as const, epoch: 7, owned: 7, seen: 7, edges: ["b"] };
    writeJournal(path, journal);
    assert.deepEqual(readJournal(path), journal);
  });
});

test("a journal that is damaged or cannot be read is not taken for an empty one: something may run", () => {
  inFolder((path) => {
    writeJournal(path, EMPTY_JOURNAL);
    for (const text of ["", "{", "[]", '{"role":"king"}', JSON.stringify({ ...EMPTY_JOURNAL, extra: 1 })]) {
      writeFileSync(path, text);
      assert.throws(
        () => readJournal(path),
        (error) => error instanceof HoldfastError && error.code === "JOURNAL_INVALID",
        text,
      );
    }
    rmSync(path);
    mkdirSync(path);
    assert.throws(
      () => readJournal(path),
      (error) => error instanceof HoldfastError && error.code === "JOURNAL_INVALID",
    );
  });
});

test("epochs that were owned or seen are never forgotten, whatever else is", () => {
  let journal = nextJournal(EMPTY_JOURNAL, { role: "owner", epoch: 3 });
  assert.deepEqual([journal.owned, journal.seen], [3, 3]);
  journal = nextJournal(journal, { seen: 8 });
  journal = nextJournal(journal, { role: "none", epoch: 4 }); // handed on
  assert.deepEqual([journal.owned, journal.seen], [3, 8]);
  journal = nextJournal(journal, { ...EMPTY_JOURNAL, stopped: true });
  assert.deepEqual([journal.owned, journal.seen], [3, 8]);
});

test("a journal of before epochs were remembered is read", () => {
  inFolder((path) => {
    const { owned: _, seen: __, ...before } = { ...EMPTY_JOURNAL, role: "owner" as const, epoch: 5 };
    writeJournal(path, before as never);
    const read = readJournal(path);
    assert.deepEqual([read.owned, read.seen], [5, 5]);
  });
});
