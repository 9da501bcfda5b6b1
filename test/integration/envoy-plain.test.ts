/**
 * The real Envoy with the bootstrap that a policy comes to, and `endpoints` beside it: clients that come back after a move reach the new
 * place on their first try, wherever the workload of their cookie is by then. What moves here are two small servers that are made up.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer, type Server } from "node:http";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, it } from "node:test";
import { pino } from "pino";
import { verifyProxy } from "#control/cli/envoy.ts";
import { type RunningEndpoints, startEndpoints } from "#envoy/endpoints/main.ts";
import { render } from "#envoy/generate/render.ts";
import { yamlOf } from "#envoy/generate/text.ts";
import { policySchema } from "#envoy/policy.ts";
import { readProxyHeader } from "#proxy/protocol/proxy-header.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import { ENVOY, requireEnvoy } from "#test/envoy/mesh-tools.ts";
import { until } from "#test/support/moved-program.ts";
import { freePort } from "#test/support/redis.ts";
import { type StallingRelay, stallingRelay } from "#test/support/stalling-relay.ts";

/** as `render` has it; a test is not to wait for as long */
const KEEPALIVE = /(connection_keepalive:\s+interval: )30s(\s+timeout: )10s/;

for (const way of ["files", "ads"] as const)
  describe(`a plain Envoy with endpoints by ${way}`, () => {
    const folder = mkdtempSync(join(tmpdir(), "holdfast-envoy-"));
    const store = new MemoryStore();
    const servers: { close(): unknown }[] = [];
    const sockets: Socket[] = [];
    let endpoints: RunningEndpoints;
    let envoy: ChildProcess;
    let http: number;
    let tcp: number;
    let admin: string;
    let bootstrap: string;
    let relay: StallingRelay | null = null;
    let stderr = "";

    before(async () => {
      requireEnvoy();
      [http, tcp] = [await freePort(), await freePort()];
      const adminPort = await freePort();
      const adsPort = await freePort();
      admin = `http://127.0.0.1:${adminPort}`;
      relay = way === "ads" ? await stallingRelay(adsPort) : null;
      const ads = relay === null ? null : `127.0.0.1:${relay.port}`;
      const policy = policySchema.parse({
        name: "shop",
        selector: { app: "shop" },
        ports: [
          { port: http, protocol: "http" },
          { port: tcp, protocol: "tcp", identity: "proxy-v2" },
        ],
        stickiness: { cookie: "hf", workloads: [{ name: "games.shop-0" }, { name: "games.shop-1" }] },
        plain: { listen: "127.0.0.1", folder, ads, admin: `127.0.0.1:${adminPort}` },
      });
      writeFileSync(join(folder, "policy.yaml"), JSON.stringify(policy));
      bootstrap = yamlOf(render(policy, "plain"), "default");
      const workloads = ["games.shop-0", "games.shop-1"];
      endpoints = await startEndpoints(
        {
          folder: way === "files" ? folder : null,
          ads: way === "ads" ? { address: "127.0.0.1", port: adsPort } : null,
          admin: null,
          clusters: [
            { cluster: `shop-${http}`, workloads, port: 80 },
            { cluster: `shop-${tcp}`, workloads: ["games.shop-0"], port: 90 },
          ],
        },
        store,
        pino({ level: "silent" }),
      );
      await own("games.shop-0", "a");
      await own("games.shop-1", "b");
      await startEnvoy(bootstrap);
    });
    afterEach(() => {
      for (const socket of sockets.splice(0)) socket.destroy();
    });
    after(async () => {
      envoy?.kill("SIGKILL");
      await endpoints?.close();
      relay?.close();
      for (const server of servers) server.close();
      await store.close();
      rmSync(folder, { recursive: true });
    });

    /** It has heard of both. */
    async function startEnvoy(text: string): Promise<void> {
      const file = join(folder, "envoy.yaml");
      writeFileSync(file, text);
      envoy = spawn(ENVOY, ["-c", file, "--base-id", String(http), "--concurrency", "1"], {
        stdio: ["ignore", "ignore", "pipe"],
      });
      envoy.stderr?.on("data", (bytes: Buffer) => {
        stderr = (stderr + bytes.toString()).slice(-20_000);
      });
      await until("Envoy is ready", () => knows("games.shop-0", "games.shop-1")).catch((error: unknown) => {
        throw new Error(`${error}\n${stderr}`);
      });
    }

    /** Its places, told to the store: an HTTP server that names itself, and one that echoes behind the header. */
    async function own(workload: string, node: string): Promise<{ web: Server }> {
      const web = createHttpServer((_request, response) => response.end(`${workload} ${node}`));
      const raw = createServer((socket) => {
        socket.on("error", () => {});
        socket.once("data", (first: Buffer) => {
          const header = readProxyHeader(first);
          assert.ok(header.is === "complete");
          socket.write(`${node} ${header.client}\n`);
          socket.pipe(socket);
        });
      });
      servers.push(web, raw);
      for (const server of [web, raw]) await once(server.listen(0, "127.0.0.1"), "listening");
      const found = await store.ownership(workload);
      const { epoch } =
        found === null
          ? await store.claim({ workload, node })
          : await store.raise({ workload, node, epoch: found.epoch + 1 });
      const clients = [web, raw].map((server) => ({
        address: "127.0.0.1",
        port: (server.address() as AddressInfo).port,
      }));
      const record = { node, epoch, link: { address: "127.0.0.1", port: 1 }, ports: [80, 90], clients };
      await store.putLink({ workload, node, epoch, record });
      return { web };
    }

    /** Envoy has the places that the store has now, of each. */
    async function knows(...workloads: string[]): Promise<boolean> {
      const text = await fetch(`${admin}/clusters`).then(
        (response) => response.text(),
        () => "",
      );
      const wanted = await Promise.all(workloads.map((workload) => store.link(workload)));
      return wanted.every((record) =>
        text.includes(`shop-${http}::127.0.0.1:${record?.clients?.[0]?.port}::`),
      );
    }

    const get = (cookie?: string): Promise<Response> =>
      fetch(`http://127.0.0.1:${http}/`, cookie === undefined ? {} : { headers: { cookie } });

    it("has all that verify looks for", async () => {
      let out = "";
      const terminal = { out: { write: (text: string) => (out += text) }, err: { write: () => true } };
      const { readPolicy } = await import("#control/cli/envoy.ts");
      const request = {
        policy: readPolicy(join(folder, "policy.yaml")),
        mode: "plain" as const,
        files: [],
        admin,
      };
      assert.equal(await verifyProxy(request, true, terminal), 0, out);
      const { results } = JSON.parse(out) as { results: { state: string }[] };
      assert.deepEqual([...new Set(results.map(({ state }) => state))], ["applied"]);
    });

    it("leads a client back to its workload, on the first try after each move, and gives no cookie twice", async () => {
      const first = await get();
      const cookie = (first.headers.get("set-cookie") ?? "").split(";")[0] ?? "";
      assert.match(cookie, /^hf=games\.shop-[01]$/);
      const workload = cookie.slice("hf=".length);
      assert.match(await first.text(), new RegExp(`^${workload} `));
      for (const node of ["c", "d"]) {
        await own(workload, node);
        await until("told", () => knows(workload));
        const again = await get(`other=1; ${cookie}`);
        assert.equal(await again.text(), `${workload} ${node}`);
        assert.equal(again.headers.get("set-cookie"), null);
      }
      for (let round = 0; round < 10; round++)
        assert.equal(await (await get(cookie)).text(), `${workload} d`);
    });

    it("gives a client whose workload is not known another, with a new cookie", async () => {
      const answer = await get("hf=games.shop-9");
      assert.equal(answer.status, 200);
      assert.match(answer.headers.get("set-cookie") ?? "", /^hf=games\.shop-[01]; Path=\/; HttpOnly$/);
    });

    it("leaves a TCP session where it is, says whose it is, and leads new ones to the new place", async () => {
      await own("games.shop-0", "e");
      await until("told", () => knows("games.shop-0"));
      const old = await session();
      assert.equal(old.greeting, `e 127.0.0.1:${old.socket.localPort}`);
      await own("games.shop-0", "f");
      await until("told", () => knows("games.shop-0"));
      assert.match((await session()).greeting, /^f /);
      old.socket.write("still\n");
      assert.equal(await line(old.socket), "still");
    });

    if (way === "ads")
      it("hears of a move though the connection over which it was told has gone without a word", async () => {
        const sooner = bootstrap.replace(KEEPALIVE, "$11s$21s");
        assert.notEqual(sooner, bootstrap);
        const ended = once(envoy, "exit");
        envoy.kill("SIGKILL");
        await ended;
        await startEnvoy(sooner);
        assert.equal(relay?.stall(), 1);
        await own("games.shop-1", "g");
        await until("told", () => knows("games.shop-1"));
      });

    async function session(): Promise<{ socket: Socket; greeting: string }> {
      const socket = connect(tcp, "127.0.0.1");
      sockets.push(socket);
      socket.write("?");
      return { socket, greeting: await line(socket) };
    }
  });

async function line(socket: Socket): Promise<string> {
  let text = "";
  while (!text.includes("\n")) text += String((await once(socket, "data"))[0]);
  return text.split("\n")[0] ?? "";
}
