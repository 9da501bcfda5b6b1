/**
 * HAProxy of Debian, one thread: `mode tcp` passes bytes on, `mode http` requests (its default `http-reuse safe`) and, after an
 * upgrade, whatever comes. As many connections as RLIMIT_NOFILE allows, which is its default.
 */
import type { ChildProcess } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Stage } from "../stage.ts";
import { type Peer, versionOf } from "./peer.ts";

export const haproxyTcp: Peer = haproxy("tcp");
export const haproxyHttp: Peer = haproxy("http");

/** @throws MissingPeer */
export function haproxyVersion(): string {
  return versionOf(["haproxy", "-v"], /^HAProxy version (\S+)/);
}

/** In the foreground, on the contenders' CPU. @param options.name of its folder; of one stage each has another */
export async function startHaproxy(
  stage: Stage,
  options: { name: string; port: number; config: string },
): Promise<ChildProcess> {
  const directory = join(stage.directory, options.name);
  mkdirSync(directory);
  const file = join(directory, "haproxy.cfg");
  writeFileSync(file, options.config);
  const child = stage.spawn(["haproxy", "-db", "-q", "-f", file], { cpu: stage.cpus.server });
  await stage.untilListening(options.port, child);
  return child;
}

function haproxy(mode: "tcp" | "http"): Peer {
  const name = `haproxy-${mode}`;
  return {
    name,
    ...(mode === "http" && { carries: ["http", "websocket"] as const }),
    async start(stage, to) {
      const version = haproxyVersion();
      const port = await stage.freePort();
      const child = await startHaproxy(stage, {
        name: `${name}-${port}`,
        port,
        config: `global
  nbthread 1
defaults
  mode ${mode}
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
listen all
  bind 127.0.0.1:${port} backlog 4096
  server application 127.0.0.1:${to.port}
`,
      });
      return { name, version, port, pid: child.pid as number, note: null };
    },
  };
}
