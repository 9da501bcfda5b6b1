/** `holdfast detach --injected`: what stays in a cluster as it was injected. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type DetachRequest, detach } from "#control/cli/detach.ts";
import type { Query } from "#control/kubernetes/client/api.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { ApiInMemory } from "#test/support/api-in-memory.ts";

const BEFORE: DetachRequest = {
  namespace: null,
  migrations: false,
  gateways: false,
  mesh: null,
  injected: true,
};

function put(api: ApiInMemory, name: string, injected: string | null, status: object = {}): void {
  const annotations = injected === null ? {} : { "holdfast.dev/injected": injected };
  const pod = { metadata: { annotations }, spec: {}, status: { phase: "Running", ...status } };
  api.put(`/api/v1/namespaces/games/pods/${name}`, pod);
}

async function said(api: ApiInMemory, change: Partial<DetachRequest> = {}, json = false): Promise<string> {
  const chunks: string[] = [];
  const out = { write: (chunk: string) => chunks.push(chunk) > 0 };
  const terminal = { out, err: out } as unknown as Parameters<typeof detach>[3];
  assert.equal(await detach(api.api, { ...BEFORE, ...change }, json, terminal), 0);
  return chunks.join("");
}

describe("pods that stay as they were injected", () => {
  it("are named, with what to do about them", async () => {
    const api = new ApiInMemory();
    put(api, "chat-0", "1");
    put(api, "refused", "0");
    put(api, "plain", null);
    put(api, "over", "1", { phase: "Succeeded" });
    const text = await said(api);
    assert.match(text, /^pod games\/chat-0: stays as it was injected\n/);
    assert.match(
      text,
      /nobody starts the application .* again .*holdfast\.dev\/inject .*kubectl rollout restart/,
    );
    assert.doesNotMatch(text, /refused|plain|over/);
    assert.deepEqual(JSON.parse(await said(api, {}, true)).injected, ["games/chat-0"]);
    assert.deepEqual(api.calls, []);
  });

  it("are counted where they are many, and not spoken of where there are none, or nobody asks", async () => {
    const api = new ApiInMemory();
    assert.equal(await said(api), "");
    for (let at = 0; at < 12; at += 1) put(api, `chat-${at}`, "1");
    assert.match(await said(api), /\nand 2 more pods\n/);
    assert.equal(await said(api, { injected: false }), "");
  });

  it("are none of its business where the cluster has no Istio, whose objects it was told to take away", async () => {
    const api = new ApiInMemory();
    const { list } = api.api;
    const without = {
      ...api.api,
      list: (path: string, query?: Query) =>
        path.includes("networking.istio.io")
          ? Promise.reject(fail("KUBERNETES_NOT_FOUND", path))
          : list(path, query),
    };
    Object.defineProperty(api, "api", { value: without });
    assert.equal(
      await said(api, { gateways: true, mesh: "all", migrations: true, injected: false }),
      "no Service leads clients to gateways\n",
    );
    assert.deepEqual(api.calls, []);
  });
});
