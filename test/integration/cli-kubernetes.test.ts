/** Commands about pods of a cluster, against an API server that answers what its controller would have come to. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, it } from "node:test";
import { stringify } from "yaml";
import { runProgram } from "#control/cli/program.ts";

type Status = Record<string, unknown>;

const MIGRATIONS = "/apis/holdfast.dev/v1alpha1/namespaces/shop/migrations";
const MOVED: Status = {
  phase: "Succeeded",
  reason: "Moved",
  message: "moved",
  source: { pod: "chat-0", node: "a" },
  target: { pod: "chat-1", node: "b", attempt: 1 },
  move: { attempt: 1, state: "Moved", sessions: 20, pauseMs: 41.5, downstream: "gateway" },
};

describe("holdfast in a cluster", () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-cli-"));
  const kubeconfig = join(folder, "config");
  let server: Server;
  /** of the Migration, one after the other */
  let statuses: Status[];
  let asked: { call: string; body: Record<string, unknown> }[] = [];
  let made: Record<string, unknown> | null = null;
  let watches: ServerResponse[] = [];
  let version = 1;

  const object = (status: Status): object => ({
    metadata: {
      name: "m",
      namespace: "shop",
      uid: "m",
      creationTimestamp: "2026-01-01T00:00:00Z",
      ...(made?.metadata as object),
      resourceVersion: String(version),
    },
    spec: made?.spec ?? { pod: "chat-0" },
    status,
  });
  const tell = (status: Status): void => {
    version += 1;
    for (const watch of watches)
      watch.write(`${JSON.stringify({ type: "MODIFIED", object: object(status) })}\n`);
  };

  before(async () => {
    server = createServer(async (request, response) => {
      let text = "";
      for await (const chunk of request) text += chunk;
      const body = (text === "" ? {} : JSON.parse(text)) as Record<string, unknown>;
      const url = new URL(request.url ?? "", "http://api");
      const call = `${request.method} ${url.pathname}`;
      asked.push({ call, body });
      const answer = (value: object, status = 200) => response.writeHead(status).end(JSON.stringify(value));
      const injected = { "holdfast.dev/injected": "1" };
      const pod = (name: string, annotations: object) => ({
        metadata: { name, namespace: "shop", uid: `${name}-uid`, resourceVersion: "1", annotations },
        spec: { nodeName: "a", containers: [] },
        status: { phase: "Running" },
      });
      if (call === "GET /api/v1/namespaces/shop/pods/chat-0") return answer(pod("chat-0", injected));
      if (call === "GET /api/v1/pods")
        return answer({
          metadata: { resourceVersion: "1" },
          items: [pod("chat-0", injected), pod("other", {})],
        });
      if (call === "GET /api/v1/nodes/a" || call === "PATCH /api/v1/nodes/a") return answer({ metadata: {} });
      if (call === `POST ${MIGRATIONS}`) {
        made = body;
        return answer(object({}));
      }
      if (call.startsWith(`PATCH ${MIGRATIONS}/`)) {
        statuses = [{ phase: "Aborted", reason: "Aborted", message: "spec.abort was set" }];
        tell(statuses[0] as Status);
        return answer(object({}));
      }
      // what there is before one is made
      if (call === `GET ${MIGRATIONS}` && url.searchParams.get("fieldSelector") === null)
        return answer({ metadata: { resourceVersion: "1" }, items: [] });
      if (call === `GET ${MIGRATIONS}` && url.searchParams.get("watch") === null)
        return answer({ metadata: { resourceVersion: "1" }, items: [object(statuses.shift() ?? {})] });
      if (call === `GET ${MIGRATIONS}`) {
        response.writeHead(200).flushHeaders();
        watches.push(response);
        for (const status of statuses.splice(0)) tell(status);
        return;
      }
      answer({ code: 404, message: "not found" }, 404);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    writeFileSync(
      kubeconfig,
      stringify({
        "current-context": "c",
        contexts: [{ name: "c", context: { cluster: "c", user: "u", namespace: "shop" } }],
        clusters: [{ name: "c", cluster: { server: `http://127.0.0.1:${port}` } }],
        users: [{ name: "u", user: { token: "t" } }],
      }),
    );
  });
  beforeEach(() => {
    asked = [];
    made = null;
    watches = [];
  });
  after(() => {
    server.closeAllConnections();
    server.close();
    rmSync(folder, { recursive: true });
  });

  async function run(args: string[], interrupts = false) {
    let [out, err] = ["", ""];
    const status = await runProgram(args, {
      out: { write: (text) => (out += text) },
      err: { write: (text) => (err += text) },
      env: { KUBECONFIG: kubeconfig },
      runAgent: async () => assert.fail("an agent"),
      runGateway: async () => assert.fail("a gateway"),
      runWebhook: async () => assert.fail("a webhook"),
      runController: async () => assert.fail("a controller"),
      runEndpoints: async () => assert.fail("endpoints"),
      readInput: async () => assert.fail("standard input"),
      onInterrupt: (first) => {
        if (interrupts) first();
        return () => {};
      },
    });
    return { status, out, err };
  }

  it("moves a pod by a Migration, and shows its phases and what came of it", async () => {
    statuses = [{}, { phase: "Preparing" }, { phase: "Moving", message: "on its way" }, MOVED];
    const { status, out } = await run(["migrate", "pod/chat-0", "--to", "b", "--deadline", "9000"]);
    assert.equal(status, 0, out);
    assert.match(out, /✔ pending .*\n✔ preparing .*\n✔ moving .*\n/);
    assert.match(
      out,
      /moved pod chat-0 from a to b \(gateway\), 20 sessions; it is pod chat-1 now\npause {5}41\.5 ms/,
    );
    assert.deepEqual(made?.spec, {
      pod: "chat-0",
      podUid: "chat-0-uid",
      target: { node: "b" },
      deadlineSeconds: 9,
      ttlSecondsAfterFinished: 86_400,
    });
  });

  it("says why a pod stays, and exits with 1", async () => {
    statuses = [{ phase: "Failed", reason: "Deadline", message: "it has not moved" }];
    const { status, out } = await run(["migrate", "pod/chat-0", "--to", "b"]);
    assert.deepEqual([status, out], [1, "failed: pod shop/chat-0: it has not moved\n"]);
    statuses = [{ phase: "Failed", reason: "Deadline", message: "it has not moved" }];
    const asJson = await run(["migrate", "pod/chat-0", "--to", "b", "--json"]);
    assert.equal(JSON.parse(asJson.out).status.reason, "Deadline");
  });

  it("says what would be done, or only makes the Migration", async () => {
    statuses = [{ phase: "Succeeded", reason: "DryRun", plan: ["create pod chat-1"] }];
    const dry = await run(["migrate", "pod/chat-0", "--to", "b", "--dry-run"]);
    assert.equal(dry.out, "would\n  create pod chat-1\n");
    const made = await run(["migrate", "pod/chat-0", "--to", "b", "--no-wait"]);
    assert.match(made.out, /^migration\/chat-0-\w+ created in shop\n$/);
  });

  it("aborts at Ctrl-C, and on command", async () => {
    statuses = [{ phase: "Preparing" }];
    const { status, out } = await run(["migrate", "pod/chat-0", "--to", "b"], true);
    assert.equal(status, 1);
    assert.match(out, /aborting; .*\n(.*\n)*aborted: pod shop\/chat-0: spec\.abort was set/);
    statuses = [{ phase: "Moving" }];
    const command = await run(["abort", "m"]);
    assert.deepEqual([command.status, command.out], [0, "aborted: pod shop/chat-0: spec.abort was set\n"]);
  });

  it("drains a node: it is cordoned first, and only what is injected is moved", async () => {
    statuses = [{}, MOVED];
    const { status, out } = await run(["drain", "a"]);
    assert.equal(status, 0, out);
    assert.match(out, /POD +OUTCOME .*\nshop\/chat-0 +Succeeded +b +20 +41\.5 ms +moved\n$/);
    const writes = asked.filter(({ call }) => !call.startsWith("GET"));
    assert.deepEqual(
      writes.map(({ call }) => call),
      ["PATCH /api/v1/nodes/a", `POST ${MIGRATIONS}`],
    );
    assert.deepEqual(writes[0]?.body, { spec: { unschedulable: true } });
  });

  it("says what is not there, and what is wrong", async () => {
    const unknown = await run(["migrate", "pod/none", "--to", "b"]);
    assert.deepEqual(
      [unknown.status, unknown.err],
      [4, "holdfast: there is no pod none in namespace shop\n"],
    );
    assert.equal((await run(["drain", "z"])).status, 4);
    const ours = await run(["migrate", "chat", "--to", "b", "--no-wait"]);
    assert.equal(ours.status, 2);
    const nowhere = await run(["abort", "m", "--kubeconfig", join(folder, "none")]);
    assert.equal(nowhere.status, 2);
    assert.match(nowhere.err, /no kubeconfig/);
  });
});
