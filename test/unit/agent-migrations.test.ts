/** What an agent does of Migrations: it begins none that it could not write down, and says what came of each. */
import assert from "node:assert/strict";
import { afterEach, describe, it } from "node:test";
import { pino } from "pino";
import { Migrations, type MovableWorkload } from "#control/agent/migrations.ts";
import type { MoveResult } from "#control/api/migration.ts";
import { type MigrationStatus, migration as migrationSchema } from "#control/api/resources.ts";
import type { KubernetesObject, Pod } from "#control/kubernetes/client/objects.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { until } from "../support/moved-program.ts";

type Patch = {
  metadata?: { resourceVersion?: string; uid?: string };
  status: { conditions?: object[]; move?: object };
};

const RESULT = {
  outcome: "moved",
  reason: null,
  sessions: 20,
  holdMs: 12.5,
  precopyBytes: 5,
  imageBytes: 7,
  trackedProcesses: 0,
  downstream: "gateway",
} as MoveResult;

/** One Migration in an API server, one workload on node a. */
class Stage {
  role = "owner";
  runsHere = true;
  busyWith: string | null = null;
  isRecovering = false;
  owner: string | null = "b";
  moves: string[] = [];
  cancelled = 0;
  clients = 0;
  /** of the move that is asked for; resolves or rejects it */
  move = Promise.withResolvers<MoveResult>();
  /** what the API server does with the next writes */
  problems: Error[] = [];
  readonly patches: { path: string; body: Patch }[] = [];
  #version = 1;
  #status: MigrationStatus;
  readonly agent: Migrations;

