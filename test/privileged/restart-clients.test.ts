/** What clients that we did not write see of an application that is restarted, or dies: a pause, where the port says replay. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { Client } from "undici";
import { WebSocket } from "ws";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import {
  type Downstream,
  lacking,
  type MovedProgram,
  until,
  withProgram,
  workloadName,
} from "../support/moved-program.ts";

const replayPort = 8080;
const transplantPort = 8081;
const skip = lacking("runc");
const upstream = "127.0.0.1:9000";
const TICK_MS = 10;

interface Restarted {
  restart?: {
    outcome: string;
    sessions: number;
    replayed: number;
    refused: number;
    reset: number;
    pauseMs: number;
  };
  error?: { code: string; message: string };
}

interface Found {
  name?: string;
  workload?: string;
  node?: string;
  ports?: { listen: number; address: string }[];
  error?: { code: string };
}

function workload(app: "chat" | "exchanges", more: object = {}) {
  return {
    container: {
      command: [nodeBinary, "server.js"],
      cwd: `${projectRoot}/test/apps/${app}`,
      env: { PORT: "9000" },
      rootfs: "host",
    },
    ports: [
      { listen: replayPort, upstream, continuity: "replay", session: { header: "x-session" } },
      { listen: transplantPort, upstream },
    ],
    ...more,
  };
}

function restart(program: MovedProgram, drainMs = 200): Promise<Restarted> {
  return program.ask<Restarted>("POST", `/v1/workloads/${workloadName}/restart`, { drainMs });
}

function applicationPid(program: MovedProgram): number {
  const file = join(program.lab.stateDir(program.at), "workloads", workloadName, "journal.json");
  return (
    (JSON.parse(readFileSync(file, "utf8")) as { application: { pid: number } | null }).application?.pid ?? -1
  );
}

function origin(program: MovedProgram): string {
  return `http://${program.address}:${replayPort}`;
}

/** One request after the other on one connection, for as long as it lives. */
class Requests {
  readonly pids = new Set<number>();
  readonly problems: string[] = [];
  connections = 0;
  answers = 0;
  #client: Client;
  #done: Promise<void>;
  #ends = false;

  constructor(url: string) {
    this.#client = new Client(url, { pipelining: 1 });
    this.#client.on("connect", () => {
      this.connections += 1;
    });
    this.#done = this.#run();
  }

  async close(): Promise<void> {
    this.#ends = true;
    await this.#done;
    await this.#client.close();
  }

  async #run(): Promise<void> {
    while (!this.#ends) {
      try {
        const { statusCode, body } = await this.#client.request({ method: "GET", path: "/" });
        const text = await body.text();
        if (statusCode === 200) this.pids.add((JSON.parse(text) as { pid: number }).pid);
        else this.problems.push(`${statusCode}: ${text}`);
        this.answers += 1;
      } catch (error) {
        this.problems.push(String(error));
      }
      await new Promise((resolve) => setTimeout(resolve, TICK_MS));
    }
  }
}

/** Numbered messages on one WebSocket; the application counts them anew in each of its lives. */
class Messages {
  readonly socket: WebSocket;
  readonly problems: string[] = [];
  answers = 0;
  lives = 0;
  #count = 0;
  #sent = 0;
  #timer: NodeJS.Timeout | undefined;

