/**
 * Answers to health checks that may be given again while the application is unavailable. What may be stored and given is what RFC 9111
 * (HTTP Caching, sections 3 and 4) lets a shared cache that cannot reach the origin, and less: nothing that was asked with
 * credentials, cookies or conditions, and nothing that sets a cookie. Pure.
 */
import { HeadParser, HttpHead } from "./http-head.ts";
import { editHead } from "./response-head-editor.ts";

/** A request with one of these is about more than its target. */
const PERSONAL = [
  "Authorization",
  "Cache-Control",
  "Cookie",
  "Expect",
  "If-Match",
  "If-Modified-Since",
  "If-None-Match",
  "If-Range",
  "If-Unmodified-Since",
  "Pragma",
  "Proxy-Authorization",
  "Range",
  "Transfer-Encoding",
  "Upgrade",
];
/** RFC 9110 15.1, heuristically cacheable, without 206, which is part of something */
const STORED_STATUSES = new Set([200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501]);
/** RFC 9111 5.2.2: not to be stored by a proxy, or not to be given without asking the origin */
const FORBIDDING =
  /(?:^|[\s,])(?:no-store|no-cache|private|must-revalidate|proxy-revalidate|s-maxage)(?=$|[\s,=;])/i;

/** A request whose answer does not depend on who asks. */
export class PlainRequest {
  /** what is asked: method, version (its framing), authority and target with its query */
  readonly key: string;
  readonly #head: HttpHead;

  private constructor(head: HttpHead) {
    this.#head = head;
    this.key = [head.method, head.version, head.target, head.field("Host") ?? ""].join("\n");
  }

  /** null: it has credentials, conditions, a body or the like */
  static of(head: HttpHead): PlainRequest | null {
    if (head.method !== "GET" && head.method !== "HEAD") return null;
    if (PERSONAL.some((name) => head.field(name) !== null)) return null;
    if (head.fields("Content-Length").some((length) => length !== "0")) return null;
    // the bytes that it was read from do not stay
    const bytes = Buffer.from(head.text(), "latin1");
    return new PlainRequest(new HttpHead(bytes, 0, bytes.length));
  }

  /** RFC 9111 4.1: every field that the answer was chosen by */
  hasSame(names: readonly string[], as: PlainRequest): boolean {
    return names.every((name) => this.#head.fields(name).join(", ") === as.#head.fields(name).join(", "));
  }
}

export class StoredAnswer {
  readonly #request: PlainRequest;
  readonly #head: Buffer;
  readonly #body: Buffer;
  readonly #vary: string[];
  readonly #storedAtMs: number;

  private constructor(
    request: PlainRequest,
    bytes: Buffer,
    head: HttpHead,
    headBytes: number,
    nowMs: number,
  ) {
    this.#request = request;
    this.#head = bytes.subarray(0, headBytes);
    this.#body = bytes.subarray(headBytes);
    this.#vary = listOf(head.fields("Vary"));
    this.#storedAtMs = nowMs;
  }

  /**
   * @param bytes one whole answer
   * @returns null: it must not be given to anybody else, or is not what this proxy reads
   */
  static of(request: PlainRequest, bytes: Buffer, nowMs: number): StoredAnswer | null {
    const parser = new HeadParser();
    parser.reset(false);
    if (parser.parse(bytes, 0, bytes.length) !== "complete") return null;
    const head = new HttpHead(bytes, 0, parser.headBytes);
    if (!STORED_STATUSES.has(head.status)) return null;
    if (head.fields("Cache-Control").some((value) => FORBIDDING.test(value))) return null;
    // Age: it came from another cache, which knows how old it is
    if (["Set-Cookie", "Set-Cookie2", "Age"].some((name) => head.field(name) !== null)) return null;
    const answer = new StoredAnswer(request, bytes, head, parser.headBytes, nowMs);
    return answer.#vary.includes("*") ? null : answer;
  }

  fits(request: PlainRequest): boolean {
    return request.key === this.#request.key && request.hasSame(this.#vary, this.#request);
  }

  /** For a connection that ends with it; with its age (RFC 9111 5.1). */
  given(nowMs: number): Buffer {
    const age = Math.max(0, Math.floor((nowMs - this.#storedAtMs) / 1000));
    const head = editHead(this.#head, {
      replace: [["Connection", "close"]],
      remove: ["Keep-Alive"],
      append: [`Age: ${age}`],
    });
    return Buffer.concat([head, this.#body]);
  }
}

function listOf(values: string[]): string[] {
  return values
    .flatMap((value) => value.split(","))
    .map((name) => name.trim().toLowerCase())
    .filter((name) => name !== "");
}
