/** Links that break, stall or are slow in mid-stream: their sessions go on at the byte where they were. */
import assert from "node:assert/strict";
import { afterEach, describe, it } from "node:test";
import {
  assertNobodyNoticed,
  type Linked,
  type LinkedOptions,
  startLinked,
  Talker,
} from "#test/support/linked-proxies.ts";

const MB = 1024 * 1024;
let stage: Linked | null = null;
const talkers: Talker[] = [];

async function start(options?: LinkedOptions): Promise<Linked> {
  stage = await startLinked(options);
  return stage;
}
function talk(count: number, totalBytes: number, chunkBytes?: number): Talker[] {
  const made = Array.from(
    { length: count },
    () =>
      new Talker((stage as Linked).listen, {
        totalBytes,
        ...(chunkBytes === undefined ? {} : { chunkBytes }),
      }),
  );
  talkers.push(...made);
  return made;
}
afterEach(() => {
  for (const talker of talkers.splice(0)) talker.destroy();
  stage?.stop();
  stage = null;
});

describe("a link that is cut in mid-stream", { timeout: 60_000 }, () => {
  for (const links of ["encrypted", "plain"] as const)
    it(`goes on, ${links}: under load, cut again and again, no byte is lost or repeated`, async () => {
      const linked = await start({ links });
      const { wire, anchor } = linked;
      let nextCut = MB;
      wire.tap = (bytes) => {
        if (wire.passed.up + wire.passed.down > nextCut) {
          nextCut += 8 * MB;
          setImmediate(() => wire.cut());
        }
        return bytes;
      };
      await Promise.all(talk(10, 2 * MB).map((talker) => talker.done()));
      assert.ok(anchor.counters.linksContinued >= 10, `${anchor.counters.linksContinued} went on`);
      assertNobodyNoticed(linked);
    });
});
