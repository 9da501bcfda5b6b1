/**
 * nginx of Debian: `stream` passes bytes on, `http` requests (on connections to the application that are kept alive),
 * and WebSockets as its documentation says ("WebSocket proxying"); bodies go through memory, not through files. One process, no master and no workers, with a configuration and folders of its own.
 */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Stage } from "../stage.ts";
import { MissingPeer, type Peer, type RunningPeer, versionOf } from "./peer.ts";

/** two for each session; more than RLIMIT_NOFILE is not there to be had */
const CONNECTIONS_MAX = 32_768;
const STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so";

export const nginxStream: Peer = {
  name: "nginx-stream",
  start(stage, to) {
    if (!existsSync(STREAM_MODULE))
      throw new MissingPeer(`no ${STREAM_MODULE}; scripts/setup.sh bench installs it`);
    return startPeer(
      stage,
      "nginx-stream",
      (port) => `load_module ${STREAM_MODULE};
stream {
  tcp_nodelay on;
  server { listen 127.0.0.1:${port} backlog=4096; proxy_pass 127.0.0.1:${to.port}; proxy_timeout 1h; }
}`,
    );
  },
};

export const nginxHttp: Peer = {
  name: "nginx-http",
  carries: ["http", "websocket"],
  start: (stage, to) =>
    startPeer(
      stage,
      "nginx-http",
      (port, directory) => `http {
  ${httpSettings(directory)}
  map $http_upgrade $upgrade_or_none { default upgrade; "" ""; }
  upstream application { server 127.0.0.1:${to.port}; keepalive 1024; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:${port} backlog=4096;
    client_max_body_size 0; proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_read_timeout 1h;
    location / {
      proxy_pass http://application; proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgrade_or_none;
    }
  }
}`,
    ),
};

async function startPeer(
  stage: Stage,
  name: string,
  config: (port: number, directory: string) => string,
): Promise<RunningPeer> {
  const version = nginxVersion();
  const port = await stage.freePort();
  const pid = await startNginx(stage, {
    name: `${name}-${port}`,
    cpu: stage.cpus.server,
    port,
    config: (directory) => config(port, directory),
  });
  return { name, version, port, pid, note: null };
}

/** @throws MissingPeer */
export function nginxVersion(): string {
  return versionOf(["nginx", "-v"], /nginx\/(\S+)/);
}

/** Of the `http` block: nothing outside of `directory`, no log, connections that stay. */
export function httpSettings(directory: string): string {
  const folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  return `access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 1h;
  ${folders.map((folder) => `${folder}_temp_path ${directory};`).join(" ")}`;
}

/** Resolves with its PID when it listens. */
export async function startNginx(
  stage: Stage,
  options: { name: string; cpu: number; port: number; config: (directory: string) => string },
): Promise<number> {
  const directory = join(stage.directory, options.name);
  mkdirSync(directory);
  const file = join(directory, "nginx.conf");
  writeFileSync(
    file,
    `${options.config(directory)}
daemon off; master_process off; pid ${directory}/pid; error_log stderr warn;
events { worker_connections ${CONNECTIONS_MAX}; }
`,
  );
  const child = stage.spawn(["nginx", "-p", directory, "-c", file, "-e", "stderr"], { cpu: options.cpu });
  await stage.untilListening(options.port, child);
  return child.pid as number;
}
