/** The timeline of a move: what the agents keep of it, how the two are made one, and the picture of it. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { renderCourse, renderCutoverPage } from "#bench/profile/cutover-page.ts";
import { drawLanes, gapsOf } from "#bench/report/lanes.ts";
import { LANES, releaseReply, type TimelineSpan } from "#control/api/migration.ts";
import { Progress } from "#control/migration/departure/progress.ts";
import { placed, SPANS_MAX, Timeline } from "#control/migration/timeline.ts";

const MOVE = { workload: "chat", from: "a", to: "b", downstream: "forward" } as const;

function span(
  name: string,
  fromMs: number,
  toMs: number,
  lane = LANES[0] as TimelineSpan["lane"],
): TimelineSpan {
  return { lane, name, fromMs, toMs };
}

describe("a timeline", () => {
  it("tells its spans in the order of their beginnings, however they ended", () => {
    const timeline = new Timeline();
    timeline.span("store", "late", 30, 40);
    timeline.span("source agent", "outer", 11, 50.006);
    timeline.span("source proxy", "inner", 12, 13);
    assert.deepEqual(timeline.since(10), [
      span("outer", 1, 40.01),
      span("inner", 2, 3, "source proxy"),
      span("late", 20, 30, "store"),
    ]);
  });

  it("is bounded: what comes first is kept", () => {
    const timeline = new Timeline();
    for (let number = 0; number < SPANS_MAX + 10; number++)
      timeline.span("store", String(number), number, number);
    const names = timeline.since(0).map(({ name }) => name);
    assert.deepEqual(
      names,
      Array.from({ length: SPANS_MAX }, (_, number) => String(number)),
    );
  });

  it("has what CRIU works at, without the time that it waits in a hook, and nothing of what fails", async () => {
    const timeline = new Timeline();
    let heldMs = 0;
    const hold = async (): Promise<void> => {
      const fromMs = performance.now();
      while (performance.now() - fromMs < 5) await new Promise(setImmediate);
      heldMs = performance.now() - fromMs;
    };
    const answer = await timeline.hooked("source CRIU", hold, async (onHook) => {
      await onHook("pre-dump");
      await onHook("post-dump");
      return "done";
    });
    assert.equal(answer, "done");
    const spans = timeline.since(0);
    assert.deepEqual(
      spans.map(({ name }) => name),
      ["to pre-dump", "to post-dump", "to its answer"],
    );
    for (const [number, { fromMs }] of spans.slice(1).entries())
      assert.ok(fromMs - (spans[number]?.toMs ?? 0) >= Math.min(5, heldMs) - 0.02, JSON.stringify(spans));
    const fails = timeline.during("store", "commit", () => Promise.reject(new Error("no")));
    await assert.rejects(fails, /no/);
    assert.equal(timeline.since(0).length, 3);
  });

  it("has the target's spans where the source sent `release`, and nothing that was over before the hold", () => {
    const source = [span("over", -9, -1), span("begun", -1, 4), span("release", 100, 120)];
    const target = [
      span("restores", -60, -10, "target CRIU"),
      span("goes on", 5, 8, "target agent"),
      span("long over", -300, -200, "target agent"),
    ];
    assert.deepEqual(placed(source, target, 100), [
      span("begun", -1, 4),
      span("restores", 40, 90, "target CRIU"),
      span("release", 100, 120),
      span("goes on", 105, 108, "target agent"),
    ]);
  });

  it("is in the result of a move in which somebody was held, with the target's where it has told any", () => {
    const progress = new Progress(MOVE, () => {});
    assert.equal(progress.ended().timeline, undefined);
    progress.pause.begins();
    const { beganMs } = progress.pause;
    progress.timeline.span("source proxy", "holds clients", beganMs, beganMs + 2);
    progress.toldByTarget([span("release", 1, 2, "store")], beganMs + 50);
    assert.deepEqual(progress.ended().timeline, [
      span("holds clients", 0, 2, "source proxy"),
      span("release", 51, 52, "store"),
    ]);
  });

  it("of a target of another version is none, and nothing that a move could fail by", () => {
    const { timeline } = releaseReply.shape;
    const told = [span("release", 1, 2, "store")];
    assert.deepEqual(timeline.parse(told), told);
    for (const other of [
      undefined,
      null,
      "text",
      [{ ...told[0], lane: "elsewhere" }],
      [{ ...told[0], fromMs: "1" }],
    ])
      assert.deepEqual(timeline.parse(other), [], JSON.stringify(other));
  });
});

describe("the picture of a timeline", () => {
  const spans = [
    span("holds <clients>", 0, 8, "source proxy"),
    span("in the same time", 2, 6, "source proxy"),
    span("takes the fingerprint", 10, 40),
    span("sends memory", 70, 80),
    span("to post-restore", 40.2, 90, "target CRIU"),
    span("commit", 92, 92, "store"),
    span("lets clients go on, by a name that is rather long", 98, 99.5, "target proxy"),
  ];
  const course = { spans, endMs: 100 };

  it("has every span, its lane, and its numbers", () => {
    const drawn = drawLanes("a move", course);
    const titles = [...drawn.matchAll(/<rect class="mark part"[^>]*><title>([^<]*)<\/title>/g)].map(
      (match) => match[1],
    );
    assert.equal(titles.length, spans.length);
    for (const { lane, name, fromMs, toMs } of spans) {
      const escaped = name.replace("<", "&lt;").replace(">", "&gt;");
      const said = `${lane}, ${escaped}: ${fromMs.toFixed(1)} to ${toMs.toFixed(1)} ms, ${(toMs - fromMs).toFixed(1)} ms`;
      assert.ok(titles.includes(said), said);
      assert.ok(drawn.includes(`>${escaped}</text>`), name);
      assert.ok(drawn.includes(`>${lane}</text>`), lane);
    }
    assert.doesNotMatch(drawn, /NaN|undefined/);
  });

  it("is on the page with a table of all spans", () => {
    const page = renderCutoverPage([["moves", "1 <of them>"]], [{ name: "forward", course }]);
    assert.equal([...page.matchAll(/<tr><td>/g)].length, spans.length);
    assert.doesNotMatch(page, /<of them>|<clients>|<script|https?:/);
  });

  it("goes with the longest spans, and the longest gaps, in which nobody was at work", () => {
    assert.deepEqual(
      gapsOf(course).map(({ fromMs, toMs }) => [fromMs, toMs]),
      [
        [92, 98],
        [8, 10],
        [90, 92],
        [99.5, 100],
        [40, 40.2],
      ],
    );
    assert.deepEqual(gapsOf({ spans: [], endMs: 5 }), [{ fromMs: 0, toMs: 5, after: null, before: null }]);
    const printed = renderCourse({ name: "forward", course }).join("\n");
    assert.match(printed, /^forward: 100\.0 ms from the hold to the release, 7 spans$/m);
    assert.match(printed, /^longest spans .*\n^target CRIU: to post-restore +40\.2 +49\.8$/m);
    assert.match(
      printed,
      /^longest gaps .*\n^store: commit … target proxy: lets clients go on, .* +92\.0 +6\.0$/m,
    );
  });
});
