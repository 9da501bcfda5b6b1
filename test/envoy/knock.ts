/** Who lets a connection in: of links, whose taker speaks first. */
import { execFileSync } from "node:child_process";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Lab, Place } from "../lab/lab.ts";
import { connectFrom } from "./in-network.ts";

/** An Envoy that looks at what comes first waits for ever. */
const SILENT_MS = 1_000;

/** Where the laboratory's first agent takes links of a gateway's clients. */
export function linkPort({ redis }: Lab, workload = "gated"): number {
  const text = execFileSync("redis-cli", ["-s", redis.socketPath, "get", `hf:{${workload}}:link`], {
    encoding: "utf8",
  });
  return (JSON.parse(text) as { link: Endpoint }).link.port;
}

/** greeted: it has sent something; refused: it ends the connection, at once or over the bytes that come after a while of silence */
export function knock(from: Place, to: Endpoint): Promise<"greeted" | "refused"> {
  const socket = connectFrom(from, to);
  const speaking = setTimeout(() => socket.write("no greeting of anybody\n"), SILENT_MS);
  return new Promise<"greeted" | "refused">((resolve) => {
    socket.once("data", () => resolve("greeted"));
    socket.once("error", () => resolve("refused"));
    socket.once("close", () => resolve("refused"));
  }).finally(() => {
    clearTimeout(speaking);
    socket.destroy();
  });
}
