/** What `npm run bench:kube` makes of what it has seen: what was not measured is no figure, least of all one that meets a goal. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { seenIn } from "#bench/kube/controller.ts";
import { movedBy } from "#bench/kube/laboratory.ts";
import { figuresOf } from "#bench/kube/webhook.ts";
import type { Migration } from "#control/api/resources.ts";

describe("figures of a cluster", () => {
  const problems: string[] = [];
  const run = { say: () => {}, problem: (_: string, what: string) => void problems.push(what) };

  it("are of admissions that were all answered", () => {
    const ms = Array.from({ length: 200 }, (_, index) => index + 1);
    const answers = { ms, lateMs: ms.map((each) => each / 100), failures: [] };
    const [latency, late] = figuresOf(run, "webhook", answers);
    assert.deepEqual(latency?.rounds, [100_500]);
    assert.deepEqual(
      latency?.percentiles?.[0]?.map(({ p, valueUs }) => [p, valueUs]),
      [
        [50, 100_000],
        [75, 150_000],
        [90, 180_000],
        [95, 190_000],
        [99, 198_000],
        [99.9, 200_000],
        [100, 200_000],
      ],
    );
    assert.deepEqual([late?.metric, late?.rounds], ["generatorLateP99Us", [1_980]]);
    assert.deepEqual(figuresOf(run, "webhook", { ...answers, failures: ["answered with 500"] }), []);
    assert.deepEqual(problems, ["answered with 500"]);
  });

  it("are of a controller that leads and says how much memory it has", () => {
    const leads = "holdfast_controller_leader 1\n";
    const bytes = "holdfast_controller_resident_memory_bytes 78643200\n";
    const pods =
      'holdfast_controller_pods{injection="left"} 7\nholdfast_controller_pods{injection="injected"} 5003\n';
    assert.deepEqual(seenIn(leads + bytes + pods), { bytes: 78_643_200, counted: 5_003 });
    assert.deepEqual(seenIn(leads + bytes), { bytes: 78_643_200, counted: 0 });
    assert.equal(seenIn(`holdfast_controller_leader 0\n${bytes}${pods}`), null);
    assert.equal(seenIn(""), null);
    assert.throws(() => seenIn(leads + pods), /do not say how much memory/);
  });

  it("are of pods that have moved, and whose agents say how long clients waited", () => {
    const of = (status: object): Migration => ({ spec: { pod: "chat-1" }, status }) as unknown as Migration;
    const moved = of({ phase: "Succeeded", move: { pauseMs: 120 } });
    assert.deepEqual(movedBy(moved, 5), { createdMs: 5, migration: moved, holdMs: 120 });
    assert.throws(() => movedBy(of({ phase: "Succeeded", move: {} }), 5), /does not say how long/);
    const failed = of({ phase: "Failed", reason: "NotMovable", message: "it has a GPU" });
    assert.throws(() => movedBy(failed, 5), /pod chat-1 has not moved: NotMovable: it has a GPU/);
  });
});
