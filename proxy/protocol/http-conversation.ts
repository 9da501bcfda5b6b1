/**
 * Both directions of an HTTP/1.x connection (RFC 9112): which requests are in flight, where each message begins and ends.
 *
 *   in    head ──▶ body (length | chunks) ──▶ head …      upgrade asked for: nothing may follow before the answer
 *   out   head ──▶ body (length | chunks | until FIN) ──▶ head …      1xx: a head only
 *
 * Answers belong to requests in order. A request leaves the list with the last byte of its answer, although its own body
 * may still be under way then (an early 4xx). Bytes that belong to no request (an unsolicited 408) end the observation.
 */
import type { ByteReader, ByteWriter } from "#proxy/contract/byte-codec.ts";
import { ChunkedBody } from "./http-chunks.ts";
import type { HeadParser, HttpHead } from "./http-head.ts";
import { headOf, type PartialHead, readHead, readPartial, writePartial } from "./http-partial-head.ts";
import { Request, type RequestRecord, readRequest, writeRequest } from "./http-request.ts";
import type { OpaqueReason } from "./opaque-reason.ts";

export const REQUESTS_IN_FLIGHT_MAX = 1024;
/** RFC 9112 2.2 */
export const EMPTY_LINES_MAX = 4;

const LF = 0x0a;
const CR = 0x0d;

export interface HttpHooks {
  /** the head of a request is complete */
  onRequest?(record: RequestRecord, head: HttpHead): void;
  /** its body has ended (`record.end` is set) */
  onRequestEnd?(record: RequestRecord): void;
  /** the final answer's head */
  onAnswer?(record: RequestRecord, head: HttpHead): void;
  /** the final answer has been seen to its last byte. keepAlive: neither side asked for the connection to end */
  onAnswered?(record: RequestRecord, keepAlive: boolean): void;
}

/** The connection is no longer HTTP from `at` of the chunk on, that was given to `outbound`. */
export interface Switch {
  to: "websocket" | "tunnel";
  record: RequestRecord;
  /** of the answer */
  head: HttpHead;
  at: number;
}

// numbers, as they travel in a saved observer
const HEAD = 0;
const LENGTH = 1;
const CHUNKS = 2;
/** out: until FIN. in: an upgrade was asked for and not answered */
const REST = 3;
const PLACES_MAX = REST;

export class HttpConversation {
  /** requests whose head was seen */
  requests = 0;
  /** set by `outbound` when the application agreed to another protocol */
  switched: Switch | null = null;
  readonly #hooks: HttpHooks;

  #in = HEAD;
  #inLeft = 0;
  #inChunks: ChunkedBody | null = null;
  #inHead: PartialHead | null = null;
  /** empty lines before the next request, and whether the first half of another was seen */
  #emptyLines = 0;
  #emptyLineCr = false;
  /** the client has said that its last request is the last (RFC 9112 9.6) */
  #inClosed = false;
  /** whose body is under way */
  #receiving: Request | null = null;

  #out = HEAD;
  #outLeft = 0;
  #outChunks: ChunkedBody | null = null;
  #outHead: PartialHead | null = null;
  /** of the answer under way */
  #answerKeepAlive = true;
  /** an answer after which the connection ends was seen to its end */
  #ended = false;

  #oldest: Request | null = null;
  #newest: Request | null = null;
  #count = 0;

  constructor(hooks: HttpHooks) {
    this.#hooks = hooks;
  }

  get oldest(): RequestRecord | null {
    return this.#oldest;
  }

  get inFlightCount(): number {
    return this.#count;
  }

