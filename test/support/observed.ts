/**
 * Conversations for the observer: what both sides send, in an order that can happen, and what is to be seen in it, which the
 * generator knows because it wrote the messages. And a way to show one to an observer in any pieces.
 */
import fc from "fast-check";
import type { HttpHead } from "#proxy/protocol/http-head.ts";
import { Observer, type ObserverHooks, type ObserverOptions } from "#proxy/protocol/observer.ts";

export interface Segment {
  side: "client" | "server";
  bytes: Buffer;
}

export interface Conversation {
  segments: Segment[];
  /** hook calls, in order */
  events: string[];
  /** requests begun and not completely answered at its end */
  inFlight: number;
}

export interface Observed {
  events: string[];
  state: Record<string, unknown>;
}

/** Everything public that is not a method, as plain data. */
export function stateOf(observer: Observer): Record<string, unknown> {
  const { webSocket } = observer;
  return {
    protocol: observer.protocol,
    opaqueReason: observer.opaqueReason,
    serverName: observer.serverName,
    alpn: [...observer.alpn],
    bytesIn: observer.bytesIn,
    bytesOut: observer.bytesOut,
    inFlight: observer.inFlight.map((record) => ({
      method: record.method,
      start: record.start,
      headEnd: record.headEnd,
      end: record.end,
      idempotent: record.idempotent,
      upgrade: record.upgrade,
      expectsContinue: record.expectsContinue,
      answerStarted: record.answerStarted,
      keepAlive: record.keepAlive,
    })),
    requests: observer.requests,
    inboundAtBoundary: observer.inboundAtBoundary,
    outboundAtBoundary: observer.outboundAtBoundary,
    inboundMessageStart: observer.inboundMessageStart,
    closing: observer.closing,
    webSocket: webSocket && {
      closeIn: webSocket.closeIn,
      closeOut: webSocket.closeOut,
      inMidFrame: webSocket.inMidFrame,
      outMidFrame: webSocket.outMidFrame,
      compressedIn: webSocket.compressedIn,
      unansweredPing: webSocket.unansweredPing?.toString("hex"),
      lastMessageInEnd: webSocket.lastMessageInEnd,
      lastMessageOutEnd: webSocket.lastMessageOutEnd,
    },
  };
}

export function recordingHooks(events: string[]): Required<ObserverHooks> {
  const target = (head: HttpHead) => `${head.method} ${head.target} ${head.version}`;
  return {
    onRequest: (record, head) => {
      events.push(`request ${target(head)} ${record.start}-${record.headEnd}`);
    },
    onRequestEnd: (record) => {
      events.push(`request ends ${record.end}`);
    },
    onAnswer: (record, head) => {
      events.push(`answer ${head.status} to ${record.method}`);
    },
    onAnswered: (record, keepAlive) => {
      events.push(`answered ${record.method} ${keepAlive}`);
    },
    onUpgraded: (record, head) => {
      events.push(`upgraded ${record.method} ${head.status}`);
    },
    onMessage: (direction, start, end) => {
      events.push(`message ${direction} ${start}-${end}`);
    },
    onOpaque: (reason) => {
      events.push(`opaque ${reason}`);
    },
  };
}

/** Lengths of the pieces, used in turn; empty: each segment whole. */
export type Cuts = number[];
export const cuts: fc.Arbitrary<Cuts> = fc.array(fc.integer({ min: 1, max: 60 }), {
  minLength: 1,
  maxLength: 8,
});

/**
 * @param afterPiece may put another observer in the place of the one that has seen the pieces so far
 */
export function observe(
  segments: readonly Segment[],
  cuts: Cuts,
  options: { protocol?: ObserverOptions["protocol"]; fin?: boolean; restart?: boolean } = {},
): Observed {
  const events: string[] = [];
  const settings = { protocol: options.protocol ?? "auto", hooks: recordingHooks(events) } as const;
  let observer = new Observer(settings);
  let piece = 0;
  for (const { side, bytes } of segments) {
    for (let at = 0; at < bytes.length; ) {
      const length = cuts.length === 0 ? bytes.length : (cuts[piece++ % cuts.length] as number);
      const chunk = Buffer.from(bytes.subarray(at, at + length));
      if (side === "client") observer.inbound(chunk);
      else observer.outbound(chunk);
      // nothing may be kept of a chunk, which its owner reads into again
      chunk.fill(0xee);
      at += length;
      if (options.restart === true) observer = Observer.restore(observer.save(), settings);
    }
  }
  if (options.fin === true) {
    observer.outboundFin();
    observer.inboundFin();
  }
  return { events, state: stateOf(observer) };
}

