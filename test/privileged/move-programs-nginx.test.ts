/** nginx moved with keep-alive requests, large downloads and an upload in flight: master and worker, files and sendfile. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Agent, request } from "undici";
import {
  type Downstream,
  ended,
  lacking,
  type MovedProgram,
  until,
  withProgram,
} from "../support/moved-program.ts";

const port = 8080;
const skip = lacking("nginx", "curl", "openssl");
const fileBytes = 64 * 1024 * 1024;
/** Each transfer takes so many times as long as a move does here and now, so that two moves find it under way. */
const movesLong = 4;
const transferMsMin = 8_000;

let site = "";
let checksum = "";

before(() => {
  site = mkdtempSync(join(tmpdir(), "hf-nginx-"));
  const content = randomBytes(fileBytes);
  checksum = createHash("sha256").update(content).digest("hex");
  writeFileSync(join(site, "large"), content);
  // the container's /tmp is a tmpfs of its own: the site is shown to it at /srv/site, and what is uploaded goes to /tmp
  writeFileSync(
    join(site, "nginx.conf"),
    `user root;
daemon off;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 512; }
http {
  access_log off;
  keepalive_requests 1000000;
  client_max_body_size 0;
  client_body_temp_path /tmp/body;
  sendfile on;
  server {
    listen 127.0.0.1:9000;
    root /srv/site;
    location = /small { return 200 "$connection $connection_requests\\n"; }
    location /upload/ { root /tmp; dav_methods PUT; create_full_put_path on; }
    location /uploaded/ { alias /tmp/upload/; }
  }
}
`,
  );
});
after(() => rmSync(site, { recursive: true, force: true }));

function workload(): Record<string, unknown> {
  return {
    container: {
      command: ["nginx", "-c", "/srv/site/nginx.conf"],
      rootfs: "host",
      mounts: [{ source: site, target: "/srv/site", readonly: true }],
    },
    ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
  };
}

/** Keeps asking on a few connections; each answer says which connection it is and how many it had before. */
async function keepAsking(program: MovedProgram, signal: AbortSignal): Promise<number> {
  const connections = 8;
  const pool = new Agent({ connections, pipelining: 1 });
  const counts = new Map<string, number>();
  let answers = 0;
  const ask = async (): Promise<void> => {
    while (!signal.aborted) {
      const { statusCode, body } = await request(`http://${program.address}:${port}/small`, {
        dispatcher: pool,
      });
      const [connection = "", requests] = (await body.text()).trim().split(" ");
      assert.equal(statusCode, 200);
      assert.equal(
        Number(requests),
        (counts.get(connection) ?? 0) + 1,
        `requests of connection ${connection}`,
      );
      counts.set(connection, Number(requests));
      answers++;
    }
  };
  try {
    await Promise.all(Array.from({ length: connections }, ask));
  } finally {
    await pool.close();
  }
  assert.equal(counts.size, connections, "no connection was made anew");
  return answers;
}

for (const downstream of ["takeover", "forward"] as Downstream[]) {
  test(`downloads, uploads and keep-alive connections go on (${downstream})`, { skip }, async () => {
    await withProgram({ downstream, workload: workload() }, async (program) => {
      const aheadMs = performance.now();
      await program.move("b");
      const transferMs = Math.max(transferMsMin, movesLong * (performance.now() - aheadMs));
      const slowBytesPerSecond = Math.floor((fileBytes * 1000) / transferMs);
      const url = `http://${program.address}:${port}`;
      const stopping = new AbortController();
      const asking = keepAsking(program, stopping.signal);
      asking.catch(() => {}); // looked at below
      const target = (name: string): string => join(program.lab.dir, name);
      const curl = (name: string, ...more: string[]) =>
        program.spawn([
          "curl",
          "-sSf",
          "-o",
          target(name),
          "-w",
          "%{http_code} %{num_connects} %{size_download}",
          ...more,
        ]);
      const slow = curl("slow", "--limit-rate", String(slowBytesPerSecond), `${url}/large`);
      const upload = curl(
        "answer",
        "--limit-rate",
        String(slowBytesPerSecond),
        "-T",
        join(site, "large"),
        `${url}/upload/large`,
      );
      // one connection, many files: three downloads in a row
      const fast = program.spawn([
        "sh",
        "-c",
        `curl -sSf -w '%{num_connects} ' ${[1, 2, 3].map((n) => `--limit-rate ${Math.floor(slowBytesPerSecond * 1.5)} -o ${target(`fast${n}`)} ${url}/large`).join(" ")}`,
      ]);
      await until("the slow download has begun", async () =>
        (await program.sessions()).some(({ bytesOut }) => bytesOut > 1e6),
      );
      const first = await program.move("a");
      const second = await program.move("b");
      assert.ok(first.sessions >= 11, `${first.sessions} sessions: a transfer was over before the hold`);
      assert.ok(second.sessions >= 9, `${second.sessions} sessions: every transfer was over before the hold`);
      for (const client of [slow, upload, fast]) {
        const { status, stderr } = await ended(client);
        assert.equal(status, 0, stderr);
      }
      assert.equal(fast.stdout, "1 0 0 ", "one connection for all three");
      stopping.abort();
      assert.ok((await asking) > 100);
      const again = curl("uploaded", `${url}/uploaded/large`);
      assert.equal((await ended(again)).status, 0, again.stderr);
      for (const name of ["slow", "fast1", "fast2", "fast3", "uploaded"])
        assert.equal(
          createHash("sha256")
            .update(readFileSync(target(name)))
            .digest("hex"),
          checksum,
          name,
        );
    });
  });
}
