/** HTTP to the agent's admin API. Whatever goes wrong is a HoldfastError whose code decides the exit status. */
import type { Client, Dispatcher } from "undici";
import type * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { type Progress, progressSchema, refusalSchema } from "../api/admin.ts";
import type { AgentAddress } from "./find-agent.ts";

const CONNECT_MS_MAX = 3_000;
const ANSWER_MS_MAX = 30_000;
const ANSWER_BYTES_MAX = 64 * 1024 * 1024;
const LINE_BYTES_MAX = 1024 * 1024;

export class AdminClient {
  readonly #address: AgentAddress;
  #client: Promise<Client> | undefined;
  readonly #where: string;
  readonly #token: string | null;

  /** @param token of an agent that is asked over TCP */
  constructor(address: AgentAddress, token: string | null = null) {
    this.#token = token;
    this.#where = address.type === "socket" ? address.path : address.url;
    this.#address = address;
  }

  /** @throws HoldfastError `AGENT_UNREACHABLE`, `AGENT_PROTOCOL`, or what the agent said */
  async ask<T>(method: "GET" | "POST", path: string, schema: z.ZodType<T>, body?: object): Promise<T> {
    const response = await this.#request(method, path, body, ANSWER_MS_MAX);
    return this.#check(schema, parseJson(await this.#text(response)));
  }

  /**
   * Lines until the last one (result); an error line is thrown. An agent that answers with one JSON object instead
   * gives it as `{type: "result", ...object}`.
   * @param silentMsMax longest wait between two lines
   */
  async *follow(path: string, body: object, silentMsMax: number): AsyncGenerator<Progress> {
    const response = await this.#request("POST", path, body, silentMsMax);
    if (!/ndjson/.test(String(response.headers["content-type"]))) {
      const object = parseJson(await this.#text(response));
      yield this.#check(progressSchema, typeof object === "object" ? { ...object, type: "result" } : object);
      return;
    }
    for await (const line of this.#lines(response)) {
      const progress = this.#check(progressSchema, parseJson(line));
      if (progress.type === "error") throw said(progress.error.code, progress.error.message);
      yield progress;
      if (progress.type === "result") return;
    }
    throw this.#unreachable(
      "it went away before the outcome was known; `holdfast status` tells who owns the workload",
    );
  }

  /** An answer that is bytes and not JSON, for as long as it goes on. @throws as {@link ask} */
  async *bytes(path: string): AsyncGenerator<Buffer> {
    const response = await this.#request("GET", path, undefined, ANSWER_MS_MAX, 0);
    try {
      for await (const chunk of response.body) yield chunk as Buffer;
    } catch (cause) {
      throw this.#unreachable(`its answer broke off: ${messageOf(cause)}`, cause);
    }
  }

  async close(): Promise<void> {
    await (await this.#client)?.destroy();
  }

  /** undici is a hundred files: an agent, which is started by the same command line, does without it. */
  async #connect(): Promise<Client> {
    const { Client } = await import("undici");
    const options = { connect: { timeout: CONNECT_MS_MAX }, pipelining: 1 };
    return this.#address.type === "socket"
      ? new Client("http://agent", { ...options, socketPath: this.#address.path })
      : new Client(this.#address.url, options);
  }

  async #request(
    method: "GET" | "POST",
    path: string,
    body: object | undefined,
    waitMs: number,
    silentMsMax = waitMs,
  ): Promise<Dispatcher.ResponseData> {
    this.#client ??= this.#connect();
    const client = await this.#client;
    let response: Dispatcher.ResponseData;
    try {
      response = await client.request({
        method,
        path,
        headersTimeout: waitMs,
        bodyTimeout: silentMsMax,
        headers: {
          accept: "application/x-ndjson, application/json",
          "content-type": "application/json",
          ...(this.#token === null ? {} : { authorization: `Bearer ${this.#token}` }),
        },
        ...(method === "POST" ? { body: JSON.stringify(body ?? {}) } : {}),
      });
    } catch (cause) {
      throw this.#unreachable(explain(cause), cause);
    }
    if (response.statusCode < 300) return response;
    const refusal = refusalSchema.safeParse(parseJson(await this.#text(response)));
    if (!refusal.success) throw this.#protocol(`HTTP status ${response.statusCode}`);
    const { code, message } = refusal.data.error;
    throw said(code, message);
  }

  async #text(response: Dispatcher.ResponseData): Promise<string> {
    const chunks: Buffer[] = [];
    let bytes = 0;
    try {
      for await (const chunk of response.body) {
        bytes += chunk.length;
        if (bytes > ANSWER_BYTES_MAX) throw new Error(`more than ${ANSWER_BYTES_MAX} bytes`);
        chunks.push(chunk);
      }
    } catch (cause) {
      throw this.#unreachable(`its answer broke off: ${messageOf(cause)}`, cause);
    }
    return Buffer.concat(chunks).toString("utf8");
  }

  async *#lines(response: Dispatcher.ResponseData): AsyncGenerator<string> {
    let rest: Buffer = Buffer.alloc(0);
    const chunks = response.body[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
    try {
      for (;;) {
        let next: IteratorResult<Buffer>;
        try {
          next = await chunks.next();
        } catch (cause) {
          throw this.#unreachable(
            `it went away: ${messageOf(cause)}; \`holdfast status\` tells who owns the workload`,
            cause,
          );
        }
        if (next.done) break;
        rest = rest.length === 0 ? next.value : Buffer.concat([rest, next.value]);
        for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
          const line = rest.subarray(0, end).toString("utf8").trim();
          rest = rest.subarray(end + 1);
          if (line !== "") yield line;
        }
        if (rest.length > LINE_BYTES_MAX) throw this.#protocol("a line without an end");
      }
    } finally {
      response.body.destroy();
      response.body.on("error", () => {});
    }
    const last = rest.toString("utf8").trim();
    if (last !== "") yield last;
  }

  #check<T>(schema: z.ZodType<T>, value: unknown): T {
    const parsed = schema.safeParse(value);
    if (parsed.success) return parsed.data;
    const [issue] = parsed.error.issues;
    throw this.#protocol(`${issue?.path.join(".") || "the answer"}: ${issue?.message}`);
  }

  #protocol(what: string): HoldfastError {
    return fail(
      "AGENT_PROTOCOL",
      `${this.#where} does not answer like a Holdfast agent of this version (${what}): is --agent right?`,
    );
  }

  #unreachable(why: string, cause?: unknown): HoldfastError {
    return fail("AGENT_UNREACHABLE", `no answer from the agent at ${this.#where}: ${why}`, { cause });
  }
}

function said(code: string, message: string): HoldfastError {
  return new HoldfastError(message, { code, source: "peer" });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function explain(cause: unknown): string {
  const code = (cause as { code?: string }).code ?? "";
  switch (code) {
    case "ENOENT":
      return "there is no such socket; is the agent running (`holdfast agent --config FILE`)?";
    case "ECONNREFUSED":
      return "nothing listens there; is the agent running (`holdfast agent --config FILE`)?";
    case "EACCES":
    case "EPERM":
      return "permission denied; use the user the agent runs as (root)";
    default:
      return messageOf(cause);
  }
}
