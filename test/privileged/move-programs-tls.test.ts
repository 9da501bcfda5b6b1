/** TLS whose state lives in the application: one session, with its keys and its sequence numbers, across two moves. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { connect, type TLSSocket } from "node:tls";
import { nodeBinary } from "../lab/lab.ts";
import { makeCertificate } from "../support/exchanges.ts";
import { ended, lacking, type MovedProgram, until, withProgram } from "../support/moved-program.ts";
import { modes } from "../support/thorough.ts";

const port = 8443;
const skip = lacking("openssl", "nginx", "curl");
let folder = "";

/** Sends back what it gets, at most one request's worth at a time; counts what it has seen on the connection. */
const nodeServer = `
import { createServer } from "node:tls";
import { readFileSync } from "node:fs";
const server = createServer({ key: readFileSync("/srv/tls/key.pem"), cert: readFileSync("/srv/tls/cert.pem") }, (socket) => {
  socket.on("error", () => {});
  socket.pipe(socket);
});
server.listen(9000, "127.0.0.1");
`;

before(() => {
  folder = mkdtempSync(join(tmpdir(), "hf-tls-"));
  chmodSync(folder, 0o755);
  makeCertificate(folder);
  writeFileSync(join(folder, "server.mjs"), nodeServer);
  writeFileSync(join(folder, "large"), randomBytes(24 * 1024 * 1024));
  writeFileSync(
    join(folder, "nginx.conf"),
    `user root;
daemon off;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events {}
http {
  access_log off;
  server {
    listen 127.0.0.1:9000 ssl;
    ssl_certificate /srv/tls/cert.pem;
    ssl_certificate_key /srv/tls/key.pem;
    root /srv/tls;
  }
}
`,
  );
});
after(() => rmSync(folder, { recursive: true, force: true }));

function workload(command: string[]): Record<string, unknown> {
  return {
    container: {
      command,
      cwd: "/srv/tls",
      rootfs: "host",
      mounts: [{ source: folder, target: "/srv/tls", readonly: true }],
    },
    ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
  };
}

async function secure(program: MovedProgram, maxVersion: "TLSv1.2" | "TLSv1.3"): Promise<TLSSocket> {
  const socket = connect({
    host: program.address,
    port,
    servername: "holdfast.test",
    ca: readFileSync(join(folder, "cert.pem")),
    maxVersion,
  });
  await once(socket, "secureConnect");
  return socket;
}

/** Writes random bytes for as long as it is allowed to, then compares what came back. */
async function echo(socket: TLSSocket, signal: AbortSignal): Promise<number> {
  const sent = createHash("sha256");
  const received = createHash("sha256");
  let sentBytes = 0;
  let receivedBytes = 0;
  const back = Promise.withResolvers<void>();
  socket.on("error", back.reject);
  socket.on("end", () => back.reject(new Error("ended by the server")));
  socket.on("data", (bytes: Buffer) => {
    received.update(bytes);
    receivedBytes += bytes.length;
    if (signal.aborted && receivedBytes === sentBytes) back.resolve();
  });
  while (!signal.aborted) {
    const bytes = randomBytes(3000);
    sent.update(bytes);
    sentBytes += bytes.length;
    if (!socket.write(bytes)) await Promise.race([once(socket, "drain"), back.promise]);
    else await new Promise(setImmediate);
  }
  if (receivedBytes < sentBytes) await back.promise;
  assert.equal(receivedBytes, sentBytes);
  assert.equal(received.digest("hex"), sent.digest("hex"));
  return receivedBytes;
}

for (const downstream of modes("forward")) {
  test(`TLS sessions of a Node server go on, record by record (${downstream})`, { skip }, async () => {
    await withProgram({ downstream, workload: workload([nodeBinary, "server.mjs"]) }, async (program) => {
      const sockets = await Promise.all([
        secure(program, "TLSv1.3"),
        secure(program, "TLSv1.3"),
        secure(program, "TLSv1.2"),
      ]);
      assert.deepEqual(
        sockets.map((socket) => socket.getProtocol()),
        ["TLSv1.3", "TLSv1.3", "TLSv1.2"],
      );
      const stopping = new AbortController();
      const echoes = sockets.map((socket) => echo(socket, stopping.signal));
      for (const each of echoes) each.catch(() => {});
      const closed: unknown[] = [];
      for (const socket of sockets) socket.on("close", () => closed.push(socket));
      await program.move("b");
      const bytes = sockets.map((socket) => socket.bytesRead);
      await until("every session answers on b", () =>
        sockets.every((socket, i) => socket.bytesRead > (bytes[i] ?? 0) + 50_000),
      );
      await program.move("a");
      stopping.abort();
      for (const bytes of await Promise.all(echoes)) assert.ok(bytes > 100_000, `${bytes} bytes`);
      assert.deepEqual(closed, []);
      for (const socket of sockets) socket.destroy();
    });
  });
}

async function isHeld(program: MovedProgram): Promise<boolean> {
  const { workloads } = await program.ask<{ workloads: { moving: { step: string } | null }[] }>(
    "GET",
    "/v1/status",
  );
  return workloads[0]?.moving?.step === "held";
}

test("a download over nginx's TLS and a session of s_client stay whole", { skip }, async () => {
  const command = ["nginx", "-c", "/srv/tls/nginx.conf"];
  await withProgram({ downstream: "takeover", workload: workload(command) }, async (program) => {
    const client = program.spawn(
      [
        "openssl",
        "s_client",
        "-connect",
        `${program.address}:${port}`,
        "-quiet",
        "-no_ign_eof",
        "-CAfile",
        join(folder, "cert.pem"),
      ],
      { stdio: ["pipe", "pipe", "pipe"] },
    );
    const ask = (last = false): void => {
      client.child.stdin?.write(
        `GET /server.mjs HTTP/1.1\r\nHost: x\r\n${last ? "Connection: close\r\n" : ""}\r\n`,
      );
    };
    const answers = (): number => client.stdout.split("HTTP/1.1 200 OK").length - 1;
    ask();
    await until("s_client has an answer", () => answers() === 1);
    const target = join(program.lab.dir, "large");
    const curl = program.spawn(
      [
        "curl",
        "-sSf",
        "--cacert",
        join(folder, "cert.pem"),
        "--resolve",
        `holdfast.test:${port}:${program.address}`,
      ].concat(["--limit-rate", "5M", "-o", target, `https://holdfast.test:${port}/large`]),
    );
    await until("the download runs", async () =>
      (await program.sessions()).some(({ bytesOut }) => bytesOut > 100_000),
    );
    // else it is over, on a busy machine, before the move holds anybody
    curl.child.kill("SIGSTOP");
    const moving = program.move("b");
    await Promise.race([moving, until("clients are held", () => isHeld(program))]);
    curl.child.kill("SIGCONT");
    const move = await moving;
    assert.ok(move.sessions >= 2, `${move.sessions} sessions`);
    ask();
    await until("s_client is answered on b", () => answers() === 2);
    await program.move("a");
    ask(true);
    await until("s_client is answered on a", () => answers() === 3);
    const { status, stderr } = await ended(curl);
    assert.equal(status, 0, stderr);
    assert.deepEqual(readFileSync(target), readFileSync(join(folder, "large")));
    assert.equal((await ended(client)).status, 0);
  });
});
