/** One request of an HTTP/1.x connection, from its head to the last byte of its answer; and how it travels. */
import { Buffer } from "node:buffer";
import type { ByteReader, ByteWriter } from "#proxy/contract/byte-codec.ts";
import { METHOD_BYTES_MAX, methodNamed } from "./http-head.ts";

/** A request from its head to the last byte of its answer. */
export interface RequestRecord {
  readonly method: string;
  /** offsets in the client's byte stream of the session: first byte, first byte of the body, first byte after it (-1: not complete) */
  readonly start: number;
  readonly headEnd: number;
  readonly end: number;
  /** RFC 9110 9.2.2 */
  readonly idempotent: boolean;
  /** what it asks for: by the Upgrade field, or CONNECT, which is a tunnel */
  readonly upgrade: "websocket" | "tunnel" | null;
  readonly expectsContinue: boolean;
  /** a byte of the final (not 1xx) answer has been seen, or of one that cannot be told from it yet */
  readonly answerStarted: boolean;
  /** the client lets the connection go on after the answer */
  readonly keepAlive: boolean;
  /** the owner's: anything; does not travel */
  tag: unknown;
}

export class Request implements RequestRecord {
  readonly method: string;
  readonly start: number;
  readonly headEnd: number;
  end = -1;
  readonly idempotent: boolean;
  readonly upgrade: "websocket" | "tunnel" | null;
  readonly expectsContinue: boolean;
  answerStarted = false;
  readonly keepAlive: boolean;
  readonly minor: number;
  /** of the body a byte was seen, or the 100 that asks for it */
  bodyComes = false;
  answered = false;
  tag: unknown = null;
  next: Request | null = null;

  constructor(head: RequestHead) {
    this.method = head.method;
    this.start = head.start;
    this.headEnd = head.headEnd;
    this.idempotent = head.idempotent;
    this.upgrade = head.upgrade;
    this.expectsContinue = head.expectsContinue;
    this.keepAlive = head.keepAlive;
    this.minor = head.minor;
  }
}
type RequestHead = Pick<
  Request,
  "method" | "start" | "headEnd" | "idempotent" | "upgrade" | "expectsContinue" | "keepAlive" | "minor"
>;

export function writeRequest(writer: ByteWriter, request: Request): void {
  writer.bytes(Buffer.from(request.method, "latin1"));
  writer.count(request.start);
  writer.count(request.headEnd);
  writer.flag(request.end >= 0);
  if (request.end >= 0) writer.count(request.end);
  writer.u8(request.upgrade === null ? 0 : request.upgrade === "websocket" ? 1 : 2);
  writer.flag(request.expectsContinue);
  writer.flag(request.answerStarted);
  writer.flag(request.keepAlive);
  writer.flag(request.bodyComes);
  writer.u8(request.minor);
}

export function readRequest(reader: ByteReader): Request {
  const name = reader.bytes(METHOD_BYTES_MAX);
  const method = methodNamed(name);
  const start = reader.count();
  const headEnd = reader.count();
  const end = reader.flag() ? reader.count() : -1;
  const upgrade = ([null, "websocket", "tunnel"] as const)[reader.u8(2)] ?? null;
  reader.check(headEnd > start && (end < 0 || end >= headEnd), "a request ends before it begins");
  const expectsContinue = reader.flag();
  const answerStarted = reader.flag();
  const keepAlive = reader.flag();
  const bodyComes = reader.flag();
  const minor = reader.u8(1);
  const request = new Request({
    method: method.name,
    start,
    headEnd,
    idempotent: method.idempotent,
    upgrade,
    expectsContinue,
    keepAlive,
    minor,
  });
  return Object.assign(request, { end, answerStarted, bodyComes });
}
