/**
 * What is known of one session's bytes, on the node that has its application: the observer, the session's name, answers to
 * health checks worth remembering, and, on `replay` ports, the replay.
 *
 * Bytes pass unchanged, with two exceptions, both configured, both in the head of the first answer: the cookie that names
 * the session, and `client_no_context_takeover` for a WebSocket that is to survive a restart.
 */
import type { PortConfig, SessionInfo } from "../contract/commands.ts";
import type { SharedKeys } from "../contract/shared-keys.ts";
import type { HttpHead } from "../protocol/http-head.ts";
import { Observer, type RequestRecord } from "../protocol/observer.ts";
import type { OpaqueReason } from "../protocol/opaque-reason.ts";
import { type HeadEdit, ResponseHeadEditor } from "../protocol/response-head-editor.ts";
import { issueCookie, nameOf } from "../protocol/session-name.ts";
import { PlainRequest } from "../protocol/stored-answer.ts";
import type { Carrier, ReplayHost } from "./replay-host.ts";
import { decodeFilter, encodeFilter } from "./saved-filter.ts";
import { SessionReplay } from "./session-replay.ts";

const EXTENSIONS = "Sec-WebSocket-Extensions";
const NO_TAKEOVER = "client_no_context_takeover";
const NO_BYTES: Buffer = Buffer.alloc(0);
/** of an answer to a health check; a longer one is not remembered */
const PROBE_ANSWER_BYTES_MAX = 64 * 1024;

export interface ProtocolFilterHost extends ReplayHost {
  /** the first signs, all are accepted */
  readonly cookieKeys: SharedKeys;
  onOpaque(reason: OpaqueReason): void;
  /** the application's answer to a health check */
  onProbeAnswer(port: PortConfig, check: PlainRequest, answer: Buffer): void;
}

export interface WatchOptions {
  carrier: Carrier;
  host: ProtocolFilterHost;
  port: PortConfig;
  /** of another proxy's {@link ProtocolFilter.save}; null: a new session. @throws HoldfastError when malformed */
  saved: Buffer | null;
}

export class ProtocolFilter {
  readonly replay: SessionReplay | null;
  name: string | null = null;
  readonly #carrier: Carrier;
  readonly #host: ProtocolFilterHost;
  readonly #port: PortConfig;
  readonly #observer: Observer;
  #editor: ResponseHeadEditor | null = null;
  #cookieLine: string | null = null;
  #probe: { record: RequestRecord; check: PlainRequest; bytes: Buffer[]; length: number } | null = null;