  private constructor(url: string) {
    this.socket = new WebSocket(url);
    this.socket.on("error", (error) => this.problems.push(error.message));
    this.socket.on("close", (code) => this.problems.push(`closed with ${code}`));
    this.socket.on("message", (data) => {
      const { count } = JSON.parse(String(data)) as { count: number };
      if (count === 1) this.lives += 1;
      else if (count !== this.#count + 1) this.problems.push(`count ${count} after ${this.#count}`);
      this.#count = count;
      this.answers += 1;
    });
  }

  static async open(url: string): Promise<Messages> {
    const messages = new Messages(url);
    await new Promise<void>((resolve, reject) => messages.socket.once("open", resolve).once("error", reject));
    messages.#timer = setInterval(() => {
      messages.#sent += 1;
      if (messages.socket.readyState === WebSocket.OPEN)
        messages.socket.send(JSON.stringify({ id: url, n: messages.#sent, payload: 7 }));
    }, TICK_MS);
    await until("the first answer", () => messages.answers > 0);
    return messages;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    if (this.socket.readyState === WebSocket.CLOSED) return;
    this.socket.removeAllListeners("close");
    const closed = new Promise((resolve) => this.socket.once("close", resolve));
    this.socket.terminate();
    await closed;
  }
}

async function withClients(
  downstream: Downstream,
  use: (program: MovedProgram, clients: { http: Requests; ws: Messages; plain: Messages }) => Promise<void>,
): Promise<void> {
  await withProgram({ downstream, workload: workload("chat") }, async (program) => {
    const http = new Requests(origin(program));
    const ws = await Messages.open(`ws://${program.address}:${replayPort}/`);
    const plain = await Messages.open(`ws://${program.address}:${transplantPort}/`);
    try {
      await until("the first answer", () => http.answers > 0);
      await use(program, { http, ws, plain });
    } finally {
      await Promise.all([http.close(), ws.close(), plain.close()]);
    }
  });
}

/** Clients of the replay port are served by the application's next life, and have noticed nothing. */
async function assertReplayed({ http, ws }: { http: Requests; ws: Messages }, lives: number): Promise<void> {
  const before = { http: http.answers, ws: ws.answers };
  await until(
    "answers of the next life",
    () =>
      http.answers > before.http && ws.answers > before.ws && http.pids.size === lives && ws.lives === lives,
  );
  assert.deepEqual(http.problems, []);
  assert.deepEqual(ws.problems, []);
  assert.equal(http.connections, 1, "the connection stays");
}

describe("clients of an application that is restarted", { skip, timeout: 600_000 }, () => {
  for (const downstream of ["takeover", "forward"] as const) {
    it(`${downstream}: HTTP and WebSocket clients of a replay port see a pause, those of a transplant port their application's end`, () =>
      withClients(downstream, async (program, clients) => {
        const { restart: result, error } = await restart(program);
        assert.equal(error, undefined);
        assert.equal(result?.outcome, "restarted");
        assert.deepEqual([result?.sessions, result?.refused], [2, 0]);
        await assertReplayed(clients, 2);
        await until("the end of the transplanted session", () => clients.plain.problems.length > 0);
        assert.deepEqual(clients.plain.problems, ["closed with 1001"], "the application's own farewell");
        assert.equal(clients.plain.lives, 1);
      }));
  }

  it("after a move in forward mode the owner restarts it, behind the node the clients came to", () =>
    withClients("forward", async (program, clients) => {
      await program.move("b");
      const { restart: result } = await restart(program);
      assert.equal(result?.outcome, "restarted");
      await assertReplayed(clients, 2);
    }));
});

describe("clients of an application that dies", { skip, timeout: 600_000 }, () => {
  it("HTTP and WebSocket clients of a replay port see a pause, those of a transplant port RST", () =>
    withClients("takeover", async (program, clients) => {
      for (const lives of [2, 3]) {
        process.kill(applicationPid(program), "SIGKILL");
        await assertReplayed(clients, lives);
      }
      assert.equal(clients.plain.problems.at(-1), "closed with 1006");
      assert.equal(clients.plain.lives, 1);
    }));
});

describe("a restart", { skip, timeout: 600_000 }, () => {
  it("that is cancelled while it waits for a request under way leaves the application, and the request is answered", () =>
    withProgram({ downstream: "takeover", workload: workload("exchanges") }, async (program) => {
      const pid = applicationPid(program);
      const client = new Client(origin(program), { pipelining: 1 });
      const other = new Client(`http://${program.address}:${transplantPort}`);
      try {
        const waiting = async (): Promise<number> => {
          const { body } = await other.request({ method: "GET", path: "/gates/one" });
          return ((await body.json()) as { waiting: number }).waiting;
        };
        const polled = client.request({ method: "GET", path: "/poll/one" });
        await until("the request is under way", async () => (await waiting()) === 1);
        const asked = restart(program, 1_500);
        await until("the restart is under way", async () => {
          const { workloads } = await program.ask<{ workloads: { state: string }[] }>("GET", "/v1/status");
          return workloads[0]?.state === "restarting";
        });
        await program.ask("POST", `/v1/workloads/${workloadName}/cancel`);
        const { restart: result } = await asked;
        assert.equal(result?.outcome, "cancelled");
        assert.equal(applicationPid(program), pid);
        await (await other.request({ method: "POST", path: "/gates/one", body: "opened" })).body.dump();
        const { statusCode, body } = await polled;
        assert.deepEqual([statusCode, await body.text()], [200, "opened"]);
      } finally {
        await Promise.all([client.destroy(), other.destroy()]);
      }
    }));
});

describe("the name of a session", { skip, timeout: 600_000 }, () => {
  it("leads to where its workload is, also after a move and after it has ended", () =>
    withProgram({ downstream: "takeover", workload: workload("exchanges") }, async (program) => {
      const look = (node: string, name = "user-42"): Promise<Found> =>
        program.ask<Found>("GET", `/v1/lookup/${name}`, undefined, node);
      assert.equal((await look("a")).error?.code, "NAME_UNKNOWN");
      const client = new Client(origin(program));
      const headers = { "x-session": "user-42" };
      const polled = client.request({ method: "GET", path: "/poll/one", headers });
      polled.catch(() => {}); // it ends with its client
      const here = { name: "user-42", workload: workloadName, node: "a" };
      await until("the store knows the name", async () => (await look("b")).node === "a");
      const { ports, ...found } = await look("b");
      assert.deepEqual({ ...found, epoch: undefined }, { ...here, epoch: undefined });
      assert.deepEqual(ports, [
        { listen: replayPort, address: program.address },
        { listen: transplantPort, address: program.address },
      ]);
      const { stdout } = await program.lab.cli("a", ["sessions", workloadName]);
      assert.match(stdout, / PROTOCOL +NAME +IN FLIGHT .*\n.* http +user-42 +1 /);
      await client.destroy();
      await program.move("b");
      assert.equal((await look("a")).node, "b");
      const told = await program.lab.cli("a", ["lookup", "user-42"]);
      assert.equal(
        told.stdout,
        `program on node b (epoch 2): ${program.address}:8080, ${program.address}:8081\n`,
      );
      assert.equal((await program.lab.cli("a", ["lookup", "user-43"])).status, 4);
    }));
});