// ---- HTTP

const token = fc.stringMatching(/^[a-z][a-z0-9-]{0,10}$/);
const value = fc.stringMatching(/^[ -~\t]{0,30}$/);
const field = fc
  .tuple(token, value)
  .filter(([name]) => !/^(content-length|transfer-encoding|connection|upgrade|expect|host)$/.test(name))
  .map(([name, text]) => `${name}:${text}\r\n`);
const fields = fc.array(field, { maxLength: 5 }).map((lines) => lines.join(""));
const content = fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes));
const target = fc.stringMatching(/^\/[!-~]{0,30}$/);

/** A body and the fields that frame it. */
interface Body {
  fields: string;
  bytes: Buffer;
}
const none: fc.Arbitrary<Body> = fc.constant({ fields: "", bytes: Buffer.alloc(0) });
const length: fc.Arbitrary<Body> = fc
  .tuple(content, fc.constantFrom("Content-Length: ", "content-length:", "CONTENT-LENGTH:\t "))
  .map(([bytes, name]) => ({ fields: `${name}${bytes.length}\r\n`, bytes }));
const chunked: fc.Arbitrary<Body> = fc
  .tuple(
    fc.array(
      fc.tuple(
        content.filter((bytes) => bytes.length > 0),
        fc.constantFrom("", ";a", ";a=b", ';q="x y;z"'),
        fc.boolean(),
      ),
      { maxLength: 4 },
    ),
    fields,
    fc.constantFrom("chunked", "Chunked", " chunked "),
  )
  .map(([chunks, trailers, coding]) => ({
    fields: `Transfer-Encoding: ${coding}\r\n`,
    bytes: Buffer.concat([
      ...chunks.flatMap(([bytes, extension, upper]) => {
        const size = bytes.length.toString(16);
        return [
          Buffer.from(`${upper ? size.toUpperCase() : `0${size}`}${extension}\r\n`),
          bytes,
          Buffer.from("\r\n"),
        ];
      }),
      Buffer.from(`0\r\n${trailers}\r\n`),
    ]),
  }));
const body = fc.oneof(none, length, chunked);

