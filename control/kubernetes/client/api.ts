/**
 * HTTP to the API server: the one client of controller, agents, webhook and command line. Every failure is a HoldfastError whose
 * code says what kind; a call whose answer was lost (`KUBERNETES_UNREACHABLE`) may have happened.
 */
import type { ClientRequest, IncomingMessage, RequestOptions } from "node:http";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Access } from "./access.ts";
import type { KubernetesObject } from "./objects.ts";

const ANSWER_MS_MAX = 30_000;
const ANSWER_BYTES_MAX = 256 * 1024 * 1024;
/** etcd takes no object above 1.5 MiB; a watch event has one, and its managedFields */
const LINE_BYTES_MAX = 16 * 1024 * 1024;
/** a page of a list. client-go has 500: of pods that is 5 MB at once, several times over while it is read */
const PAGE = 100;

export type Query = Record<string, string | number | boolean | undefined>;

export interface WatchEvent<T> {
  type: "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK";
  object: T;
}

export interface List<T> {
  items: T[];
  resourceVersion: string;
}

export interface Preconditions {
  uid?: string;
  /** and unchanged since it was read so */
  resourceVersion?: string;
}

/** merge: RFC 7386; strategic: Kubernetes' own, for lists with keys (conditions); apply: server-side */
export type PatchType = "merge" | "strategic" | "apply";
const PATCH_TYPE: Record<PatchType, string> = {
  merge: "application/merge-patch+json",
  strategic: "application/strategic-merge-patch+json",
  apply: "application/apply-patch+yaml",
};

interface Call {
  method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  path: string;
  query?: Query;
  body?: unknown;
  contentType?: string;
  signal?: AbortSignal;
  timeoutMs?: number;
}

export class KubernetesApi {
  readonly access: Access;
  readonly #agent: RequestOptions["agent"];
  readonly #request: (options: RequestOptions) => ClientRequest;
  readonly #url: URL;
  readonly #name: string;

  /** @param name of this process, as the API server's audit log is to call it */
  constructor(access: Access, name = "holdfast") {
    this.access = access;
    this.#name = name;
    this.#url = new URL(access.server);
    // named in an import, they cost every start of the command line 45 ms
    const { Agent, request } = process.getBuiltinModule(
      this.#url.protocol === "http:" ? "node:http" : "node:https",
    );
    this.#agent = new Agent({ keepAlive: true, keepAliveMsecs: 15_000, maxFreeSockets: 4 });
    this.#request = request;
  }

  /** @throws HoldfastError `KUBERNETES_NOT_FOUND` and others */
  get<T>(path: string, query: Query = {}): Promise<T> {
    return this.#call<T>({ method: "GET", path, query });
  }

  /** What is no object: a container's log. */
  async text(path: string, query: Query = {}): Promise<string> {
    const call: Call = { method: "GET", path, query, timeoutMs: ANSWER_MS_MAX };
    const response = await this.#open(call);
    const text = await this.#text(response, call);
    const status = response.statusCode ?? 0;
    if (status < 300) return text;
    throw refusal(status, (parseJson(text) ?? { message: text.slice(0, 500) }) as Status, `GET ${path}`);
  }

  /** null: there is none */
  async find<T>(path: string): Promise<T | null> {
    try {
      return await this.get<T>(path);
    } catch (error) {
      if (isCode(error, "KUBERNETES_NOT_FOUND")) return null;
      throw error;
    }
  }

