/**
 * The peers as somebody would set them up who expects the application behind them to be restarted: each with all it has
 * for that. What they cannot do without a second application (there is one, as there is one of what has state) is not held
 * against them by a setting, but shows in the figures.
 */
import { direct } from "../peers/direct.ts";
import { envoyHttpWith } from "../peers/envoy.ts";
import { haproxyVersion, startHaproxy } from "../peers/haproxy.ts";
import { startHoldfast } from "../peers/holdfast.ts";
import { httpProxy } from "../peers/http-proxy.ts";
import { httpSettings, nginxVersion, startNginx } from "../peers/nginx.ts";
import type { Peer, RunningPeer } from "../peers/peer.ts";
import type { Stage } from "../stage.ts";

export interface RestartPeer {
  readonly name: string;
  /** @throws MissingPeer */
  start(stage: Stage, to: { port: number }): Promise<RunningRestartPeer>;
}

export interface RunningRestartPeer extends RunningPeer {
  /** it is told of a restart on command: before the application is asked to end, and when the next one listens */
  pause?(): Promise<void>;
  resume?(): Promise<void>;
  end(): Promise<void>;
}

const RETRIES = 20;
/** nginx and HAProxy choose another server for another try: it is the same one again */
const SERVERS = 4;
const DRAIN_MS = 1_000;
const EPOCH = 1;

const holdfastReplay: RestartPeer = {
  name: "holdfast-replay",
  async start(stage, to) {
    const { proxy, ports: listening } = await startHoldfast(stage, {
      name: "restart",
      ports: [{ to: to.port, protocol: "http", continuity: "replay" }],
    });
    return {
      name: "holdfast-replay",
      version: `this checkout, Node ${process.version}`,
      port: listening[0] as number,
      pid: proxy.process.pid as number,
      note: null,
      pause: async () => void (await proxy.call("pause", { epoch: EPOCH, drainMs: DRAIN_MS })),
      resume: async () => void (await proxy.call("resume", { epoch: EPOCH })),
      end: () => proxy.kill(),
    };
  },
};

/**
 * A refused connection is tried again after a second (`retries`, to the same server); `retry-on` sends requests again, those
 * that are not idempotent too, as its manual warns.
 */
const haproxy: RestartPeer = {
  name: "haproxy-http",
  async start(stage, to) {
    const version = haproxyVersion();
    const port = await stage.freePort();
    const child = await startHaproxy(stage, {
      name: `restart-haproxy-${port}`,
      port,
      config: `global
  nbthread 1
  maxconn 4096
defaults
  mode http
  option redispatch 1
  retries ${RETRIES}
  retry-on all-retryable-errors
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
listen all
  bind 127.0.0.1:${port} backlog 4096
  server application 127.0.0.1:${to.port}
`,
    });
    return {
      name: "haproxy",
      version,
      port,
      pid: child.pid as number,
      note: null,
      end: () => stage.end(child),
    };
  },
};

/** It tries again at once or not at all, and what is not idempotent only where the connection was refused. */
const nginx: RestartPeer = {
  name: "nginx-http",
  async start(stage, to) {
    const version = nginxVersion();
    const port = await stage.freePort();
    const server = `server 127.0.0.1:${to.port} max_fails=0;`;
    const pid = await startNginx(stage, {
      name: `restart-nginx-${port}`,
      cpu: stage.cpus.server,
      port,
      config: (directory) => `http {
  ${httpSettings(directory)}
  map $http_upgrade $connection_to_application { default upgrade; "" ""; }
  upstream application { ${server.repeat(SERVERS)} keepalive 1024; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location / {
      proxy_pass http://application; proxy_http_version 1.1; proxy_read_timeout 1h;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_to_application;
      proxy_next_upstream error timeout http_502 http_503 http_504; proxy_next_upstream_tries ${SERVERS};
    }
  }
}`,
    });
    return ended({ name: "nginx-http", version, port, pid, note: null });
  },
};

function of(peer: Peer): RestartPeer {
  return { name: peer.name, start: async (stage, to) => ended(await peer.start(stage, to)) };
}

function ended(running: RunningPeer): RunningRestartPeer {
  const { pid } = running;
  return { ...running, end: async () => void (pid !== null && process.kill(pid, "SIGKILL")) };
}

export const restartPeers: readonly RestartPeer[] = [
  of(direct),
  holdfastReplay,
  of(
    envoyHttpWith({
      route: {
        retry_policy: {
          retry_on: "connect-failure,refused-stream,reset",
          num_retries: RETRIES,
          retry_back_off: { base_interval: "0.025s", max_interval: "0.25s" },
        },
      },
      // Otherwise a WebSocket client hears of its lost connection after a second.
      manager: { delayed_close_timeout: "0s" },
    }),
  ),
  haproxy,
  nginx,
  // It has nothing for that.
  of(httpProxy),
];