  constructor(options: WatchOptions) {
    const { carrier, host, port } = options;
    this.#carrier = carrier;
    this.#host = host;
    this.#port = port;
    const saved = options.saved === null ? null : decodeFilter(options.saved);
    const observed = { protocol: port.protocol, hooks: this };
    this.#observer = saved === null ? new Observer(observed) : Observer.restore(saved.observer, observed);
    this.name = saved?.name ?? null;
    this.replay =
      port.continuity === "transplant"
        ? null
        : new SessionReplay({ carrier, host, port, observer: this.#observer, saved: saved?.replay ?? null });
    if (this.replay !== null && saved !== null) this.replay.noTakeover = saved.noTakeover;
    if (this.#edits && this.#observer.bytesOut === 0) this.#editor = this.#newEditor();
  }

  get info(): Pick<SessionInfo, "protocol" | "name" | "requestsInFlight" | "requests"> {
    const { protocol, inFlightCount, requests } = this.#observer;
    return { protocol, name: this.name, requestsInFlight: inFlightCount, requests };
  }

  save(): Buffer {
    return encodeFilter({
      observer: this.#observer.save(),
      name: this.name,
      noTakeover: this.replay?.noTakeover ?? false,
      replay: this.replay?.save() ?? null,
    });
  }

  // ---- bytes

  fromClient(chunk: Buffer): void {
    if (this.replay !== null) this.replay.fromClient(chunk);
    else {
      this.#observer.inbound(chunk);
      this.#carrier.inbound.receive(chunk);
    }
  }

  clientFin(): void {
    if (this.replay !== null) this.replay.clientFin();
    else {
      this.#observer.inboundFin();
      this.#carrier.inbound.receiveFin();
    }
  }

  fromApplication(chunk: Buffer): void {
    // Nothing that is not HTTP is held back.
    if (this.#editor !== null && this.#observer.protocol !== "http") this.#flushEditor();
    if (this.#editor === null) {
      this.#toClient(chunk);
      return;
    }
    const edited = this.#editor.push(chunk);
    if (this.#editor.done) this.#editor = null;
    if (edited.length > 0) this.#toClient(edited);
  }

  #toClient(chunk: Buffer): void {
    if (this.#port.probes.length > 0) this.#record(chunk);
    this.#observer.outbound(chunk);
    this.#carrier.outbound.receive(chunk);
    this.replay?.afterFeed();
  }

  /** True: hidden from the client, the session waits for another instance of the application. */
  applicationGone(how: "fin" | "reset" | "cut"): boolean {
    if (this.replay?.applicationGone(how) === true) {
      // The part of a head that is still in here the client will never see.
      if (this.#editor !== null) this.#editor = this.#newEditor();
      this.#probe = null;
      return true;
    }
    if (how === "cut") return false;
    this.#flushEditor();
    if (how === "fin" && this.replay === null) this.#observer.outboundFin();
    return false;
  }

  /** The session will not go on with this instance of the application. False: it has to, an answer has begun. */
  cut(): boolean {
    return this.#carrier.isWaiting || this.applicationGone("cut");
  }

  #flushEditor(): void {
    const rest = this.#editor?.flush() ?? NO_BYTES;
    this.#editor = null;
    if (rest.length > 0) this.#toClient(rest);
  }

  /** Before a capture: nothing of the session is in here but what `save` gives. */
  settle(): void {
    this.#flushEditor();
    this.replay?.settle();
  }

  stop(): void {
    this.replay?.stop();
  }

  // ---- hooks of the observer

  onRequest(record: RequestRecord, head: HttpHead): void {
    const { naming, probes } = this.#port;
    const isCheck = probes.length > 0 && isProbe(head, probes);
    if (naming !== null) {
      const found = nameOf(head, naming, this.#host.cookieKeys);
      if (found.name !== null) this.name = found.name;
      else if (naming.issue && this.name === null && !isCheck) {
        const cookie = issueCookie(naming, this.#host.cookieKeys[0]);
        this.name = cookie.name;
        this.#cookieLine = cookie.line;
      }
    }
    // Of pipelined ones the bytes of one answer are not told apart here.
    const check = isCheck ? PlainRequest.of(head) : null;
    if (check !== null && this.#observer.oldest === record)
      this.#probe = { record, check, bytes: [], length: 0 };
  }

  onRequestEnd(record: RequestRecord): void {
    this.replay?.onRequestEnd(record);
  }

  onAnswered(record: RequestRecord): void {
    if (this.#probe?.record === record) {
      const { check, bytes, length } = this.#probe;
      this.#probe = null;
      // Without a byte from the application it is our own refusal.
      if (length > 0) this.#host.onProbeAnswer(this.#port, check, Buffer.concat(bytes));
    }
    this.replay?.onAnswered(record);
  }

  onUpgraded(record: RequestRecord, head: HttpHead): void {
    this.replay?.onUpgraded(record, head);
  }

  onMessage(direction: "in" | "out", start: number, end: number): void {
    this.replay?.onMessage(direction, start, end);
  }

  onOpaque(reason: OpaqueReason): void {
    this.#host.onOpaque(reason);
  }

  #record(chunk: Buffer): void {
    if (this.#probe === null) return;
    this.#probe.bytes.push(Buffer.from(chunk));
    this.#probe.length += chunk.length;
    if (this.#probe.length > PROBE_ANSWER_BYTES_MAX || this.#observer.inFlightCount > 1) this.#probe = null;
  }

  // ---- the first answer's head

  get #edits(): boolean {
    return this.#port.naming?.issue === true || this.replay !== null;
  }

  #newEditor(): ResponseHeadEditor {
    return new ResponseHeadEditor((head) => this.#edit(head));
  }

  #edit(head: HttpHead): HeadEdit {
    const edit: HeadEdit = {};
    if (this.#cookieLine !== null) edit.append = [this.#cookieLine];
    const extensions = head.fields(EXTENSIONS);
    if (this.replay !== null && head.status === 101 && extensions.length === 1) {
      const [value = ""] = extensions;
      if (/^\s*permessage-deflate\b[^,]*$/i.test(value)) {
        this.replay.noTakeover = true;
        if (!value.includes(NO_TAKEOVER)) edit.replace = [[EXTENSIONS, `${value}; ${NO_TAKEOVER}`]];
      }
    }
    return edit;
  }
}

/** Whether this request is a health check: of one of these paths, with whatever query. */
export function isProbe(head: HttpHead, probes: readonly string[]): boolean {
  if (head.method !== "GET" && head.method !== "HEAD") return false;
  return probes.includes(head.target.split("?", 1)[0] ?? "");
}
