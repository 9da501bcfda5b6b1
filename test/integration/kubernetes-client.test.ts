/** The client of the API server, against a server that answers as one does, and misbehaves. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import { stringify } from "yaml";
import { findAccess, fromKubeconfig, inCluster } from "#control/kubernetes/client/access.ts";
import { KubernetesApi } from "#control/kubernetes/client/api.ts";
import type { Pod } from "#control/kubernetes/client/objects.ts";
import { pathOf, selectorText } from "#control/kubernetes/client/paths.ts";
import { Reflector } from "#control/kubernetes/client/reflector.ts";
import { until } from "../support/moved-program.ts";

type Answer = (request: IncomingMessage, response: ServerResponse, url: URL) => void;

const PODS = pathOf("pods");

function pod(name: string, resourceVersion: number, labels: Record<string, string> = {}): Pod {
  return {
    metadata: {
      name,
      namespace: "shop",
      uid: name,
      resourceVersion: String(resourceVersion),
      creationTimestamp: "2026-01-01T00:00:00Z",
      labels,
    },
    spec: { containers: [] },
  };
}

function json(response: ServerResponse, body: object, status = 200): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}

function event(type: string, object: object): string {
  return `${JSON.stringify({ type, object })}\n`;
}

describe("the API server's client", () => {
  let server: Server;
  let api: KubernetesApi;
  let answer: Answer;
  const asked: { method: string; url: string; type: string; body: string }[] = [];

  before(async () => {
    server = createServer(async (request, response) => {
      let body = "";
      for await (const chunk of request) body += chunk;
      asked.push({
        method: request.method ?? "",
        url: decodeURIComponent(request.url ?? ""),
        type: request.headers["content-type"] ?? "",
        body,
      });
      answer(request, response, new URL(request.url ?? "", "http://api"));
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
  });
  beforeEach(() => {
    asked.length = 0;
    const { port } = server.address() as AddressInfo;
    api = new KubernetesApi({
      server: `http://127.0.0.1:${port}`,
      isUnchecked: false,
      namespace: "shop",
      credentials: async () => ({ token: "secret" }),
    });
  });
  afterEach(() => api.close());
  after(() => {
    server.closeAllConnections();
    server.close();
  });

  it("lists page by page", async () => {
    answer = (_request, response, url) => {
      const next = url.searchParams.get("continue");
      json(response, {
        metadata: { resourceVersion: "7", ...(next === null ? { continue: "more" } : {}) },
        items: [pod(next === null ? "one" : "two", 3)],
      });
    };
    const { items, resourceVersion } = await api.list<Pod>(PODS, { labelSelector: "a=b" });
    assert.deepEqual(
      items.map(({ metadata }) => metadata.name),
      ["one", "two"],
    );
    assert.equal(resourceVersion, "7");
    assert.deepEqual(
      asked.map(({ url }) => url),
      ["/api/v1/pods?labelSelector=a=b&limit=100", "/api/v1/pods?labelSelector=a=b&limit=100&continue=more"],
    );
  });

  it("says what kind of failure it is, with the server's words", async () => {
    const cases: [number, string, string, boolean][] = [
      [400, "BadRequest", "KUBERNETES_INVALID", false],
      [401, "Unauthorized", "KUBERNETES_FORBIDDEN", false],
      [403, "Forbidden", "KUBERNETES_FORBIDDEN", false],
      [404, "NotFound", "KUBERNETES_NOT_FOUND", false],
      [409, "AlreadyExists", "KUBERNETES_EXISTS", false],
      [409, "Conflict", "KUBERNETES_CONFLICT", true],
      [410, "Expired", "KUBERNETES_EXPIRED", true],
      [422, "Invalid", "KUBERNETES_INVALID", false],
      [429, "TooManyRequests", "KUBERNETES_BUSY", true],
      [503, "ServiceUnavailable", "KUBERNETES_BUSY", true],
    ];
    for (const [code, reason, expected, retryable] of cases) {
      answer = (_request, response) => json(response, { kind: "Status", code, reason, message: "why" }, code);
      await assert.rejects(api.get(PODS), { code: expected, retryable, message: /GET \/api\/v1\/pods: why/ });
    }
    answer = (_request, response) => void response.writeHead(502).end("<html>");
    await assert.rejects(api.get(PODS), { code: "KUBERNETES_BUSY", message: /<html>/ });
    answer = (_request, response) => void response.end("no JSON");
    await assert.rejects(api.get(PODS), { code: "KUBERNETES_PROTOCOL" });
    answer = (request) => request.socket.destroy();
    await assert.rejects(api.get(PODS), { code: "KUBERNETES_UNREACHABLE", retryable: true });
  });

  it("finds nothing where there is nothing, and deletes what is as it was read", async () => {
    answer = (_request, response) => json(response, { code: 404, message: "none" }, 404);
    assert.equal(await api.find(PODS), null);
    assert.equal(await api.delete(PODS), false);
    answer = (_request, response) => json(response, { kind: "Status", status: "Success" });
    assert.equal(await api.delete(PODS, { preconditions: { uid: "u", resourceVersion: "4" } }), true);
    assert.deepEqual(JSON.parse(asked.at(-1)?.body ?? "").preconditions, { uid: "u", resourceVersion: "4" });
    await api.patch(PODS, { a: 1 }, "strategic");
    assert.equal(asked.at(-1)?.type, "application/strategic-merge-patch+json");
  });

  describe("reflects what is there", () => {
    const seen: string[] = [];
    const problems: string[] = [];
    let reflector: Reflector<Pod>;

    const reflect = (silentMsMax = 60_000): void => {
      seen.length = 0;
      problems.length = 0;
      reflector = new Reflector<Pod>({
        api,
        path: PODS,
        silentMsMax,
        backoffMs: 1,
        onChange: (now, before) => {
          const { name, resourceVersion } = (now ?? before)?.metadata ?? { name: "", resourceVersion: "" };
          seen.push(`${now === null ? "-" : before === null ? "+" : "~"}${name}@${resourceVersion}`);
        },
        onProblem: (error) => problems.push(String((error as { code?: string }).code)),
      });
    };
    /** the watches' `resourceVersion`, in turn */
    const watched = (): (string | null)[] =>
      asked
        .map(({ url }) => new URL(url, "http://api").searchParams)
        .filter((query) => query.get("watch") !== null)
        .map((query) => query.get("resourceVersion"));
    afterEach(() => reflector.close());

    it("and goes on where a watch ended, at the last bookmark", async () => {
      let watches = 0;
      answer = (_request, response, url) => {
        if (url.searchParams.get("watch") === null)
          return json(response, { metadata: { resourceVersion: "10" }, items: [pod("a", 4), pod("b", 5)] });
        watches += 1;
        response.writeHead(200);
        if (watches === 1) {
          response.write(event("ADDED", pod("c", 11)));
          response.write(event("MODIFIED", pod("a", 12)));
          response.write(event("DELETED", pod("b", 13)));
          response.end(event("BOOKMARK", { metadata: { resourceVersion: "20" } }));
        } else response.flushHeaders();
      };
      reflect();
      await reflector.synced;
      await until("watched again", () => watches === 2);
      assert.deepEqual(seen, ["+a@4", "+b@5", "+c@11", "~a@12", "-b@5"]);
      assert.deepEqual(watched(), ["10", "20"]);
      assert.equal(reflector.get("a", "shop")?.metadata.resourceVersion, "12");
      assert.equal(reflector.get("b", "shop"), null);
      assert.equal(reflector.lists, 1);
      assert.deepEqual(problems, []);
    });

    for (const [how, refuse] of [
      [
        "an event",
        (response: ServerResponse) => void response.end(event("ERROR", { code: 410, message: "old" })),
      ],
      ["a status", (response: ServerResponse) => json(response, { code: 410, message: "old" }, 410)],
    ] as const)
      it(`lists again when the version is too old, said by ${how}, and tells what was missed`, async () => {
        let lists = 0;
        answer = (_request, response, url) => {
          if (url.searchParams.get("watch") !== null)
            return lists === 1 ? refuse(response) : void response.writeHead(200).flushHeaders();
          lists += 1;
          const items =
            lists === 1 ? [pod("a", 4), pod("b", 5), pod("same", 6)] : [pod("b", 30), pod("same", 6)];
          json(response, { metadata: { resourceVersion: String(lists * 20) }, items });
        };
        reflect();
        await until("watched again", () => watched().length === 2);
        assert.deepEqual(seen, ["+a@4", "+b@5", "+same@6", "~b@30", "-a@4"]);
        assert.deepEqual(watched(), ["20", "40"]);
      });

    it("ends a watch that is silent, and watches again", async () => {
      answer = (_request, response, url) => {
        if (url.searchParams.get("watch") === null)
          return json(response, { metadata: { resourceVersion: "1" }, items: [] });
        response.writeHead(200).flushHeaders();
        if (watched().length >= 2) response.write(event("ADDED", pod("late", 2)));
      };
      reflect(30);
      await until("the second watch has told", () => seen.includes("+late@2"));
      assert.equal(reflector.lists, 1, "nothing was listed again");
      assert.equal(problems[0], "KUBERNETES_UNREACHABLE");
    });

    it("outlives a server that goes away in the middle of an event, and characters cut in two", async () => {
      const text = Buffer.from(event("ADDED", pod("wide", 2, { note: "größer" })));
      const cut = text.indexOf(Buffer.from("ö")) + 1;
      answer = (request, response, url) => {
        if (url.searchParams.get("watch") === null)
          return json(response, { metadata: { resourceVersion: "1" }, items: [] });
        response.writeHead(200);
        if (watched().length === 1) {
          response.write(text.subarray(0, cut), () => setImmediate(() => request.socket.destroy()));
          return;
        }
        response.write(text.subarray(0, cut), () => setImmediate(() => response.write(text.subarray(cut))));
      };
      reflect();
      await until("it is there", () => seen.length === 1);
      assert.equal(reflector.get("wide", "shop")?.metadata.labels?.note, "größer");
      assert.deepEqual(watched(), ["1", "1"]);
    });

    it("tries on while the server refuses", async () => {
      let lists = 0;
      answer = (_request, response, url) => {
        if (url.searchParams.get("watch") !== null) return void response.writeHead(200).flushHeaders();
        lists += 1;
        if (lists < 4) return json(response, { code: 503, message: "not yet" }, 503);
        json(response, { metadata: { resourceVersion: "1" }, items: [pod("a", 1)] });
      };
      reflect();
      await reflector.synced;
      assert.deepEqual(problems, ["KUBERNETES_BUSY", "KUBERNETES_BUSY", "KUBERNETES_BUSY"]);
      assert.ok(reflector.secondsSinceLastEvent() < 30);
    });
  });
});

