/**
 * Who may use the admin API over TCP. Loopback alone keeps nobody out: every application with the node's network, and every
 * browser that is led to a name of that address, reaches it. So a request shows the token of a file that only the agent's
 * user can read, names the very address it goes to (a page cannot make a browser do both, nor send JSON without asking first),
 * and comes from no page at all. The Unix socket needs none of this: its mode is 0600.
 */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { closeSync, constants, fstatSync, openSync, readFileSync, writeFileSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { formatEndpoint } from "../config/endpoint.ts";

const TOKEN_BYTES = 32;
const TOKEN_CHARS_MIN = 32;
const TOKEN_FILE_BYTES_MAX = 1_024;
const HTTP_PORT = 80;
/** what the metrics address offers to everybody too */
const OPEN_PATHS = ["/healthz", "/metrics"];

/**
 * The token in a file, made with one if it is not there.
 * @throws HoldfastError `ADMIN_TOKEN` for a file that others can read, or that holds none
 */
export function adminToken(file: string): string {
  const refused = (why: string, cause?: unknown): HoldfastError =>
    fail("ADMIN_TOKEN", `${file}: ${why}; remove it, and the agent makes another`, { cause });
  try {
    writeFileSync(file, `${randomBytes(TOKEN_BYTES).toString("hex")}\n`, { flag: "wx", mode: 0o600 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST")
      throw refused(`cannot be made: ${messageOf(error)}`, error);
  }
  let fd: number;
  try {
    fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    throw refused(`cannot be read: ${messageOf(error)}`, error);
  }
  try {
    const found = fstatSync(fd);
    if (!found.isFile() || found.size > TOKEN_FILE_BYTES_MAX) throw refused("it is no file with a token");
    if (found.uid !== process.getuid?.()) throw refused(`it belongs to uid ${found.uid}`);
    if ((found.mode & 0o077) !== 0)
      throw refused(`expected mode 600, got ${(found.mode & 0o777).toString(8)}`);
    const token = readFileSync(fd, "utf8").trim();
    if (!/^[!-~]+$/.test(token) || token.length < TOKEN_CHARS_MIN)
      throw refused(`expected a token of at least ${TOKEN_CHARS_MIN} printable characters`);
    return token;
  } finally {
    closeSync(fd);
  }
}

/** @throws HoldfastError `ADMIN_HOST`, `ADMIN_ORIGIN`, `ADMIN_UNAUTHORIZED`, `ADMIN_MEDIA_TYPE`, each with the cure */
export function authorize(
  request: Pick<IncomingMessage, "method" | "url" | "headers" | "rawHeaders">,
  endpoint: Endpoint,
  token: string,
): void {
  const { headers, rawHeaders } = request;
  const here = formatEndpoint(endpoint);
  const names = endpoint.port === HTTP_PORT ? [here, here.replace(/:80$/, "")] : [here];
  const hosts = rawHeaders.filter((name, index) => index % 2 === 0 && name.toLowerCase() === "host").length;
  if (hosts !== 1 || !names.includes(headers.host ?? ""))
    throw fail("ADMIN_HOST", `this is ${here} and nothing else: ask it by that address`);
  if (headers.origin !== undefined || headers["sec-fetch-site"] !== undefined)
    throw fail("ADMIN_ORIGIN", "the admin API is not for pages in a browser");
  const path = (request.url ?? "").split("?", 1)[0] ?? "";
  if (request.method === "GET" && OPEN_PATHS.includes(path)) return;
  const shown = /^Bearer ([!-~]+)$/.exec(headers.authorization ?? "")?.[1];
  if (shown === undefined || !isSame(shown, token))
    throw fail(
      "ADMIN_UNAUTHORIZED",
      "over TCP the admin API wants the token of this agent: --token-file, with admin.token of its stateDir",
    );
  if (request.method !== "GET" && !/^application\/json(;|$)/i.test(headers["content-type"] ?? ""))
    throw fail("ADMIN_MEDIA_TYPE", "expected content-type: application/json");
}

/** In a time that tells nothing of where they differ. */
function isSame(one: string, other: string): boolean {
  const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(one), digest(other));
}
