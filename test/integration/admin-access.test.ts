import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { request as ask, type RequestOptions } from "node:http";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { z } from "zod";
import { AdminServer, type OwnContext } from "#control/agent/admin.ts";
import { adminToken } from "#control/agent/admin-access.ts";
import { AgentMetrics } from "#control/agent/metrics.ts";
import { AdminClient } from "#control/cli/admin-client.ts";
import { readToken } from "#control/cli/find-agent.ts";
import type { Workload } from "#control/workload/workload.ts";

const folder = mkdtempSync(join(tmpdir(), "hf-admin-"));
const socketPath = join(folder, "agent.sock");
const tokenFile = join(folder, "admin.token");
let port = 0;
let stops = 0;
let server: AdminServer;

interface Answer {
  status: number | undefined;
  text: string;
}

before(async () => {
  const probe = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => probe.once("listening", resolve));
  port = (probe.address() as AddressInfo).port;
  await new Promise((resolve) => probe.close(resolve));
  const workload = { stop: async () => void stops++ } as unknown as Workload;
  const workloads = new Map([["chat", workload]]);
  const context = { stateDir: folder, node: "a" } as OwnContext;
  server = new AdminServer(context, workloads, new AgentMetrics(new Map()));
  await server.claim({ address: "127.0.0.1", port }, null);
  await server.open(socketPath);
});
after(async () => {
  await server.close();
  rmSync(folder, { recursive: true });
});

function send(options: RequestOptions, body = ""): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const request = ask({ host: "127.0.0.1", port, agent: false, ...options }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
      response.on("end", () => resolve({ status: response.statusCode, text }));
    });
    request.on("error", reject).end(body);
  });
}

describe("the admin API over TCP", () => {
  const stop = { method: "POST", path: "/v1/workloads/chat/stop" };
  const json = { "content-type": "application/json" };
  const bearer = (): { authorization: string } => ({
    authorization: `Bearer ${readFileSync(tokenFile, "utf8").trim()}`,
  });

  it("is used with the token of the agent's file, which only its user can read", async () => {
    assert.equal(statSync(tokenFile).mode & 0o777, 0o600);
    assert.equal((await send({ ...stop, headers: { ...json, ...bearer() } })).status, 200);
    const client = new AdminClient({ type: "http", url: `http://127.0.0.1:${port}` }, readToken(tokenFile));
    await client.ask("POST", "/v1/workloads/chat/stop", z.looseObject({}));
    await client.close();
    assert.equal(stops, 2);
  });

  it("does nothing for anybody else, and tells what is missing", async () => {
    const before = stops;
    const other = { authorization: "Bearer 0123456789012345678901234567890123456789" };
    const refusals: [string, RequestOptions["headers"], number, RegExp][] = [
      ["no token", json, 401, /--token-file/],
      ["another token", { ...json, ...other }, 401, /--token-file/],
      [
        "another name of this address",
        { ...json, ...bearer(), host: `localhost:${port}` },
        421,
        /by that address/,
      ],
      ["no port", { ...json, ...bearer(), host: "127.0.0.1" }, 421, /by that address/],
      ["a page in a browser", { ...json, ...bearer(), origin: `http://127.0.0.1:${port}` }, 403, /pages/],
      ["a form", { ...bearer(), "content-type": "text/plain" }, 415, /application\/json/],
      ["no type", bearer(), 415, /application\/json/],
    ];
    for (const [what, headers, status, cure] of refusals) {
      const answer = await send({ ...stop, headers }, "{}");
      assert.equal(answer.status, status, what);
      assert.match(answer.text, cure, what);
    }
    assert.equal((await send({ path: "/v1/status" })).status, 401);
    assert.equal((await send({ path: "/healthz" })).status, 200);
    assert.equal(stops, before);
  });

  it("over its Unix socket asks for nothing", async () => {
    const before = stops;
    assert.equal((await send({ ...stop, socketPath })).status, 200);
    assert.equal(stops, before + 1);
  });
});

describe("the token's file", () => {
  it("is not taken when others can read it, when it is a link, or when it holds too little", () => {
    const file = join(folder, "other.token");
    const token = adminToken(file);
    assert.equal(adminToken(file), token);
    chmodSync(file, 0o640);
    assert.throws(() => adminToken(file), {
      code: "ADMIN_TOKEN",
      message: /expected mode 600, got 640; remove it/,
    });
    rmSync(file);
    symlinkSync(tokenFile, file);
    assert.throws(() => adminToken(file), { code: "ADMIN_TOKEN" });
    rmSync(file);
    writeFileSync(file, "short\n", { mode: 0o600 });
    assert.throws(() => adminToken(file), { code: "ADMIN_TOKEN", message: /at least 32/ });
  });
});