describe("paths", () => {
  it("are those of the API", () => {
    assert.equal(pathOf("nodes", { name: "a" }), "/api/v1/nodes/a");
    assert.equal(
      pathOf("migrations", { namespace: "shop", name: "m", subresource: "status" }),
      "/apis/holdfast.dev/v1alpha1/namespaces/shop/migrations/m/status",
    );
    assert.equal(
      selectorText({
        matchLabels: { app: "chat" },
        matchExpressions: [
          { key: "tier", operator: "In", values: ["a", "b"] },
          { key: "x", operator: "DoesNotExist" },
        ],
      }),
      "app=chat,tier in (a,b),!x",
    );
  });
});

describe("where the API server is", () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-kubeconfig-"));
  after(() => rmSync(folder, { recursive: true }));
  const file = (name: string, content: unknown): string => {
    const path = join(folder, name);
    writeFileSync(path, typeof content === "string" ? content : stringify(content), { mode: 0o755 });
    return path;
  };
  const config = (user: object, cluster: object = {}, context: object = {}): object => ({
    "current-context": "here",
    contexts: [{ name: "here", context: { cluster: "c", user: "u", ...context } }],
    clusters: [{ name: "c", cluster: { server: "https://10.0.0.1:6443/", ...cluster } }],
    users: [{ name: "u", user }],
  });

  it("is read from a kubeconfig, with files beside it and data in it", async () => {
    file("ca.pem", "CA");
    const access = fromKubeconfig([
      file(
        "files",
        config(
          {
            "client-certificate-data": Buffer.from("CERT").toString("base64"),
            "client-key": file("key", "KEY"),
          },
          { "certificate-authority": "ca.pem", "tls-server-name": "api" },
          { namespace: "shop" },
        ),
      ),
    ]);
    const { server, authorities, serverName, namespace, isUnchecked } = access;
    assert.deepEqual(
      { server, authorities, serverName, namespace, isUnchecked },
      {
        server: "https://10.0.0.1:6443",
        authorities: "CA",
        serverName: "api",
        namespace: "shop",
        isUnchecked: false,
      },
    );
    assert.deepEqual(await access.credentials(), { certificate: "CERT", key: "KEY" });
  });

  it("is of the first of several files, and of the context that is asked for", () => {
    const other = { contexts: [{ name: "there", context: { cluster: "c", user: "u" } }] };
    const files = [file("other", other), file("here", config({ token: "t" }))];
    assert.equal(fromKubeconfig(files, "there").namespace, "default");
    assert.equal(findAccess({ KUBECONFIG: files.join(":") }).server, "https://10.0.0.1:6443");
  });

  it("has credentials from a plug-in, which is asked again when they expire", async () => {
    const plugIn = file(
      "plug-in",
      `#!/bin/sh
echo x >> ${folder}/calls
printf '{"kind":"ExecCredential","status":{"token":"t%s","expirationTimestamp":"%s"}}' "$(wc -l < ${folder}/calls)" "$EXPIRES"`,
    );
    const exec = (expires: string) => ({
      exec: {
        apiVersion: "client.authentication.k8s.io/v1",
        command: plugIn,
        env: [{ name: "EXPIRES", value: expires }],
      },
    });
    const lasting = fromKubeconfig([file("lasting", config(exec("2999-01-01T00:00:00Z")))]);
    assert.deepEqual(await lasting.credentials(), { token: "t1" });
    assert.deepEqual(await lasting.credentials(), { token: "t1" });
    const over = fromKubeconfig([file("over", config(exec("2020-01-01T00:00:00Z")))]);
    assert.deepEqual(await over.credentials(), { token: "t2" });
    assert.deepEqual(await over.credentials(), { token: "t3" });
    const missing = { exec: { apiVersion: "v1", command: "./none", installHint: "install it" } };
    await assert.rejects(fromKubeconfig([file("missing", config(missing))]).credentials(), {
      code: "KUBERNETES_CONFIG",
      message: /install it/,
    });
  });

  it("is that of the pod, and its token is read again", async () => {
    const [token] = [file("token", "one\n"), file("ca.crt", "CA"), file("namespace", "shop")];
    const env = { KUBERNETES_SERVICE_HOST: "fd00::1", KUBERNETES_SERVICE_PORT: "6443" };
    const access = inCluster(env, folder);
    assert.equal(access?.server, "https://[fd00::1]:6443");
    assert.equal(access?.namespace, "shop");
    assert.deepEqual(await access?.credentials(), { token: "one" });
    writeFileSync(token, "two\n");
    assert.deepEqual(await access?.credentials(), { token: "one" }, "not with each request");
    assert.equal(inCluster({}, folder), null);
  });

  it("is said to be missing, or wrong, in one line", () => {
    const refused = (content: unknown, message: RegExp): void => {
      assert.throws(() => fromKubeconfig([file("wrong", content)]), { code: "KUBERNETES_CONFIG", message });
    };
    assert.throws(() => fromKubeconfig([join(folder, "none")]), {
      message: /no kubeconfig: .*none is not there/,
    });
    refused("{", /not YAML/);
    refused({ clusters: 1 }, /wrong: clusters/);
    refused({}, /no current-context/);
    refused({ "current-context": "x" }, /no context "x"/);
    refused({ ...config({}), clusters: [] }, /cluster c, which is not there/);
    refused(config({}, { server: "10.0.0.1" }), /expected https:\/\/HOST:PORT, got "10.0.0.1"/);
    refused(config({}, { "certificate-authority": "nowhere" }), /nowhere cannot be read/);
  });
});
