/**
 * A WebSocket handshake, kept to be made again (RFC 6455 4): the client's request as it was, and what the application's
 * answer settled. Another instance of the application has to settle the same, or the client's socket means something else.
 */
import type { HttpHead } from "../protocol/http-head.ts";

const ANSWER_BYTES_MAX = 64 * 1024;
const END_OF_HEAD = "\r\n\r\n";

export interface Agreement {
  accept: string | null;
  protocol: string | null;
  extensions: string;
}

export interface Handshake {
  request: Buffer;
  agreed: Agreement;
}

export function agreementOf(head: Pick<HttpHead, "field" | "fields">): Agreement {
  return {
    accept: head.field("sec-websocket-accept"),
    protocol: head.field("sec-websocket-protocol"),
    extensions: normal(head.fields("sec-websocket-extensions").join(",")),
  };
}

/** Gathers the answer to a repeated handshake. */
export class HandshakeAnswer {
  #bytes: Buffer = Buffer.alloc(0);

  /** undefined: not complete; null: it is none; else what it agreed to, and the bytes behind it */
  feed(chunk: Buffer): undefined | null | { agreed: Agreement; rest: Buffer } {
    this.#bytes = Buffer.concat([this.#bytes, chunk]);
    const end = this.#bytes.indexOf(END_OF_HEAD);
    if (end < 0) return this.#bytes.length > ANSWER_BYTES_MAX ? null : undefined;
    const [statusLine = "", ...lines] = this.#bytes.toString("latin1", 0, end).split("\r\n");
    if (!/^HTTP\/1\.1 101(?: |$)/.test(statusLine)) return null;
    const fields = lines.map((line) => {
      const colon = line.indexOf(":");
      return { name: line.slice(0, colon).toLowerCase(), value: line.slice(colon + 1).trim() };
    });
    const all = (name: string) => fields.filter((field) => field.name === name).map(({ value }) => value);
    const agreed = agreementOf({ fields: all, field: (name) => all(name)[0] ?? null });
    return { agreed, rest: this.#bytes.subarray(end + END_OF_HEAD.length) };
  }
}

export function agrees(before: Agreement, now: Agreement): boolean {
  return (
    before.accept === now.accept && before.protocol === now.protocol && before.extensions === now.extensions
  );
}

/** Without what the proxy itself may have told the client (`protocol-filter.ts`), which binds the client only. */
function normal(extensions: string): string {
  return extensions
    .split(",")
    .map((one) =>
      one
        .replaceAll(/\s*;\s*/g, ";")
        .trim()
        .toLowerCase(),
    )
    .map((one) => one.replace(/;client_no_context_takeover(?=;|$)/, ""))
    .filter((one) => one !== "")
    .join(",");
}
