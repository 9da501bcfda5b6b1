/**
 * Watches both directions of one session's bytes and knows at any instant what is in flight. It never changes a byte and never
 * asks for one to wait: what it cannot name with certainty it stops naming (`protocol` is "tcp" then, with a reason), and counts.
 *
 *   detecting ──▶ http ──▶ websocket | tunnel
 *       ├──▶ tls, h2 (named, not read)
 *       └──▶ tcp                                 anything not understood ──▶ tcp, `opaqueReason`
 *
 * What it knows depends on the bytes of each direction and their order, never on how they were cut into chunks.
 * Whoever feeds it shows it a client's bytes before the application can answer them, and an answer before the client can.
 *
 * Left out: whether a WebSocket's text is UTF-8, whether a TLS record or an HTTP/2 frame is sound, what a request means.
 */
import { strict as assert } from "node:assert";
import { Buffer } from "node:buffer";
import { ByteReader, ByteWriter } from "#proxy/contract/byte-codec.ts";
import type { PortConfig } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import { CLIENT_HELLO_BYTES_MAX, DETECT_BYTES_MAX, detect, type Protocol, tlsClientHello } from "./detect.ts";
import { HttpConversation, type HttpHooks } from "./http-conversation.ts";
import type { HttpHead } from "./http-head.ts";
import type { RequestRecord } from "./http-request.ts";
import { OPAQUE_REASONS, type OpaqueReason } from "./opaque-reason.ts";
import { PartialBytes } from "./partial-bytes.ts";
import { WebSocketConversation, type WebSocketHooks, type WebSocketState } from "./websocket-conversation.ts";
import type { FrameHooks, FrameWalker } from "./websocket-frames.ts";

export type { Protocol } from "./detect.ts";
export type { RequestRecord } from "./http-request.ts";

/** Called in the order of the bytes, within `inbound`, `outbound` or `outboundFin`. They must not feed this observer. */
export interface ObserverHooks extends HttpHooks, WebSocketHooks {
  /** 101, or 2xx to CONNECT; `head` is the answer's. `protocol` is websocket or tunnel from here on */
  onUpgraded?(record: RequestRecord, head: HttpHead): void;
  /** what follows cannot be named any more: `protocol` is tcp. Not called where nothing was ever named */
  onOpaque?(reason: OpaqueReason): void;
}

export interface ObserverOptions {
  /** auto: told from the first bytes. websocket is read as http: a health check on the same port does not upgrade */
  protocol: PortConfig["protocol"];
  hooks: ObserverHooks;
  /** offsets the streams begin at; 0 */
  bytesIn?: number;
  bytesOut?: number;
}

const MAGIC = Buffer.from("HFO1", "latin1");
/** what is saved is usually shorter */
const SAVED_BYTES_START = 256;
const SERVER_NAME_BYTES_MAX = 255;
const ALPN_NAMES_MAX = 64;
const ALPN_BYTES_MAX = 255;
const NO_REQUESTS: readonly RequestRecord[] = Object.freeze([]);
const NO_NAMES: readonly string[] = Object.freeze([]);
// an index is in a saved observer: append only
const PROTOCOLS: readonly Protocol[] = ["detecting", "tcp", "tls", "h2", "http", "websocket", "tunnel"];

export class Observer {
  readonly #hooks: ObserverHooks;
  readonly #configured: PortConfig["protocol"];
  #protocol: Protocol;
  #opaqueReason: OpaqueReason | null = null;
  #bytesIn: number;
  #bytesOut: number;
  /** the client's first bytes, while they do not tell enough */
  #prefix: PartialBytes | null = null;
  /** the first bytes are still to be looked at: for the protocol, or for the names in a ClientHello */
  #looking: boolean;
  #serverName: string | null = null;
  #alpn: readonly string[] = NO_NAMES;
  #http: HttpConversation | null = null;
  #webSocket: WebSocketConversation | null = null;
  #requests = 0;