  inFlight(): RequestRecord[] {
    const records: RequestRecord[] = [];
    for (let record = this.#oldest; record !== null; record = record.next) records.push(record);
    return records;
  }

  get inboundAtBoundary(): boolean {
    return (this.#in === HEAD || this.#in === REST) && this.#inHead === null && !this.#emptyLineCr;
  }

  get outboundAtBoundary(): boolean {
    return this.#out === HEAD && this.#outHead === null;
  }

  /** @param bytesIn where the stream is; the answer at a boundary */
  inboundMessageStart(bytesIn: number): number {
    if (this.#emptyLineCr) return bytesIn - 1;
    if (this.#inHead !== null) return this.#inHead.start;
    return this.#in === LENGTH || this.#in === CHUNKS ? (this.#receiving as Request).start : bytesIn;
  }

  get closing(): boolean {
    if (this.#ended || !this.#answerKeepAlive) return true;
    return this.#oldest !== null && !this.#oldest.keepAlive;
  }

  /** @param offset of the chunk's first byte in the stream → why it is not HTTP */
  inbound(chunk: Buffer, offset: number): OpaqueReason | null {
    let at = 0;
    let reason: OpaqueReason | null = null;
    while (at < chunk.length && reason === null) {
      switch (this.#in) {
        case HEAD:
          if (this.#inHead === null) {
            const byte = chunk[at];
            if (this.#emptyLineCr || byte === CR) {
              reason = this.#emptyLine(byte);
              at++;
              continue;
            }
          }
          at = this.#requestHead(chunk, at, offset);
          if (at < 0) return this.#reason;
          break;
        case LENGTH: {
          if (!this.#bodyComes()) return "expectation";
          const length = Math.min(this.#inLeft, chunk.length - at);
          this.#inLeft -= length;
          at += length;
          if (this.#inLeft === 0) this.#requestEnd(offset + at);
          break;
        }
        case CHUNKS: {
          const body = this.#inChunks as ChunkedBody;
          if (!this.#bodyComes()) return "expectation";
          at = body.feed(chunk, at, chunk.length);
          reason = body.reason;
          if (body.done) this.#requestEnd(offset + at);
          break;
        }
        default:
          return "upgrade";
      }
    }
    return reason;
  }

  /** As `inbound`; where it sets `switched`, the rest of the chunk is not HTTP and has not been looked at. */
  outbound(chunk: Buffer): OpaqueReason | null {
    let at = 0;
    while (at < chunk.length) {
      switch (this.#out) {
        case HEAD:
          if (this.#oldest === null) return "unsolicited-answer";
          at = this.#answerHead(chunk, at, this.#oldest);
          if (at < 0) return this.#reason;
          if (this.switched !== null) return null;
          break;
        case LENGTH: {
          const length = Math.min(this.#outLeft, chunk.length - at);
          this.#outLeft -= length;
          at += length;
          if (this.#outLeft === 0) this.#answerEnd();
          break;
        }
        case CHUNKS: {
          const body = this.#outChunks as ChunkedBody;
          at = body.feed(chunk, at, chunk.length);
          if (body.reason !== null) return body.reason;
          if (body.done) this.#answerEnd();
          break;
        }
        default:
          return null;
      }
    }
    return null;
  }

  /** The application's FIN: what was to go on until the connection ends is complete. */
  outboundFin(): void {
    if (this.#out === REST) this.#answerEnd();
    this.#ended = true;
  }

  // why a head was refused, when its place is given as -1
  #reason: OpaqueReason = "request-line";

  #refuse(reason: OpaqueReason): -1 {
    this.#reason = reason;
    return -1;
  }

  #emptyLine(byte: number | undefined): OpaqueReason | null {
    if (!this.#emptyLineCr) {
      this.#emptyLineCr = true;
      return ++this.#emptyLines > EMPTY_LINES_MAX ? "too-many-empty-lines" : null;
    }
    this.#emptyLineCr = false;
    return byte === LF ? null : "bare-cr";
  }

  /**
   * A client that waits for 100 and gets a final answer may send the body all the same or leave it out (RFC 9110 10.1.1):
   * what follows then may be the body or the next request.
   */
  #bodyComes(): boolean {
    const request = this.#receiving as Request;
    if (request.expectsContinue && request.answered && !request.bodyComes) return false;
    request.bodyComes = true;
    return true;
  }

  // ---- heads

  #requestHead(chunk: Buffer, from: number, offset: number): number {
    if (this.#inClosed) return this.#refuse("request-after-close");
    const partial = this.#inHead;
    const { verdict, parser, end, rest } = readHead(true, partial, chunk, from, offset + from);
    if (verdict === "wrong") return this.#refuse(parser.reason);
    this.#inHead = rest;
    if (verdict === "incomplete") return end;
    const method = parser.method;
    const body = parser.chunked || parser.contentLength > 0;
    if (this.#count >= REQUESTS_IN_FLIGHT_MAX) return this.#refuse("too-many-requests");
    // RFC 9110 9.3.6: what follows the head of CONNECT is the tunnel's, and of some servers a body
    if (method.name === "CONNECT" && body) return this.#refuse("body-not-allowed");
    const request = new Request({
      method: method.name,
      start: partial?.start ?? offset + from,
      headEnd: offset + end,
      idempotent: method.idempotent,
      upgrade: upgradeOf(parser),
      expectsContinue: parser.expectsContinue && parser.minor === 1 && body,
      keepAlive: persists(parser),
      minor: parser.minor,
    });
    if (this.#newest === null) this.#oldest = request;
    else this.#newest.next = request;
    this.#newest = request;
    this.#count++;
    this.requests++;
    this.#emptyLines = 0;
    this.#receiving = request;
    if (parser.chunked) {
      this.#in = CHUNKS;
      this.#inChunks = new ChunkedBody();
    } else if (body) {
      this.#in = LENGTH;
      this.#inLeft = parser.contentLength;
    }
    this.#hooks.onRequest?.(request, headOf(partial, chunk, from, end));
    if (!body) this.#requestEnd(offset + end);
    return end;
  }

  #requestEnd(offset: number): void {
    const request = this.#receiving as Request;
    this.#inChunks = null;
    this.#in = request.upgrade === null || request.answered ? HEAD : REST;
    this.#inClosed = !request.keepAlive;
    request.end = offset;
    this.#receiving = null;
    this.#hooks.onRequestEnd?.(request);
  }

  #answerHead(chunk: Buffer, from: number, request: Request): number {
    const partial = this.#outHead;
    request.answerStarted = true;
    const { verdict, parser, end, rest } = readHead(false, partial, chunk, from, 0);
    if (verdict === "wrong") return this.#refuse(parser.reason);
    this.#outHead = rest;
    if (verdict === "incomplete") return end;
    const { status, chunked, contentLength } = parser;
    const bodiless = status < 200 || status === 204;
    if (bodiless && (chunked || contentLength > 0)) return this.#refuse("body-not-allowed");
    if (status < 200 && status !== 101) {
      request.answerStarted = false;
      if (status === 100) request.bodyComes = true;
      return end;
    }
    // RFC 9112 6.1: a client of HTTP/1.0 would take the chunks for the body
    if (chunked && request.minor === 0) return this.#refuse("transfer-encoding");
    const tunnelled = request.method === "CONNECT" && status >= 200 && status < 300;
    const keepAlive = persists(parser);
    const upgrade = parser.connectionUpgrade ? parser.upgrade : null;
    const head =
      this.#hooks.onAnswer === undefined && status !== 101 && !tunnelled
        ? null
        : headOf(partial, chunk, from, end);
    if (status === 101 || tunnelled) {
      // nothing follows a request that asks for it, so it is the last one; 101 before its end would leave two readings
      if (request.upgrade === null || request.end < 0) return this.#refuse("upgrade");
      if (status === 101 && upgrade === null) return this.#refuse("upgrade");
      const to =
        tunnelled || upgrade !== "websocket" || request.upgrade === "tunnel" ? "tunnel" : "websocket";
      this.#forget(request);
      this.switched = { to, record: request, head: head as HttpHead, at: end };
      return end;
    }
    this.#answerKeepAlive = keepAlive;
    if (request.method === "HEAD" || bodiless || status === 304 || (!chunked && contentLength === 0)) {
      if (head !== null) this.#hooks.onAnswer?.(request, head);
      this.#answerEnd();
      return end;
    }
    if (chunked) {
      this.#out = CHUNKS;
      this.#outChunks = new ChunkedBody();
    } else if (contentLength > 0) {
      this.#out = LENGTH;
      this.#outLeft = contentLength;
    } else {
      this.#out = REST;
      this.#answerKeepAlive = false;
    }
    if (head !== null) this.#hooks.onAnswer?.(request, head);
    return end;
  }

  #answerEnd(): void {
    const request = this.#oldest as Request;
    const keepAlive = this.#answerKeepAlive && request.keepAlive;
    this.#out = HEAD;
    this.#outChunks = null;
    this.#answerKeepAlive = true;
    if (!keepAlive) this.#ended = true;
    // declined: HTTP goes on
    if (this.#in === REST && request.upgrade !== null) this.#in = HEAD;
    request.answered = true;
    this.#forget(request);
    this.#hooks.onAnswered?.(request, keepAlive);
  }

  /** The oldest leaves the list. */
  #forget(request: Request): void {
    this.#oldest = request.next;
    if (this.#oldest === null) this.#newest = null;
    request.next = null;
    this.#count--;
  }

  // ---- travelling

  save(writer: ByteWriter): void {
    writer.count(this.requests);
    writer.u8(this.#in);
    writer.count(this.#inLeft);
    writeChunks(writer, this.#inChunks);
    writePartial(writer, this.#inHead);
    writer.u8(this.#emptyLines);
    writer.flag(this.#emptyLineCr);
    writer.flag(this.#inClosed);
    writer.u8(this.#out);
    writer.count(this.#outLeft);
    writeChunks(writer, this.#outChunks);
    writePartial(writer, this.#outHead);
    writer.flag(this.#answerKeepAlive);
    writer.flag(this.#ended);
    writer.u16(this.#count);
    for (let request = this.#oldest; request !== null; request = request.next) writeRequest(writer, request);
    // the newest in the list, or one that was answered before its end
    const receiving = this.#receiving;
    writer.flag(receiving !== null);
    writer.flag(receiving?.answered === true);
    if (receiving?.answered === true) writeRequest(writer, receiving);
  }

  static restore(reader: ByteReader, hooks: HttpHooks): HttpConversation {
    const http = new HttpConversation(hooks);
    http.requests = reader.count();
    http.#in = reader.u8(PLACES_MAX);
    http.#inLeft = reader.count();
    http.#inChunks = readChunks(reader);
    http.#inHead = readPartial(reader, true);
    http.#emptyLines = reader.u8(EMPTY_LINES_MAX);
    http.#emptyLineCr = reader.flag();
    http.#inClosed = reader.flag();
    http.#out = reader.u8(PLACES_MAX);
    http.#outLeft = reader.count();
    http.#outChunks = readChunks(reader);
    http.#outHead = readPartial(reader, false);
    http.#answerKeepAlive = reader.flag();
    http.#ended = reader.flag();
    http.#count = reader.u16(REQUESTS_IN_FLIGHT_MAX);
    for (let index = 0; index < http.#count; index++) {
      const request = readRequest(reader);
      if (http.#newest === null) http.#oldest = request;
      else http.#newest.next = request;
      http.#newest = request;
    }
    const isReceiving = reader.flag();
    if (reader.flag()) {
      http.#receiving = readRequest(reader);
      http.#receiving.answered = true;
    } else if (isReceiving) http.#receiving = http.#newest;
    reader.check(http.#fits(isReceiving), "its parts contradict each other");
    return http;
  }

  #fits(isReceiving: boolean): boolean {
    const inBody = this.#in === LENGTH || this.#in === CHUNKS;
    const outBody = this.#out !== HEAD;
    for (let request = this.#oldest; request !== null; request = request.next) {
      if (request.end < 0 && request !== this.#receiving) return false;
      if (request.next !== null && request.upgrade !== null) return false;
    }
    return (
      isReceiving === inBody &&
      inBody === (this.#receiving !== null && this.#receiving.end < 0) &&
      (this.#in === CHUNKS) === (this.#inChunks !== null) &&
      (this.#in === LENGTH) === this.#inLeft > 0 &&
      (this.#out === CHUNKS) === (this.#outChunks !== null) &&
      (this.#out === LENGTH) === this.#outLeft > 0 &&
      (this.#inHead === null || (this.#in === HEAD && !this.#emptyLineCr)) &&
      (!this.#emptyLineCr || this.#in === HEAD) &&
      (this.#outHead === null || this.#out === HEAD) &&
      (this.#in !== REST || this.#newest?.upgrade != null) &&
      ((!outBody && this.#outHead === null) || this.#oldest?.answerStarted === true)
    );
  }
}

/** RFC 9112 9.3 */
function persists(head: HeadParser): boolean {
  return !head.close && (head.minor === 1 || head.keepAlive);
}

/** RFC 9110 7.8: not in HTTP/1.0, and only where Connection names it. */
function upgradeOf(head: HeadParser): "websocket" | "tunnel" | null {
  if (head.method.name === "CONNECT") return "tunnel";
  if (head.minor === 0 || !head.connectionUpgrade || head.upgrade === null) return null;
  return head.method.name === "GET" ? head.upgrade : "tunnel";
}

function writeChunks(writer: ByteWriter, body: ChunkedBody | null): void {
  writer.flag(body !== null);
  if (body === null) return;
  const [place, left, count] = body.save();
  writer.u8(place);
  writer.count(left);
  writer.count(count);
}

function readChunks(reader: ByteReader): ChunkedBody | null {
  if (!reader.flag()) return null;
  const body = ChunkedBody.restore(reader.u8(), reader.count(), reader.count());
  return reader.present(body, "a chunked body is nowhere");
}
