/** What becomes of an eviction, and what the API server is answered. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  MIGRATION_LABEL,
  type Migration,
  migration as migrationSchema,
  type Policy,
  policyOf,
} from "#control/api/resources.ts";
import type { Node, Pod } from "#control/kubernetes/client/objects.ts";
import {
  decideEviction,
  EVICTED,
  type EvictionDecision,
  type EvictionFacts,
} from "#control/kubernetes/eviction/decision.ts";
import { answerEviction } from "#control/kubernetes/eviction/review.ts";
import { fail } from "#proxy/contract/error-codes.ts";

const NOW = Date.parse("2026-01-01T01:00:00Z");
const at = (agoS: number): string => new Date(NOW - agoS * 1_000).toISOString();

function pod(metadata: object = {}, status: object = {}): Pod {
  return {
    metadata: {
      name: "chat-1",
      namespace: "shop",
      uid: "12345678-abcd",
      resourceVersion: "1",
      creationTimestamp: at(3_600),
      ...metadata,
      annotations: { "holdfast.dev/injected": "1", ...(metadata as { annotations?: object }).annotations },
    },
    spec: { containers: [] },
    status: {
      phase: "Running",
      conditions: [{ type: "holdfast.dev/serving", status: "True" }],
      ...status,
    },
  };
}

function migration(status: object, spec: object = {}, metadata: object = {}): Migration {
  return migrationSchema.parse({
    metadata: {
      name: "m",
      namespace: "shop",
      uid: "m-uid",
      resourceVersion: "1",
      creationTimestamp: at(60),
      ...metadata,
    },
    spec: { pod: "chat-1", podUid: "12345678-abcd", ...spec },
    status,
  });
}

function decide(
  one: Pod | null,
  migrations: Migration[] = [],
  policy: Partial<Policy> = {},
  node: Node | null = null,
  isByUid = false,
  request: EvictionFacts["request"] = null,
): EvictionDecision {
  const whole = { ...policyOf([]), ...policy };
  return decideEviction({ pod: one, isByUid, migrations, policy: whole, node, request }, NOW);
}

const ended = (phase: string, agoS: number): object => ({
  phase,
  reason: "Why",
  message: "because",
  phaseTransitionTimestamps: [{ phase, timestamp: at(agoS) }],
});

describe("an eviction of a pod", () => {
  const allowed: [string, EvictionDecision, RegExp][] = [
    ["that is not there", decide(null), /no such pod/],
    ["that was not injected", decide(pod({ annotations: { "holdfast.dev/injected": "0" } })), /not injected/],
    ["that goes already", decide(pod({ deletionTimestamp: at(1) })), /does not run/],
    ["that has ended", decide(pod({}, { phase: "Succeeded" })), /does not run/],
    ["that has not begun", decide(pod({}, { phase: "Pending" })), /does not run/],
    ["where the policy is None", decide(pod(), [], { evictionStrategy: "None" }), /None/],
    ["whose application has moved", decide(pod(), [migration({ phase: "Succeeded" })]), /has moved/],
    [
      "that has no application",
      decide(pod({}, { conditions: [{ type: "holdfast.dev/serving", status: "False" }] })),
      /no application/,
    ],
    ["that cannot be moved", decide(pod(), [migration(ended("Failed", 5))]), /cannot be moved: Why: because/],
    [
      "that could not be moved when it was asked for five minutes ago",
      decide(pod({ annotations: { [EVICTED]: `${at(300)} ${at(300)}` } }), [migration(ended("Failed", 290))]),
      /cannot be moved/,
    ],
    [
      "that cannot be moved, asked for since",
      decide(pod({ annotations: { [EVICTED]: `${at(595)} ${at(5)}` } }), [migration(ended("Failed", 590))]),
      /cannot be moved/,
    ],
    [
      "that was denied for as long as the policy says",
      decide(pod({ annotations: { [EVICTED]: `${at(601)} ${at(5)}` } }), [migration({ phase: "Moving" })]),
      /denied for 600 s/,
    ],
    [
      "that is asked for by an EvictionRequest for as long as the policy says",
      decide(pod(), [migration({ phase: "Moving" })], {}, null, true, {
        eviction: "e",
        sinceMs: NOW - 601_000,
      }),
      /denied for 600 s/,
    ],
    [
      "that waits for the application of none",
      decide(
        pod({
          annotations: { "holdfast.dev/standby": "true" },
          labels: { "holdfast.dev/migration": "m-uid" },
        }),
        [migration({ phase: "Failed" })],
      ),
      /waits for nothing/,
    ],
  ];
  for (const [what, decision, reason] of allowed)
    it(`${what} is allowed`, () => {
      assert.ok(decision.isAllowed, JSON.stringify(decision));
      assert.match(decision.reason, reason);
    });

  const first = {
    namespace: "shop",
    name: "evict-chat-1-12345678",
    spec: { pod: "chat-1", podUid: "12345678-abcd", ttlSecondsAfterFinished: 86_400 },
    cause: { kind: "eviction", node: "", trigger: "", memoryBytes: null },
  };
  const second = { ...first, name: "evict-chat-1-12345678-2" };
  const denied: [string, EvictionDecision, RegExp, object | null][] = [
    ["with an application is denied, and a move is made", decide(pod()), /going to be moved/, first],
    [
      "is denied while it moves, and says how far that is",
      decide(pod(), [
        migration({ phase: "Moving", target: { pod: "x", node: "b", attempt: 1 }, message: "on its way" }),
      ]),
      /Migration m: Moving to node b: on its way/,
      null,
    ],
    [
      "is denied while a Migration of somebody else moves it",
      decide(pod(), [migration({}, { podUid: undefined })]),
      /Migration m: Pending/,
      null,
    ],
    [
      "is not moved by a dry run",
      decide(pod(), [migration({}, { dryRun: true })]),
      /going to be moved/,
      second,
    ],
    [
      "of another uid has nothing to do with the Migration before",
      decide(pod(), [migration({ phase: "Succeeded" }, { podUid: "other" })]),
      /going to be moved/,
      first,
    ],
    [
      "of an EvictionRequest is denied like any other, and the move says what for",
      decide(pod(), [], {}, null, true, { eviction: "e-1", sinceMs: NOW - 5_000 }),
      /going to be moved/,
      { ...first, cause: { ...first.cause, kind: "request", trigger: "e-1" } },
    ],
    [
      "of an EvictionRequest is denied after one before was withdrawn, and another move is made",
      decide(pod(), [migration({ ...ended("Aborted", 5), reason: "Withdrawn" })], {}, null, true, {
        eviction: "e-2",
        sinceMs: NOW,
      }),
      /going to be moved/,
      { ...second, cause: { ...first.cause, kind: "request", trigger: "e-2" } },
    ],
    [
      "is denied where somebody else is to move it, and nothing is made",
      decide(pod(), [], { evictionStrategy: "External" }),
      /somebody else/,
      null,
    ],
    [
      "that only may move is denied after a move that failed, and another is made a while later",
      decide(pod(), [migration(ended("Failed", 31))], { evictionStrategy: "LiveMigrate" }),
      /policy is LiveMigrate: Why: because/,
      second,
    ],
    [
      "… and not at once",
      decide(pod(), [migration(ended("Failed", 5))], { evictionStrategy: "LiveMigrate" }),
      /policy is LiveMigrate/,
      null,
    ],
    [
      "that was evicted long ago is denied anew",
      decide(pod({ annotations: { [EVICTED]: `${at(90_000)} ${at(86_400)}` } })),
      /going to be moved/,
      first,
    ],
    [
      "of a cordoned node is moved for as long as that is cordoned",
      decide(pod(), [], {}, { spec: { unschedulable: true } } as Node),
      /going to be moved/,
      { ...first, cause: { ...first.cause, kind: "drain" } },
    ],
    [
      "whose move was given up since its node was uncordoned is moved when it is evicted again",
      decide(pod(), [migration({ phase: "Aborted", reason: "Uncordoned" })]),
      /going to be moved/,
      second,
    ],
    [
      "whose move failed two hours ago is moved: there may be room by now",
      decide(pod(), [migration(ended("Failed", 7_200), {}, { creationTimestamp: at(7_260) })]),
      /going to be moved/,
      second,
    ],
    [
      "is moved also where somebody's move to a node of their choice has just failed",
      decide(pod(), [migration(ended("Failed", 5), { target: { node: "b" } })]),
      /going to be moved/,
      second,
    ],
    [
      "whose move was aborted is not let go with its clients, nor moved at once",
      decide(pod(), [migration({ ...ended("Aborted", 5), reason: "Aborted" })]),
      /Migration m was aborted.*policy None/,
      null,
    ],
    [
      "whose move was aborted is moved again where the eviction is still asked for a while later",
      decide(pod({ annotations: { [EVICTED]: `${at(60)} ${at(5)}` } }), [
        migration({ ...ended("Aborted", 31), reason: "Aborted" }),
      ]),
      /Migration m was aborted/,
      second,
    ],
    [
      "that waits for an application under way is denied",
      decide(
        pod({
          annotations: { "holdfast.dev/standby": "true" },
          labels: { "holdfast.dev/migration": "m-uid" },
        }),
        [migration({ phase: "Moving" }, { pod: "chat-0", podUid: "other" })],
      ),
      /waits for the application of pod chat-0/,
      null,
    ],
  ];
  for (const [what, decision, message, made] of denied)
    it(what, () => {
      assert.ok(!decision.isAllowed, JSON.stringify(decision));
      assert.match(decision.message, message);
      assert.deepEqual(decision.migration, made);
    });

  describe("of a StatefulSet's pod, which has the same name where it has moved to", () => {
    const origin = { pod: "chat-1", podUid: "old", node: "a", attempt: 2 };
    const target = { pod: "chat-1", podUid: "12345678-abcd", node: "b", attempt: 2 };
    const came = (phase: string, agoS: number): Migration =>
      migration({ ...ended(phase, agoS), origin, target, source: { pod: "x" } }, { podUid: "old" });

    const CORDONED = { spec: { unschedulable: true } } as Node;

    it("finds no pod: another was meant", () => {
      for (const one of [came("Adopting", 1), came("Succeeded", 50)]) {
        const decision = decide(pod(), [one]);
        assert.ok(!decision.isAllowed && decision.isGone, JSON.stringify(decision));
        assert.match(decision.message, /moved from node a to node b/);
        assert.equal(decision.migration, null);
      }
    });

    it("moves it on where it is meant: its node is drained, too, or its uid was said, or it is long ago", () => {
      for (const decision of [
        decide(pod(), [came("Succeeded", 50)], {}, CORDONED),
        decide(pod(), [came("Succeeded", 50)], {}, null, true),
        decide(pod(), [came("Succeeded", 70)]),
      ]) {
        assert.ok(!decision.isAllowed && !decision.isGone, JSON.stringify(decision));
        assert.equal(decision.migration?.name, first.name);
      }
    });

    it("is denied until all is done where it is meant", () => {
      const decision = decide(pod(), [came("Adopting", 1)], {}, CORDONED);
      assert.ok(
        !decision.isAllowed && !decision.isGone && decision.migration === null,
        JSON.stringify(decision),
      );
    });

    it("is denied while its application waits in another pod", () => {
      const status = {
        phase: "Preparing",
        origin: { ...origin, podUid: "12345678-abcd" },
        source: { pod: "x" },
      };
      const decision = decide(pod(), [migration(status)]);
      assert.ok(!decision.isAllowed && !decision.isGone, JSON.stringify(decision));
    });
  });

  it("is denied since the first of questions that follow each other", () => {
    const decision = decide(pod({ annotations: { [EVICTED]: `${at(100)} ${at(5)}` } }));
    assert.ok(!decision.isAllowed);
    assert.equal(decision.evicted, `${at(100)} ${at(0)}`);
  });
});

describe("the API server", () => {
  /** What was written, and how it is answered. */
  const CORDONED = { spec: { unschedulable: true } };
  async function ask(
    request: object,
    there: Pod | null = pod(),
    create?: () => never,
    policies: object[] = [],
  ) {
    const written: { path: string; body: object }[] = [];
    const review = {
      apiVersion: "admission.k8s.io/v1",
      kind: "AdmissionReview",
      request: {
        uid: "review",
        operation: "CREATE",
        subResource: "eviction",
        namespace: "shop",
        name: "chat-1",
        object: { kind: "Eviction", deleteOptions: {} },
        ...request,
      },
    };
    const write = async <T>(path: string, body: object): Promise<T> => {
      written.push({ path, body });
      return body as T;
    };
    const api = {
      find: async <T>(path: string) => (path.includes("/nodes/") ? CORDONED : there) as T | null,
      list: async <T>(path: string) => ({
        items: (path.endsWith("/continuitypolicies") ? policies : []) as T[],
        resourceVersion: "1",
      }),
      create: create === undefined ? write : async () => create(),
      patch: write,
      delete: async (path: string) => {
        written.push({ path, body: {} });
        return true;
      },
    };
    const { review: answer } = await answerEviction(api, review, NOW);
    return { written, response: (answer as { response: { status?: object; allowed: boolean } }).response };
  }

  it("is answered so that kubectl drain says why, and asks again", async () => {
    const { written, response } = await ask({});
    assert.deepEqual(response, {
      uid: "review",
      allowed: false,
      status: {
        code: 429,
        reason: "TooManyRequests",
        message: "holdfast: its application is going to be moved",
      },
    });
    const [patch, made] = written;
    assert.ok(patch !== undefined && made !== undefined);
    assert.equal(patch.path, "/api/v1/namespaces/shop/pods/chat-1");
    assert.equal(made.path, "/apis/holdfast.dev/v1alpha1/namespaces/shop/migrations");
    const { metadata } = made.body as { metadata: { name: string; labels: object } };
    assert.equal(metadata.name, "evict-chat-1-12345678");
    assert.deepEqual(metadata.labels, { "holdfast.dev/cause": "eviction" });
    migrationSchema.pick({ spec: true }).parse(made.body);
  });

  it("is told of the node that is drained", async () => {
    const there = pod();
    there.spec.nodeName = "a";
    const { written } = await ask({}, there);
    const [, made] = written as { body: { metadata: { labels: object; annotations: object } } }[];
    assert.ok(made !== undefined);
    const { metadata } = made.body;
    assert.deepEqual(metadata.labels, { "holdfast.dev/cause": "drain" });
    assert.deepEqual(metadata.annotations, { "holdfast.dev/node": "a" });
  });

  it("is answered the same where a policy is of a later version", async () => {
    const later = { metadata: pod().metadata, spec: { evictionStrategy: "Teleport" } };
    const { response } = await ask({}, pod(), undefined, [later]);
    assert.equal(response.allowed, false);
  });

  it("is answered the same for a dry run, and nothing is written", async () => {
    const { written, response } = await ask({ dryRun: true });
    assert.equal(response.allowed, false);
    assert.deepEqual(written, []);
  });

  it("is answered the same when the Migration is there since a moment ago", async () => {
    const { response } = await ask({}, pod(), () => {
      throw fail("KUBERNETES_EXISTS", "there");
    });
    assert.equal(response.allowed, false);
    await assert.rejects(
      ask({}, pod(), () => {
        throw fail("KUBERNETES_BUSY", "no answer");
      }),
      { code: "KUBERNETES_BUSY" },
      "and left to the failurePolicy when it cannot be made",
    );
  });

  it("may evict what is guarded by a Migration only when the guard has gone", async () => {
    const moving = pod({ labels: { [MIGRATION_LABEL]: "m-uid" } });
    const none = { metadata: pod().metadata, spec: { evictionStrategy: "None" } };
    const { written, response } = await ask({}, moving, undefined, [none]);
    assert.equal(response.allowed, true);
    const path = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/holdfast-m-uid";
    assert.deepEqual(written, [{ path, body: {} }]);
    const dry = await ask({ dryRun: true }, moving, undefined, [none]);
    assert.deepEqual([dry.response.allowed, dry.written], [true, []]);
    // it does not run, so that no budget keeps it; another of the same Migration may have the application
    const ending = pod({ labels: { [MIGRATION_LABEL]: "m-uid" }, deletionTimestamp: at(1) });
    const waiting = pod({ labels: { [MIGRATION_LABEL]: "m-uid" } }, { phase: "Pending" });
    for (const one of [ending, waiting]) {
      const ended = await ask({}, one);
      assert.deepEqual([ended.response.allowed, ended.written], [true, []]);
    }
    const denied = await ask({}, moving);
    assert.ok(!denied.response.allowed && denied.written.every((one) => one.path !== path));
  });

  it("may evict what is meant to be another pod, and whatever else it asks about", async () => {
    const other = { object: { deleteOptions: { preconditions: { uid: "another" } } } };
    for (const request of [other, { operation: "DELETE" }, { subResource: "status" }]) {
      const { written, response } = await ask(request);
      assert.deepEqual([response.allowed, written], [true, []]);
    }
  });

  it("is told what is wrong with a question that is none", async () => {
    await assert.rejects(answerEviction({} as never, { kind: "Pod" }), {
      code: "REQUEST_INVALID",
      message: /apiVersion/,
    });
  });
});
