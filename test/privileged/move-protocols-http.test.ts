/**
 * What HTTP/1.1 does besides requests and answers, each under way across two moves: upgrade, tunnel, events, long poll,
 * a body that waits for its 100, and bodies larger than any buffer.
 */
import assert from "node:assert/strict";
import type { Socket } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { Client, EventSource, ProxyAgent, upgrade } from "undici";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import { CountedClient } from "../support/counted-client.ts";
import {
  assertConsecutive,
  counted,
  type Exchange,
  eventIds,
  Feed,
  Gates,
  grows,
  type Summary,
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

const port = 8080;
/** inside the application, for what comes through a tunnel */
const innerOrigin = "http://127.0.0.1:9001";
const skip = lacking("curl", "python3");
const bytesPerSecond = 8 * 1024 * 1024;
const parkedMsMax = 240_000;
const largeBytes = 64 * 1024 * 1024;
const curl = ["curl", "-sS", "--fail", "--max-time", "240"];

function origin(program: MovedProgram): string {
  return `http://${program.address}:${port}`;
}

async function* upgraded(program: MovedProgram): Exchange {
  const undici = new Client(origin(program));
  const { headers, socket } = await undici.upgrade({ path: "/chat", protocol: "chat/1" });
  assert.equal(headers.upgrade, "chat/1");
  const client = new CountedClient(socket as Socket, { seed: 1 });
  try {
    yield* counted(client);
  } finally {
    await undici.destroy();
  }
}

/** CONNECT, and in the tunnel an upgrade: undici's ProxyAgent. */
async function* tunnelled(program: MovedProgram): Exchange {
  const proxy = new ProxyAgent({ uri: origin(program), proxyTunnel: true });
  const { socket } = await upgrade(`${innerOrigin}/chat`, { dispatcher: proxy, protocol: "chat/1" });
  const client = new CountedClient(socket as Socket, { seed: 2 });
  try {
    yield* counted(client);
  } finally {
    await proxy.destroy();
  }
}

async function* events(program: MovedProgram): Exchange {
  const source = new EventSource(`${origin(program)}/events/source`);
  const ids: number[] = [];
  const errors: string[] = [];
  source.onmessage = ({ lastEventId }) => ids.push(Number(lastEventId));
  source.onerror = (event) => errors.push(String(event.message));
  const more = async (): Promise<void> => {
    const goal = ids.length + 100;
    await until(`event ${goal}`, () => ids.length >= goal || errors.length > 0);
  };
  try {
    for (const _ of [1, 2]) {
      await more();
      yield;
    }
    await more();
    assert.deepEqual(errors, []);
    assertConsecutive(ids, "events");
  } finally {
    source.close();
  }
}

async function* eventsByCurl(program: MovedProgram, name: string, ...args: string[]): Exchange {
  const file = join(program.lab.dir, name);
  const client = program.spawn([...curl, "-N", "-o", file, ...args]);
  for (const _ of [1, 2]) {
    await grows(file, client, 5_000);
    yield;
  }
  await grows(file, client, 5_000);
  await new Gates(origin(program)).open(name);
  const { status, stderr } = await ended(client);
  assert.equal(status, 0, stderr);
  assertConsecutive(eventIds(file), "events");
}

/** One answered after the first move, the next on the same connection parked in the second. */
async function* polled(program: MovedProgram): Exchange {
  const gates = new Gates(origin(program));
  const client = new Client(origin(program), { headersTimeout: parkedMsMax });
  let connects = 0;
  client.on("connect", () => connects++);
  try {
    for (const name of ["first", "second"]) {
      const answer = client.request({ method: "GET", path: `/poll/${name}` });
      answer.catch(() => {}); // looked at below
      await gates.crowded(name);
      yield;
      await gates.open(name, `news of ${name}`);
      const { statusCode, body } = await answer;
      assert.equal(statusCode, 200);
      assert.equal(await body.text(), `news of ${name}`);
    }
    assert.equal(connects, 1);
  } finally {
    await client.destroy();
  }
}

/** The first move before the 100, the second in the body. */
async function* expecting(program: MovedProgram): Exchange {
  const gates = new Gates(origin(program));
  const client = program.spawn(
    [
      ...curl,
      ...["-v", "-H", "Expect: 100-continue", "--expect100-timeout", "240", "-T", "-"],
      ...["--limit-rate", "4M", `${origin(program)}/bytes/expected`],
    ],
    { stdio: ["pipe", "pipe", "pipe"] },
  );
  await gates.crowded("expected");
  yield;
  assert.doesNotMatch(client.stderr, /100 Continue/);
  await gates.open("expected");
  await client.waitFor(/^< HTTP\/1\.1 100 Continue/m);
  const feed = new Feed(client);
  await feed.flows();
  yield;
  await feed.flows();
  const sent = await feed.end();
  const { status, stdout, stderr } = await ended(client);
  assert.equal(status, 0, stderr);
  assert.deepEqual(JSON.parse(stdout), sent);
}

async function* downloaded(program: MovedProgram): Exchange {
  const gates = new Gates(origin(program));
  const file = join(program.lab.dir, "downloaded");
  const client = program.spawn([
    ...curl,
    ...[
      "--limit-rate",
      String(bytesPerSecond),
      "-o",
      file,
      `${origin(program)}/bytes/downloaded/${largeBytes}`,
    ],
  ]);
  for (const _ of [1, 2]) {
    await grows(file, client);
    yield;
  }
  await gates.open("downloaded");
  const { status, stderr } = await ended(client);
  assert.equal(status, 0, stderr);
  const received = await summaryOf(file);
  assert.deepEqual(received, await gates.sent("downloaded"));
  assert.ok(received.bytes >= largeBytes, `${received.bytes} bytes`);
}

/** Sends at a limited rate until a line comes in, then tells what it sent and what the server says it got. */
const pythonUpload = `
import hashlib, http.client, os, sys, threading, time
address, port, rate, least = sys.argv[1], *map(int, sys.argv[2:])
enough = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), enough.set()), daemon=True).start()
sent = hashlib.sha256()
total = 0
def body():
    global total
    begin = time.monotonic()
    while total < least or not enough.is_set():
        chunk = os.urandom(65536)
        sent.update(chunk)
        total += len(chunk)
        yield chunk
        print(total, flush=True)
        time.sleep(max(0, begin + total / rate - time.monotonic()))
connection = http.client.HTTPConnection(address, port, timeout=60)
connection.request("PUT", "/bytes/uploaded", body=body(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
response = connection.getresponse()
print('{"status": %d, "sent": {"bytes": %d, "sha256": "%s"}, "got": %s}' % (response.status, total, sent.hexdigest(), response.read().decode().strip()))
`;

async function* uploaded(program: MovedProgram): Exchange {
  const size = [bytesPerSecond, largeBytes].map(String);
  const client = program.spawn(
    ["/usr/bin/python3", "-c", pythonUpload, program.address, String(port), ...size],
    { stdio: ["pipe", "pipe", "pipe"] },
  );
  const sentBytes = (): number => Number(client.stdout.trim().split("\n").at(-1));
  for (const _ of [1, 2]) {
    const goal = sentBytes() + 1_000_000;
    await until(`${goal} bytes are sent`, () => sentBytes() >= goal || client.exited);
    assert.ok(!client.exited, client.stderr);
    yield;
  }
  client.child.stdin?.end("enough\n");
  const { status, stdout, stderr } = await ended(client);
  assert.equal(status, 0, stderr);
  const told = JSON.parse(stdout.trim().split("\n").at(-1) ?? "") as {
    status: number;
    sent: Summary;
    got: Summary;
  };
  assert.equal(told.status, 200);
  assert.deepEqual(told.got, told.sent);
  assert.ok(told.sent.bytes >= largeBytes, `${told.sent.bytes} bytes`);
}

for (const downstream of ["takeover", "forward"] as Downstream[]) {
  test(`exchanges of HTTP/1.1 live through two moves (${downstream})`, { skip }, async (t) => {
    const workload = {
      container: {
        command: [nodeBinary, join(projectRoot, "test/apps/exchanges/server.js")],
        rootfs: "host",
      },
      ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
    };
    await withProgram({ downstream, workload }, (program) =>
      throughMoves(t, program, ["b", "a"], {
        "upgrade to a made-up protocol": upgraded(program),
        "CONNECT by undici, with an upgrade in the tunnel": tunnelled(program),
        "CONNECT by curl, with events in the tunnel": eventsByCurl(
          program,
          "tunnelled",
          ...["--proxytunnel", "--proxy", origin(program), `${innerOrigin}/events/tunnelled`],
        ),
        "Server-Sent Events of an EventSource": events(program),
        "Server-Sent Events of curl": eventsByCurl(program, "curl", `${origin(program)}/events/curl`),
        "long polling": polled(program),
        "Expect: 100-continue": expecting(program),
        "download larger than any buffer": downloaded(program),
        "upload larger than any buffer": uploaded(program),
      }),
    );
  });
}
