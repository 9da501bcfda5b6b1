/** Migrations under way, before their controller is taken away. With real ones: `test/kube/gateway.test.ts`. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { FINALIZER, type MigrationPhase } from "#control/api/resources.ts";
import { endMigrations } from "#control/kubernetes/controller/end-migrations.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { ApiInMemory } from "#test/support/api-in-memory.ts";
import { until } from "#test/support/moved-program.ts";

const UNDER = "/apis/holdfast.dev/v1alpha1/namespaces/games/migrations";

function made(phase: MigrationPhase, spec: object = {}, finalizers = [FINALIZER]): object {
  const metadata = { creationTimestamp: "2026-11-28T00:00:00Z", finalizers };
  return { metadata, spec: { pod: "chat", ...spec }, status: { phase } };
}

describe("Migrations that are ended", () => {
  it("are asked to, once, and waited for until nothing of them is left", async () => {
    const api = new ApiInMemory();
    api.put(`${UNDER}/moving`, made("Moving"));
    api.put(`${UNDER}/asked`, made("Preparing", { abort: true }));
    api.put(`${UNDER}/over`, made("Succeeded"));
    api.put(`${UNDER}/long-over`, made("Failed", {}, []));
    api.put(`${UNDER}/unseen`, made("Pending", {}, []));
    const aborted: string[] = [];
    let isDone = false;
    const ending = endMigrations(api.api, { namespace: null, onAborted: (one) => aborted.push(one) });
    ending.then(() => {
      isDone = true;
    });
    await until("it is asked", () => aborted.length > 0);
    for (const name of ["moving", "asked"]) api.put(`${UNDER}/${name}`, made("Failed", { abort: true }, []));
    // its controller is still at it
    const looks = api.lists;
    await until("it is looked at twice more", () => api.lists >= looks + 2);
    assert.equal(isDone, false);
    api.put(`${UNDER}/over`, made("Succeeded", {}, []));
    await ending;
    assert.deepEqual([aborted, api.calls], [["games/moving"], [`PATCH ${UNDER}/moving`]]);
  });

  it("are named with what to do where nobody ends them", async () => {
    const api = new ApiInMemory();
    api.put(`${UNDER}/moving`, made("Moving"));
    const ending = endMigrations(api.api, { namespace: "games", onAborted: () => {}, msMax: 1 });
    await assert.rejects(ending, {
      code: "KUBERNETES_BUSY",
      message:
        /games\/moving among them: does the controller run\?.* kubectl patch migration moving -n games /,
    });
  });

  it("are none where there is no such kind, or one has gone meanwhile", async () => {
    const asked = { namespace: null, onAborted: () => assert.fail("none is there") };
    const list = (): Promise<never> => Promise.reject(fail("KUBERNETES_NOT_FOUND", "no such kind"));
    const api = new ApiInMemory();
    await endMigrations({ list, patch: api.api.patch }, asked);
    api.put(`${UNDER}/gone`, made("Moving"));
    api.problem = [`PATCH ${UNDER}/gone`, fail("KUBERNETES_NOT_FOUND", "gone")];
    const ending = endMigrations(api.api, asked);
    await until("it is asked", () => api.calls.length > 0);
    api.remove(`${UNDER}/gone`);
    await ending;
  });
});
