/** A copy of the API server's objects stays current, whatever becomes of the watch. */
import assert from "node:assert/strict";
import { afterEach, describe, it } from "node:test";
import { type ApiObject, type Readable, Reflector } from "#control/kubernetes/reflector.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { until } from "#test/support/moved-program.ts";

type Event = { type: string; object: object };

/** What each watch does, in order; the last one stays open. */
class FakeApi implements Readable {
  objects: ApiObject[] = [];
  version = 1;
  lists = 0;
  readonly watchedFrom: string[] = [];
  readonly #watches: (Event[] | Error | "silent")[];

  constructor(watches: (Event[] | Error | "silent")[]) {
    this.#watches = watches;
  }

  async get(): Promise<unknown> {
    this.lists++;
    return { metadata: { resourceVersion: String(this.version) }, items: this.objects };
  }

  async *watch(path: string, signal: AbortSignal): AsyncIterable<unknown> {
    assert.match(path, /allowWatchBookmarks=true/);
    this.watchedFrom.push(/resourceVersion=(\d+)/.exec(path)?.[1] ?? "");
    const does = this.#watches.shift() ?? "silent";
    if (does instanceof Error) throw does;
    if (does !== "silent") return yield* does;
    await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  }
}

function named(name: string, version: number): ApiObject {
  return { metadata: { uid: name, name, resourceVersion: String(version) } };
}
const event = (type: string, name: string, version: number): Event => ({
  type,
  object: named(name, version),
});
const bookmark = (version: number): Event => ({
  type: "BOOKMARK",
  object: { metadata: { resourceVersion: String(version) } },
});

describe("a reflector", () => {
  let reflector: Reflector | undefined;
  let shown: string[][] = [];
  let problems: string[] = [];
  afterEach(() => reflector?.close());

  function start(api: FakeApi, silentMsMax = 60_000): void {
    [shown, problems] = [[], []];
    reflector = new Reflector({
      api,
      path: "/api/v1/pods?fieldSelector=spec.nodeName%3Da",
      onChange: (objects) => shown.push(objects.map(({ metadata }) => metadata.uid)),
      onProblem: (error) => problems.push(String(error)),
      silentMsMax,
      retryMsMin: 1,
    });
    reflector.start();
  }

  it("shows what there is, and each change", async () => {
    const api = new FakeApi([
      [event("ADDED", "two", 2), event("MODIFIED", "one", 3), event("DELETED", "one", 4), bookmark(9)],
    ]);
    api.objects = [named("one", 1)];
    start(api);
    await until("the watch is taken up again", () => api.watchedFrom.length === 2);
    assert.deepEqual(shown, [["one"], ["one", "two"], ["one", "two"], ["two"]]);
    // from the bookmark, without another list
    assert.deepEqual([api.watchedFrom, api.lists, problems], [["1", "9"], 1, []]);
  });

  for (const [what, expired] of [
    ["in an event", [{ type: "ERROR", object: { kind: "Status", code: 410, message: "too old" } }]],
    ["as an answer", fail("KUBERNETES_EXPIRED", "410")],
  ] as const)
    it(`lists everything again when its version is too old, said ${what}`, async () => {
      const api = new FakeApi([expired as Event[] | Error]);
      api.objects = [named("gone", 1)];
      start(api);
      [api.objects, api.version] = [[named("new", 7)], 7];
      await until("it watches again", () => api.watchedFrom.length === 2);
      assert.deepEqual([api.watchedFrom.at(-1), shown.at(-1), problems], ["7", ["new"], []]);
    });

  it("lists everything again when nothing was heard for long, and says so", async () => {
    const api = new FakeApi(["silent"]);
    start(api, 20);
    await until("everything is listed again", () => api.lists === 2);
    assert.match(problems[0] ?? "", /silent for 20 ms/);
  });

  it("takes the watch up from where it was when the server cannot be reached for a while", async () => {
    const down = fail("KUBERNETES_UNREACHABLE", "no answer");
    const api = new FakeApi([[bookmark(5)], down, down]);
    start(api);
    await until("it watches again", () => api.watchedFrom.length === 4);
    assert.deepEqual([api.watchedFrom, api.lists, problems.length], [["1", "5", "5", "5"], 1, 2]);
  });

  it("lists everything again after an event that it does not understand", async () => {
    const api = new FakeApi([[{ type: "ADDED", object: { metadata: {} } }]]);
    start(api);
    await until("everything is listed again", () => api.lists === 2);
    assert.equal(problems.length, 1);
  });
});
