/**
 * Ports with `continuity: replay`, on nodes: their sessions are moved with CRIU as any other, and outlive the application's end
 * before, between and after moves. The clients are undici's and ws's.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Client } from "undici";
import { WebSocket } from "ws";
import { nodeBinary, projectRoot } from "#test/lab/lab.ts";
import {
  type Downstream,
  lacking,
  type MovedProgram,
  until,
  withProgram,
  workloadName,
} from "#test/support/moved-program.ts";

const skip = lacking("runc", "redis-server");
const PORT = 8080;
const APP_PORT = 9000;
const GATE = join(tmpdir(), `holdfast-gate-${process.pid}`);

function workload(options: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    container: {
      command: [nodeBinary, "server.js"],
      cwd: `${projectRoot}/test/apps/lives`,
      env: { PORT: String(APP_PORT), DEFLATE: "1" },
      rootfs: "host",
    },
    ports: [{ listen: PORT, upstream: `127.0.0.1:${APP_PORT}`, continuity: "replay", ...options }],
  };
}

interface Answer {
  life: string;
  added: number;
  path: string;
}

/** One keep-alive connection that asks without a pause until it is told to stop; every answer is checked. */
class Asker {
  readonly lives = new Set<string>();
  answers = 0;
  connects = 0;
  readonly #client: Client;
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;

  constructor(program: MovedProgram) {
    this.#client = new Client(`http://${program.address}:${PORT}`, { headersTimeout: 20_000, pipelining: 1 });
    this.#client.on("connect", () => {
      this.connects++;
    });
    this.#done = this.#ask();
    this.#done.catch(() => {});
  }

  async #ask(): Promise<void> {
    for (let count = 0; !this.#stop.signal.aborted; count++) {
      const path = `/n/${count}`;
      const { statusCode, body } = await this.#client.request({ method: "GET", path });
      assert.equal(statusCode, 200);
      const answer = (await body.json()) as Answer;
      assert.equal(answer.path, path);
      this.lives.add(answer.life);
      this.answers++;
    }
  }

  /** @throws the first error a request met */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#done;
    await this.#client.close();
    assert.equal(this.connects, 1, "the connection was made once and stayed");
  }
}

/** Sends numbers, one at a time, and expects each back once. */
class Talker {
  readonly lives = new Set<string>();
  answers = 0;
  readonly socket: WebSocket;
  #closed: string | null = null;
  #stopped = false;
  #wrong: string | null = null;

