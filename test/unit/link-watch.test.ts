/** Who is dialled again when: links that have lost their connections take turns. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { LinkWatch, type WatchedLink } from "#proxy/link/link-watch.ts";

const key = Buffer.alloc(32);

class FakeLink implements WatchedLink {
  readonly id: string;
  tries = 0;
  isAbandoned = false;
  constructor(id: number) {
    this.id = String(id);
  }
  look(): void {}
  ask(): void {}
  tryAgain(): void {
    this.tries++;
  }
  abandon(): void {
    this.isAbandoned = true;
  }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("links that are dialled again", () => {
  it("are 64 at a time; who waits is told in turn when one has ended, and not when it is no more", async () => {
    const watch = new LinkWatch([key], 1_000);
    const links = Array.from({ length: 67 }, (_, id) => new FakeLink(id));
    for (const link of links) watch.add(link, false);
    const turns = links.map((link) => watch.takeTurn(link));
    assert.equal(turns.filter((given) => given !== null).length, 64);
    watch.remove(links[64] as FakeLink);
    turns[0]?.();
    turns[0]?.();
    await turn();
    assert.deepEqual(
      links.map(({ tries }) => tries).slice(63),
      [0, 0, 1, 0],
      "one turn was given back, so one is told",
    );
    assert.notEqual(watch.takeTurn(links[65] as FakeLink), null);
    assert.equal(watch.takeTurn(links[66] as FakeLink), null);
    watch.stop();
    for (const link of links) watch.remove(link);
  });

  it("have more time the more there are", () => {
    const watch = new LinkWatch([key], 1_000);
    for (let id = 0; id < 100; id++) watch.add(new FakeLink(id), true);
    assert.equal(watch.lostMsMax, 1_200);
    const found = watch.find("7") as FakeLink;
    watch.stop();
    assert.ok(found.isAbandoned);
  });
});
