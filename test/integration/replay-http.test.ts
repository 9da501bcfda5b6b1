/** HTTP clients over the ends of their application: what is sent again, what is refused, and what ends honestly. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { after, afterEach, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { connect } from "node:tls";
import { Client } from "undici";
import { answersIn, answersOf, get, ok, post, ReplayStage } from "#test/support/mortal-application.ts";

const REPLAY_BYTES_MAX = 64 * 1024;
const UNSAFE = 1;
/** a life that ends within it of being given a request is suspected to have been ended by that */
const MOMENTS_MS = 1_000;

describe("HTTP over an application that ends", { timeout: 300_000 }, () => {
  let stage: ReplayStage;
  before(async () => {
    stage = await ReplayStage.start([{ protocol: "http" }, { protocol: "auto", replayUnsafe: true }], {
      replayBytesMax: REPLAY_BYTES_MAX,
      stallMsMax: 20,
    });
  });
  afterEach(() => stage.clear());
  after(() => stage.stop());

  for (const how of ["reset", "fin"] as const) {
    it(`keeps an idle connection that the application ends (${how}), and dials when the client asks again`, async () => {
      const { client, server } = await stage.pair(get("/1"));
      server.socket.write(ok("one"));
      await answersOf(client, 1);
      if (how === "reset") server.socket.resetAndDestroy();
      else server.socket.end(); // a keep-alive timeout
      await stage.until(
        "the connection to the application is gone",
        () => stage.count("sessionsUnavailable"),
        (away) => away > 0,
      );
      client.socket.write(get("/2"));
      const next = await stage.application.accept();
      await next.has(get("/2").length);
      assert.equal(String(next.received), get("/2"));
      next.socket.write(ok("two"));
      assert.deepEqual(
        (await answersOf(client, 2)).map(({ body }) => body),
        ["one", "two"],
      );
      assert.equal(client.over, null);
    });
  }

  it("sends a GET in flight again, byte for byte", async () => {
    const request = get("/a?b=c", "X-Odd:  two  spaces \r\n");
    const { client } = await stage.pair(request);
    const before = await stage.count("requestsReplayed");
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(request.length);
    assert.equal(String(server.received), request);
    server.socket.write(ok("again"));
    assert.equal((await answersOf(client, 1))[0]?.body, "again");
    assert.equal((await stage.count("requestsReplayed")) - before, 1);
  });

  it("answers 503 to a complete POST nobody knows the fate of, and the connection goes on", async () => {
    const { client } = await stage.pair(post("/buy", "one"));
    await stage.application.restart();
    const [answer] = await answersOf(client, 1);
    assert.equal(answer?.status, 503);
    assert.equal(answer?.headers.get("retry-after"), "1");
    assert.equal(answer?.headers.get("connection"), "keep-alive");
    client.socket.write(get("/next"));
    const server = await stage.application.accept();
    await server.has(get("/next").length);
    assert.equal(String(server.received), get("/next"), "the POST did not reach a second life");
    server.socket.write(ok("next"));
    assert.equal((await answersOf(client, 2))[1]?.body, "next");
  });

  it("sends it again where the policy says so", async () => {
    const { client } = await stage.pair(post("/buy", "one"), stage.ports[UNSAFE]);
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(post("/buy", "one").length);
    assert.equal(String(server.received), post("/buy", "one"));
    server.socket.write(ok("bought"));
    assert.equal((await answersOf(client, 1))[0]?.body, "bought");
  });

  it("sends a complete PUT with its body again", async () => {
    const request = post("/thing", "new").replace("POST", "PUT");
    const { client } = await stage.pair(request);
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(request.length);
    assert.equal(String(server.received), request);
    server.socket.write(ok("put"));
    assert.equal((await answersOf(client, 1))[0]?.body, "put");
  });

  for (const framing of ["content-length", "chunked"]) {
    it(`refuses a POST that was under way (${framing}): an application acts upon what it has read`, async () => {
      const head = (length: string): string => `POST /import HTTP/1.1\r\nHost: app\r\n${length}\r\n\r\n`;
      const [begun, rest] =
        framing === "chunked"
          ? [`${head("Transfer-Encoding: chunked")}6\r\nrow 1\n\r\n`, "6\r\nrow 2\n\r\n0\r\n\r\n"]
          : [`${head("Content-Length: 12")}row 1\n`, "row 2\n"];
      const { client } = await stage.pair(begun);
      await stage.application.restart();
      assert.equal((await answersOf(client, 1))[0]?.status, 503);
      client.socket.write(rest + get("/next"));
      const server = await stage.application.accept();
      await server.has(get("/next").length);
      assert.equal(String(server.received), get("/next"), "not a byte of the POST reached a second life");
      server.socket.write(ok("next"));
      assert.equal((await answersOf(client, 2))[1]?.body, "next");
    });

    it(`gives a PUT whose body was under way (${framing}) to the new life as a whole`, async () => {
      const served = Promise.withResolvers<{ life: number; digest: string; length: number }>();
      const bytes = randomBytes(40_000);
      const got: number[] = [];
      stage.application.serve = (socket, life) => {
        const server = createServer(async (request: IncomingMessage, response: ServerResponse) => {
          const hash = createHash("sha256");
          let length = 0;
          request.on("error", () => {});
          request.on("data", (part: Buffer) => {
            hash.update(part);
            length += part.length;
            got.push(life);
          });
          const whole = await new Promise<boolean>((resolve) => {
            request.on("end", () => resolve(true)).on("close", () => resolve(false));
          });
          if (!whole) return;
          served.resolve({ life, digest: hash.digest("hex"), length });
          response.end("stored");
        });
        server.emit("connection", socket);
      };
      const client = await stage.dial();
      const frame = (part: Buffer): Buffer =>
        framing === "chunked"
          ? Buffer.concat([Buffer.from(`${part.length.toString(16)}\r\n`), part, Buffer.from("\r\n")])
          : part;
      client.socket.write(
        `PUT /up HTTP/1.1\r\nHost: app\r\n${framing === "chunked" ? "Transfer-Encoding: chunked" : `Content-Length: ${bytes.length}`}\r\n\r\n`,
      );
      client.socket.write(frame(bytes.subarray(0, 15_000)));
      await stage.until(
        "the first life has a part",
        async () => got.length,
        (count) => count > 0,
      );
      stage.application.end();
      client.socket.write(frame(bytes.subarray(15_000, 30_000)));
      await stage.untilAway(1);
      await stage.application.begin();
      client.socket.write(frame(bytes.subarray(30_000)));
      if (framing === "chunked") client.socket.write("0\r\n\r\n");
      const { life, digest, length } = await served.promise;
      assert.deepEqual(
        { life, length, digest },
        {
          life: stage.application.life,
          length: bytes.length,
          digest: createHash("sha256").update(bytes).digest("hex"),
        },
      );
      await client.until(
        "the answer",
        () => String(client.received).includes("stored") || client.over !== null,
      );
      assert.match(String(client.received), /^HTTP\/1\.1 200 /);
    });
  }

  it("refuses a body it cannot have kept, swallows the rest, and the connection goes on", async () => {
    const body = "x".repeat(REPLAY_BYTES_MAX + 50_000);
    const request = post("/up", body);
    const { client } = await stage.pair(request.slice(0, REPLAY_BYTES_MAX + 10_000));
    await stage.application.restart();
    assert.equal((await answersOf(client, 1))[0]?.status, 503);
    // The rest of the body looks like a request: it must not become one.
    const rest = request.slice(REPLAY_BYTES_MAX + 10_000);
    const hidden = get("/smuggled");
    client.socket.write(hidden + rest.slice(hidden.length) + get("/next"));
    const server = await stage.application.accept();
    await server.has(get("/next").length);
    assert.equal(String(server.received), get("/next"));
    server.socket.write(ok("next"));
    assert.equal((await answersOf(client, 2))[1]?.body, "next");
  });

  it("swallows on through another end of the application", async () => {
    const body = "x".repeat(REPLAY_BYTES_MAX + 50_000);
    const request = post("/up", body);
    const { client } = await stage.pair(request.slice(0, REPLAY_BYTES_MAX + 10_000));
    await stage.application.restart();
    await answersOf(client, 1);
    await stage.application.accept();
    await stage.application.restart();
    client.socket.write(request.slice(REPLAY_BYTES_MAX + 10_000) + get("/next"));
    const server = await stage.application.accept();
    await server.has(get("/next").length);
    assert.equal(String(server.received), get("/next"));
  });

  it("swallows the rest of a body that was answered early", async () => {
    const request = post("/up", "y".repeat(1000));
    const { client, server } = await stage.pair(request.slice(0, 500));
    server.socket.write("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    assert.equal((await answersOf(client, 1))[0]?.status, 403);
    await stage.application.restart();
    client.socket.write(request.slice(500) + get("/next"));
    const next = await stage.application.accept();
    await next.has(get("/next").length);
    assert.equal(String(next.received), get("/next"));
    next.socket.write(ok("next"));
    assert.equal((await answersOf(client, 2))[1]?.body, "next");
  });

  it("ends the connection when an answer that closes it was given early", async () => {
    const request = post("/up", "y".repeat(1000));
    const { client, server } = await stage.pair(request.slice(0, 500));
    server.socket.end("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    assert.equal((await answersOf(client, 1))[0]?.status, 413);
    assert.equal(await client.ending(), "end");
  });

  it("does not answer what follows an answer that closes the connection", async () => {
    const { client, server } = await stage.pair(get("/1") + get("/2"));
    server.socket.end(ok("one", "Connection: close\r\n"));
    assert.equal(await client.ending(), "end");
    assert.equal(answersIn(client.received).length, 1);
  });

  it("sends a request that waits for 100 again, and the body after it", async () => {
    const [head = "", body = ""] = [
      "PUT /e HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
      "data",
    ];
    const { client } = await stage.pair(head);
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(head.length);
    server.socket.write("HTTP/1.1 100 Continue\r\n\r\n");
    await client.until("100", () => String(client.received).includes("100 Continue"));
    client.socket.write(body);
    await server.has(head.length + body.length);
    assert.equal(String(server.received), head + body);
    server.socket.write(ok("stored"));
    assert.equal((await answersOf(client, 1))[0]?.body, "stored");
  });

  it("sends again what got only an interim answer", async () => {
    const { client, server } = await stage.pair(get("/slow"));
    server.socket.write("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
    await client.until("103", () => String(client.received).includes("\r\n\r\n"));
    await stage.application.restart();
    const next = await stage.application.accept();
    await next.has(get("/slow").length);
    next.socket.write(ok("slow"));
    assert.equal((await answersOf(client, 1))[0]?.body, "slow");
  });

  for (const how of ["reset", "fin"] as const) {
    it(`ends the connection honestly when an answer had begun (${how})`, async () => {
      const { client, server } = await stage.pair(get("/big"));
      const begun = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly a part";
      server.socket.write(begun);
      await client.has(begun.length);
      await stage.application.restart(how);
      assert.equal(await client.ending(), how === "reset" ? "ECONNRESET" : "end");
      assert.equal(String(client.received), begun);
    });
  }

  it("lets a client go whose second life ends in the middle of an answer others wait for", async () => {
    const { client } = await stage.pair(get("/1") + get("/2"));
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(get("/1").length);
    server.socket.end("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart");
    assert.equal(await client.ending(), "end");
    assert.ok(String(client.received).endsWith("part"));
    // Nobody is waited for any more.
    await stage.resume();
    client.socket.end();
    await stage.proxy.untilSessions(0);
  });

  it("sends again what got a part of a head that the client has not seen", async () => {
    const { client, server } = await stage.pair(get("/x"));
    server.socket.write("HTTP/1.1 200 OK\r\nContent-Le");
    // It is the first answer of this connection, so its head is kept until it is whole: ask for another one meanwhile.
    const other = await stage.pair(get("/other"));
    other.server.socket.write(ok("other"));
    await answersOf(other.client, 1);
    await stage.application.restart();
    const next = await stage.application.accept();
    await next.has(get("/x").length);
    next.socket.write(ok("x"));
    assert.equal((await answersOf(client, 1))[0]?.body, "x");
  });

  it("answers a pipelined mix in order, with a refusal in the middle", async () => {
    const { client } = await stage.pair(get("/1") + post("/2", "two") + get("/3"));
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(get("/1").length);
    assert.equal(String(server.received), get("/1"), "what follows waits for the answer");
    server.socket.write(ok("one"));
    await server.has(get("/1").length + get("/3").length);
    assert.equal(String(server.received), get("/1") + get("/3"));
    server.socket.write(ok("three"));
    assert.deepEqual(
      (await answersOf(client, 3)).map(({ status }) => status),
      [200, 503, 200],
    );
  });

  it("answers HEAD without a body, refused or not", async () => {
    const head = get("/").replace("GET", "HEAD");
    const { client } = await stage.pair(head);
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(head.length);
    server.socket.write("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n");
    await answersOf(client, 1, ["HEAD"]);
    client.socket.write(get("/after"));
    await server.has(head.length + get("/after").length);
    server.socket.write(ok("after"));
    assert.equal((await answersOf(client, 2, ["HEAD"]))[1]?.body, "after");
  });

  it("gives requests that came while it was away to the new life in order", async () => {
    const { client } = await stage.pair(get("/0"));
    stage.application.end();
    await stage.untilAway(1);
    const requests = [get("/0")];
    for (let index = 1; index <= 20; index++) {
      const request = index % 3 === 0 ? post(`/${index}`, "body") : get(`/${index}`);
      requests.push(request);
      client.socket.write(request);
    }
    await stage.application.begin();
    const server = await stage.application.accept();
    await server.has(requests.join("").length);
    assert.equal(String(server.received), requests.join(""));
    for (let index = 0; index <= 20; index++) server.socket.write(ok(String(index)));
    assert.deepEqual(
      (await answersOf(client, 21)).map(({ body }) => body),
      requests.map((_, index) => String(index)),
    );
  });

  it("gives a request to three lives and no more", async () => {
    let given = 0;
    stage.application.serve = (socket) => {
      socket.once("data", () => {
        given++;
        socket.resetAndDestroy();
      });
    };
    const client = await stage.dial();
    client.socket.write(get("/poison"));
    assert.equal((await answersOf(client, 1))[0]?.status, 503);
    assert.equal(given, 3);
    stage.application.serve = (socket) => socket.once("data", () => socket.write(ok("fine")));
    await stage.application.restart();
    client.socket.write(get("/fine"));
    assert.equal((await answersOf(client, 2))[1]?.body, "fine");
  });

  /** As with a process, the next one listens when the end of the last one has been noticed. */
  async function anotherLife(): Promise<void> {
    stage.application.end();
    await stage.untilAway(1);
    await stage.application.begin();
  }

  it("gives a request to two instances that end within moments of it, and to no third", async () => {
    const given: number[] = [];
    stage.application.serve = (socket, life) => {
      socket.once("data", () => {
        given.push(life);
        void anotherLife();
      });
    };
    const begun = stage.application.life;
    const client = await stage.dial();
    client.socket.write(get("/poison"));
    assert.equal((await answersOf(client, 1))[0]?.status, 503);
    assert.deepEqual(given, [begun, begun + 1]);
    stage.application.serve = (socket) => socket.once("data", () => socket.write(ok("fine")));
    client.socket.write(get("/fine"));
    assert.equal((await answersOf(client, 2))[1]?.body, "fine");
  });

  it("counts a life once, also where another dial met its listener before that was gone", async () => {
    let given = 0;
    const begun = stage.application.life;
    stage.application.serve = (socket, life) => {
      socket.once("data", () => {
        given++;
        if (life > begun) socket.write(ok("here"));
        else if (given === 2) void anotherLife();
        else socket.resetAndDestroy(); // the first of its connections to go, while others are still taken
      });
    };
    const client = await stage.dial();
    client.socket.write(get("/innocent"));
    const [answer] = await answersOf(client, 1);
    assert.deepEqual([answer?.status, answer?.body], [200, "here"]);
    assert.equal(given, 3);
  });

  it("does not suspect a request that had been there for longer", async () => {
    const given: number[] = [];
    const begun = stage.application.life;
    stage.application.serve = (socket, life) => {
      socket.once("data", async () => {
        given.push(life);
        // as long as its life is to have had it
        if (life === begun) await delay(MOMENTS_MS);
        if (life > begun + 1) socket.write(ok("here"));
        else await anotherLife();
      });
    };
    const client = await stage.dial();
    client.socket.write(get("/slow"));
    const [answer] = await answersOf(client, 1);
    assert.deepEqual([answer?.status, answer?.body], [200, "here"]);
    assert.deepEqual(given, [begun, begun + 1, begun + 2]);
  });

  it("passes a client's FIN on behind its requests", async () => {
    const { client } = await stage.pair(get("/1"));
    stage.application.end();
    await stage.untilAway(1);
    client.socket.end(get("/2"));
    await stage.application.begin();
    const server = await stage.application.accept();
    await server.until("the client's FIN", () => server.over !== null);
    assert.equal(String(server.received), get("/1") + get("/2"));
    server.socket.end(ok("one") + ok("two"));
    assert.equal(await client.ending(), "end");
    assert.equal(answersIn(client.received).length, 2);
    await stage.proxy.untilSessions(0);
  });

  it("forgets a client that resets while the application is unavailable", async () => {
    const { client } = await stage.pair(get("/1"));
    stage.application.end();
    await stage.untilAway(1);
    client.socket.resetAndDestroy();
    await stage.proxy.untilSessions(0);
  });

  it("lets a client go that closes between requests while the application is unavailable", async () => {
    const { client, server } = await stage.pair(get("/1"));
    server.socket.write(ok("one"));
    await answersOf(client, 1);
    stage.application.end();
    client.socket.end();
    assert.equal(await client.ending(), "end");
    await stage.proxy.untilSessions(0);
  });

  it("replays a request that asks for the connection to end, and ends it after the answer", async () => {
    const request = get("/", "Connection: close\r\n");
    const { client } = await stage.pair(request);
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(request.length);
    server.socket.end(ok("last", "Connection: close\r\n"));
    assert.equal(await client.ending(), "end");
    assert.equal(answersIn(client.received)[0]?.body, "last");
  });

  it("ends the connection after refusing a request that asks for that", async () => {
    const { client } = await stage.pair(post("/", "x", "Connection: close\r\n"));
    await stage.application.restart();
    assert.equal(await client.ending(), "end");
    const [answer] = answersIn(client.received);
    assert.equal(answer?.status, 503);
    assert.equal(answer?.headers.get("connection"), "close");
  });

  it("sends the first half of a head again", async () => {
    const request = get("/half", "X-Long: 1\r\n");
    const { client } = await stage.pair(request.slice(0, 20));
    stage.application.end();
    await stage.untilAway(1);
    client.socket.write(request.slice(20));
    await stage.application.begin();
    const server = await stage.application.accept();
    await server.has(request.length);
    assert.equal(String(server.received), request);
  });

  it("resets what it cannot read (TLS, HTTP/2, anything), as the application did, and counts it", async () => {
    const port = stage.ports[UNSAFE] as number;
    const hello = connect({
      port: stage.application.port,
      servername: "app.test",
      rejectUnauthorized: false,
    });
    hello.on("error", () => {});
    const { received: clientHello } = await stage.application.accept().then(async (end) => {
      await end.has(1);
      return end;
    });
    const openings = {
      tls: clientHello,
      h2: Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
      tcp: Buffer.from("\x00\x01\x02 anything"),
    };
    for (const [protocol, opening] of Object.entries(openings)) {
      const before = await stage.count("sessionsReset");
      const client = await stage.dial(port);
      client.socket.write(opening);
      const server = await stage.application.accept();
      await server.has(opening.length);
      assert.equal((await stage.proxy.sessions())[0]?.protocol, protocol);
      await stage.application.restart();
      assert.equal(await client.ending(), "ECONNRESET");
      assert.equal((await stage.count("sessionsReset")) - before, 1);
    }
  });

  it("passes both ways what a server says that speaks first, byte by byte", async () => {
    const client = await stage.dial(stage.ports[UNSAFE]);
    const server = await stage.application.accept();
    for (const byte of "HTTP is not what this is") {
      const before = client.receivedBytes;
      server.socket.write(byte);
      await client.has(before + 1);
    }
    assert.equal(String(client.received), "HTTP is not what this is");
  });

  it("undici's keep-alive client sees a pause", async () => {
    const seen: string[] = [];
    stage.application.serve = (socket, life) => {
      const server = createServer((request, response) => {
        seen.push(`${life}:${request.method}:${request.url}`);
        response.end(`${life}`);
      });
      server.emit("connection", socket);
    };
    const client = new Client(`http://127.0.0.1:${stage.port}`);
    let connects = 0;
    client.on("connect", () => connects++);
    const lives: string[] = [];
    for (let round = 0; round < 5; round++) {
      const { body, statusCode } = await client.request({ method: "GET", path: `/${round}` });
      assert.equal(statusCode, 200);
      lives.push(await body.text());
      await stage.application.restart(round % 2 === 0 ? "reset" : "fin");
    }
    await client.close();
    const first = Number(lives[0]);
    assert.deepEqual(
      lives,
      [0, 1, 2, 3, 4].map((round) => String(first + round)),
    );
    assert.equal(connects, 1, "one connection all the time");
    assert.equal(seen.length, 5, "no request was made twice");
  });
});