interface Exchange {
  method: string;
  target: string;
  fields: string;
  body: Body;
  emptyLines: number;
  interim: number[];
  status: number;
  answerFields: string;
  answerBody: Body;
}
const exchange: fc.Arbitrary<Exchange> = fc.record({
  method: fc.constantFrom("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "M-SEARCH"),
  target,
  fields,
  body,
  emptyLines: fc.constantFrom(0, 0, 0, 1, 4),
  interim: fc.array(fc.constantFrom(100, 102, 103), { maxLength: 2 }),
  status: fc.constantFrom(200, 200, 204, 206, 301, 304, 400, 404, 500),
  answerFields: fields,
  answerBody: fc.oneof(length, chunked),
});

/** How the last request ends the HTTP, or does not. */
type Ending = "open" | "close" | "until-fin" | "http10" | "connect" | "declined";

/** Valid HTTP/1.x: `together` requests at a time are sent before the first of them is answered. */
export const httpConversation: fc.Arbitrary<Conversation> = fc
  .tuple(
    fc.array(exchange, { minLength: 1, maxLength: 8 }),
    fc.integer({ min: 1, max: 4 }),
    fc.constantFrom<Ending>("open", "open", "close", "until-fin", "http10", "connect", "declined"),
    fc.nat({ max: 4 }),
  )
  .map(([exchanges, together, ending, unanswered]) => {
    const segments: Segment[] = [];
    const events: string[] = [];
    let offset = 0;
    let inFlight = 0;
    const send = (text: string, bytes: Buffer): void => {
      segments.push({ side: "client", bytes: Buffer.concat([Buffer.from(text, "latin1"), bytes]) });
    };
    for (let first = 0; first < exchanges.length; first += together) {
      const group = exchanges.slice(first, first + together);
      const isLast = first + together >= exchanges.length;
      for (const [index, each] of group.entries()) {
        const ends = isLast && index === group.length - 1 ? ending : "open";
        const method = ends === "connect" ? "CONNECT" : each.method;
        const sent =
          ends === "connect" ? { fields: "", bytes: Buffer.alloc(0) } : requestBody(each.body, ends);
        const version = ends === "http10" ? "1.0" : "1.1";
        const extra =
          ends === "close"
            ? "Connection: x, Close\r\n"
            : ends === "declined"
              ? "Connection: upgrade\r\nUpgrade: h2c\r\n"
              : "";
        const lead = "\r\n".repeat(each.emptyLines);
        const line = `${method} ${each.target} HTTP/${version}`;
        const head = `${line}\r\nHost: a\r\n${each.fields}${sent.fields}${extra}\r\n`;
        send(lead + head, sent.bytes);
        const start = offset + lead.length;
        offset = start + head.length + sent.bytes.length;
        events.push(`request ${line} ${start}-${start + head.length}`, `request ends ${offset}`);
        inFlight++;
      }
      for (const [index, each] of group.entries()) {
        const ends = isLast && index === group.length - 1 ? ending : "open";
        if (isLast && group.length - index <= Math.min(unanswered, group.length) && ends !== "connect") {
          // the rest stays without an answer
          break;
        }
        const method = ends === "connect" ? "CONNECT" : each.method;
        inFlight--;
        const interim = each.interim
          .map((status) => `HTTP/1.1 ${status} X\r\n${each.answerFields}\r\n`)
          .join("");
        const { text, bytes, answered } = answer(each, ends);
        segments.push({
          side: "server",
          bytes: Buffer.concat([Buffer.from(interim + text, "latin1"), bytes]),
        });
        if (ends === "connect") events.push("upgraded CONNECT 200");
        else {
          events.push(`answer ${each.status} to ${method}`);
          if (answered !== null) events.push(`answered ${method} ${answered}`);
          else inFlight++;
        }
      }
    }
    return { segments, events, inFlight };
  });

function requestBody(body: Body, ends: Ending): Body {
  // RFC 9112 6.1: no transfer coding in HTTP/1.0
  return ends === "http10" && body.fields.startsWith("T")
    ? { fields: `Content-Length: ${body.bytes.length}\r\n`, bytes: body.bytes }
    : body;
}

/** answered: keepAlive of `onAnswered`; null: the answer goes on until the FIN */
function answer(each: Exchange, ends: Ending): { text: string; bytes: Buffer; answered: boolean | null } {
  if (ends === "connect")
    return { text: "HTTP/1.1 200 OK\r\n\r\n", bytes: Buffer.from("\0tunnel"), answered: null };
  const start = `HTTP/1.1 ${each.status} ${each.answerFields.length % 2 === 0 ? "" : "Fine; really"}\r\n`;
  const keepAlive = ends !== "close" && ends !== "http10";
  const bodiless = each.method === "HEAD" || each.status === 304;
  if (each.status === 204)
    return { text: `${start}${each.answerFields}\r\n`, bytes: Buffer.alloc(0), answered: keepAlive };
  const untilFin = ends === "until-fin" || (ends === "http10" && each.answerBody.fields.startsWith("T"));
  const framing = untilFin ? "" : each.answerBody.fields;
  const text = `${start}${each.answerFields}${framing}\r\n`;
  if (bodiless) return { text, bytes: Buffer.alloc(0), answered: keepAlive };
  return { text, bytes: each.answerBody.bytes, answered: untilFin ? null : keepAlive };
}

// ---- WebSocket

const HANDSHAKE =
  "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n";
const ANSWER =
  "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n\r\n";

export function frameBytes(frame: { first: number; masked: boolean; payload: Buffer; key?: number }): Buffer {
  const { first, masked, payload } = frame;
  const mask = masked ? 0x80 : 0;
  let header: Buffer;
  if (payload.length < 126) header = Buffer.of(first, mask | payload.length);
  else if (payload.length <= 0xffff)
    header = Buffer.of(first, mask | 126, payload.length >> 8, payload.length & 0xff);
  else {
    header = Buffer.alloc(10);
    header[0] = first;
    header[1] = mask | 127;
    header.writeUInt32BE(payload.length, 6);
  }
  if (!masked) return Buffer.concat([header, payload]);
  const key = Buffer.alloc(4);
  key.writeUInt32BE(frame.key ?? 0x12345678);
  return Buffer.concat([header, key, payload.map((byte, index) => byte ^ (key[index % 4] as number))]);
}

interface Message {
  side: "client" | "server";
  first: number;
  parts: Buffer[];
  /** control frames put in before each part */
  control: number;
}
const part = fc.oneof(
  { weight: 40, arbitrary: fc.uint8Array({ maxLength: 150 }) },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: 70_000 }).map((size) => new Uint8Array(size)) },
);
const message: fc.Arbitrary<Message> = fc.record({
  side: fc.constantFrom<"client" | "server">("client", "server"),
  first: fc.constantFrom(1, 2, 0x41, 0x42),
  parts: fc.array(
    part.map((bytes) => Buffer.from(bytes)),
    { minLength: 1, maxLength: 4 },
  ),
  control: fc.constantFrom(0, 0, 0x89, 0x8a),
});

