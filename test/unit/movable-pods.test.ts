/** Whether a pod could be moved now is said by its condition: written when it is news, and looked at one at a time. */
import assert from "node:assert/strict";
import { afterEach, describe, it } from "node:test";
import { pino } from "pino";
import { type AssessedWorkload, MovablePods } from "#control/agent/movable-pods.ts";
import { ANNOTATION, MOVABLE } from "#control/api/resources.ts";
import type { Pod, PodCondition } from "#control/kubernetes/client/objects.ts";
import { isNews, memoryOf, movableCondition } from "#control/kubernetes/node/movable-condition.ts";
import type { Movability } from "#control/workload/movability.ts";
import { until } from "../support/moved-program.ts";

const ESTIMATE = { pauseMs: { low: 60.4, likely: 101.2, high: 250 }, memoryBytes: 41_200_000 };
const URING = {
  id: "descriptor.io-uring",
  what: "process 7 has descriptor 3 of io_uring",
  cure: "turn it off",
};
const VOLUME = { reason: "VolumeCannotFollow", message: "volume data cannot follow the pod" };

describe("the condition of a pod", () => {
  const said = (application: object | null, volume: typeof VOLUME | null = null) =>
    movableCondition({ application, volume } as Parameters<typeof movableCondition>[0]);

  it("says how long clients would wait, or what is in the way", () => {
    assert.deepEqual(said({ obstacles: [], estimate: ESTIMATE }), {
      type: MOVABLE,
      status: "True",
      reason: "Movable",
      message: "clients would wait about 101 ms (60 to 250), with 42 MB of memory",
    });
    assert.deepEqual(said({ obstacles: [URING], estimate: ESTIMATE }), {
      type: MOVABLE,
      status: "False",
      reason: "DescriptorIoUring",
      message: "process 7 has descriptor 3 of io_uring: turn it off",
    });
    assert.equal(said({ obstacles: [], estimate: ESTIMATE }, VOLUME).reason, "VolumeCannotFollow");
    assert.equal(said(null, VOLUME).reason, "NoApplication");
  });

  it("is news when it says something else, and not for each figure", () => {
    const now = said({ obstacles: [], estimate: ESTIMATE });
    const later = (likely: number, memoryBytes = ESTIMATE.memoryBytes) =>
      said({ obstacles: [], estimate: { pauseMs: { ...ESTIMATE.pauseMs, likely }, memoryBytes } });
    assert.equal(isNews(now, null), true);
    assert.equal(isNews(later(120), now), false);
    assert.equal(isNews(later(140), now), true);
    assert.equal(isNews(later(101, 80_000_000), now), true);
    assert.equal(isNews(said({ obstacles: [URING], estimate: null }), now), true);
  });

  it("tells how large the application is", () => {
    const pod = (condition: object) => ({ status: { conditions: [condition] } }) as Pod;
    assert.equal(memoryOf(pod(said({ obstacles: [], estimate: ESTIMATE }))), 42_000_000);
    assert.equal(memoryOf(pod(said(null))), null);
    assert.equal(memoryOf({} as Pod), null);
  });
});

describe("an agent", () => {
  let pods: MovablePods | undefined;
  afterEach(() => pods?.close());

  const pod = (uid: string): Pod =>
    ({
      metadata: { name: uid, namespace: "shop", uid, annotations: { [ANNOTATION.injected]: "1" } },
      spec: { containers: [] },
    }) as unknown as Pod;

  class Fake implements AssessedWorkload {
    journal = { role: "owner" };
    runsHere = true;
    busyWith: string | null = null;
    isStarting = false;
    asked = 0;
    answer: Movability = { obstacles: [], estimate: ESTIMATE };
    async movability(): Promise<Movability> {
      running += 1;
      most = Math.max(most, running);
      this.asked += 1;
      await new Promise((resolve) => setTimeout(resolve, 3));
      running -= 1;
      return this.answer;
    }
  }
  let [running, most] = [0, 0];

  it("looks at each in its time, one at a time, and writes what is news", async () => {
    [running, most] = [0, 0];
    const workloads = new Map([
      ["a", new Fake()],
      ["b", new Fake()],
    ]);
    const written: [string, PodCondition][] = [];
    let problem: Error | null = new Error("the API server is away");
    const made = new MovablePods({
      api: {
        async patch<T>(path: string, body: object) {
          if (problem !== null) throw problem;
          const { metadata, status } = body as { metadata: object; status: { conditions: PodCondition[] } };
          written.push([path, status.conditions[0] as PodCondition]);
          const { uid } = metadata as { uid: string };
          return { ...pod(uid), status } as T;
        },
      },
      log: pino({ level: "silent" }),
      workloadOf: (uid) => workloads.get(uid) ?? null,
      isRecovering: () => false,
      everyMs: 20,
      lookMs: 2,
    });
    pods = made;
    const [a, b] = [...workloads.values()] as [Fake, Fake];
    made.seePods([pod("a"), pod("b"), { ...pod("c"), metadata: { ...pod("c").metadata, annotations: {} } }]);
    await until("it is tried", () => a.asked > 0);
    problem = null;
    await until("both are said", () => written.length === 2);
    assert.equal(written[0]?.[0], "/api/v1/namespaces/shop/pods/a/status");
    const asked = a.asked;
    await until("it is looked at again", () => a.asked > asked + 1 && b.asked > 2);
    assert.equal(written.length, 2, "nothing is new");
    assert.equal(most, 1);
    a.answer = { obstacles: [URING] as never, estimate: ESTIMATE };
    await until("that is said", () => written.length === 3);
    assert.equal(written[2]?.[1].status, "False");
    assert.deepEqual(
      [...made.assessed()].map(({ pod: name, isMovable }) => [name, isMovable]),
      [
        ["a", false],
        ["b", true],
      ],
    );
    b.busyWith = "moved away";
    const before = b.asked;
    await until("others are looked at", () => a.asked > asked + 4);
    assert.ok(b.asked <= before + 1, "not in the middle of a move");
    b.journal = { role: "none" };
    b.busyWith = null;
    await until("it has left", () => written.some(([, { reason }]) => reason === "NoApplication"));
    assert.deepEqual([...made.assessed()].length, 1);
  });
});
