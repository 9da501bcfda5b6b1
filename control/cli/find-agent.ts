/** Which agent a command talks to: `--agent`, else HOLDFAST_AGENT, else the only socket on this machine. */
import { globSync, readFileSync, statSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";

export type AgentAddress = { type: "socket"; path: string } | { type: "http"; url: string };

export const SOCKET_PATTERNS = ["/var/lib/holdfast/*/agent.sock", "/run/holdfast/*.sock"];

/** @throws HoldfastError `AGENT_NOT_FOUND`, `AGENT_AMBIGUOUS`, `USAGE_AGENT` */
export function findAgent(given: string | undefined, patterns: string[] = SOCKET_PATTERNS): AgentAddress {
  if (given !== undefined && given !== "") return parseAgent(given);
  const found = patterns.flatMap((pattern) => globSync(pattern)).filter(isSocket);
  const [path] = found;
  if (path === undefined) {
    throw fail(
      "AGENT_NOT_FOUND",
      "no agent found on this node: start one with `holdfast agent --config FILE`, or name it with --agent SOCKET",
    );
  }
  if (found.length > 1) {
    throw fail(
      "AGENT_AMBIGUOUS",
      `several agents are here, say which with --agent: ${found.sort().join(", ")}`,
    );
  }
  return { type: "socket", path };
}

/** @param file null: none. @throws HoldfastError `USAGE_TOKEN` */
export function readToken(file: string | undefined): string | null {
  if (file === undefined || file === "") return null;
  const refused = (why: string, cause?: unknown): HoldfastError =>
    fail("USAGE_TOKEN", `--token-file: ${why}`, { cause });
  let text: string;
  try {
    text = readFileSync(file, "utf8").trim();
  } catch (cause) {
    throw refused(`${file} cannot be read: ${messageOf(cause)}`, cause);
  }
  if (!/^[!-~]{1,1000}$/.test(text)) throw refused(`${file} holds no token`);
  return text;
}

function parseAgent(text: string): AgentAddress {
  if (/^http:\/\//.test(text) && URL.canParse(text)) return { type: "http", url: new URL(text).origin };
  const path = text.replace(/^unix:/, "");
  if (/^\.{0,2}\//.test(path)) return { type: "socket", path };
  if (/^[^/\s]+:\d+$/.test(text) && URL.canParse(`http://${text}`))
    return { type: "http", url: `http://${text}` };
  throw fail(
    "USAGE_AGENT",
    `--agent: expected the path of a socket or http://HOST:PORT, got ${JSON.stringify(text)}`,
  );
}

function isSocket(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isSocket() ?? false;
}
