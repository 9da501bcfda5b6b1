/** What V8 makes of memory images that pass through an agent. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { describe, it } from "node:test";

/** Takes 4 GiB in Buffers of 1 MiB and keeps one of 64, with a heap of 30 MB; prints how often all of that was marked meanwhile. */
const PROGRAM = `
const { PerformanceObserver, constants } = await import("node:perf_hooks");
const { collectSeldom } = await import(process.argv[1]);
if (process.argv[2] === "seldom") collectSeldom();
const heap = Array.from({ length: 300_000 }, (_, index) => ({ index, text: "x" + index }));
let count = 0;
const observer = new PerformanceObserver((list) => {
  for (const { detail } of list.getEntries()) if (detail.kind === constants.NODE_PERFORMANCE_GC_MAJOR) count++;
});
observer.observe({ entryTypes: ["gc"] });
const kept = [];
for (let at = 0; at < 4096; at++) {
  const bytes = Buffer.allocUnsafeSlow(1 << 20);
  if (at % 64 === 0) kept.push(bytes);
  await new Promise((resolve) => setImmediate(resolve));
}
await new Promise((resolve) => setTimeout(resolve, 50));
process.stdout.write(String(count + 0 * (heap.length + kept.length)));
`;

describe("an agent's collector", () => {
  it("marks the heap less than half as often while memory passes, and still does", () => {
    const module = new URL("../../control/agent/collector.ts", import.meta.url).href;
    const count = (how: string): number =>
      Number(
        execFileSync(process.execPath, ["--input-type=module", "--eval", PROGRAM, module, how], {
          encoding: "utf8",
        }),
      );
    const [usual, seldom] = [count("as usual"), count("seldom")];
    assert.ok(seldom > 0 && seldom * 2 < usual, `${seldom} times in place of ${usual}`);
  });
});
