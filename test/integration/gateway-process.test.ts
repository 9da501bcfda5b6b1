/** `holdfast gateway`, the process: what it says of itself, and how it ends. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer, type ServerResponse } from "node:http";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, describe, it } from "node:test";
import { stringify } from "yaml";
import { linkKeysOf, type SharedKeys } from "#proxy/contract/shared-keys.ts";
import { openStore } from "#proxy/store/open.ts";
import type { Store } from "#proxy/store/store.ts";
import { type InProcess, startInProcess } from "#test/support/in-process-proxy.ts";
import { until } from "#test/support/moved-program.ts";
import { freePort, type RedisServer, startRedis } from "#test/support/redis.ts";

const root = resolve(import.meta.dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "holdfast-gateway-"));
const KEYS: SharedKeys = [Buffer.alloc(32, 3)];
const PORT = 8080;

describe("holdfast gateway", () => {
  let redis: RedisServer;
  let store: Store;
  let owner: InProcess;
  const started: ChildProcess[] = [];

  before(async () => {
    redis = await startRedis();
    store = openStore(redis.url);
    writeFileSync(join(folder, "key"), KEYS[0], { mode: 0o600 });
    owner = await startInProcess({ downstream: "gateway" });
    owner.proxy.keys = linkKeysOf(KEYS, "chat");
    await owner.proxy.openLinks();
    await store.claim({ workload: "chat", node: "a" });
    const link = owner.proxy.linkEndpoint;
    assert.ok(link !== null);
    const record = { node: "a", epoch: 1, link, ports: [PORT] };
    await store.putLink({ workload: "chat", node: "a", epoch: 1, record });
  });
  after(async () => {
    for (const child of started) child.kill("SIGKILL");
    owner.stop();
    await store.close();
    await redis.kill();
    rmSync(folder, { recursive: true, force: true });
  });

  interface Started {
    child: ChildProcess;
    listen: number;
    admin: number;
    stderr: string;
  }

  async function start(limits: object = {}, listen?: number, kubeconfig?: string): Promise<Started> {
    const admin = await freePort();
    const at = listen ?? (await freePort());
    const file = join(folder, `g${started.length}.yaml`);
    const config = {
      gateway: "g1",
      store: redis.url,
      key: "file:key",
      ...(kubeconfig === undefined
        ? { listen: [{ address: `127.0.0.1:${at}`, workload: "chat", port: PORT }] }
        : { services: { configMap: "gateways" } }),
      admin: `127.0.0.1:${admin}`,
      limits,
    };
    writeFileSync(file, stringify(config));
    const child = spawn(join(root, "bin/holdfast"), ["gateway", "--config", file], {
      stdio: ["ignore", "ignore", "pipe"],
      env: { ...process.env, HOLDFAST_ADDRESS: "127.0.0.1", KUBECONFIG: kubeconfig },
    });
    started.push(child);
    const running: Started = { child, listen: at, admin, stderr: "" };
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      running.stderr += text;
    });
    await until(
      "it is ready, or has ended",
      () => {
        return running.stderr.includes('"msg":"gateway ready"') || child.exitCode !== null;
      },
      20_000,
    );
    return running;
  }

  function client({ listen }: Started): Socket {
    const socket = connect({ host: "127.0.0.1", port: listen });
    socket.on("error", () => {});
    return socket;
  }

  async function echoes(socket: Socket): Promise<void> {
    socket.write("hello");
    assert.equal(String((await once(socket, "data"))[0]), "hello");
  }

  async function get({ admin }: Started, path: string): Promise<{ status: number; text: string }> {
    const response = await fetch(`http://127.0.0.1:${admin}${path}`);
    return { status: response.status, text: await response.text() };
  }

  it("serves clients, and says of itself what probes and Prometheus ask", async () => {
    const running = await start();
    const socket = client(running);
    await echoes(socket);
    await until("it is ready", async () => (await get(running, "/readyz")).status === 200);
    const health = JSON.parse((await get(running, "/healthz")).text);
    assert.deepEqual(health, {
      gateway: "g1",
      store: "up",
      workloads: [{ workload: "chat", sessions: 1, owner: { node: "a", epoch: 1 } }],
    });
    const metrics = (await get(running, "/metrics")).text;
    assert.match(metrics, /^holdfast_gateway_sessions 1$/m);
    assert.match(metrics, /^holdfast_gateway_sessions_accepted_total 1$/m);
    assert.match(metrics, /^holdfast_gateway_trunks 1$/m);
    assert.match(metrics, /^holdfast_gateway_store_up 1$/m);
    assert.match(metrics, /^holdfast_gateway_workloads_without_owner 0$/m);
    socket.destroy();
    running.child.kill("SIGTERM");
    assert.deepEqual(await once(running.child, "exit"), [0, null]);
  });

  it("in a cluster is ready when the controller has told it, and leads clients as it tells", async () => {
    const table = await startTable();
    const listen = await freePort();
    const running = await start({}, listen, table.kubeconfig);
    const { status, text } = await get(running, "/readyz");
    assert.deepEqual(
      [status, text],
      [503, JSON.stringify({ ready: false, reason: "no Services have been told yet" })],
    );
    const tell = (workloads: string[]): void =>
      table.tell({ "games.chat": JSON.stringify({ ports: [{ name: "", listen, port: PORT }], workloads }) });
    tell(["chat"]);
    await until("it is ready", async () => (await get(running, "/readyz")).status === 200);
    const socket = client(running);
    await echoes(socket);
    tell([]);
    await until("nobody is led any more", async () => !(await accepts(running)));
    await echoes(socket);
    table.close();
    await echoes(socket);
    assert.equal((await get(running, "/readyz")).status, 200);
    socket.destroy();
    running.child.kill("SIGTERM");
    assert.deepEqual(await once(running.child, "exit"), [0, null]);
  });

  function accepts({ listen }: Started): Promise<boolean> {
    const socket = connect({ host: "127.0.0.1", port: listen });
    return new Promise((resolve) => {
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
    }).finally(() => socket.destroy()) as Promise<boolean>;
  }

  /** An API server that has one ConfigMap, when it is told it first. */
  async function startTable(): Promise<{
    kubeconfig: string;
    tell(data: Record<string, string>): void;
    close(): void;
  }> {
    let version = 0;
    let data: Record<string, string> | null = null;
    const watches = new Set<ServerResponse>();
    const object = () => ({ metadata: { name: "gateways", uid: "u", resourceVersion: `${version}` }, data });
    const server = createHttpServer((request, response) => {
      const { searchParams } = new URL(request.url ?? "", "http://api");
      assert.equal(searchParams.get("fieldSelector"), "metadata.name=gateways");
      if (data === null) response.writeHead(503).end("{}");
      else if (searchParams.get("watch") === null)
        response.end(JSON.stringify({ metadata: { resourceVersion: `${version}` }, items: [object()] }));
      else {
        response.flushHeaders();
        watches.add(response);
      }
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const kubeconfig = join(folder, "kubeconfig");
    const named = { name: "one", cluster: { server: `http://127.0.0.1:${port}` } };
    const context = { name: "one", context: { cluster: "one", user: "one", namespace: "holdfast" } };
    const user = { name: "one", user: { token: "t" } };
    writeFileSync(
      kubeconfig,
      stringify({ "current-context": "one", clusters: [named], contexts: [context], users: [user] }),
    );
    return {
      kubeconfig,
      tell(next) {
        version++;
        data = next;
        for (const watch of watches)
          watch.write(`${JSON.stringify({ type: "MODIFIED", object: object() })}\n`);
      },
      close() {
        server.closeAllConnections();
        server.close();
      },
    };
  }

  it("in a cluster leads clients as it was told last, when the keys can be read that could not be then", async () => {
    const table = await startTable();
    const listen = await freePort();
    const running = await start({}, listen, table.kubeconfig);
    writeFileSync(join(folder, "key"), "short");
    table.tell({
      "games.chat": JSON.stringify({ ports: [{ name: "", listen, port: PORT }], workloads: ["chat"] }),
    });
    await until("it cannot", () => running.stderr.includes("whom clients are led to cannot be changed"));
    assert.equal((await get(running, "/readyz")).status, 503);
    writeFileSync(join(folder, "key"), KEYS[0]);
    await until("it is ready", async () => (await get(running, "/readyz")).status === 200);
    await echoes(client(running));
    table.close();
  });

  it("answers a probe however many connections there are that say nothing, and lets go of these", async () => {
    const running = await start();
    const silent = Array.from({ length: 64 }, () => connect({ host: "127.0.0.1", port: running.admin }));
    const closed = silent.map((socket) => once(socket.on("error", () => {}).resume(), "close"));
    await Promise.all(silent.map((socket) => once(socket, "connect")));
    assert.equal((await get(running, "/healthz")).status, 200);
    await Promise.all(closed);
  });

  it("drains on SIGTERM: not ready, accepts nobody, ends with its last client; the next one finds the owner again", async () => {
    const running = await start();
    const socket = client(running);
    await echoes(socket);
    running.child.kill("SIGTERM");
    await until("it is not ready", async () => (await get(running, "/readyz")).status === 503);
    assert.match((await get(running, "/readyz")).text, /draining/);
    await echoes(socket);
    const next = await start({}, running.listen);
    await echoes(client(next));
    assert.equal(running.child.exitCode, null);
    socket.end();
    assert.deepEqual(await once(running.child, "exit"), [0, null]);
  });

  it("tells the owner of each client that it resets when it ends", async () => {
    const running = await start({ drainMsMax: 0 });
    const socket = client(running);
    await echoes(socket);
    const { sessions, trunks, counters } = owner.proxy;
    const [before, others] = [sessions.size, trunks];
    const { linksInterrupted } = counters;
    running.child.kill("SIGTERM");
    assert.deepEqual(await once(running.child, "exit"), [0, null]);
    await until("its session's end there", () => sessions.size === before - 1);
    await until("its trunk's", () => owner.proxy.trunks === others - 1);
    assert.equal(counters.linksInterrupted, linksInterrupted, "nobody had to wait for it");
  });

  it("says in one line that a port is taken, and exits with 1", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as { port: number };
    const running = await start({}, port);
    other.close();
    assert.equal(running.child.exitCode, 1);
    assert.match(
      running.stderr,
      new RegExp(`^holdfast: cannot listen for clients on 127.0.0.1:${port} .*$`, "m"),
    );
  });

  it("goes on with its keys where their file is damaged, and says so once", async () => {
    const running = await start();
    writeFileSync(join(folder, "key"), "short");
    await until("it has seen that", () => running.stderr.includes("cannot be used, the keys before it are"));
    await echoes(client(running));
    writeFileSync(join(folder, "key"), KEYS[0]);
  });

  it("takes a changed key file for new clients", async () => {
    const running = await start();
    const old = client(running);
    await echoes(old);
    const next: SharedKeys = [Buffer.alloc(32, 4)];
    writeFileSync(join(folder, "key"), next[0]);
    await until("it has read the file", () => running.stderr.includes("the key file was read again"));
    owner.proxy.keys = linkKeysOf(next, "chat");
    await echoes(client(running));
    await echoes(old);
  });
});
