/**
 * Two clients of an application that is restarted: one through the proxy, that just waits; one connected directly, that
 * connects again at once, as often as it is refused, and sends its request again. Both are asked at the same instant, so the
 * difference of their answers is what the proxy adds.
 */

import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { setImmediate as nextTurn } from "node:timers/promises";
import { serve } from "./program.ts";

export type RestartClientsAsk = { type: "connect"; direct: number; proxied: number } | { type: "request" };

export interface Answer {
  /** from the asking to the whole answer */
  ms: number;
  /** the life of the application that answered; null: it was another answer */
  pid: number | null;
  /** what came instead of the answer of an application: its first line */
  instead: string | null;
  /** connections it has made for this request */
  dials: number;
}

const ANSWER_MS_MAX = 30_000;
const REQUEST = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

class Client {
  readonly #port: number;
  #socket: Socket | null = null;
  dials = 0;

  constructor(port: number) {
    this.#port = port;
  }

  /** @param persistent again, as long as there is no answer */
  async request(persistent: boolean): Promise<Answer> {
    const startMs = performance.now();
    const dialsBefore = this.dials;
    for (;;) {
      try {
        this.#socket ??= await this.#dial();
        const text = await answerOn(this.#socket, startMs + ANSWER_MS_MAX - performance.now());
        const pid = /^HTTP\/1\.1 200 [\s\S]*\r\n\r\n(\d+)$/.exec(text)?.[1];
        return {
          ms: performance.now() - startMs,
          pid: pid === undefined ? null : Number(pid),
          instead: pid === undefined ? (text.split("\r\n")[0] ?? "") : null,
          dials: this.dials - dialsBefore,
        };
      } catch (error) {
        this.#socket?.destroy();
        this.#socket = null;
        const ms = performance.now() - startMs;
        if (!persistent || ms > ANSWER_MS_MAX)
          return { ms, pid: null, instead: (error as Error).message, dials: this.dials - dialsBefore };
        await nextTurn();
      }
    }
  }

  async #dial(): Promise<Socket> {
    this.dials++;
    const socket = connect({ port: this.#port, host: "127.0.0.1", noDelay: true });
    await once(socket, "connect");
    socket.on("error", () => {}); // "close" follows
    socket.once("close", () => {
      if (this.#socket === socket) this.#socket = null;
    });
    return socket;
  }
}

/** Sends the request. @throws Error when the connection ends instead */
async function answerOn(socket: Socket, msMax: number): Promise<string> {
  const over = new AbortController();
  const signal = AbortSignal.any([over.signal, AbortSignal.timeout(Math.max(1, Math.ceil(msMax)))]);
  const gone = once(socket, "close", { signal }).then(() => {
    throw new Error("the connection ended");
  });
  try {
    socket.write(REQUEST);
    let text = "";
    for (;;) {
      const [chunk] = await Promise.race([once(socket, "data", { signal }), gone]);
      text += String(chunk);
      const end = text.indexOf("\r\n\r\n");
      const length = /\r\ncontent-length: *(\d+)/i.exec(text)?.[1] ?? "0";
      if (end >= 0 && text.length >= end + 4 + Number(length)) return text;
    }
  } finally {
    gone.catch(() => {});
    over.abort();
  }
}

let direct: Client;
let proxied: Client;

serve(async (ask: RestartClientsAsk): Promise<{ direct: Answer; proxied: Answer }> => {
  if (ask.type === "connect") [direct, proxied] = [new Client(ask.direct), new Client(ask.proxied)];
  const answers = [proxied.request(false), direct.request(true)] as const;
  const [throughProxy, straight] = await Promise.all(answers);
  return { direct: straight, proxied: throughProxy };
});
