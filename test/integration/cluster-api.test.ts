/** The API server as an agent reaches it: by TLS and a token that is replaced, in lines that come in pieces, and when it fails. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { ClusterApi } from "#control/kubernetes/cluster-api.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";

const { signal } = new AbortController();

describe("the API server", () => {
  const account = mkdtempSync(join(tmpdir(), "holdfast-api-"));
  let server: Server;
  let api: ClusterApi;
  let answer: (request: IncomingMessage, response: ServerResponse) => void = () => {};

  before(async () => {
    const [key, certificate] = [join(account, "key"), join(account, "ca.crt")];
    const made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    const names = ["-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"];
    execFileSync("openssl", [...made, ...names, "-keyout", key, "-out", certificate], { stdio: "pipe" });
    server = createServer({ key: readFileSync(key), cert: readFileSync(certificate) }, (request, response) =>
      answer(request, response),
    );
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    writeFileSync(join(account, "token"), "first\n");
    api = new ClusterApi({ host: "127.0.0.1", port: (server.address() as AddressInfo).port, account });
  });
  after(() => {
    server.closeAllConnections();
    server.close();
    rmSync(account, { recursive: true });
  });

  async function refused(work: Promise<unknown>): Promise<HoldfastError> {
    return work.then(
      () => assert.fail("it was answered"),
      (error: HoldfastError) => error,
    );
  }
  async function all(path: string, until: AbortSignal = signal): Promise<unknown[]> {
    const events: unknown[] = [];
    for await (const event of api.watch(path, until)) events.push(event);
    return events;
  }

  it("is asked with the token there is now", async () => {
    answer = (request, response) => response.end(JSON.stringify({ token: request.headers.authorization }));
    assert.deepEqual(await api.get("/api", signal), { token: "Bearer first" });
    writeFileSync(join(account, "token"), "second\n");
    assert.deepEqual(await api.get("/api", signal), { token: "Bearer second" });
  });

  it("tells events as they come, however they are cut, until it ends the watch", async () => {
    const text = Buffer.from(['{"type":"ä"}', "", '{"type":"b"}', ""].join("\n"));
    answer = (_, response) => {
      for (let at = 0; at < text.length; at++) response.write(text.subarray(at, at + 1));
      response.end();
    };
    assert.deepEqual(await all("/watch"), [{ type: "ä" }, { type: "b" }]);
  });

  it("ends a watch that nobody wants any more, and says why", async () => {
    answer = (_, response) => void response.write('{"type":"a"}\n');
    const stop = new AbortController();
    const seen: unknown[] = [];
    const error = await refused(
      (async () => {
        for await (const event of api.watch("/watch", stop.signal)) {
          seen.push(event);
          stop.abort(new Error("enough"));
        }
      })(),
    );
    assert.deepEqual([seen.length, error.code], [1, "KUBERNETES_UNREACHABLE"]);
  });

  for (const [status, code, message] of [
    [403, "KUBERNETES_REFUSED", /403 to GET \/api: pods is forbidden: let the ServiceAccount of this pod/],
    [410, "KUBERNETES_EXPIRED", /410/],
    [500, "KUBERNETES_UNREACHABLE", /500/],
  ] as const)
    it(`answers ${status}: ${code}`, async () => {
      answer = (_, response) => {
        response.writeHead(status).end(JSON.stringify({ kind: "Status", message: "pods is forbidden" }));
      };
      for (const error of [await refused(api.get("/api", signal)), await refused(all("/api"))]) {
        assert.equal(error.code, code);
        assert.match(error.message, message);
      }
    });

  for (const [what, answers] of [
    ["is cut off", (response: ServerResponse) => response.write('{"a":', () => response.destroy())],
    ["is no JSON", (response: ServerResponse) => response.end("<html>\n")],
    ["is no answer", (response: ServerResponse) => response.destroy()],
  ] as const)
    it(`is not reached when what comes ${what}`, async () => {
      answer = (_, response) => void answers(response);
      for (const error of [await refused(api.get("/api", signal)), await refused(all("/api"))])
        assert.equal(error.code, "KUBERNETES_UNREACHABLE", String(error));
    });

  it("is not believed with another certificate, and not asked without a token", async () => {
    const own = readFileSync(join(account, "ca.crt"));
    writeFileSync(join(account, "ca.crt"), "");
    assert.match((await refused(api.get("/api", signal))).message, /does not answer GET \/api/);
    writeFileSync(join(account, "ca.crt"), own);
    rmSync(join(account, "token"));
    assert.match((await refused(api.get("/api", signal))).message, /ENOENT.*token/);
    writeFileSync(join(account, "token"), "third\n");
  });

  it("is where a pod is told it is", () => {
    assert.throws(() => ClusterApi.inCluster({}), /KUBERNETES_SERVICE_HOST/);
    ClusterApi.inCluster({ KUBERNETES_SERVICE_HOST: "10.96.0.1", KUBERNETES_SERVICE_PORT: "443" });
  });
});
