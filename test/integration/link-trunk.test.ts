/** Many links of one anchor to one owner, over one connection. */
import assert from "node:assert/strict";
import { describe, it, type TestContext } from "node:test";
import {
  assertNobodyNoticed,
  type Linked,
  type LinkedOptions,
  startLinked,
  Talker,
  type TalkerOptions,
} from "#test/support/linked-proxies.ts";

const MB = 1024 * 1024;

/** @param it ends with it */
async function start(it: TestContext, options?: LinkedOptions): Promise<Linked> {
  const linked = await startLinked(options);
  it.after(() => linked.stop());
  return linked;
}

function talk(it: TestContext, { listen }: Linked, count: number, options: TalkerOptions): Talker[] {
  const made = Array.from({ length: count }, () => new Talker(listen, options));
  it.after(() => {
    for (const talker of made) talker.destroy();
  });
  return made;
}

describe("links of one anchor to one owner", { timeout: 60_000 }, () => {
  for (const as of ["gateway", "anchor"] as const)
    for (const links of ["encrypted", "plain"] as const)
      it(`share a connection: from ${as === "anchor" ? "an anchor" : "a gateway"}, ${links}`, async (it) => {
        const linked = await start(it, { as, links });
        await Promise.all(talk(it, linked, 50, { totalBytes: MB / 4 }).map((talker) => talker.done()));
        assert.equal(linked.wire.connections, 1);
        assertNobodyNoticed(linked);
      });

  it("have a connection each where the owner takes no trunks", async (it) => {
    const linked = await start(it, { limits: { trunkSessionsMax: 0 } });
    await Promise.all(talk(it, linked, 5, { totalBytes: MB / 4 }).map((talker) => talker.done()));
    assert.equal(linked.wire.connections, 5);
    assertNobodyNoticed(linked);
  });
});
