/**
 * Servers as their languages bring them along: Python's threads and Go's net/http, over IPv4 and IPv6, in a view of the
 * host, in a folder of their own and in an OCI bundle made by runc.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Client } from "undici";
import { projectRoot } from "../lab/lab.ts";
import {
  lacking,
  type MovedProgram,
  type ProgramOptions,
  until,
  withProgram,
} from "../support/moved-program.ts";

const python = "/usr/bin/python3";
const port = 8080;
const ports = [{ listen: port, upstream: "127.0.0.1:9000" }];
const skip = lacking("python3");
const skipGo = lacking("go", "runc");
let folder = "";

/** GET /count → how many there were on this connection and in all; GET /stream → numbered lines, without an end. */
const pythonServer = `
import threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
total = 0
lock = threading.Lock()
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    here = 0
    def log_message(self, *_): pass
    def do_GET(self):
        global total
        if self.path == "/stream":
            self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
            n = 0
            while True:
                n += 1
                line = b"%d\\n" % n
                self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(line), line))
                time.sleep(0.001)
        with lock: total += 1; now = total
        self.here += 1
        body = b"%d %d" % (self.here, now)
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
ThreadingHTTPServer(("127.0.0.1", 9000), Handler).serve_forever()
`;

before(() => {
  folder = mkdtempSync(join(tmpdir(), "hf-languages-"));
  chmodSync(folder, 0o755);
  if (skipGo !== false) return;
  // a root file system of one program; the runtime makes the mount points
  mkdirSync(join(folder, "rootfs"));
  execFileSync(
    "go",
    ["build", "-o", join(folder, "rootfs/server"), join(projectRoot, "test/apps/go-http/main.go")],
    {
      env: { ...process.env, CGO_ENABLED: "0", GOTOOLCHAIN: "local" },
      stdio: "pipe",
    },
  );
});
after(() => rmSync(folder, { recursive: true, force: true }));

/** Counts on keep-alive connections and reads a stream without an end, through every move of `route`. */
async function use(program: MovedProgram, route: string[]): Promise<void> {
  const host = program.address.includes(":") ? `[${program.address}]` : program.address;
  const clients = Array.from({ length: 4 }, () => new Client(`http://${host}:${port}`, { pipelining: 1 }));
  const reader = new Client(`http://${host}:${port}`, { bodyTimeout: 0 });
  try {
    const totals: number[] = [];
    let stopping = false;
    const counting = clients.map(async (client) => {
      for (let n = 1; !stopping; n++) {
        const { body } = await client.request({ method: "GET", path: "/count" });
        const [here, total] = (await body.text()).split(" ").map(Number);
        assert.equal(here, n, "requests on this connection");
        totals.push(total ?? 0);
      }
    });
    for (const each of counting) each.catch(() => {});
    const { body } = await reader.request({ method: "GET", path: "/stream" });
    let text = "";
    let failure: Error | null = null;
    body.setEncoding("utf8");
    body.on("data", (piece: string) => (text += piece));
    body.on("error", (error) => (failure = error));
    for (const to of route) {
      const length = text.length + 500;
      await until("the stream flows", () => text.length > length || failure !== null);
      assert.equal(failure, null);
      await program.move(to);
    }
    const length = text.length + 500;
    await until("the stream flows", () => text.length > length || failure !== null);
    stopping = true;
    await Promise.all(counting);
    const numbers = text.split("\n").slice(0, -1).map(Number);
    assert.ok(
      numbers.every((number, index) => number === index + 1),
      "the stream is 1, 2, 3, …",
    );
    assert.deepEqual(
      totals.sort((x, y) => x - y),
      Array.from(totals, (_, index) => index + 1),
    );
  } finally {
    await Promise.all([...clients, reader].map((client) => client.destroy()));
  }
}

function goIn(container: Record<string, unknown>, env: Record<string, string>): ProgramOptions {
  return {
    downstream: "forward",
    workload: { container: { command: ["/server", "127.0.0.1:9000"], env, ...container }, ports },
  };
}

test("Python's threading HTTP server", { skip }, async () => {
  const container = { command: [python, "-c", pythonServer], rootfs: "host" };
  await withProgram({ downstream: "takeover", workload: { container, ports } }, (program) =>
    use(program, ["b", "a"]),
  );
});

test("clients over IPv6 keep their connections to an IPv6 address that moves", { skip }, async () => {
  const container = {
    command: [
      python,
      "-c",
      pythonServer
        .replace(`"127.0.0.1"`, `"::1"`)
        .replace(
          "class Handler",
          "import socket\nThreadingHTTPServer.address_family = socket.AF_INET6\nclass Handler",
        ),
    ],
    rootfs: "host",
  };
  const workload = { container, ports: [{ listen: port, upstream: "[::1]:9000" }] };
  await withProgram({ downstream: "takeover", vip: "fd99::50/64", workload }, (program) =>
    use(program, ["b", "a"]),
  );
});

test("Go's net/http in a root file system of its own", { skip: skipGo }, async () => {
  const options = goIn({ rootfs: join(folder, "rootfs") }, {});
  await withProgram(options, (program) => use(program, ["b", "a"]));
});

// Go listens with MPTCP unless it is told that there is none; and what is unlimited is so in 64 bits
test("an OCI bundle as runc makes it, with something unlimited", { skip: skipGo }, async () => {
  await withProgram({ downstream: "takeover", workload: { bundle: bundleOf(), ports } }, async (program) => {
    await use(program, ["b", "a"]);
    assert.match(
      readFileSync(`/proc/${serverPid()}/limits`, "utf8"),
      /^Max core file size +unlimited +unlimited /m,
    );
  });
});

/** Of the one that runs. */
function serverPid(): string | undefined {
  return readdirSync("/proc").find((pid: string) => {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, "utf8").startsWith("/server\0");
    } catch {
      return false;
    }
  });
}

function bundleOf(): string {
  const bundle = join(folder, "bundle");
  mkdirSync(join(bundle, "rootfs"), { recursive: true });
  execFileSync("cp", [join(folder, "rootfs/server"), join(bundle, "rootfs/server")]);
  execFileSync("runc", ["spec", "--bundle", bundle]);
  const file = join(bundle, "config.json");
  const spec = JSON.parse(readFileSync(file, "utf8")) as { process: { args: string[]; rlimits: object[] } };
  spec.process.args = ["/server", "127.0.0.1:9000"];
  spec.process.rlimits.push({ type: "RLIMIT_CORE", hard: "UNLIMITED", soft: "UNLIMITED" });
  writeFileSync(file, JSON.stringify(spec).replaceAll('"UNLIMITED"', "18446744073709551615"));
  return bundle;
}