  constructor(options: ObserverOptions) {
    const { protocol } = options;
    this.#hooks = options.hooks;
    this.#configured = protocol;
    this.#bytesIn = options.bytesIn ?? 0;
    this.#bytesOut = options.bytesOut ?? 0;
    this.#looking = protocol === "auto" || protocol === "tls" || protocol === "h2";
    if (protocol === "auto") this.#protocol = "detecting";
    else if (protocol === "websocket") this.#protocol = "http";
    else this.#protocol = protocol;
    if (this.#protocol === "http") this.#http = new HttpConversation(this.#hooks);
  }

  get protocol(): Protocol {
    return this.#protocol;
  }

  /** why it is tcp; null where it is not, or was not named otherwise before */
  get opaqueReason(): OpaqueReason | null {
    return this.#opaqueReason;
  }

  /** TLS: the name the client asks for (SNI); null without */
  get serverName(): string | null {
    return this.#serverName;
  }

  /** TLS: the protocols the client offers (ALPN) */
  get alpn(): readonly string[] {
    return this.#alpn;
  }

  /** offset behind the last byte of the client; while a chunk is looked at, behind that chunk */
  get bytesIn(): number {
    return this.#bytesIn;
  }

  get bytesOut(): number {
    return this.#bytesOut;
  }

  /** Requests whose answer is not complete, oldest first, pipelined ones included. Made for the call. */
  get inFlight(): readonly RequestRecord[] {
    return this.#http === null || this.#http.inFlightCount === 0 ? NO_REQUESTS : this.#http.inFlight();
  }

  get inFlightCount(): number {
    return this.#http?.inFlightCount ?? 0;
  }

  /** the one that is answered next */
  get oldest(): RequestRecord | null {
    return this.#http?.oldest ?? null;
  }

  /** HTTP requests so far; of a WebSocket, complete messages of the client */
  get requests(): number {
    return this.#webSocket?.messages ?? this.#http?.requests ?? this.#requests;
  }

  /** Nothing of a message is under way (see `inboundMessageStart`); false where messages are not known. */
  get inboundAtBoundary(): boolean {
    return (this.#http ?? this.#webSocket)?.inboundAtBoundary ?? this.#isUntouched;
  }

  get outboundAtBoundary(): boolean {
    return (this.#http ?? this.#webSocket)?.outboundAtBoundary ?? this.#isUntouched;
  }

  get #isUntouched(): boolean {
    return this.#protocol === "detecting" && this.#prefix === null;
  }

  /**
   * Offset at which the client's incomplete message began: an HTTP request; a WebSocket's data message with its fragments, or a
   * control frame outside of one. = `bytesIn` at a boundary, and where messages are not known.
   */
  get inboundMessageStart(): number {
    if (this.#http !== null) return this.#http.inboundMessageStart(this.#bytesIn);
    if (this.#webSocket !== null) return this.#webSocket.inboundMessageStart;
    return this.#protocol === "detecting" ? this.#bytesIn - (this.#prefix?.length ?? 0) : this.#bytesIn;
  }

  /** HTTP: a side has said that the connection ends with the present answer, or with one that has been given */
  get closing(): boolean {
    return this.#http?.closing ?? false;
  }

  get webSocket(): WebSocketState | null {
    return this.#webSocket;
  }

  /** Client → application, in order, each byte once. */
  inbound(chunk: Buffer): void {
    const offset = this.#bytesIn;
    this.#bytesIn += chunk.length;
    if (this.#http !== null) this.#end(this.#http.inbound(chunk, offset));
    else if (this.#webSocket !== null) this.#end(this.#webSocket.inbound(chunk));
    else if (this.#looking && chunk.length > 0) this.#look(chunk);
  }

  /** Application → client, in order, each byte once. */
  outbound(chunk: Buffer): void {
    const offset = this.#bytesOut;
    this.#bytesOut += chunk.length;
    if (this.#http !== null) {
      const reason = this.#http.outbound(chunk);
      if (reason !== null) this.#end(reason);
      else if (this.#http.switched !== null) this.#switch(this.#http, chunk, offset);
    } else if (this.#webSocket !== null) this.#end(this.#webSocket.outbound(chunk));
    else if (this.#looking && chunk.length > 0) this.#serverSpeaks();
  }

  /** The client's FIN. */
  inboundFin(): void {
    if (this.#protocol === "detecting") this.#name(true);
  }

  /** The application's FIN: an answer that was to go on until the connection ends is complete. */
  outboundFin(): void {
    this.#http?.outboundFin();
  }

  /** Where the client's frames are now, to go on with bytes that do not pass the observer: independent. Of a WebSocket only. */
  frames(hooks: FrameHooks = {}): FrameWalker {
    assert.ok(this.#webSocket !== null, `frames of ${this.#protocol}`);
    return this.#webSocket.frames(hooks);
  }

  #end(reason: OpaqueReason | null): void {
    if (reason === null) return;
    this.#requests = this.requests;
    this.#protocol = "tcp";
    this.#opaqueReason = reason;
    this.#looking = false;
    this.#prefix = null;
    this.#http = null;
    this.#webSocket = null;
    this.#hooks.onOpaque?.(reason);
  }

  #switch(http: HttpConversation, chunk: Buffer, offset: number): void {
    const { to, record, head, at } = http.switched as NonNullable<HttpConversation["switched"]>;
    this.#requests = http.requests;
    this.#http = null;
    this.#protocol = to;
    if (to === "websocket")
      this.#webSocket = new WebSocketConversation({
        hooks: this.#hooks,
        deflate: agreesOnDeflate(head),
        offsetIn: this.#bytesIn,
        offsetOut: offset + at,
      });
    this.#hooks.onUpgraded?.(record, head);
    if (this.#webSocket !== null && at < chunk.length)
      this.#end(this.#webSocket.outbound(chunk.subarray(at)));
  }

  // ---- the first bytes

  /** A server that speaks first, or in the middle of what should have been a request. */
  #serverSpeaks(): void {
    if (this.#protocol === "detecting") this.#protocol = "tcp";
    // h2: the server's preface need not wait for the client's (RFC 9113 3.4)
    if (this.#protocol === "h2") return;
    this.#looking = false;
    this.#prefix = null;
  }

  #look(chunk: Buffer): void {
    this.#prefix ??= new PartialBytes(chunk.length);
    const before = this.#prefix.length;
    this.#prefix.append(chunk, 0, Math.min(chunk.length, CLIENT_HELLO_BYTES_MAX - before));
    const protocol = this.#name(false);
    if (protocol !== "http") return;
    // the whole of what came is HTTP's, what did not fit into the prefix too
    const bytes = Buffer.concat([(this.#prefix as PartialBytes).bytes.subarray(0, before), chunk]);
    this.#prefix = null;
    this.#http = new HttpConversation(this.#hooks);
    this.#end(this.#http.inbound(bytes, this.#bytesIn - bytes.length));
  }

  /** Looks at the prefix; lets go of it when there is nothing more to learn, except of HTTP. */
  #name(done: boolean): Protocol {
    const prefix = this.#prefix?.bytes ?? Buffer.alloc(0);
    if (this.#protocol !== "tls" || this.#configured === "tls") {
      const found = detect(prefix.subarray(0, DETECT_BYTES_MAX), done);
      if (found === null) return this.#protocol;
      if (this.#configured === "tls" && found !== "tls") this.#end("not-tls");
      else if (this.#configured === "h2" && found !== "h2") this.#end("not-h2");
      else this.#protocol = found;
    }
    if (this.#protocol === "tls") {
      const hello = tlsClientHello(prefix);
      if (hello === "incomplete") return "tls";
      if (hello === "invalid") this.#end("not-tls");
      else {
        this.#serverName = hello.serverName;
        this.#alpn = hello.alpn.length === 0 ? NO_NAMES : hello.alpn.slice(0, ALPN_NAMES_MAX);
      }
    }
    this.#looking = false;
    if (this.#protocol !== "http") this.#prefix = null;
    return this.#protocol;
  }

  // ---- travelling

  /** Everything, to go on in another process; `tag`s excepted. At most 200 kB: usually about 100 bytes. */
  save(): Buffer {
    const writer = new ByteWriter(SAVED_BYTES_START);
    writer.u8(PROTOCOLS.indexOf(this.#protocol));
    writer.flag(this.#opaqueReason !== null);
    if (this.#opaqueReason !== null) writer.u8(OPAQUE_REASONS.indexOf(this.#opaqueReason));
    writer.count(this.#bytesIn);
    writer.count(this.#bytesOut);
    writer.count(this.#requests);
    writer.flag(this.#looking);
    writer.bytes(this.#prefix?.bytes ?? Buffer.alloc(0));
    writer.flag(this.#serverName !== null);
    if (this.#serverName !== null) writer.bytes(Buffer.from(this.#serverName, "latin1"));
    writer.u8(this.#alpn.length);
    for (const name of this.#alpn) writer.bytes(Buffer.from(name, "latin1"));
    this.#http?.save(writer);
    this.#webSocket?.save(writer);
    return Buffer.concat([MAGIC, writer.finish()]);
  }

  /**
   * Goes on where `save` was called; its offsets take the place of those in `options`.
   *
   * @throws HoldfastError OBSERVER_INVALID, source "peer": nothing else is thrown, whatever the bytes are
   */
  static restore(bytes: Buffer, options: ObserverOptions): Observer {
    const reader = new ByteReader(bytes, invalid);
    reader.magic(MAGIC, "it is of another version, or no observer");
    const observer = new Observer(options);
    observer.#protocol = PROTOCOLS[reader.u8(PROTOCOLS.length - 1)] as Protocol;
    if (reader.flag())
      observer.#opaqueReason = OPAQUE_REASONS[reader.u8(OPAQUE_REASONS.length - 1)] as OpaqueReason;
    observer.#bytesIn = reader.count();
    observer.#bytesOut = reader.count();
    observer.#requests = reader.count();
    observer.#looking = reader.flag();
    const prefix = reader.bytes(CLIENT_HELLO_BYTES_MAX);
    if (prefix.length > 0) {
      observer.#prefix = new PartialBytes(prefix.length);
      observer.#prefix.append(prefix, 0, prefix.length);
    }
    if (reader.flag()) observer.#serverName = reader.bytes(SERVER_NAME_BYTES_MAX).toString("latin1");
    const names: string[] = [];
    for (let left = reader.u8(ALPN_NAMES_MAX); left > 0; left--)
      names.push(reader.bytes(ALPN_BYTES_MAX).toString("latin1"));
    if (names.length > 0) observer.#alpn = names;
    const { protocol } = observer;
    observer.#http = protocol === "http" ? HttpConversation.restore(reader, options.hooks) : null;
    observer.#webSocket =
      protocol === "websocket" ? WebSocketConversation.restore(reader, options.hooks) : null;
    reader.end();
    const maybeLooking = protocol === "detecting" || protocol === "tls" || protocol === "h2";
    const most = protocol === "detecting" ? DETECT_BYTES_MAX - 1 : CLIENT_HELLO_BYTES_MAX - 1;
    reader.check(
      (!observer.#looking || maybeLooking) &&
        (protocol !== "detecting" || observer.#looking) &&
        prefix.length <= (observer.#looking ? Math.min(most, observer.#bytesIn) : 0) &&
        (observer.#opaqueReason === null || protocol === "tcp") &&
        observer.#webSocket?.isAt(observer.#bytesIn, observer.#bytesOut) !== false,
      "its parts contradict each other",
    );
    return observer;
  }
}

/** RFC 7692 5: the answer names what both will do. */
function agreesOnDeflate(head: HttpHead): boolean {
  return head
    .fields("sec-websocket-extensions")
    .some((value) => /(^|,)[ \t]*permessage-deflate[ \t]*(;|,|$)/i.test(value));
}

function invalid(why: string): HoldfastError {
  return fail(
    "OBSERVER_INVALID",
    `the saved observer is not valid: ${why}; both nodes must run the same version`,
  );
}
