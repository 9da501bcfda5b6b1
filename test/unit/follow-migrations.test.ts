/** What commands about pods of a cluster come to where the API server or the controller does not play along. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { abortMigration, drainNode, migratePod } from "#control/cli/kubernetes.ts";
import type { KubernetesApi } from "#control/kubernetes/client/api.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { ApiInMemory, type Raw } from "../support/api-in-memory.ts";

const MIGRATIONS = "/apis/holdfast.dev/v1alpha1/namespaces/shop/migrations";
const REQUEST = { namespace: "shop", pod: "chat-0", to: "b", deadlineMs: null, dryRun: false, wait: true };
const DRAIN = { node: "a", deadlineMs: null };
/** the time to wait for what never comes */
const PATIENCE = { controllerMs: 50, serverMs: 50, refusedMs: 50 };
const MOVED = {
  phase: "Succeeded",
  reason: "Moved",
  message: "moved",
  target: { pod: "chat-1", node: "b", attempt: 1 },
};
const forbidden = (): Error => fail("KUBERNETES_FORBIDDEN", "you may not list migrations");

describe("a Migration that is waited for", () => {
  function cluster(...pods: string[]): ApiInMemory {
    const api = new ApiInMemory();
    api.put("/api/v1/nodes/a", { metadata: { name: "a" }, spec: {} });
    for (const name of pods)
      api.put(`/api/v1/namespaces/shop/pods/${name}`, {
        metadata: { annotations: { "holdfast.dev/injected": "1" } },
        spec: { nodeName: "a", containers: [] },
        status: { phase: "Running" },
      });
    return api;
  }

  function terminal() {
    const written = { out: "", err: "" };
    return {
      written,
      out: { write: (text: string) => (written.out += text) },
      err: { write: (text: string) => (written.err += text) },
    };
  }

  const migrations = (api: ApiInMemory): Raw[] =>
    [...api.objects].filter(([path]) => path.startsWith(MIGRATIONS)).map(([, object]) => object);

  /** Of one that somebody made before. */
  function put(api: ApiInMemory, name: string, spec: object, status: object): void {
    const metadata = { creationTimestamp: "2026-01-01T00:00:00Z" };
    api.put(`${MIGRATIONS}/${name}`, { metadata, spec, status });
  }

  /** What is made, its controller is about at once. @param statusOf null: nobody is */
  function withController(
    api: ApiInMemory,
    statusOf: (migration: Raw) => object | null,
    more: Partial<KubernetesApi> = {},
  ): KubernetesApi {
    const whole = api.api;
    const create = async <T>(path: string, body: object): Promise<T> => {
      const made = await whole.create<Raw>(path, body);
      const status = statusOf(made);
      if (status !== null) api.put(`${path}/${made.metadata.name}`, { ...made, status });
      return made;
    };
    return { ...whole, create, ...more } as KubernetesApi;
  }

  /** Its list fails, as often as is said. */
  function failing(api: ApiInMemory, error: () => Error, times = Number.POSITIVE_INFINITY) {
    const list: KubernetesApi["list"] = async (path, ...rest) => {
      if (path === MIGRATIONS && times-- > 0) throw error();
      return api.api.list(path, ...rest);
    };
    return { list };
  }

  const never = () => () => {};

  it("ends with what the API server says where nobody may look at it", async () => {
    const api = cluster("chat-0");
    const { written, ...to } = terminal();
    const client = withController(api, () => null, failing(api, forbidden));
    await assert.rejects(migratePod(client, REQUEST, false, to, never), {
      code: "KUBERNETES_FORBIDDEN",
      message: "you may not list migrations",
    });
    const [{ metadata }] = migrations(api) as [Raw];
    assert.ok(written.err.includes(`kubectl get migration ${metadata.name} -n shop`), written.err);
  });

  it("tells once what keeps it from hearing, and goes on", async () => {
    const api = cluster("chat-0");
    const { written, ...to } = terminal();
    const away = () => fail("KUBERNETES_UNREACHABLE", "no answer from the API server");
    const client = withController(api, () => MOVED, failing(api, away, 2));
    assert.equal(await migratePod(client, REQUEST, true, to, never), 0);
    assert.equal(written.err, "no answer from the API server; trying again\n");
  });

  /** One that was seen, whose watch is refused as often as is said; then it is over. */
  async function refused(error: Error, times: number, refusedMs = 60_000) {
    const api = cluster("chat-0");
    const { written, ...to } = terminal();
    const spec = { pod: "chat-0" };
    put(api, "m", spec, { phase: "Moving", cancel: "Aborted" });
    const whole = api.api;
    const watch: KubernetesApi["watch"] = (path, query, signal) => {
      if (times-- > 0) throw error;
      queueMicrotask(() => put(api, "m", spec, { phase: "Failed", reason: "Aborted", message: "given up" }));
      return whole.watch(path, query, signal);
    };
    const client = { ...whole, watch } as KubernetesApi;
    const patience = { controllerMs: 60_000, serverMs: 600_000, refusedMs };
    return { ended: abortMigration(client, { namespace: "shop", name: "m" }, false, to, patience), written };
  }

  it("that was seen outlives refusals that pass, and credentials that are not there for a moment", async () => {
    for (const code of ["KUBERNETES_FORBIDDEN", "KUBERNETES_CONFIG"] as const) {
      const { ended, written } = await refused(fail(code, "not now"), 2);
      await ended;
      assert.match(written.err, /^not now; trying again$/m);
      assert.doesNotMatch(written.err, /not waited for any longer/);
    }
  });

  it("that was seen is not waited for where it is refused for long", async () => {
    const { ended } = await refused(forbidden(), Number.POSITIVE_INFINITY, 50);
    await assert.rejects(ended, { code: "KUBERNETES_FORBIDDEN" });
  });

  it("ends where an API server is away for long, though a controller has begun", async () => {
    const api = cluster("chat-0");
    const { written: _, ...to } = terminal();
    put(api, "m", { pod: "chat-0" }, { phase: "Moving", cancel: "Aborted" });
    const away = fail("KUBERNETES_UNREACHABLE", "no answer from the API server");
    const watch: KubernetesApi["watch"] = () => {
      throw away;
    };
    const client = { ...api.api, watch } as KubernetesApi;
    await assert.rejects(abortMigration(client, { namespace: "shop", name: "m" }, false, to, PATIENCE), away);
  });

  it("ends where no controller takes it up, with where to look", async () => {
    const api = cluster("chat-0");
    const { written: _, ...to } = terminal();
    const client = withController(api, () => null);
    await assert.rejects(migratePod(client, REQUEST, false, to, never, PATIENCE), {
      code: "KUBERNETES_BUSY",
      message:
        /Migration shop\/chat-0-\w+ for 0\.05 s: does the controller run\? See holdfast check --cluster/,
    });
  });

  it("ends where no controller gives it up", async () => {
    const api = cluster("chat-0");
    const { written: _, ...to } = terminal();
    const abort = { namespace: "shop", name: "m" };
    put(api, "m", { pod: "chat-0" }, { phase: "Pending", reason: "Queued", message: "waits" });
    await assert.rejects(abortMigration(api.api, abort, false, to, PATIENCE), { code: "KUBERNETES_BUSY" });
  });

  it("of one pod that is drained leaves what comes of the others to be told", async () => {
    for (const json of [false, true]) {
      const api = cluster("chat-0", "chat-1", "chat-2");
      const { written, ...to } = terminal();
      const client = withController(api, ({ spec }) => {
        if (spec.pod === "chat-0") throw fail("KUBERNETES_FORBIDDEN", "you may not create migrations");
        return spec.pod === "chat-1" ? MOVED : null;
      });
      assert.equal(await drainNode(client, DRAIN, json, to, PATIENCE), 1);
      const silent = migrations(api).find(({ spec }) => spec.pod === "chat-2").metadata.name;
      if (json) {
        const said = JSON.parse(written.out);
        assert.deepEqual(
          said.migrations.map(({ spec }: Raw) => spec.pod),
          ["chat-1"],
        );
        assert.deepEqual(
          said.problems.map(({ pod, code }: Raw) => [pod, code]),
          [
            ["shop/chat-0", "KUBERNETES_FORBIDDEN"],
            ["shop/chat-2", "KUBERNETES_BUSY"],
          ],
        );
        continue;
      }
      assert.match(written.out, /^shop\/chat-0 +Unknown +- +- +- +you may not create migrations$/m);
      assert.match(written.out, /^shop\/chat-1 +Succeeded +b +- +- +moved$/m);
      assert.ok(written.out.includes(`Migration shop/${silent} for 0.05 s: does the controller run?`));
    }
  });

  it("is the one that is open already, where its pod is drained once more", async () => {
    const api = cluster("chat-0");
    const { written, ...to } = terminal();
    const spec = { pod: "chat-0", podUid: "uid-chat-0" };
    put(api, "of-another", { ...spec, podUid: "uid-before" }, { phase: "Pending" });
    put(api, "only-asks", { ...spec, dryRun: true }, { phase: "Pending" });
    put(api, "given-up", { ...spec, abort: true }, { phase: "Preparing" });
    put(api, "first", spec, { phase: "Moving" });
    const whole = api.api;
    const watch: KubernetesApi["watch"] = (path, query, signal) => {
      assert.equal(query.fieldSelector, "metadata.name=first");
      queueMicrotask(() => put(api, "first", spec, MOVED));
      return whole.watch(path, query, signal);
    };
    assert.equal(await drainNode({ ...whole, watch } as KubernetesApi, DRAIN, false, to), 0);
    assert.match(written.out, /^shop\/chat-0 +Succeeded +b /m);
    assert.match(written.err, /^shop\/chat-0: migration\/first, which is under way already$/m);
    assert.equal(migrations(api).length, 4);
  });

  it("is the one that has moved the pod, where another was asked for in the same moment", async () => {
    for (const reason of ["PodNotFound", "PodReplaced"]) {
      const api = cluster("chat-0");
      const { written, ...to } = terminal();
      const client = withController(api, ({ spec }) => {
        put(api, "evict-chat-0", spec, MOVED);
        return { phase: "Failed", reason, message: "there is no pod chat-0" };
      });
      assert.equal(await drainNode(client, DRAIN, false, to), 0, reason);
      assert.match(written.out, /^shop\/chat-0 +Succeeded +b +- +- +moved$/m);
    }
  });
});