  constructor(status: MigrationStatus = {}) {
    this.#status = {
      phase: "Moving",
      attempt: 1,
      source: { pod: "chat-0", podUid: "source", node: "a" },
      target: { pod: "chat-1", podUid: "target", node: "b", attempt: 1 },
      ...status,
    };
    const stage = this;
    const workload: MovableWorkload = {
      name: "shop.chat-0",
      get journal() {
        return { role: stage.role };
      },
      get runsHere() {
        return stage.runsHere;
      },
      get busyWith() {
        return stage.busyWith;
      },
      keeper: { countSessions: async () => stage.clients },
      moves: {
        migrate({ to }) {
          stage.moves.push(to);
          return stage.move.promise;
        },
      },
      cancel() {
        stage.cancelled += 1;
        return true;
      },
    };
    this.agent = new Migrations({
      node: "a",
      api: {
        find: async <T>() => this.object as T,
        patch: async <T>(path: string, body: object) => this.#patch(path, body as Patch) as T,
      },
      store: {
        ownership: async () =>
          this.owner === null ? null : ({ owner: this.owner, state: "released", epoch: 2 } as never),
      },
      log: pino({ level: "silent" }),
      workloadOf: (uid) => (uid === "source" ? workload : null),
      isRecovering: () => this.isRecovering,
      lookMs: 2,
    });
  }

  get object(): KubernetesObject & { spec: object; status: MigrationStatus } {
    return {
      metadata: {
        name: "m",
        namespace: "shop",
        uid: "m-uid",
        resourceVersion: String(this.#version),
        creationTimestamp: "2026-01-01T00:00:00Z",
      },
      spec: { pod: "chat-0" },
      status: this.#status,
    };
  }

  get said(): object | undefined {
    return migrationSchema.parse(this.object).status.move;
  }

  /** As somebody else writes it, and the agent sees it. */
  change(status: MigrationStatus): void {
    this.#status = { ...this.#status, ...status };
    this.#version += 1;
    this.see();
  }

  see(): void {
    this.agent.seeMigrations([this.object]);
  }

  #patch(path: string, body: Patch): object {
    const problem = this.problems.shift();
    if (problem !== undefined) throw problem;
    this.patches.push({ path, body });
    if (path.includes("/pods/"))
      return pod(path.includes("chat-0") ? "source" : "other", (body.status.conditions ?? []) as never);
    if (body.metadata?.resourceVersion !== String(this.#version)) throw fail("KUBERNETES_CONFLICT", "old");
    this.change({ move: Object.assign({}, this.#status.move, body.status.move) });
    return this.object;
  }
}

function pod(uid: string, conditions: NonNullable<NonNullable<Pod["status"]>["conditions"]> = []): Pod {
  return {
    metadata: {
      name: uid === "source" ? "chat-0" : "other",
      namespace: "shop",
      uid,
      resourceVersion: "1",
      creationTimestamp: "2026-01-01T00:00:00Z",
    },
    spec: { nodeName: "a", containers: [] },
    status: { phase: "Running", conditions },
  };
}

/** Whatever it was about to do it has done. */
const quiet = () => new Promise((resolve) => setTimeout(resolve, 20));

describe("an agent with a Migration of its node", () => {
  let stage: Stage;
  const begin = (status?: MigrationStatus): Stage => {
    stage = new Stage(status);
    return stage;
  };
  afterEach(() => stage.agent.close());

  it("writes that it begins, moves, and writes what came of it", async () => {
    begin().see();
    await until("it moves", () => stage.moves.length === 1);
    assert.deepEqual(stage.said, { attempt: 1, state: "Running" });
    stage.move.resolve(RESULT);
    await until("it has told", () => (stage.said as { state: string }).state === "Moved");
    assert.deepEqual(stage.said, {
      attempt: 1,
      state: "Moved",
      downstream: "gateway",
      sessions: 20,
      pauseMs: 12.5,
      bytes: 12,
    });
    await quiet();
    assert.deepEqual(stage.moves, ["b"], "and does not begin again");
  });

  it("does not move what has changed since it was read", async () => {
    begin();
    const old = stage.object;
    stage.change({ phase: "Failed" });
    stage.agent.seeMigrations([old]);
    await quiet();
    assert.deepEqual([stage.moves, stage.said], [[], undefined]);
  });

  const failures: [string, () => void, object][] = [
    [
      "rolled back",
      () => stage.move.resolve({ ...RESULT, outcome: "rolled-back", reason: "the peer went" }),
      { reason: "RolledBack", message: "the peer went", retryable: true },
    ],
    [
      "not possible while the store is away",
      () =>
        stage.move.resolve({
          ...RESULT,
          outcome: "rolled-back",
          check: {
            checked: [],
            findings: [
              {
                id: "node.store-silent",
                ...{ severity: "error", node: "a", what: "no answer", cure: "start it" },
              } as never,
            ],
          },
        }),
      { reason: "NotYet", message: "node a: no answer: start it", retryable: true },
    ],
    [
      "not possible while the application is busy",
      () =>
        stage.move.resolve({
          ...RESULT,
          outcome: "rolled-back",
          check: {
            checked: [],
            findings: ["session.not-accepted", "socket.unix-message"].map(
              (id) => ({ id, severity: "error", node: "a", what: id, cure: "wait" }) as never,
            ),
          },
        }),
      {
        reason: "NotYet",
        message: "node a: session.not-accepted: wait; node a: socket.unix-message: wait",
        retryable: true,
      },
    ],
    [
      "not possible",
      () =>
        stage.move.resolve({
          ...RESULT,
          outcome: "rolled-back",
          check: {
            checked: [],
            findings: [{ severity: "error", node: "a", what: "io_uring", cure: "stop it" } as never],
          },
        }),
      { reason: "NotMovable", message: "node a: io_uring: stop it", retryable: false },
    ],
    [
      "refused for now",
      () => stage.move.reject(fail("STORE_UNREACHABLE", "no store")),
      { reason: "StoreUnreachable", message: "no store", retryable: true },
    ],
    [
      "a mistake",
      () => stage.move.reject(new Error("oops")),
      { reason: "Internal", message: "oops", retryable: false },
    ],
  ];
  for (const [what, happens, expected] of failures)
    it(`says of a move that is ${what} why, and whether another may succeed`, async () => {
      begin().see();
      await until("it moves", () => stage.moves.length === 1);
      happens();
      await until("it has told", () => (stage.said as { state: string }).state === "Failed");
      assert.deepEqual(stage.said, { attempt: 1, state: "Failed", ...expected });
    });

  it("tells until it is written, whatever the API server does", async () => {
    begin().see();
    await until("it moves", () => stage.moves.length === 1);
    stage.problems.push(fail("KUBERNETES_UNREACHABLE", "no answer"), fail("KUBERNETES_CONFLICT", "old"));
    stage.move.resolve(RESULT);
    await until("it has told", () => (stage.said as { state: string }).state === "Moved");
  });

  it("tells nothing of an attempt that is over", async () => {
    begin().see();
    await until("it moves", () => stage.moves.length === 1);
    stage.change({ attempt: 2, phase: "Preparing", move: undefined });
    stage.move.resolve(RESULT);
    await quiet();
    assert.equal(stage.said, undefined);
  });

  it("asks a move under way to give up, and begins none that is to", async () => {
    begin().see();
    await until("it moves", () => stage.moves.length === 1);
    stage.change({ cancel: "Aborted" });
    await until("it is asked", () => stage.cancelled > 0);
    begin({ cancel: "Deadline" }).see();
    await quiet();
    assert.deepEqual(stage.moves, []);
  });

  for (const [what, role, owner, expected] of [
    ["was taken back", "owner", "a", { state: "Failed", reason: "AgentRestarted", retryable: true }],
    ["succeeded", "anchor", "b", { state: "Moved" }],
    ["went elsewhere", "none", "c", { state: "Failed", reason: "NotOwner", retryable: false }],
  ] as const)
    it(`says of a move that an agent before it began, and that ${what}, what came of it`, async () => {
      begin({ move: { attempt: 1, state: "Running" } });
      Object.assign(stage, { role, owner, isRecovering: true });
      stage.see();
      await quiet();
      assert.deepEqual(stage.said, { attempt: 1, state: "Running" }, "not before its journal is settled");
      stage.isRecovering = false;
      await until("it has told", () => (stage.said as { state: string }).state !== "Running");
      const { message: _, ...said } = stage.said as { message?: string };
      assert.deepEqual(said, { attempt: 1, ...expected });
      assert.deepEqual(stage.moves, []);
    });

  it("serves on as an anchor while the controller waits for its clients, and counts them", async () => {
    const move = { attempt: 1, state: "Moved", downstream: "forward", sessions: 20 } as const;
    begin({ phase: "Adopting", reason: "ClientsOfSource", move });
    Object.assign(stage, { role: "anchor", clients: 7 });
    stage.see();
    stage.agent.seePods([pod("source")]);
    await until("they are counted", () => (stage.said as { anchored?: number }).anchored === 7);
    const said = (): string | undefined => {
      const conditions = stage.patches.findLast(({ path }) => path.includes("/pods/"))?.body.status
        .conditions;
      return (conditions as { status: string }[] | undefined)?.[0]?.status;
    };
    await until("it serves", () => said() === "True");
    stage.change({ reason: "SourceReady" });
    await until("it serves no more", () => said() === "False");
  });

  for (const [what, status] of [
    ["of another node", { source: { pod: "chat-0", podUid: "source", node: "z" } }],
    ["that is only prepared", { phase: "Preparing" }],
    ["of a pod that is not here", { source: { pod: "chat-0", podUid: "another", node: "a" } }],
    ["that has been carried out", { move: { attempt: 1, state: "Moved" } }],
  ] as const)
    it(`leaves one alone ${what}`, async () => {
      begin(status as MigrationStatus).see();
      await quiet();
      assert.deepEqual([stage.moves, stage.patches], [[], []]);
    });

  it("waits while its workload is busy", async () => {
    begin();
    stage.busyWith = "moved there";
    stage.see();
    await quiet();
    assert.deepEqual(stage.moves, []);
    stage.busyWith = null;
    await until("it moves", () => stage.moves.length === 1);
  });
});

describe("an agent's pods", () => {
  it("serve where the workload is owned and runs; it is said when it changes, to the pod that was seen", async () => {
    const stage = new Stage();
    stage.role = "none";
    stage.agent.seePods([pod("source"), pod("other")]);
    await until("it is said", () => stage.patches.length === 1);
    await quiet();
    assert.equal(stage.patches.length, 1, "once, and not of a pod without a workload");
    const [{ path, body }] = stage.patches as [{ path: string; body: Patch }];
    assert.equal(path, "/api/v1/namespaces/shop/pods/chat-0/status");
    assert.equal(body.metadata?.uid, "source");
    const said = (): string => {
      const [condition] = (stage.patches.at(-1)?.body.status.conditions ?? []) as { status: string }[];
      return condition?.status ?? "nothing";
    };
    assert.equal(said(), "False");
    stage.role = "owner";
    await until("it serves", () => said() === "True");
    stage.runsHere = false;
    await until("it does not", () => said() === "False");
    stage.isRecovering = true;
    stage.runsHere = true;
    await quiet();
    assert.equal(said(), "False", "what is not settled is not said");
    stage.agent.close();
  });
});