  /** Page by page, as of one moment. @param keep what of each is wanted @throws HoldfastError `KUBERNETES_EXPIRED`: the moment has passed, list again */
  async list<T extends KubernetesObject>(
    path: string,
    query: Query = {},
    signal?: AbortSignal,
    keep: (item: T) => T = (item) => item,
  ): Promise<List<T>> {
    const items: T[] = [];
    let next: string | undefined;
    for (;;) {
      const page: ListPage<T> = await this.#call<ListPage<T>>({
        method: "GET",
        path,
        query: { ...query, limit: PAGE, continue: next },
        ...(signal === undefined ? {} : { signal }),
      });
      for (const item of page.items ?? []) items.push(keep(item));
      next = page.metadata?.continue || undefined;
      const resourceVersion = page.metadata?.resourceVersion;
      if (resourceVersion === undefined) throw this.#protocol(`GET ${path} is no list`);
      if (next === undefined) return { items, resourceVersion };
    }
  }

  create<T>(path: string, body: object, query: Query = {}): Promise<T> {
    return this.#call<T>({ method: "POST", path, body, query });
  }

  replace<T>(path: string, body: object): Promise<T> {
    return this.#call<T>({ method: "PUT", path, body });
  }

  /** With `metadata.resourceVersion` in it, it is done to what was read, or not at all (`KUBERNETES_CONFLICT`). */
  patch<T>(path: string, body: object, type: PatchType = "merge", query: Query = {}): Promise<T> {
    return this.#call<T>({ method: "PATCH", path, body, contentType: PATCH_TYPE[type], query });
  }

  /** Whether there was one. @throws HoldfastError `KUBERNETES_CONFLICT`: it is another now, or has changed */
  async delete(
    path: string,
    options: { preconditions?: Preconditions; gracePeriodSeconds?: number } = {},
  ): Promise<boolean> {
    try {
      await this.#call({
        method: "DELETE",
        path,
        body: {
          apiVersion: "v1",
          kind: "DeleteOptions",
          propagationPolicy: "Background",
          ...options,
        },
      });
      return true;
    } catch (error) {
      if (isCode(error, "KUBERNETES_NOT_FOUND")) return false;
      throw error;
    }
  }

  /**
   * What happens after `resourceVersion`, until the server ends it (`timeoutSeconds`) or the signal is aborted.
   * @throws HoldfastError `KUBERNETES_EXPIRED`: list again; `KUBERNETES_UNREACHABLE`: watch again
   */
  async *watch<T>(path: string, query: Query, signal: AbortSignal): AsyncGenerator<WatchEvent<T>> {
    const response = await this.#open({
      method: "GET",
      path,
      query: { ...query, watch: true, allowWatchBookmarks: true },
      signal,
    });
    try {
      for await (const line of this.#lines(response)) {
        const event = parseJson(line) as WatchEvent<T> | { type: "ERROR"; object: Status } | undefined;
        if (event?.type === undefined || event.object === undefined)
          throw this.#protocol(`watch of ${path}: a line that is no event`);
        if (event.type === "ERROR") throw refusal(event.object.code ?? 500, event.object, `watch of ${path}`);
        yield event;
      }
    } finally {
      response.on("error", () => {});
      response.destroy();
    }
  }

  /** Ends its connections; calls under way fail. */
  close(): void {
    (this.#agent as { destroy(): void }).destroy();
  }

  async #call<T>(call: Call): Promise<T> {
    const response = await this.#open({ timeoutMs: ANSWER_MS_MAX, ...call });
    const text = await this.#text(response, call);
    const object = parseJson(text);
    const status = response.statusCode ?? 0;
    if (status >= 200 && status < 300) {
      if (object === undefined) throw this.#protocol(`${call.method} ${call.path} was answered without JSON`);
      return object as T;
    }
    throw refusal(
      status,
      (object ?? { message: text.slice(0, 500) }) as Status,
      `${call.method} ${call.path}`,
    );
  }

  /** The head of the answer; of a watch only a good one. */
  async #open(call: Call): Promise<IncomingMessage> {
    const { token, certificate, key } = await this.access.credentials();
    const { authorities, serverName, isUnchecked } = this.access;
    const body = call.body === undefined ? undefined : Buffer.from(JSON.stringify(call.body));
    const isWatch = call.query?.watch === true;
    const options = {
      method: call.method,
      protocol: this.#url.protocol,
      hostname: this.#url.hostname.replace(/^\[|\]$/g, ""),
      port: this.#url.port || (this.#url.protocol === "http:" ? 80 : 443),
      path: `${this.#url.pathname.replace(/\/$/, "")}${call.path}${queryText(call.query ?? {})}`,
      headers: {
        accept: "application/json",
        "user-agent": this.#name,
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
        ...(body === undefined
          ? {}
          : { "content-type": call.contentType ?? "application/json", "content-length": body.length }),
      },
      agent: this.#agent,
      ...(call.signal === undefined ? {} : { signal: call.signal }),
      ...(authorities === undefined ? {} : { ca: authorities }),
      ...(certificate === undefined ? {} : { cert: certificate }),
      ...(key === undefined ? {} : { key }),
      ...(serverName === undefined ? {} : { servername: serverName }),
      ...(isUnchecked ? { rejectUnauthorized: false } : {}),
    };
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const request = this.#request(options);
      const timer = setTimeout(
        () => request.destroy(new Error(`no answer within ${call.timeoutMs ?? ANSWER_MS_MAX} ms`)),
        call.timeoutMs ?? ANSWER_MS_MAX,
      );
      request.once("response", (answer) => {
        // a watch goes on: whoever reads it looks after the time
        if (isWatch) clearTimeout(timer);
        answer.once("close", () => clearTimeout(timer));
        resolve(answer);
      });
      request.on("error", (cause) => {
        clearTimeout(timer);
        reject(this.#unreachable(cause));
      });
      request.end(body);
    });
    if (!isWatch || response.statusCode === 200) return response;
    const text = await this.#text(response, call);
    throw refusal(response.statusCode ?? 0, (parseJson(text) ?? {}) as Status, `watch of ${call.path}`);
  }

  async #text(response: IncomingMessage, call: Call): Promise<string> {
    const chunks: Buffer[] = [];
    let bytes = 0;
    try {
      for await (const chunk of response) {
        bytes += (chunk as Buffer).length;
        if (bytes > ANSWER_BYTES_MAX) throw new Error(`more than ${ANSWER_BYTES_MAX} bytes`);
        chunks.push(chunk as Buffer);
      }
    } catch (cause) {
      throw this.#unreachable(new Error(`the answer to ${call.method} ${call.path} broke off`, { cause }));
    }
    return Buffer.concat(chunks).toString("utf8");
  }

  async *#lines(response: IncomingMessage): AsyncGenerator<string> {
    let rest: Buffer[] = [];
    let bytes = 0;
    try {
      for await (const chunk of response) {
        let from = 0;
        const piece = chunk as Buffer;
        for (let end = piece.indexOf(10); end >= 0; end = piece.indexOf(10, from)) {
          const line = Buffer.concat([...rest, piece.subarray(from, end)]).toString("utf8");
          rest = [];
          bytes = 0;
          from = end + 1;
          if (line.trim() !== "") yield line;
        }
        rest.push(piece.subarray(from));
        bytes += piece.length - from;
        if (bytes > LINE_BYTES_MAX)
          throw this.#protocol(`a watch event of more than ${LINE_BYTES_MAX} bytes`);
      }
    } catch (cause) {
      if (isCode(cause, "KUBERNETES_PROTOCOL")) throw cause;
      throw this.#unreachable(cause);
    }
  }

  #unreachable(cause: unknown): HoldfastError {
    const why = messageOf(cause) || (cause as { code?: string }).code || "no reason";
    return fail("KUBERNETES_UNREACHABLE", `no answer from the API server ${this.access.server}: ${why}`, {
      cause,
    });
  }

  #protocol(what: string): HoldfastError {
    return fail(
      "KUBERNETES_PROTOCOL",
      `${this.access.server} does not answer like a Kubernetes API server: ${what}`,
    );
  }
}

interface ListPage<T> {
  items?: T[];
  metadata?: { resourceVersion?: string; continue?: string };
}

/** meta/v1 Status */
interface Status {
  code?: number;
  reason?: string;
  message?: string;
}

export function isCode(error: unknown, ...codes: string[]): boolean {
  return codes.includes((error as { code?: string } | null)?.code ?? "");
}

function refusal(code: number, { reason = "", message = "" }: Status, what: string): HoldfastError {
  const text = `${what}: ${message || `HTTP status ${code}`}`;
  if (code === 404) return fail("KUBERNETES_NOT_FOUND", text);
  if (code === 409)
    return fail(reason === "AlreadyExists" ? "KUBERNETES_EXISTS" : "KUBERNETES_CONFLICT", text);
  if (code === 410) return fail("KUBERNETES_EXPIRED", text);
  if (code === 401 || code === 403) return fail("KUBERNETES_FORBIDDEN", text);
  if (code === 429 || code >= 500) return fail("KUBERNETES_BUSY", text);
  return fail("KUBERNETES_INVALID", text);
}

function queryText(query: Query): string {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  if (given.length === 0) return "";
  return `?${new URLSearchParams(given.map(([key, value]) => [key, String(value)]))}`;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