export const webSocketConversation: fc.Arbitrary<Conversation> = fc
  .tuple(fc.array(message, { maxLength: 8 }), fc.boolean(), fc.boolean())
  .map(([messages, closes, together]) => {
    const segments: Segment[] = [
      { side: "client", bytes: Buffer.from(HANDSHAKE) },
      { side: "server", bytes: Buffer.from(ANSWER) },
    ];
    const offset = { client: HANDSHAKE.length, server: ANSWER.length };
    const events = [
      `request GET /ws HTTP/1.1 0-${HANDSHAKE.length}`,
      `request ends ${HANDSHAKE.length}`,
      "upgraded GET 101",
    ];
    const push = (side: "client" | "server", first: number, payload: Buffer): void => {
      const bytes = frameBytes({ first, masked: side === "client", payload });
      // the server's first frames may come with its 101
      const last = segments.at(-1) as Segment;
      if (together && last.side === side) last.bytes = Buffer.concat([last.bytes, bytes]);
      else segments.push({ side, bytes });
      offset[side] += bytes.length;
    };
    for (const { side, first, parts, control } of messages) {
      let start = offset[side];
      for (const [index, payload] of parts.entries()) {
        if (control !== 0) push(side, control, Buffer.from("ping"));
        if (index === 0) start = offset[side];
        const fin = index === parts.length - 1 ? 0x80 : 0;
        push(side, (index === 0 ? first : 0) | fin, payload);
      }
      events.push(`message ${side === "client" ? "in" : "out"} ${start}-${offset[side]}`);
    }
    if (closes) {
      push("client", 0x88, Buffer.from([0x03, 0xe8]));
      push("server", 0x88, Buffer.from([0x03, 0xe8, 0x6f, 0x6b]));
    }
    return { segments, events, inFlight: 0 };
  });

// ---- not valid

/** The same with a few bytes changed, taken away or put in. */
export function mutated(conversation: fc.Arbitrary<Conversation>): fc.Arbitrary<Segment[]> {
  const edit = fc.record({
    segment: fc.nat(),
    at: fc.nat(),
    remove: fc.nat({ max: 12 }),
    insert: fc.oneof(
      fc.constantFrom("\n", "\r", "\r\n", "\0", " ", ":", "\r\n\r\n", "Content-Length: 3\r\n", "0", "\x80"),
      fc.constantFrom(
        "Transfer-Encoding: chunked\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "\r\n x",
        ",",
        "HTTP/1.1 200\r\n\r\n",
        "",
      ),
    ),
  });
  return fc
    .tuple(conversation, fc.array(edit, { minLength: 1, maxLength: 4 }))
    .map(([{ segments }, edits]) => {
      const altered = segments.map((segment) => ({ ...segment }));
      for (const { segment, at, remove, insert } of edits) {
        const chosen = altered[segment % altered.length] as Segment;
        const place = at % (chosen.bytes.length + 1);
        chosen.bytes = Buffer.concat([
          chosen.bytes.subarray(0, place),
          Buffer.from(insert, "latin1"),
          chosen.bytes.subarray(place + remove),
        ]);
      }
      return altered;
    });
}

export const garbage: fc.Arbitrary<Segment[]> = fc.array(
  fc.record({
    side: fc.constantFrom<"client" | "server">("client", "server"),
    bytes: fc.oneof(
      fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes)),
      fc.stringMatching(/^[GET /HP1.\r\n:a,0-9]{0,60}$/).map((text) => Buffer.from(text, "latin1")),
    ),
  }),
  { maxLength: 8 },
);
