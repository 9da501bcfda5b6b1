/**
 * Long sessions of one client each, which say whether they are still the one they were: the answers of test/apps/several tell
 * what it has had before. They are connected by the test's own process, from a place of the laboratory.
 */
import { createHash } from "node:crypto";
import { Agent, get } from "node:http";
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2 } from "node:http2";
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { WebSocket } from "ws";

export type SessionKind = "tcp" | "websocket" | "http" | "grpc";

/** Connects to where the application's port of that kind is served. */
export type Dial = (kind: SessionKind) => Socket;

const ANSWER_MS_MAX = 15_000;
const POLL_MS = 10;

export interface SessionSeen {
  /** why it is no more; null: it goes on */
  ended: string | null;
  /** connections it took; http: one that the server ends in order is followed by another */
  connections: number;
  /** answers that were wrong, or none */
  failed: string[];
}

export abstract class LongSession {
  readonly kind: SessionKind;
  answers = 0;
  ended: string | null = null;
  connections = 0;
  readonly failed: string[] = [];

  protected constructor(kind: SessionKind) {
    this.kind = kind;
  }

  /** Resolves when it has had its first answer. @throws Error where it has not */
  static async open(kind: SessionKind, dial: Dial, host: string): Promise<LongSession> {
    const make = {
      tcp: () => new TcpSession(dial),
      websocket: () => new WebSocketSession(dial, host),
      http: () => new HttpSession(dial, host),
      grpc: () => new GrpcSession(dial, host),
    }[kind];
    const session = make();
    await session.ask();
    if (session.answers === 0)
      throw new Error(`no ${kind} session with ${host}: ${session.ended ?? session.failed.join("; ")}`);
    return session;
  }

  get seen(): SessionSeen {
    const { ended, connections, failed } = this;
    return { ended, connections, failed: [...failed] };
  }

  /** Sends once more, and resolves when that is answered, or the session ends over it. */
  async ask(): Promise<void> {
    if (this.ended !== null) return;
    const goal = this.answers + this.failed.length + 1;
    this.send();
    const late = performance.now() + ANSWER_MS_MAX;
    const isAnswered = (): boolean => this.ended !== null || this.answers + this.failed.length >= goal;
    while (!isAnswered() && performance.now() < late) await sleep(POLL_MS);
    if (!isAnswered()) this.failed.push("no answer");
  }

  protected end(why: string): void {
    this.ended ??= why;
  }

  protected answer(isRight: boolean, what: string): void {
    if (isRight) this.answers++;
    else this.failed.push(what);
  }

  protected abstract send(): void;
  abstract close(): void;
}

class TcpSession extends LongSession {
  readonly #socket: Socket;
  #position = 0;

  constructor(dial: Dial) {
    super("tcp");
    this.#socket = dial("tcp");
    this.connections++;
    this.#socket.on("data", (bytes: Buffer) => {
      for (const byte of bytes) {
        const key = (this.#position ^ (this.#position >>> 8) ^ (this.#position >>> 16)) & 0xff;
        this.answer((byte ^ key) === (this.#position & 0xff), `wrong byte at ${this.#position}`);
        this.#position++;
      }
    });
    this.#socket.on("error", (error) => this.end(error.message));
    this.#socket.on("end", () => this.end("FIN"));
    this.#socket.on("close", () => this.end("closed"));
  }

  /** byte n is n, and comes back mixed with n */
  protected send(): void {
    this.#socket.write(Buffer.from([this.#position & 0xff]));
  }

  close(): void {
    this.#socket.destroy();
  }
}

class WebSocketSession extends LongSession {
  readonly #socket: WebSocket;
  readonly #id = crypto.randomUUID();
  #sent = 0;

  constructor(dial: Dial, host: string) {
    super("websocket");
    const connection = dial("websocket");
    this.connections++;
    this.#socket = new WebSocket(`ws://${host}/`, {
      perMessageDeflate: false,
      createConnection: () => connection,
    });
    this.#socket.on("message", (data) => {
      const { n, count } = JSON.parse(String(data)) as { n: number; count: number };
      this.answer(count === n, `message ${n} is the application's ${count}th`);
    });
    this.#socket.on("error", (error) => this.end(error.message));
    this.#socket.on("close", (code) => this.end(`closed with ${code}`));
  }

  protected send(): void {
    const message = `{"id":"${this.#id}","n":${++this.#sent},"payload":1}`;
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(message);
    else this.#socket.once("open", () => this.#socket.send(message));
  }

  close(): void {
    this.#socket.terminate();
  }
}

/** Requests over one connection, for as long as the server keeps it. */
class HttpSession extends LongSession {
  readonly #agent: Agent;
  readonly #host: string;

  constructor(dial: Dial, host: string) {
    super("http");
    this.#host = host;
    this.#agent = new Agent({ keepAlive: true, maxSockets: 1 });
    this.#agent.createConnection = () => {
      this.connections++;
      return dial("http");
    };
  }

  protected send(): void {
    try {
      const headers = { host: this.#host };
      const asked = get({ path: "/", host: "127.0.0.1", headers, agent: this.#agent }, (response) => {
        const { statusCode } = response;
        response.resume();
        response.on("error", (error) => this.answer(false, error.message));
        response.on("end", () => this.answer(statusCode === 200, `status ${statusCode}`));
      });
      asked.on("error", (error) => this.answer(false, error.message));
    } catch (error) {
      // nobody listens
      this.answer(false, String(error));
    }
  }

  close(): void {
    this.#agent.destroy();
  }
}

/** One stream of messages, each of which is answered with the hash over all so far. */
class GrpcSession extends LongSession {
  readonly #session: ClientHttp2Session;
  readonly #stream: ClientHttp2Stream;
  readonly #hash = createHash("sha256");
  readonly #due: Buffer[] = [];
  #unread = Buffer.alloc(0);

  constructor(dial: Dial, host: string) {
    super("grpc");
    const connection = dial("grpc");
    this.connections++;
    this.#session = connectHttp2(`http://${host}`, { createConnection: () => connection });
    this.#session.on("error", (error) => this.end(error.message));
    this.#session.on("close", () => this.end("closed"));
    this.#stream = this.#session.request({
      ":method": "POST",
      ":path": "/holdfast.Chain/Extend",
      "content-type": "application/grpc",
      te: "trailers",
    });
    this.#stream.on("data", (bytes: Buffer) => this.#hear(bytes));
    this.#stream.on("error", (error: Error) => this.end(error.message));
    this.#stream.on("close", () => this.end("stream closed"));
  }

  /** a message: not compressed, its length in four bytes, and itself (gRPC over HTTP/2, Length-Prefixed-Message) */
  protected send(): void {
    const message = Buffer.alloc(5 + 1);
    message.writeUInt32BE(1, 1);
    this.#due.push(this.#hash.update(message.subarray(5)).copy().digest());
    this.#stream.write(message);
  }

  #hear(bytes: Buffer): void {
    this.#unread = Buffer.concat([this.#unread, bytes]);
    while (this.#unread.length >= 5) {
      const end = 5 + this.#unread.readUInt32BE(1);
      if (this.#unread.length < end) return;
      const answer = this.#unread.subarray(5, end);
      this.answer(this.#due.shift()?.equals(answer) === true, "not the hash of what was sent");
      this.#unread = this.#unread.subarray(end);
    }
  }

  close(): void {
    this.#session.destroy();
  }
}
