/**
 * Clients of the web servers of the matrix, whatever language those are written in. Such a server answers
 *
 *   GET /count?CLIENT   "HERE TOTAL": how often this client has asked, and all of them; both live in its memory
 *   GET /stream         numbered lines, 1, 2, 3, …, without an end
 *   GET /ws             (WebSocket, where it has them) each message with its number on this connection: "N MESSAGE"
 */
import assert from "node:assert/strict";
import { Agent, Client } from "undici";
import { WebSocket } from "ws";
import { assertCounted, type Stage } from "./stage.ts";

export interface WebOptions {
  /** connections that count; default 4 */
  counting?: number;
  /** default true */
  stream?: boolean;
  /** default false */
  webSocket?: boolean;
  /** one connection a request: false where each client keeps its connection for good */
  connectsAnew?: boolean;
}

/** Uses the server through every move, and checks that nothing was answered twice, not at all, or out of order. */
export async function useWeb(stage: Stage, port: number, options: WebOptions = {}): Promise<void> {
  const totals: number[] = [];
  const host = `${stage.address}:${port}`;
  for (let n = 0; n < (options.counting ?? 4); n++) {
    if (options.connectsAnew) countAnew(stage, host, `anew ${n}`, totals);
    else countOnOne(stage, host, `counter ${n}`, totals);
  }
  if (options.stream ?? true) readStream(stage, host);
  if (options.webSocket) talkWebSocket(stage, host);
  await stage.moves();
  await stage.finish();
  assertCounted(totals, "what all clients were told together");
}

/** Requests on one connection that is never made anew. */
export function countOnOne(stage: Stage, host: string, name: string, totals: number[]): void {
  stage.client(name, async ({ beat, over, pace }) => {
    const client = new Client(`http://${host}`, { pipelining: 1 });
    let connects = 0;
    client.on("connect", () => connects++);
    try {
      for (let n = 1; !over(); n++) {
        totals.push(await countOnce(client, name, n));
        beat();
        await pace();
      }
      assert.equal(connects, 1, "connections");
    } finally {
      await client.destroy();
    }
  });
}

/** Each request on a connection of its own. */
export function countAnew(stage: Stage, host: string, name: string, totals: number[]): void {
  stage.client(name, async ({ beat, over, pace }) => {
    for (let n = 1; !over(); n++) {
      const client = new Client(`http://${host}`, { pipelining: 0 });
      try {
        totals.push(await countOnce(client, name, n));
      } finally {
        await client.destroy();
      }
      beat();
      await pace();
    }
  });
}

async function countOnce(client: Client, name: string, expected: number): Promise<number> {
  const path = `/count?${encodeURIComponent(name)}`;
  const { statusCode, body } = await client.request({ method: "GET", path });
  const text = await body.text();
  assert.equal(statusCode, 200, text);
  const [here, total] = text.split(" ").map(Number);
  assert.equal(here, expected, "requests of this client");
  return total ?? Number.NaN;
}

export function readStream(stage: Stage, host: string): void {
  stage.client("stream", async ({ beat, over }) => {
    const agent = new Agent({ bodyTimeout: 0, headersTimeout: 0 });
    try {
      const { body } = await agent.request({ origin: `http://${host}`, method: "GET", path: "/stream" });
      let rest = "";
      let expected = 1;
      for await (const piece of body.setEncoding("utf8")) {
        const lines = (rest + piece).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) assert.equal(line, String(expected++), "lines of the stream");
        beat();
        if (over()) break;
      }
      assert.ok(over(), "the stream ended");
    } finally {
      await agent.destroy();
    }
  });
}

function talkWebSocket(stage: Stage, host: string): void {
  stage.client("WebSocket", async ({ beat, over, pace }) => {
    const socket = new WebSocket(`ws://${host}/ws`);
    const answers: string[] = [];
    let wake = (): void => {};
    let ended: string | null = null;
    const end = (why: string): void => {
      ended ??= why;
      wake();
    };
    socket.on("message", (data) => {
      answers.push(String(data));
      wake();
    });
    socket.on("error", (error) => end(error.message)).on("close", (code) => end(`closed with ${code}`));
    await new Promise<void>((resolve) => {
      wake = resolve;
      socket.once("open", () => resolve());
    });
    try {
      for (let n = 1; !over(); n++) {
        socket.send(`message ${n}`);
        while (answers.length === 0 && ended === null)
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        assert.equal(answers.shift() ?? ended, `${n} message ${n}`);
        beat();
        await pace();
      }
    } finally {
      socket.terminate();
    }
  });
}
