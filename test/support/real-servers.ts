/**
 * HTTP servers that others wrote, each as an application that tells what it has seen: one line for each of its
 * connections, with every request (or failure) on it in order. What one server makes of bytes is its own business; that it
 * makes the same of them whichever way they came is what is compared.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { type AddressInfo, connect, createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { listSockets } from "#proxy/kernel/diag.ts";
import { until } from "./moved-program.ts";

export interface RealServer {
  port: number;
  /** it ends no connection by itself: its client has to */
  waitsForEnd: boolean;
  /** A connection may be over for its client before the server has logged it: it is when the server has closed it, too. */
  settled?(): Promise<void>;
  /** what was seen since the last call, one line a connection, sorted; connections without anything to tell are left out */
  seen(): string[];
  stop(): Promise<void>;
}

/** Long for a server that has everything to read already, short for one that waits for what never comes. */
const PATIENCE_MS = 1_500;

const digest = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex").slice(0, 16);

export async function startNodeServer(): Promise<RealServer> {
  const perConnection = new Map<unknown, string[]>();
  const note = (socket: unknown, line: string): void => {
    const lines = perConnection.get(socket);
    if (lines === undefined) perConnection.set(socket, [line]);
    else lines.push(line);
  };
  const server = createServer(
    {
      headersTimeout: PATIENCE_MS,
      requestTimeout: PATIENCE_MS,
      keepAliveTimeout: PATIENCE_MS,
      connectionsCheckingInterval: 100,
    },
    (request, response) => {
      const head = [request.method, request.url, request.httpVersion, ...request.rawHeaders].join(" ");
      const line = `${request.method} ${request.url?.slice(0, 40)} ${digest(Buffer.from(head))}`;
      const parts: Buffer[] = [];
      request.on("data", (part: Buffer) => parts.push(part));
      request.on("error", () =>
        note(request.socket, `${line} cut off after ${digest(Buffer.concat(parts))}`),
      );
      request.on("end", () => {
        const body = Buffer.concat(parts);
        note(request.socket, `${line} ${body.length} ${digest(body)}`);
        response.end(`${line} ${body.length} ${digest(body)}\n`);
      });
    },
  );
  server.on("clientError", (error: NodeJS.ErrnoException, socket) => {
    // Told again for each further chunk, however many those are.
    const line = error.code ?? error.message;
    if (perConnection.get(socket)?.at(-1) !== line) note(socket, line);
    if (socket.writable) socket.end(`HTTP/1.1 400 ${error.code}\r\nConnection: close\r\n\r\n`);
  });
  server.timeout = 2 * PATIENCE_MS;
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    waitsForEnd: false,
    seen() {
      const lines = [...perConnection.values()].map((each) => each.join("; "));
      perConnection.clear();
      return lines.sort();
    },
    async stop() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

/** A port that nobody listens on now. */
async function freePort(): Promise<number> {
  const server = createTcpServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

async function untilListening(port: number, child: ChildProcess, name: string): Promise<void> {
  for (;;) {
    const socket = connect(port, "127.0.0.1");
    try {
      await once(socket, "connect");
      socket.destroy();
      return;
    } catch {
      if (child.exitCode !== null) throw new Error(`${name} ended with ${child.exitCode}`);
      await delay(10);
    }
  }
}

interface Program {
  name: string;
  argv(port: number, directory: string): string[];
  /** written to `directory/config` first */
  config?(port: number, directory: string): string;
  waitsForEnd: boolean;
  /** a line of `directory/log` → the connection's name and what was seen, or null */
  read(line: string): [connection: string, seen: string] | null;
}

async function startProgram(program: Program): Promise<RealServer> {
  const directory = mkdtempSync(join(tmpdir(), `holdfast-${program.name}-`));
  const log = join(directory, "log");
  writeFileSync(log, "");
  const port = await freePort();
  if (program.config !== undefined) writeFileSync(join(directory, "config"), program.config(port, directory));
  const [command = "", ...args] = program.argv(port, directory);
  const child = spawn(command, args, { stdio: ["ignore", "ignore", "inherit"], cwd: directory });
  await untilListening(port, child, program.name);
  return {
    port,
    waitsForEnd: program.waitsForEnd,
    settled: () =>
      until(`${program.name} has closed its connections`, () =>
        listSockets({ localPort: port }).every(({ state, inode }) => state === "LISTEN" || inode === 0),
      ),
    seen() {
      const connections = new Map<string, string[]>();
      for (const line of readFileSync(log, "latin1").split("\n")) {
        const [connection, seen] = program.read(line) ?? [];
        if (connection === undefined || seen === undefined) continue;
        connections.set(connection, [...(connections.get(connection) ?? []), seen]);
      }
      truncateSync(log);
      return [...connections.values()].map((each) => each.join("; ")).sort();
    },
    async stop() {
      const ended = once(child, "exit");
      child.kill("SIGTERM");
      await ended;
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

const PATIENCE = `${PATIENCE_MS}ms`;

export const startNginx = (): Promise<RealServer> =>
  startProgram({
    name: "nginx",
    argv: (_, directory) => ["nginx", "-c", join(directory, "config"), "-p", directory],
    config: (port, directory) => `user root;
daemon off;
worker_processes 1;
pid ${directory}/pid;
error_log ${directory}/errors;
events { worker_connections 2048; }
http {
  log_format seen escape=json '$connection $request | $status $http_content_length $http_transfer_encoding $http_host $http_x';
  access_log ${directory}/log seen;
  client_header_timeout ${PATIENCE};
  client_body_timeout ${PATIENCE};
  keepalive_timeout ${PATIENCE};
  keepalive_requests 100000;
  lingering_timeout 200ms;
  client_body_temp_path ${directory}/body;
  server {
    listen 127.0.0.1:${port};
    default_type text/plain;
    return 200 "$request_method $request_uri $http_content_length $http_transfer_encoding $http_host\\n";
  }
}
`,
    waitsForEnd: false,
    read(line) {
      const at = line.indexOf(" ");
      return at < 0 ? null : [line.slice(0, at), line.slice(at + 1)];
    },
  });

/** Reads leniently where others refuse: `Content-Length: +5`, LF, and no Transfer-Encoding at all. */
const PYTHON_SERVER = `
import http.server, sys
log = open("log", "a", buffering=1)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        length = self.headers.get("content-length", "0")
        body = self.rfile.read(int(length)) if length.strip().isdigit() else b""
        seen = "%s %s %d" % (ascii(self.command), ascii(self.path)[:60], len(body))
        print(self.client_address[1], seen, file=log)
        self.send_response(200)
        self.send_header("Content-Length", str(len(seen)))
        self.end_headers()
        self.wfile.write(seen.encode())
    do_GET = do_POST = do_HEAD = do_DELETE = answer
    def log_message(self, form, *args):
        print(self.client_address[1], ascii(form % args)[:200], file=log)
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    def handle_error(self, request, address):
        print(address[1], "failed with", sys.exc_info()[0].__name__, file=log)
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
`;

export const startPython = (): Promise<RealServer> =>
  startProgram({
    name: "python3",
    argv: (port, directory) => ["python3", join(directory, "config"), String(port)],
    config: () => PYTHON_SERVER,
    waitsForEnd: true,
    read(line) {
      const at = line.indexOf(" ");
      return at < 0 ? null : [line.slice(0, at), line.slice(at + 1)];
    },
  });
