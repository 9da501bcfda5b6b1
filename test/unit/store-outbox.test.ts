/** What the store is told of a move that it was not asked about. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { pino } from "pino";
import { EMPTY_JOURNAL, type Journal } from "#control/workload/journal.ts";
import { type OutboxHost, StoreOutbox } from "#control/workload/store-outbox.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { until } from "../support/moved-program.ts";

test("what is owed to a store that refuses this node is told when it takes it in", async () => {
  let journal: Journal = { ...EMPTY_JOURNAL, role: "owner", epoch: 3 };
  const refused = fail("STORE_UNREACHABLE", "it answers NOPERM", { retryable: false });
  const raised: number[] = [];
  let calls = 0;
  const raise = async ({ epoch }: { epoch: number }): Promise<void> => {
    if (++calls < 3) throw refused;
    raised.push(epoch);
  };
  const host = {
    name: "chat",
    context: { node: "b", store: { raise }, log: pino({ level: "silent" }) },
    get journal() {
      return journal;
    },
    record: (patch: Partial<Journal>) => {
      journal = { ...journal, ...patch };
    },
    assertOwnership: async () => {},
  };
  const outbox = new StoreOutbox(host as unknown as OutboxHost);
  outbox.put({ kind: "released", migration: "m1", epoch: 3 });
  await until("nothing is owed", () => journal.owed === null);
  assert.deepEqual(raised, [3]);
});
