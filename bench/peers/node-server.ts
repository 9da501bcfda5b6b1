/** Starts the peers that are a Node server in a file of ours: PORT and TO say where it listens and what is behind it. */
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import type { Stage } from "../stage.ts";
import type { Behind, RunningPeer } from "./peer.ts";

export async function startNodeServer(
  stage: Stage,
  options: { name: string; version: string; file: string; to: Behind },
): Promise<RunningPeer> {
  const port = await stage.freePort();
  const child = stage.spawn([process.execPath, options.file], {
    cpu: stage.cpus.server,
    env: { PORT: String(port), TO: String(options.to.port) },
  });
  await stage.untilListening(port, child);
  return { name: options.name, version: options.version, port, pid: child.pid as number, note: null };
}

/** Of an npm package that is installed here. */
export function packageVersion(name: string): string {
  const manifest = resolve(import.meta.dirname, "../../node_modules", name, "package.json");
  return (JSON.parse(readFileSync(manifest, "utf8")) as { version: string }).version;
}

/** The server's side of it. */
export function ports(): { listen: number; to: number } {
  return { listen: Number(process.env.PORT), to: Number(process.env.TO) };
}
