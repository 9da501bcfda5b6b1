/**
 * HTTP/2 and gRPC with streams under way across two moves, with prior knowledge and over TLS that ends inside the
 * application: many streams of one connection, compressed headers and flow control windows are state of both ends.
 */
import assert from "node:assert/strict";
import { createHash, randomBytes, randomInt } from "node:crypto";
import { chmodSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { type ChannelCredentials, Client, credentials, type StatusObject, status } from "@grpc/grpc-js";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import {
  assertConsecutive,
  type Exchange,
  eventIds,
  Feed,
  Gates,
  grows,
  makeCertificate,
  summaryOf,
  throughMoves,
} from "../support/exchanges.ts";
import {
  type Downstream,
  ended,
  lacking,
  type MovedProgram,
  until,
  withProgram,
} from "../support/moved-program.ts";

const skip = lacking("curl", "nghttp", "h2load", "openssl");
const ports = { http1: 8080, plain: 8081, tls: 8443 };
const serverName = "holdfast.test";
const streamsPerConnection = 16;
const connections = 4;
const messagesInFlight = 16;
/** before the next message: leaves the machine to the move */
const pauseMs = 10;
const messageBytesMax = 8_192;
let folder = "";

before(() => {
  folder = mkdtempSync(join(tmpdir(), "hf-http2-"));
  chmodSync(folder, 0o755);
  makeCertificate(folder);
});
after(() => rmSync(folder, { recursive: true, force: true }));

function workload(app: string, env: Record<string, string>, upstreams: Record<number, number>) {
  return {
    container: {
      command: [nodeBinary, join(projectRoot, "test/apps", app, "server.js")],
      rootfs: "host",
      env: { ...env, TLS: "/srv/tls" },
      mounts: [{ source: folder, target: "/srv/tls", readonly: true }],
    },
    ports: Object.entries(upstreams).map(([listen, port]) => ({
      listen: Number(listen),
      upstream: `127.0.0.1:${port}`,
    })),
  };
}

/** How a client comes to HTTP/2: with prior knowledge, or by ALPN. */
type Way = "plain" | "tls";

function gatesOf(program: MovedProgram): Gates {
  return new Gates(`http://${program.address}:${ports.http1}`);
}

function scheme(way: Way): string {
  return way === "tls" ? "https" : "http";
}

function curl(program: MovedProgram, way: Way, path: string, ...args: string[]): string[] {
  const place = `${serverName}:${ports[way]}`;
  return [
    ...["curl", "-sS", "--fail", "--max-time", "240"],
    ...(way === "tls" ? ["--http2", "--cacert", join(folder, "cert.pem")] : ["--http2-prior-knowledge"]),
    ...["--resolve", `${place}:${program.address}`, ...args, `${scheme(way)}://${place}${path}`],
  ];
}

async function* eventsByNghttp(program: MovedProgram, way: Way): Exchange {
  const name = `events-${way}`;
  const file = join(program.lab.dir, name);
  const url = `${scheme(way)}://${program.address}:${ports[way]}/events/${name}`;
  const client = program.spawn(["sh", "-c", 'exec nghttp "$0" >"$1"', url, file]);
  for (const _ of [1, 2]) {
    await grows(file, client, 5_000);
    yield;
  }
  await grows(file, client, 5_000);
  await gatesOf(program).open(name);
  const end = await ended(client);
  assert.equal(end.status, 0, end.stderr);
  assertConsecutive(eventIds(file), "events");
}

async function* downloadByCurl(program: MovedProgram, way: Way): Exchange {
  const name = `download-${way}`;
  const file = join(program.lab.dir, name);
  // curl's window lets 32 MB run ahead of it, to be waited for in the end
  const told = ["--limit-rate", "16M", "-o", file, "-w", "%{http_version} %{http_code} %{num_connects}"];
  const client = program.spawn(curl(program, way, `/bytes/${name}`, ...told));
  for (const _ of [1, 2]) {
    await grows(file, client);
    yield;
  }
  await gatesOf(program).open(name);
  const end = await ended(client);
  assert.deepEqual([end.status, end.stdout], [0, "2 200 1"], end.stderr);
  assert.deepEqual(await summaryOf(file), await gatesOf(program).sent(name));
}

async function* uploadByCurl(program: MovedProgram, way: Way): Exchange {
  const told = [
    "--limit-rate",
    "4M",
    "-T",
    "-",
    "-w",
    "%{stderr}%{http_version} %{http_code} %{num_connects}",
  ];
  const client = program.spawn(curl(program, way, `/bytes/upload-${way}`, ...told), {
    stdio: ["pipe", "pipe", "pipe"],
  });
  const feed = new Feed(client);
  for (const _ of [1, 2]) {
    await feed.flows();
    yield;
  }
  await feed.flows();
  const sent = await feed.end();
  const end = await ended(client);
  assert.deepEqual([end.status, end.stderr], [0, "2 200 1"]);
  assert.deepEqual(JSON.parse(end.stdout), sent);
}

/** Every stream of every connection is open and unanswered in both moves. */
async function* parkedByH2load(program: MovedProgram, way: Way): Exchange {
  const name = `parked-${way}`;
  const streams = connections * streamsPerConnection;
  const counts = ["-n", streams, "-c", connections, "-m", streamsPerConnection].map(String);
  const url = `${scheme(way)}://${program.address}:${ports[way]}/poll/${name}`;
  const client = program.spawn(["h2load", ...counts, url]);
  await gatesOf(program).crowded(name, streams);
  yield;
  await gatesOf(program).crowded(name, streams);
  yield;
  await gatesOf(program).open(name, "news");
  const end = await ended(client);
  assert.equal(end.status, 0, end.stderr);
  assert.match(end.stdout, new RegExp(`${streams} succeeded, 0 failed, 0 errored, 0 timeout`));
}

/** Messages to and fro on one stream, each answer a hash over all messages so far. */
async function* conversation(program: MovedProgram, way: Way, trust: ChannelCredentials): Exchange {
  const client = new Client(`${program.address}:${ports[way]}`, trust, {
    "grpc.ssl_target_name_override": serverName,
    "grpc.default_authority": serverName,
    "grpc.enable_retries": 0,
    "grpc.enable_http_proxy": 0,
  });
  const bytes = (message: Buffer): Buffer => message;
  const call = client.makeBidiStreamRequest("/holdfast.Chain/Extend", bytes, bytes);
  const hash = createHash("sha256");
  const expected: Buffer[] = [];
  let answers = 0;
  let wrongAt = -1;
  let ending = false;
  let end: StatusObject | null = null;
  const say = (): void => {
    if (ending) return;
    const message = randomBytes(randomInt(messageBytesMax));
    expected.push(hash.update(message).copy().digest());
    call.write(message);
  };
  call.on("data", (answer: Buffer) => {
    answers++;
    if (expected.shift()?.equals(answer) !== true && wrongAt < 0) wrongAt = answers;
    if (!ending) setTimeout(say, pauseMs);
    else if (expected.length === 0) call.end();
  });
  call.on("error", () => {}); // is in the status
  call.on("status", (told: StatusObject) => (end = told));
  const more = async (): Promise<void> => {
    const goal = answers + 200;
    await until(`answer ${goal}`, () => answers >= goal || end !== null);
    assert.deepEqual({ end, wrongAt }, { end: null, wrongAt: -1 });
  };
  try {
    for (let n = 0; n < messagesInFlight; n++) say();
    for (const _ of [1, 2]) {
      await more();
      yield;
    }
    await more();
    ending = true;
    if (expected.length === 0) call.end();
    await until("the call ends", () => end !== null);
    assert.equal((end as unknown as StatusObject).code, status.OK);
    assert.deepEqual({ unanswered: expected.length, wrongAt }, { unanswered: 0, wrongAt: -1 });
  } finally {
    call.cancel();
    client.close();
  }
}

for (const downstream of ["takeover", "forward"] as Downstream[]) {
  test(`streams of HTTP/2 live through two moves (${downstream})`, { skip }, async (t) => {
    const env = { H2C: "9001", H2: "9443", INNER: "9002" };
    const upstreams = { [ports.http1]: 9000, [ports.plain]: 9001, [ports.tls]: 9443 };
    const options = { downstream, workload: workload("exchanges", env, upstreams) };
    await withProgram(options, (program) =>
      throughMoves(t, program, ["b", "a"], {
        "nghttp, prior knowledge: Server-Sent Events": eventsByNghttp(program, "plain"),
        "nghttp, TLS: Server-Sent Events": eventsByNghttp(program, "tls"),
        "curl, prior knowledge: download": downloadByCurl(program, "plain"),
        "curl, TLS: download": downloadByCurl(program, "tls"),
        "curl, prior knowledge: upload": uploadByCurl(program, "plain"),
        "curl, TLS: upload": uploadByCurl(program, "tls"),
        "h2load, prior knowledge: unanswered streams": parkedByH2load(program, "plain"),
        "h2load, TLS: unanswered streams": parkedByH2load(program, "tls"),
      }),
    );
  });

  test(`bidirectional streams of gRPC live through two moves (${downstream})`, { skip }, async (t) => {
    const upstreams = { [ports.plain]: 9000, [ports.tls]: 9443 };
    const options = { downstream, workload: workload("grpc", { PORTS: "9443" }, upstreams) };
    const trust = credentials.createSsl(readFileSync(join(folder, "cert.pem")));
    await withProgram(options, (program) =>
      throughMoves(t, program, ["b", "a"], {
        "prior knowledge": conversation(program, "plain", credentials.createInsecure()),
        TLS: conversation(program, "tls", trust),
      }),
    );
  });
}