  constructor(program: MovedProgram) {
    this.socket = new WebSocket(`ws://${program.address}:${PORT}/`);
    this.socket.on("open", () => this.#say());
    this.socket.on("close", (code, reason) => {
      this.#closed = `${code} ${reason}`;
    });
    this.socket.on("error", (error) => {
      this.#wrong ??= error.message;
    });
    this.socket.on("message", (text) => {
      const [life = "", number] = String(text).split(" ");
      this.lives.add(life);
      if (number !== String(this.answers)) this.#wrong ??= `${number} instead of ${this.answers}`;
      this.answers++;
      if (!this.#stopped) this.#say();
    });
  }

  get state(): string {
    return this.#wrong ?? this.#closed ?? "as it should be";
  }

  #say(): void {
    this.socket.send(String(this.answers));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    assert.equal(this.state, "as it should be");
    this.socket.close();
    await once(this.socket, "close");
  }
}

async function restart(program: MovedProgram): Promise<Record<string, unknown>> {
  const { json, stdout, stderr } = await program.lab.cli(program.at, ["restart", workloadName, "--json"]);
  assert.ok(json !== undefined, `${stdout}${stderr}`);
  return json as Record<string, unknown>;
}

/** The application's own process, ended as a crash would; right after a move its agent has yet to look for it. */
async function crash(program: MovedProgram): Promise<void> {
  const journal = join(program.lab.stateDir(program.at), "workloads", workloadName, "journal.json");
  let pid: number | undefined;
  await until("the agent knows the application", () => {
    const { application } = JSON.parse(readFileSync(journal, "utf8")) as {
      application: { pid: number } | null;
    };
    pid = application?.pid;
    return pid !== undefined;
  });
  process.kill(pid as number, "SIGKILL");
}

for (const downstream of ["takeover", "forward"] as Downstream[]) {
  test(`clients outlive moves, restarts and a crash, in any order (${downstream})`, { skip }, async () => {
    // A crash may take a message along that was not answered: at least once, or its sender waits for ever.
    await withProgram({ downstream, workload: workload({ delivery: "atLeastOnce" }) }, async (program) => {
      const askers = [new Asker(program), new Asker(program)];
      const talkers = [new Talker(program), new Talker(program)];
      const both = [...askers, ...talkers];
      const goOn = async (what: string) => {
        const before = both.map(({ answers }) => answers);
        await until(what, () => both.every(({ answers }, i) => answers > (before[i] ?? 0) + 5)).catch(
          async (error: unknown) => {
            process.stderr.write(
              `${JSON.stringify(await program.sessions(), null, 1)}\n${both.map(({ answers }) => answers)}\n`,
            );
            throw error;
          },
        );
      };
      await goOn("everybody is answered");
      const sessions = await program.sessions();
      assert.deepEqual(sessions.map(({ protocol }) => protocol).sort(), [
        "http",
        "http",
        "websocket",
        "websocket",
      ]);
      await program.move("b");
      await goOn("everybody is answered at b");
      const restarted = await restart(program);
      assert.equal(restarted.outcome, "restarted", JSON.stringify(restarted));
      assert.equal(restarted.reset, 0);
      assert.equal(restarted.sessions, 4);
      await goOn("everybody is answered by the second life");
      await program.move("a");
      await goOn("everybody is answered at a");
      await crash(program);
      await goOn("everybody is answered by the third life");
      for (const one of both) await one.stop();
      for (const { lives } of both) assert.equal(lives.size, 3);
    });
  });

  test(`a request under way moves, and is asked again in the application's next life (${downstream})`, {
    skip,
  }, async () => {
    rmSync(GATE, { force: true });
    const held = {
      ...workload(),
      container: {
        ...(workload().container as object),
        mounts: [{ source: tmpdir(), target: tmpdir(), shared: true }],
      },
    };
    await withProgram({ downstream, workload: held }, async (program) => {
      const client = new Client(`http://${program.address}:${PORT}`);
      const slow = client.request({ method: "GET", path: `/slow?until=${GATE}` });
      slow.catch(() => {});
      const posted = new Client(`http://${program.address}:${PORT}`);
      await until("the request is under way", async () =>
        (await program.sessions()).some(({ requestsInFlight }) => requestsInFlight === 1),
      );
      await program.move("b");
      const [session] = await program.sessions();
      assert.equal(session?.requestsInFlight, 1, "known at b too");
      await crash(program);
      // A POST the old life still gets would rightly be refused.
      await until("the application has gone", async () =>
        (await program.sessions()).every(({ state }) => state === "unavailable"),
      );
      const add = await posted.request({ method: "POST", path: "/add", body: "x" });
      const { added } = (await add.body.json()) as Answer;
      assert.equal(added, 1, "held while the application was unavailable, and given to its next life once");
      writeFileSync(GATE, "");
      const answer = await slow;
      assert.equal(answer.statusCode, 200);
      assert.ok((await answer.body.text()).includes("-"));
      await Promise.all([client.close(), posted.close()]);
    });
    rmSync(GATE, { force: true });
  });
}

for (const downstream of ["takeover", "forward"] as Downstream[]) {
  test(`connections that are not carried along are made anew at the target (${downstream})`, {
    skip,
  }, async () => {
    const options = workload({ moveBy: "replay", delivery: "atLeastOnce" });
    await withProgram({ downstream, workload: options }, async (program) => {
      const both = [new Asker(program), new Asker(program), new Talker(program), new Talker(program)];
      const goOn = async (what: string) => {
        const before = both.map(({ answers }) => answers);
        await until(what, () => both.every(({ answers }, i) => answers > (before[i] ?? 0) + 5));
      };
      await goOn("everybody is answered");
      for (const to of ["b", "a", "b"]) {
        await program.move(to);
        await goOn(`everybody is answered at ${to}`);
      }
      for (const one of both) await one.stop();
      for (const { lives } of both) assert.equal(lives.size, 1, "it is the same life of the application");
    });
  });
}
