/**
 * Which of a gateway's routes a connection takes, told from the client's first bytes, which pass on unchanged. Pure.
 *
 *   TLS       the name in its ClientHello (RFC 6066 3)
 *   HTTP/1    Host, or the target where it has one (RFC 9112 3.2.2), and the path of the first request
 *   else      only routes that name nothing
 *
 * It leads, and authorises nothing: a later request of the same connection may name another host, and goes where the first one went.
 */
import { type GatewayRoute, isAnyRoute } from "../contract/gateway.ts";
import { detect, tlsClientHello } from "./detect.ts";
import { HEAD_BYTES_MAX, HeadParser, HttpHead } from "./http-head.ts";

/** more of a connection is not read to find its route */
export const ROUTE_BYTES_MAX = HEAD_BYTES_MAX;

export type RouteChoice =
  | { is: "incomplete" }
  /** `head`: of its request, where it is HTTP and complete; a view of the bytes given */
  | { is: "route"; route: GatewayRoute; head: HttpHead | null }
  | { is: "none"; why: string };

const INCOMPLETE: RouteChoice = { is: "incomplete" };

/** Of one connection. */
export class RouteChooser {
  readonly #routes: readonly GatewayRoute[];
  readonly #parser = new HeadParser();
  #isParsing = false;

  constructor(routes: readonly GatewayRoute[]) {
    this.#routes = routes;
  }

  /**
   * @param bytes everything the client has sent so far, the same as before and perhaps more
   * @param done no more of it will come before the answer is needed
   */
  choose(bytes: Buffer, done: boolean): RouteChoice {
    const isLast = done || bytes.length >= ROUTE_BYTES_MAX;
    const protocol = detect(bytes, isLast);
    if (protocol === null) return INCOMPLETE;
    if (protocol === "tls") return this.#byName(bytes, isLast);
    if (protocol === "http") return this.#byRequest(bytes, isLast);
    return this.#otherwise(`it is ${protocol}`);
  }

  #byName(bytes: Buffer, isLast: boolean): RouteChoice {
    const hello = tlsClientHello(bytes);
    if (hello === "incomplete" && !isLast) return INCOMPLETE;
    const name = typeof hello === "string" ? null : (hello.serverName?.toLowerCase() ?? null);
    const route = this.#routes.find(
      (one) => isAnyRoute(one) || (one.sni !== null && name !== null && isNamed(one.sni, name)),
    );
    if (route !== undefined) return { is: "route", route, head: null };
    return none(name === null ? "its ClientHello names nobody" : `its ClientHello names ${name}`);
  }

  #byRequest(bytes: Buffer, isLast: boolean): RouteChoice {
    if (!this.#isParsing) this.#parser.reset(true);
    this.#isParsing = true;
    const verdict = this.#parser.parse(bytes, 0, bytes.length);
    if (verdict === "incomplete" && !isLast) return INCOMPLETE;
    if (verdict !== "complete") return this.#otherwise("its request cannot be read");
    const head = new HttpHead(bytes, 0, this.#parser.headBytes);
    const asked = placeOf(head);
    if (asked === null) return this.#otherwise("its request names no host, or several");
    const route = this.#routes.find((one) => matches(one, asked));
    if (route !== undefined) return { is: "route", route, head };
    return none(`its request is for ${asked.host}${asked.path}`);
  }

  #otherwise(why: string): RouteChoice {
    const route = this.#routes.find(isAnyRoute);
    return route === undefined ? none(why) : { is: "route", route, head: null };
  }
}

function none(why: string): RouteChoice {
  return { is: "none", why };
}

interface Place {
  host: string;
  path: string;
}

function placeOf(head: HttpHead): Place | null {
  const { target } = head;
  const [, authority, rest] = /^https?:\/\/([^/?#]*)(.*)$/i.exec(target) ?? [];
  const hosts = head.fields("host");
  if (hosts.length > 1) return null;
  const host = hostIn(authority ?? hosts[0] ?? "");
  const path = ((authority === undefined ? target : rest) ?? "").split(/[?#]/)[0] ?? "";
  return { host, path: path === "" ? "/" : path };
}

/** "Chat.Example:8080" → "chat.example"; "[::1]:80" → "::1" */
function hostIn(authority: string): string {
  const [, six, other] = /^(?:\[([^\]]*)\]|([^:]*))(?::\d*)?$/.exec(authority) ?? [];
  return (six ?? other ?? "").toLowerCase();
}

function matches(route: GatewayRoute, { host, path }: Place): boolean {
  if (route.sni !== null) return false;
  if (route.host !== null && !isNamed(route.host, host)) return false;
  return route.path === null || isBelow(path, route.path);
}

function isNamed(names: readonly string[], name: string): boolean {
  // a name may end with a dot that says that it is complete
  const plain = name.endsWith(".") ? name.slice(0, -1) : name;
  return names.some((one) =>
    one.startsWith("*.") ? plain.endsWith(one.slice(1)) && plain.length > one.length - 1 : plain === one,
  );
}

function isBelow(path: string, prefix: string): boolean {
  if (!path.startsWith(prefix)) return false;
  return prefix.endsWith("/") || path.length === prefix.length || path[prefix.length] === "/";
}
