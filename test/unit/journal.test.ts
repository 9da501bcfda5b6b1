import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { WorkloadConfig } from "#control/config/config.ts";
import type { AgentContext } from "#control/workload/context.ts";
import {
  EMPTY_JOURNAL,
  type Journal,
  nextJournal,
  readJournal,
  writeJournal,
} from "#control/workload/journal.ts";
import { JournalKeeper } from "#control/workload/journal-keeper.ts";
import { Workload } from "#control/workload/workload.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";

const PROCESS = { pid: 42, startTicks: "4711" };
const FULL: Journal = {
  ...EMPTY_JOURNAL,
  role: "owner",
  epoch: 7,
  owned: 7,
  seen: 7,
  container: { id: "w-a-01234567", runDir: "/run/w", init: PROCESS, tmpfs: ["/tmp"], reader: PROCESS },
  application: PROCESS,
  proxy: { process: PROCESS, socketPath: "/run/p.sock", isSidecar: false },
  anchors: ["b"],
  moving: {
    side: "source",
    id: "m",
    peer: "b",
    epoch: 8,
    step: "held",
    criu: PROCESS,
    stopped: [3],
    ran: false,
    watches: [],
    link: null,
    anchors: [],
  },
};

function inFolder(use: (path: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-journal-"));
  try {
    use(join(folder, "w", "journal.json"));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function contents(path: string): Record<string, unknown> {
  return JSON.parse(readFileSync(path, "utf8"));
}

test("an epoch is known where there is no room to write it, and written with what comes next", () => {
  const folder = mkdtempSync(join(tmpdir(), "hf-journal-"));
  try {
    const path = join(folder, "state", "journal.json");
    const keeper = new JournalKeeper(path);
    writeFileSync(join(folder, "state"), "no folder");
    keeper.see(7);
    assert.equal(keeper.journal.seen, 7);
    rmSync(join(folder, "state"));
    keeper.record({ stopped: true });
    assert.equal(readJournal(path).seen, 7);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("no journal is an empty one; a written one is read back", () => {
  inFolder((path) => {
    assert.deepEqual(readJournal(path), EMPTY_JOURNAL);
    for (const journal of [EMPTY_JOURNAL, FULL]) {
      writeJournal(path, journal);
      assert.deepEqual(readJournal(path), journal);
    }
  });
});

test("keys that another version has written are kept, at every depth", () => {
  inFolder((path) => {
    writeJournal(path, FULL);
    const file = contents(path) as Record<string, object>;
    const more = { ...file, lease: { until: 5 }, moving: { ...file.moving, hint: "x" } };
    writeFileSync(path, JSON.stringify(more));
    const read = readJournal(path);
    writeJournal(path, { ...read, epoch: 9 });
    const { lease, moving, epoch } = contents(path) as Record<string, Record<string, unknown>>;
    assert.deepEqual(lease, { until: 5 });
    assert.equal(moving?.hint, "x");
    assert.equal(epoch, 9);
  });
});

test("each key that an earlier version did not write has a default, but for role and epoch", () => {
  inFolder((path) => {
    for (const key of Object.keys(EMPTY_JOURNAL) as (keyof Journal)[]) {
      const { [key]: _, ...less } = FULL;
      mkdirSync(join(path, ".."), { recursive: true });
      writeFileSync(path, JSON.stringify({ version: 2, ...less }));
      if (key === "role" || key === "epoch")
        assert.throws(() => readJournal(path), { code: "JOURNAL_INVALID" });
      else assert.deepEqual(readJournal(path), nextJournal({ ...FULL, [key]: EMPTY_JOURNAL[key] }, {}), key);
    }
  });
});

test("processes of an earlier boot are ones that have ended, whatever has their numbers now", () => {
  inFolder((path) => {
    writeJournal(path, FULL);
    writeFileSync(path, JSON.stringify({ ...contents(path), boot: "another" }));
    const { container, application, proxy, moving, epoch } = readJournal(path);
    const processes = [container?.init, container?.reader, application, proxy?.process, moving?.criu];
    for (const each of processes) assert.ok((each?.pid ?? 0) > 4_194_304, "no process has that number");
    assert.equal(container?.id, FULL.container?.id);
    assert.equal(epoch, 7);
  });
});

test("a journal of a format that is newer is refused, with the cure", () => {
  inFolder((path) => {
    writeJournal(path, EMPTY_JOURNAL);
    writeFileSync(path, JSON.stringify({ ...contents(path), version: 99 }));
    assert.throws(() => readJournal(path), {
      code: "JOURNAL_INVALID",
      message: /newer version.*start that one/,
    });
  });
});

test("a journal of a format that has other words is refused, with the cure", () => {
  inFolder((path) => {
    writeJournal(path, EMPTY_JOURNAL);
    const { version: _, ...first } = contents(path) as Record<string, unknown>;
    writeFileSync(path, JSON.stringify({ ...first, edges: [], debt: null, epoch: 3, seen: 5 }));
    const { role, epoch, seen } = readJournal(path);
    assert.deepEqual([role, epoch, seen], ["none", 3, 5], "of one that has nothing to do with this node");
    for (const older of [
      { ...first, role: "owner" },
      { ...first, version: 1, debt: { kind: "released" } },
    ]) {
      writeFileSync(path, JSON.stringify(older));
      assert.throws(() => readJournal(path), {
        code: "JOURNAL_INVALID",
        message: /older version.*stop the workload with that one/,
      });
    }
  });
});

test("a journal that is damaged or cannot be read is not taken for an empty one: something may run", () => {
  inFolder((path) => {
    writeJournal(path, EMPTY_JOURNAL);
    for (const text of ["", "{", "[]", "null", '{"role":"king","epoch":1}', '{"epoch":1}']) {
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

test("an owner at an epoch below one that this node has owned is a bug, and not recorded", () => {
  const journal = nextJournal(nextJournal(EMPTY_JOURNAL, { role: "owner", epoch: 5 }), { role: "none" });
  assert.throws(() => nextJournal(journal, { role: "owner", epoch: 4 }), { code: "ERR_ASSERTION" });
  assert.equal(nextJournal(journal, { role: "owner", epoch: 5 }).owned, 5);
});

test("a journal of before epochs were remembered is read", () => {
  inFolder((path) => {
    const { owned: _, seen: __, ...before } = { ...EMPTY_JOURNAL, role: "owner" as const, epoch: 5 };
    writeJournal(path, before as never);
    const read = readJournal(path);
    assert.deepEqual([read.owned, read.seen], [5, 5]);
  });
});

test("a damaged journal costs its workload alone, which says so, and is left as it is", async () => {
  const stateDir = mkdtempSync(join(tmpdir(), "holdfast-journal-"));
  try {
    const path = join(stateDir, "workloads", "w", "journal.json");
    mkdirSync(join(path, ".."), { recursive: true });
    writeFileSync(path, '{"role":"own');
    const store = { ownership: async () => null };
    const config = { name: "w", downstream: "forward" } as WorkloadConfig;
    const workload = new Workload(config, {
      stateDir,
      store,
      runtime: { supervisor: "agent" },
    } as unknown as AgentContext);
    assert.equal((await workload.status()).state, "damaged");
    assert.equal((await workload.owner.held()).has, "moving", "it may be here, so no peer is to start it");
    await assert.rejects(workload.recover(), { code: "JOURNAL_INVALID" });
    await assert.rejects(workload.stop(), { code: "JOURNAL_INVALID" });
    assert.throws(() => workload.record({ role: "none" }), { code: "JOURNAL_INVALID" });
    assert.equal(readFileSync(path, "utf8"), '{"role":"own');
  } finally {
    rmSync(stateDir, { recursive: true, force: true });
  }
});
