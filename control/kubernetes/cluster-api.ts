/**
 * The API server, as a pod's ServiceAccount reaches it (kubernetes.io/docs/tasks/run-application/access-api-from-pod): reads, watches, and changes.
 * The only file that talks to it.
 */
import { readFileSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import { join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";

// named in an import, its lazy exports are evaluated, see control/agent/admin.ts
const { request } = process.getBuiltinModule("node:https");

const ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount";
const ANSWER_MS_MAX = 30_000;
const ANSWER_BYTES_MAX = 64 * 1_048_576;
/** an object has 1.5 MiB at most (etcd), and JSON escapes it */
const LINE_BYTES_MAX = 8 * 1_048_576;
const REASON_BYTES_MAX = 64 * 1_024;

interface Change {
  method: "PUT" | "PATCH";
  type: string;
  body: object;
}

export interface ClusterApiOptions {
  host: string;
  port: number;
  /** of the ServiceAccount: `token` and `ca.crt`, read for each request, since they are replaced while it lives */
  account: string;
}

export class ClusterApi {
  readonly #options: ClusterApiOptions;

  constructor(options: ClusterApiOptions) {
    this.#options = options;
  }

  /** @throws HoldfastError `KUBERNETES_ABSENT` */
  static inCluster(env: NodeJS.ProcessEnv): ClusterApi {
    const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port } = env;
    if (host === undefined || port === undefined)
      throw fail(
        "KUBERNETES_ABSENT",
        "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, as they are in a pod: run the agent in a pod, or without `pods`",
      );
    return new ClusterApi({ host, port: Number(port), account: ACCOUNT });
  }

  /** That this pod is in. @throws HoldfastError `KUBERNETES_ABSENT` */
  get namespace(): string {
    try {
      return readFileSync(join(this.#options.account, "namespace"), "utf8").trim();
    } catch (cause) {
      throw fail("KUBERNETES_ABSENT", `the pod's ServiceAccount cannot be read: ${messageOf(cause)}`, {
        cause,
      });
    }
  }

  /** @throws HoldfastError `KUBERNETES_UNREACHABLE`, `KUBERNETES_REFUSED`, `KUBERNETES_EXPIRED` */
  async get(path: string, signal: AbortSignal): Promise<unknown> {
    return this.#read(`GET ${path}`, await this.#ask(path, signal));
  }

  /**
   * The object that is there, replaced, if it is the one that `body` has the resourceVersion of.
   * @throws HoldfastError `KUBERNETES_CONFLICT`: somebody else has changed it; `KUBERNETES_UNREACHABLE`, `KUBERNETES_REFUSED`
   */
  async replace(path: string, body: object, signal: AbortSignal): Promise<unknown> {
    const change = { method: "PUT", type: "application/json", body } as const;
    return this.#read(`PUT ${path}`, await this.#ask(path, signal, change));
  }

  /** By a strategic merge patch: items of lists are found by name. @throws HoldfastError `KUBERNETES_UNREACHABLE`, `KUBERNETES_REFUSED` */
  async patch(path: string, body: object, signal: AbortSignal): Promise<unknown> {
    const type = "application/strategic-merge-patch+json";
    return this.#read(`PATCH ${path}`, await this.#ask(path, signal, { method: "PATCH", type, body }));
  }

  async #read(request: string, response: IncomingMessage): Promise<unknown> {
    const pieces: Buffer[] = [];
    let bytes = 0;
    try {
      for await (const piece of response as AsyncIterable<Buffer>) {
        bytes += piece.length;
        if (bytes > ANSWER_BYTES_MAX) throw new Error(`more than ${ANSWER_BYTES_MAX} bytes`);
        pieces.push(piece);
      }
      return JSON.parse(Buffer.concat(pieces).toString("utf8"));
    } catch (error) {
      throw this.#unreachable(request, error);
    }
  }

  /**
   * Each event of a watch, in order. Ends when the server does.
   * @throws HoldfastError `KUBERNETES_UNREACHABLE`, `KUBERNETES_REFUSED`, `KUBERNETES_EXPIRED`
   */
  async *watch(path: string, signal: AbortSignal): AsyncGenerator<unknown> {
    const response = await this.#ask(path, signal);
    let rest: Buffer = Buffer.alloc(0);
    try {
      for await (const piece of response as AsyncIterable<Buffer>) {
        rest = rest.length === 0 ? piece : Buffer.concat([rest, piece]);
        for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
          const line = rest.subarray(0, end).toString("utf8");
          rest = rest.subarray(end + 1);
          if (line !== "") yield JSON.parse(line);
        }
        if (rest.length > LINE_BYTES_MAX) throw new Error(`a line of more than ${LINE_BYTES_MAX} bytes`);
      }
    } catch (error) {
      throw this.#unreachable(`GET ${path}`, error);
    } finally {
      response.destroy();
    }
  }

  #ask(path: string, signal: AbortSignal, change?: Change): Promise<IncomingMessage> {
    const { host, port, account } = this.#options;
    const method = change?.method ?? "GET";
    return new Promise((resolve, reject) => {
      const failed = (error: unknown): void => reject(this.#unreachable(`${method} ${path}`, error));
      let asked: ReturnType<typeof request>;
      try {
        const token = readFileSync(join(account, "token"), "utf8").trim();
        const ca = readFileSync(join(account, "ca.crt"));
        const headers = {
          authorization: `Bearer ${token}`,
          accept: "application/json",
          ...(change === undefined ? {} : { "content-type": change.type }),
        };
        // a connection for each: a watch has one for minutes, and lists are rare
        asked = request({ host, port, path, method, ca, headers, signal, agent: false });
      } catch (error) {
        return failed(error);
      }
      const late = setTimeout(
        () => asked.destroy(new Error(`no answer within ${ANSWER_MS_MAX} ms`)),
        ANSWER_MS_MAX,
      );
      asked.once("close", () => clearTimeout(late));
      asked.once("error", failed);
      asked.once("response", (response) => {
        clearTimeout(late);
        if (response.statusCode === 200) return resolve(response);
        reasonIn(response).then(
          (reason) => reject(this.#refused(`${method} ${path}`, response.statusCode, reason)),
          failed,
        );
      });
      asked.end(change === undefined ? undefined : JSON.stringify(change.body));
    });
  }

  #refused(request: string, status: number | undefined, reason: string): HoldfastError {
    const what = `the API server answers ${status} to ${request}: ${reason}`;
    if (status === 410) return fail("KUBERNETES_EXPIRED", what);
    if (status === 409) return fail("KUBERNETES_CONFLICT", what);
    if (status === 401 || status === 403)
      return fail("KUBERNETES_REFUSED", `${what}: let the ServiceAccount of this pod do this (RBAC)`);
    return fail("KUBERNETES_UNREACHABLE", what);
  }

  #unreachable(request: string, cause: unknown): HoldfastError {
    if (cause instanceof HoldfastError) return cause;
    const { host, port } = this.#options;
    return fail(
      "KUBERNETES_UNREACHABLE",
      `the API server at ${host}:${port} does not answer ${request}: ${messageOf(cause)}`,
      { cause },
    );
  }
}

/** Of a refusal: a Status (`message`), or what a proxy in between has to say. */
async function reasonIn(response: IncomingMessage): Promise<string> {
  let text = "";
  response.setEncoding("utf8");
  for await (const piece of response as AsyncIterable<string>) {
    text += piece;
    if (text.length > REASON_BYTES_MAX) break;
  }
  try {
    return String((JSON.parse(text) as { message?: unknown }).message);
  } catch {
    return text.slice(0, 200).trim();
  }
}
