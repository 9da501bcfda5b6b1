/**
 * HAProxy of Debian, one thread: `mode tcp` passes bytes on, `mode http` requests (its default `http-reuse safe`) and, after an
 * upgrade, whatever comes. As many connections as RLIMIT_NOFILE allows, which is its default.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Peer, versionOf } from "./peer.ts";

export const haproxyTcp: Peer = haproxy("tcp");
export const haproxyHttp: Peer = haproxy("http");

function haproxy(mode: "tcp" | "http"): Peer {
  const name = `haproxy-${mode}`;
  return {
    name,
    ...(mode === "http" && { carries: ["http", "websocket"] as const }),
    async start(stage, to) {
      const version = versionOf(["haproxy", "-v"], /^HAProxy version (\S+)/);
      const port = await stage.freePort();
      const directory = join(stage.directory, `${name}-${port}`);
      mkdirSync(directory);
      const file = join(directory, "haproxy.cfg");
      writeFileSync(
        file,
        `global
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
      );
      const child = stage.spawn(["haproxy", "-db", "-q", "-f", file], { cpu: stage.cpus.server });
      await stage.untilListening(port, child);
      return { name, version, port, pid: child.pid as number, note: null };
    },
  };
}
