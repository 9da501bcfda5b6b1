/** Whose link is dialled again, and when. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { LinkWatch, type WatchedLink } from "#proxy/link/link-watch.ts";

const AT_A_TIME = 64;
const LINKS = 200;
const key = Buffer.alloc(32, 7);

class Waiting implements WatchedLink {
  readonly id: string;
  readonly #watch: LinkWatch<Waiting>;
  readonly #order: string[];
  giveTurn: (() => void) | null = null;

  constructor(watch: LinkWatch<Waiting>, id: number, order: string[]) {
    this.id = String(id);
    this.#watch = watch;
    this.#order = order;
    watch.add(this, false);
  }

  try(isNext = false): void {
    this.giveTurn = this.#watch.takeTurn(this, isNext);
    if (this.giveTurn !== null) this.#order.push(this.id);
  }
  turn(): void {
    this.try(true);
  }
  look(): void {}
  ask(): void {}
  abandon(): void {}
}

function makeLinks(): { watch: LinkWatch<Waiting>; links: Waiting[]; order: string[] } {
  const watch = new LinkWatch<Waiting>([key], 1_000);
  const order: string[] = [];
  const links = Array.from({ length: LINKS }, (_, id) => new Waiting(watch, id, order));
  for (const link of links) link.try();
  return { watch, links, order };
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("links that are to be dialled again", () => {
  it("are so a few at a time, the next as soon as one has ended, in the order in which they came", async () => {
    const { links, order } = makeLinks();
    assert.equal(order.length, AT_A_TIME);
    for (const link of links) {
      assert.ok(link.giveTurn !== null, `${link.id} has had its turn`);
      link.giveTurn();
      await turn();
      assert.ok(order.length <= AT_A_TIME + Number(link.id) + 1);
    }
    assert.deepEqual(
      order,
      links.map(({ id }) => id),
    );
  });

  it("wait behind the others when they have failed", async () => {
    const { links, order } = makeLinks();
    const [first] = links as [Waiting];
    first.giveTurn?.();
    first.try();
    assert.equal(first.giveTurn, null, "another is first");
    await turn();
    assert.equal(order.at(-1), String(AT_A_TIME));
  });

  it("keep nobody waiting when they end", async () => {
    const { watch, links, order } = makeLinks();
    for (const link of links.slice(AT_A_TIME, LINKS - 1)) watch.remove(link);
    links[0]?.giveTurn?.();
    await turn();
    assert.equal(order.at(-1), String(LINKS - 1));
    links[0]?.giveTurn?.();
    await turn();
    assert.equal(order.length, AT_A_TIME + 1, "a turn is given back once");
  });
});
