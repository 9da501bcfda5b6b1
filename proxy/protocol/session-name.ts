/**
 * The name a client gives its session: in a cookie (RFC 6265), a header field, the query of the target, or a WebSocket
 * subprotocol (RFC 6455 1.9). Names lead to a workload, they authorise nothing; those in cookies of our own are signed, so that
 * nobody takes up table space with invented ones.
 */
import { Buffer } from "node:buffer";
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import type { SessionNaming } from "#proxy/contract/commands.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { HttpHead } from "./http-head.ts";

export const SESSION_NAME_BYTES_MAX = 200;
const ID_BYTES = 16;
/** printable ASCII without space, quotes, and what separates values */
const NAME = /^[!#-&(-+\--:<-~]+$/;

export interface SessionName {
  /** null: the client gives none, or none that counts */
  name: string | null;
  /** false: it gave one that does not count: too long, bad characters, two that differ, a signature that is not ours */
  valid: boolean;
}

export interface IssuedCookie {
  name: string;
  /** a whole header line without its CRLF */
  line: string;
}

const NONE: SessionName = { name: null, valid: true };
const REFUSED: SessionName = { name: null, valid: false };

/**
 * @param head of a request
 * @param keys 32 bytes each, bound to the workload: one of them has signed it; only used where `naming.issue`
 */
export function nameOf(head: HttpHead, naming: SessionNaming, keys: SharedKeys): SessionName {
  const found = new Set(given(head, naming));
  if (found.size === 0) return NONE;
  if (naming.from === "cookie" && naming.issue) {
    // one of ours may stand beside an older one of somebody else's (RFC 6265 5.4: paths, domains)
    for (const value of found) {
      const id = verified(value, naming, keys);
      if (id !== null) return { name: id, valid: true };
    }
    return REFUSED;
  }
  const [value] = found;
  if (found.size > 1 || value === undefined || !isName(value)) return REFUSED;
  return { name: value, valid: true };
}

/** A new name, and the line that gives it to the client: `Set-Cookie: NAME=id.HMAC`. */
export function issueCookie(naming: SessionNaming, key: Buffer): IssuedCookie {
  const name = randomBytes(ID_BYTES).toString("base64url");
  const value = `${name}.${signature(name, naming, key)}`;
  return { name, line: `Set-Cookie: ${naming.name}=${value}; Path=/; HttpOnly; SameSite=Lax` };
}

function isName(value: string): boolean {
  return value.length <= SESSION_NAME_BYTES_MAX && NAME.test(value);
}

/** Every value that is there, unchecked. */
function given(head: HttpHead, { from, name }: SessionNaming): string[] {
  switch (from) {
    case "header":
      return head.fields(name);
    case "cookie":
      return head
        .fields("cookie")
        .flatMap((field) => field.split(";"))
        .map((pair) => pair.trim())
        .filter((pair) => pair.startsWith(`${name}=`))
        .map((pair) => unquoted(pair.slice(name.length + 1)));
    case "query":
      return queryValues(head.target, name);
    case "subprotocol":
      return head
        .fields("sec-websocket-protocol")
        .flatMap((field) => field.split(","))
        .map((protocol) => protocol.trim())
        .filter((protocol) => protocol.startsWith(name))
        .map((protocol) => protocol.slice(name.length));
  }
}

function queryValues(target: string, name: string): string[] {
  const start = target.indexOf("?");
  if (start < 0) return [];
  const [query = ""] = target.slice(start + 1).split("#");
  return new URLSearchParams(query).getAll(name);
}

function unquoted(value: string): string {
  return /^".*"$/.test(value) ? value.slice(1, -1) : value;
}

function verified(value: string, naming: SessionNaming, keys: SharedKeys): string | null {
  const dot = value.lastIndexOf(".");
  const id = value.slice(0, dot);
  if (dot <= 0 || !isName(id)) return null;
  const got = Buffer.from(value.slice(dot + 1), "latin1");
  const isSigned = keys.some((key) => {
    const wanted = Buffer.from(signature(id, naming, key), "latin1");
    return got.length === wanted.length && timingSafeEqual(got, wanted);
  });
  return isSigned ? id : null;
}

function signature(id: string, naming: SessionNaming, key: Buffer): string {
  return createHmac("sha256", key)
    .update(`holdfast session cookie v1\0${naming.name}\0${id}`, "latin1")
    .digest("base64url");
}
