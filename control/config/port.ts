/** What the keys of one port must agree on, and the port as the proxy is told it. */
import type { PortConfig, SessionNaming } from "#proxy/contract/commands.ts";
import type { FilePort, FileSession } from "./schema.ts";

const SOURCES = ["cookie", "header", "query", "subprotocol"] as const;
/** protocols without requests that could be sent again, looked at for a name or answered for the application */
const OPAQUE = new Set(["tcp", "tls", "h2"]);

/** @param fail called with the key's path below `at` and what was expected */
export function checkPort(port: FilePort, at: string, fail: (at: string, message: string) => never): void {
  const { protocol, continuity, delivery, setUp, moveBy, session, probes } = port;
  const isReplay = continuity === "replay";
  const isOpaque = OPAQUE.has(protocol);
  if (isReplay && isOpaque) {
    fail(
      `${at}.continuity`,
      `expected transplant (nothing of protocol ${protocol} can be sent again), got "replay"`,
    );
  }
  if (port.replayUnsafe && !isReplay) {
    fail(`${at}.replayUnsafe`, "expected it with continuity: replay only, got true");
  }
  if (moveBy === "replay" && !isReplay) {
    fail(`${at}.moveBy`, `expected it with continuity: replay only, got "replay"`);
  }
  if (delivery !== undefined && !isReplay) {
    fail(`${at}.delivery`, `expected it with continuity: replay only, got "${delivery}"`);
  }
  if (setUp !== undefined && !isReplay) {
    fail(`${at}.setUp`, `expected it with continuity: replay only, got ${JSON.stringify(setUp)}`);
  }
  if (probes.length > 0 && isOpaque) {
    fail(`${at}.probes`, `expected protocol auto, http or websocket with it, got "${protocol}"`);
  }
  if (session === undefined) return;
  checkSession(session, `${at}.session`, fail);
  if (isOpaque) {
    fail(`${at}.session`, `expected protocol auto, http or websocket with it, got "${protocol}"`);
  }
}

/** @param at the key's path */
export function checkSession(
  session: FileSession,
  at: string,
  fail: (at: string, message: string) => never,
): void {
  const given = SOURCES.filter((source) => session[source] !== undefined);
  if (given.length !== 1) {
    fail(
      at,
      `expected exactly one of cookie, header, query and subprotocol, got ${given.join(", ") || "none"}`,
    );
  }
  if (session.issue && session.cookie === undefined) {
    fail(`${at}.issue`, `expected it with a cookie only (nothing else can be issued), got true`);
  }
}

export function completePort(file: FilePort): PortConfig {
  const { session, delivery = "atMostOnce", setUp = "auto", proxyProtocol = null, ...port } = file;
  const { sessionsPerClientMax = Math.ceil(port.sessionsMax / 2) } = port;
  const naming = session === undefined ? null : namingOf(session);
  return { ...port, delivery, setUp, sessionsPerClientMax, naming, proxyProtocol };
}

export function namingOf(session: FileSession): SessionNaming | null {
  const from = SOURCES.find((source) => session[source] !== undefined);
  return from === undefined ? null : { from, name: session[from] ?? "", issue: session.issue };
}
