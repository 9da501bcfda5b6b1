/** Python with several processes: a pool that shares memory, and a server that forks for each connection. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Client } from "undici";
import { inside, type Program, upstreamPort, versionFrom } from "../program.ts";
import { assertCounted } from "../stage.ts";
import { countAnew, countOnOne, readStream } from "../web-clients.ts";

const python = "/usr/bin/python3";
const poolSize = 4;

/** Both say what the clients of web-clients.ts want to know; `work` does it. */
const handler = `
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def log_message(self, *_): pass
    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/stream":
            self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
            n = 0
            while True:
                n += 1
                line = b"%d\\n" % n
                self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(line), line))
                time.sleep(0.002)
        body = work(path, query)
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
`;

/** Each process of the pool has memory of its own that it can tell from another's, and all have a part in a mapping. */
const pool = `
import ctypes, hashlib, multiprocessing, os, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
context = multiprocessing.get_context("fork")
PAGE = 4096
PAGES = 1024
total = context.Value(ctypes.c_longlong, 0)
shared = context.RawArray(ctypes.c_char, PAGES * PAGE)
manager = context.Manager()
counts = manager.dict()
private = None
digest = None
turns = 0
def begin():
    global private, digest
    private = bytearray(b"".join(b"%d:%d;" % (os.getpid(), page) + os.urandom(PAGE // 2) + bytes(PAGE) for page in range(256)))
    digest = hashlib.sha256(private).hexdigest()
def in_pool(path, query):
    global turns
    if hashlib.sha256(private).hexdigest() != digest: return b"memory of process %d is not its own" % os.getpid()
    if path == "/pid": return b"%d" % os.getpid()
    with total.get_lock():
        total.value += 1
        counts[query] = counts.get(query, 0) + 1
        at = (total.value % PAGES) * PAGE
        shared[at:at + 8] = total.value.to_bytes(8, "little")
        if total.value >= PAGES:
            before = ((total.value - 1) % PAGES) * PAGE
            if int.from_bytes(shared[before:before + 8], "little") != total.value - 1: return b"the shared mapping is wrong"
        return b"%d %d" % (counts[query], total.value)
def work(path, query): return processes.apply(in_pool, (path, query))
${handler}
processes = context.Pool(${poolSize}, begin)
ThreadingHTTPServer(("127.0.0.1", ${upstreamPort}), Handler).serve_forever()
`;

const forking = `
import ctypes, hashlib, mmap, multiprocessing, os, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ForkingMixIn
total = multiprocessing.Value(ctypes.c_longlong, 0)
counts = {}
inherited = os.urandom(8 << 20)
digest = hashlib.sha256(inherited).hexdigest()
counters = mmap.mmap(-1, 1 << 20)
def work(path, query):
    if hashlib.sha256(inherited).hexdigest() != digest: return b"inherited memory of process %d is damaged" % os.getpid()
    with total.get_lock():
        total.value += 1
        # a place in shared memory for each client, since those that come anew meet another process each time
        at = (int(hashlib.md5(query.encode()).hexdigest(), 16) % (1 << 17)) * 8
        here = int.from_bytes(counters[at:at + 8], "little") + 1
        counters[at:at + 8] = here.to_bytes(8, "little")
        return b"%d %d" % (here, total.value)
${handler}
class Server(ForkingMixIn, HTTPServer):
    max_children = 1000
    request_queue_size = 128
Server(("127.0.0.1", ${upstreamPort}), Handler).serve_forever()
`;

const common = {
  needs: [python],
  version: () => versionFrom([python, "--version"]),
  command: [python, `${inside}/server.py`],
  port: 8080,
};

export const pythonMultiprocessing: Program = {
  ...common,
  name: "python-multiprocessing",
  title: "Python (multiprocessing)",
  prepare: (folder) => writeFileSync(join(folder, "server.py"), pool),
  keeps: "four processes' own memory, a shared mapping, a manager, locks",
  async use(stage) {
    const host = `${stage.address}:${pythonMultiprocessing.port}`;
    const totals: number[] = [];
    for (let n = 0; n < 4; n++) countOnOne(stage, host, `counter ${n}`, totals);
    readStream(stage, host);
    const before = await processIds(host);
    await stage.moves();
    await stage.finish();
    assertCounted(totals, "what all clients were told together");
    assert.deepEqual(await processIds(host), before, "the same processes");
  },
};

export const pythonForking: Program = {
  ...common,
  name: "python-forking",
  title: "Python (fork per request)",
  prepare: (folder) => writeFileSync(join(folder, "server.py"), forking),
  keeps: "children that come and go all the time, others that stay, shared memory",
  async use(stage) {
    const host = `${stage.address}:${pythonForking.port}`;
    const totals: number[] = [];
    for (let n = 0; n < 2; n++) {
      countOnOne(stage, host, `stays ${n}`, totals);
      countAnew(stage, host, `anew ${n}`, totals);
    }
    readStream(stage, host);
    await stage.moves();
    await stage.finish();
    assertCounted(totals, "what all clients were told together");
  },
};

/** Asks until every process of the pool has answered. */
async function processIds(host: string): Promise<string[]> {
  const client = new Client(`http://${host}`);
  try {
    const seen = new Set<string>();
    for (let asked = 0; asked < 10_000 && seen.size < poolSize; asked++) {
      const { body } = await client.request({ method: "GET", path: "/pid" });
      const text = await body.text();
      assert.match(text, /^\d+$/);
      seen.add(text);
    }
    return [...seen].sort();
  } finally {
    await client.destroy();
  }
}
