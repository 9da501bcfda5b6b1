/** Waiting for an owner elsewhere. With real processes and nodes: `test/privileged`, `test/kube/others-act.test.ts`. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pino } from "pino";
import { parseWorkload } from "#control/config/config.ts";
import { EMPTY_JOURNAL, type Journal } from "#control/workload/journal.ts";
import { Obstacle } from "#control/workload/obstacle.ts";
import { Starter, type StarterHost } from "#control/workload/starter.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import { until } from "../support/moved-program.ts";

const POD = { name: "chat-2", container: "app" };

/** On node b, with pods or a container of the file's; node a has it at first. */
class Waiting {
  readonly store = new MemoryStore();
  readonly obstacle = new Obstacle();
  readonly started: number[] = [];
  /** of its starts, one after the other */
  failures: (() => void)[] = [];
  looks = 0;
  journal: Journal = EMPTY_JOURNAL;
  config: StarterHost["config"];
  readonly starter: Starter;

  constructor(pod: object) {
    const file = { name: "chat", start: true, pod, ports: [{ listen: 8080, upstream: "127.0.0.1:9000" }] };
    this.config = parseWorkload(file, "192.0.2.1", "test");
    const own = {
      name: "chat",
      logFile: "/nonexistent",
      obstacle: this.obstacle,
      ...{ isClosed: false, isMoving: false, runsHere: false, vip: null },
      context: {
        node: "b",
        store: this.store,
        mark: { isKnown: async () => true },
        owners: {
          ask: async () => {
            this.looks++;
            return [];
          },
        },
        log: pino({ level: "silent" }),
      },
      record: (patch: Partial<Journal>) => {
        this.journal = { ...this.journal, ...patch };
      },
      openVip: async () => {},
      createContainer: async () => ({ id: "c", ref: { id: "c", init: { pid: 0 } } }),
      supervisor: { first: async () => this.failures.shift()?.() },
      tearDown: async () => {},
      keeper: { start: async () => {}, serve: async (epoch: number) => void this.started.push(epoch) },
      linkRecords: { tell: async () => {} },
    };
    const host = Object.defineProperties(own, {
      journal: { get: () => this.journal },
      config: { get: () => this.config },
    });
    this.starter = new Starter(host as unknown as StarterHost);
  }

  async begin(): Promise<void> {
    await this.store.claim({ workload: "chat", node: "a" });
    await this.starter.startWhenKnown();
    assert.deepEqual(this.started, []);
  }
}

describe("a pod whose application is still elsewhere", () => {
  it("has it as soon as it has ended there", async () => {
    const waiting = new Waiting({ ...POD, uid: "2" });
    await waiting.begin();
    assert.ok(waiting.starter.isWaiting);
    assert.match(waiting.obstacle.problem?.what ?? "", /node a still/);
    await waiting.store.stop({ workload: "chat", node: "a", epoch: 1 });
    await until("it is started", () => waiting.started.length > 0);
    assert.deepEqual(waiting.started, [2]);
    assert.equal(waiting.obstacle.problem, null);
  });

  it("has it no more where it is a standby's by then", async () => {
    const waiting = new Waiting({ ...POD, uid: "2" });
    await waiting.begin();
    waiting.config = { ...waiting.config, start: false };
    await waiting.store.stop({ workload: "chat", node: "a", epoch: 1 });
    await until("nobody waits for it", () => !waiting.starter.isWaiting);
    assert.deepEqual(waiting.started, []);
  });

  it("is not looked for in a store that has not been told how the last move ended", async () => {
    const waiting = new Waiting({ ...POD, uid: "2" });
    waiting.journal = {
      ...EMPTY_JOURNAL,
      role: "owner",
      epoch: 3,
      owed: { kind: "taken-back", migration: "m1", epoch: 3 },
    };
    await waiting.begin(); // which still says that node a has it
    assert.match(waiting.obstacle.problem?.what ?? "", /not been told/);
    assert.equal(waiting.journal.role, "owner");
    assert.equal(waiting.looks, 0);
    await waiting.store.raise({ workload: "chat", node: "b", epoch: 3 });
    waiting.journal = { ...waiting.journal, owed: null };
    await until("it is started", () => waiting.started.length > 0);
  });

  it("has it where the store takes its node in late", async () => {
    const waiting = new Waiting({ ...POD, uid: "2" });
    const { store } = waiting;
    const refuse = async (): Promise<never> => {
      throw fail("STORE_UNREACHABLE", "it answers NOAUTH Authentication required", { retryable: false });
    };
    store.ownership = refuse;
    await waiting.starter.startWhenKnown();
    assert.match(JSON.stringify(waiting.obstacle.problem), /NOAUTH.*password/);
    store.ownership = MemoryStore.prototype.ownership;
    store.claim = refuse;
    await waiting.starter.startWhenKnown();
    store.claim = MemoryStore.prototype.claim;
    await until("it is started", () => waiting.started.length > 0);
  });

  it("stays elsewhere where no pod was made for it", async () => {
    const waiting = new Waiting(POD);
    await waiting.begin();
    assert.deepEqual([waiting.starter.isWaiting, waiting.looks], [false, 1]);
  });
});

describe("an application that ends when it is started first", () => {
  const ends = (): never => {
    throw fail("APPLICATION_ENDED", "chat has ended with status 1 at once: no database");
  };

  it("is started again in its pod, as by kubelet, and until then it is said why it has ended", async () => {
    const waiting = new Waiting({ ...POD, uid: "2" });
    const gone = (): never => {
      throw fail("POD_MISSING", "no container app of pod chat-2 runs on this node");
    };
    const said: (string | undefined)[] = [];
    waiting.failures = [ends, gone, () => void said.push(waiting.obstacle.problem?.what)];
    await waiting.starter.startWhenKnown();
    assert.ok(waiting.starter.isWaiting);
    await until("it is started", () => waiting.started.length > 0);
    assert.match(said.join(), /no database/);
    assert.equal(waiting.obstacle.problem, null);
  });

  it("stays down where no pod was made for it", async () => {
    const waiting = new Waiting(POD);
    waiting.failures = [ends];
    await assert.rejects(waiting.starter.startWhenKnown(), /no database/);
    assert.ok(waiting.obstacle.startFailed && !waiting.starter.isWaiting);
  });
});
