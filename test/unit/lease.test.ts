/** Of several controllers one works, and another when that one has gone. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { whileLeader } from "#control/kubernetes/controller/lease.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { until } from "../support/moved-program.ts";

interface Lease {
  metadata: { resourceVersion: string };
  spec: { holderIdentity?: string | null; leaseTransitions?: number };
}

/** One lease in an API server. */
class LeaseServer {
  lease: Lease | null = null;
  /** identities whose calls are not answered */
  readonly cut = new Set<string>();

  apiOf(identity: string) {
    const call = async <T>(deed: () => T): Promise<T> => {
      await Promise.resolve();
      if (this.cut.has(identity)) throw fail("KUBERNETES_UNREACHABLE", "no answer");
      return deed();
    };
    return {
      find: <T>() => call(() => this.lease as T | null),
      create: <T>(_: string, body: object) =>
        call(() => {
          if (this.lease !== null) throw fail("KUBERNETES_EXISTS", "there");
          this.lease = { ...(body as Lease), metadata: { resourceVersion: "1" } };
          return this.lease as T;
        }),
      patch: <T>(_: string, body: object) =>
        call(() => {
          const { metadata, spec } = body as Lease;
          const before = this.lease as Lease;
          if (metadata.resourceVersion !== before.metadata.resourceVersion)
            throw fail("KUBERNETES_CONFLICT", "old");
          const resourceVersion = String(Number(before.metadata.resourceVersion) + 1);
          this.lease = { metadata: { resourceVersion }, spec: { ...before.spec, ...spec } };
          return this.lease as T;
        }),
    };
  }
}

function start(server: LeaseServer, identity: string, durationS: number) {
  const end = new AbortController();
  const state = { works: false, terms: 0 };
  const options = {
    api: server.apiOf(identity),
    namespace: "holdfast",
    name: "controller",
    identity,
    onProblem: () => {},
    durationS,
  };
  const done = whileLeader(options, end.signal, async (signal) => {
    state.works = true;
    state.terms += 1;
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
    state.works = false;
  });
  return {
    state,
    end: (): Promise<void> => {
      end.abort();
      return done;
    },
  };
}

describe("the lease of controllers", () => {
  it("is one's for as long as it works, and the next one's at once when it is given back", async () => {
    const server = new LeaseServer();
    const first = start(server, "first", 1);
    await until("the first works", () => first.state.works);
    const second = start(server, "second", 1);
    const version = (): number => Number(server.lease?.metadata.resourceVersion);
    const before = version();
    await until("it is renewed", () => version() > before + 1);
    assert.equal(second.state.works, false);
    await first.end();
    assert.equal(first.state.works, false);
    assert.equal(server.lease?.spec.holderIdentity, null);
    await until("the second works", () => second.state.works);
    assert.equal(server.lease?.spec.holderIdentity, "second");
    assert.deepEqual([first.state.terms, second.state.terms], [1, 1]);
    await second.end();
  });

  it("is lost by one that does not reach the API server, which stops before another begins", async () => {
    const server = new LeaseServer();
    const first = start(server, "first", 0.3);
    await until("the first works", () => first.state.works);
    const second = start(server, "second", 0.3);
    server.cut.add("first");
    await until("somebody else may work", () => {
      assert.ok(!(first.state.works && second.state.works), "not two at a time");
      return second.state.works;
    });
    assert.equal(server.lease?.spec.leaseTransitions, 1);
    server.cut.delete("first");
    await second.end();
    await until("the first works again", () => first.state.works);
    await first.end();
  });
});
