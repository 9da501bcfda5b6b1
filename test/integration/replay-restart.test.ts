/** Pause and resume, an application that stays away, health checks meanwhile, and sessions with names. */
import assert from "node:assert/strict";
import { after, afterEach, before, describe, it } from "node:test";
import { answersIn, answersOf, get, ok, post, ReplayStage } from "#test/support/mortal-application.ts";
import type { RawEnd } from "#test/support/raw-ends.ts";

const CHECK = get("/healthz");

describe("a restart", { timeout: 300_000 }, () => {
  let stage: ReplayStage;
  before(async () => {
    stage = await ReplayStage.start([{ protocol: "http" }, { protocol: "tcp", continuity: "transplant" }], {
      stallMsMax: 20,
      unavailableMsMax: 30_000,
    });
  });
  afterEach(() => stage.clear());
  after(() => stage.stop());

  async function idle(): Promise<RawEnd> {
    const { client, server } = await stage.pair(get("/"));
    server.socket.write(ok("x"));
    await answersOf(client, 1);
    return client;
  }

  it("says what it paused and what went on, and keeps new clients waiting", async () => {
    const rest = await idle();
    const { client: busy } = await stage.pair(get("/slow"));
    const { client: buying } = await stage.pair(post("/buy", "x"));
    const { client: other } = await stage.pair("anything", stage.ports[1]);
    assert.deepEqual(await stage.pause(), { sessions: 3, requestsInFlight: 2 });
    await stage.untilAway(3);
    const fresh = await stage.dial();
    fresh.socket.write(get("/fresh"));
    await stage.application.restart();
    assert.equal(await other.ending(), "ECONNRESET", "a transplant session's state was the application's");
    const seen: string[] = [];
    stage.application.serve = (socket) => {
      socket.on("data", (bytes) => {
        seen.push(String(bytes));
        socket.write(ok("served"));
      });
    };
    assert.equal(seen.length, 0);
    assert.deepEqual(await stage.resume(), { sessions: 4, replayed: 1, refused: 1, reset: 1 });
    assert.equal((await answersOf(busy, 1))[0]?.body, "served");
    assert.equal((await answersOf(buying, 1))[0]?.status, 503);
    assert.equal((await answersOf(fresh, 1))[0]?.body, "served");
    rest.socket.write(get("/rest"));
    assert.equal((await answersOf(rest, 2))[1]?.body, "served");
    assert.deepEqual(new Set(seen), new Set([get("/slow"), get("/fresh"), get("/rest")]));
  });

  it("lets what is under way end before it cuts", async () => {
    const { client, server } = await stage.pair(post("/buy", "x"));
    const paused = stage.pause(10_000);
    await stage.until(
      "the pause",
      () => stage.proxy.status(),
      ({ role }) => role === "paused",
    );
    server.socket.write(ok("bought"));
    assert.deepEqual(await paused, { sessions: 1, requestsInFlight: 0 });
    assert.equal((await answersOf(client, 1))[0]?.body, "bought");
    client.socket.write(get("/next"));
    await stage.resume();
    const next = await stage.application.accept();
    await next.has(get("/next").length);
    assert.equal(String(next.received), get("/next"));
  });

  it("shows nothing of an answer whose head was not complete when it cut", async () => {
    const { client, server } = await stage.pair(get("/1"));
    server.socket.write("HTTP/1.1 200 ");
    const other = await stage.pair(get("/other"));
    other.server.socket.write(ok("other"));
    await answersOf(other.client, 1);
    await stage.pause();
    await stage.application.restart();
    await stage.resume();
    const next = await stage.application.accept();
    await next.has(get("/1").length);
    next.socket.write(ok("one"));
    await answersOf(client, 1);
    assert.equal(String(client.received), ok("one"));
  });

  it("goes on with the same life when that was not ended after all", async () => {
    const { client, server } = await stage.pair(get("/big"));
    // An answer that has begun cannot be cut, so this connection stays.
    const begun = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab";
    server.socket.write(begun);
    await client.has(begun.length);
    await stage.pause();
    server.socket.write("cd");
    await answersOf(client, 1);
    await stage.resume();
    client.socket.write(get("/next"));
    await server.has(get("/big").length + get("/next").length);
    server.socket.write(ok("next"));
    assert.equal((await answersOf(client, 2))[1]?.body, "next");
  });

  it("resumes without a pause, pauses once, and does not move while paused", async () => {
    assert.deepEqual(await stage.resume(), { sessions: 0, replayed: 0, refused: 0, reset: 0 });
    await stage.pause();
    await assert.rejects(stage.pause(), { code: "PROXY_STATE" });
    await assert.rejects(stage.proxy.call("hold", { epoch: 1 }), { code: "PROXY_STATE" });
    await stage.resume();
  });

  it("shows who waits, and for what", async () => {
    const { client } = await stage.pair(get("/1") + get("/2"));
    stage.application.end();
    await stage.untilAway(1);
    const [session] = await stage.proxy.sessions();
    assert.equal(session?.protocol, "http");
    assert.equal(session?.continuity, "replay");
    assert.equal(session?.requestsInFlight, 2);
    assert.equal(session?.requests, 2);
    assert.equal(session?.bytesIn, (get("/1") + get("/2")).length);
    client.socket.resetAndDestroy();
  });

  it("notices clients that go while their requests wait for each other, or for a pause", async () => {
    const { client } = await stage.pair(get("/1") + get("/2"));
    await stage.application.restart();
    const server = await stage.application.accept();
    await server.has(get("/1").length);
    client.socket.resetAndDestroy();
    assert.equal(await server.ending(), "ECONNRESET");
    await stage.proxy.untilSessions(0);

    const busy = await stage.pair(get("/busy"));
    const rest = await idle();
    const paused = stage.pause(30_000);
    await stage.until(
      "the idle session is held",
      () => stage.proxy.sessions(),
      (all) => all.some(({ state }) => state === "held"),
    );
    rest.socket.resetAndDestroy();
    busy.server.socket.write(ok("done"));
    await paused;
    await stage.resume();
    busy.client.socket.resetAndDestroy();
    await stage.proxy.untilSessions(0);
  });

  it("leads many clients back", async () => {
    const clients = await Promise.all(Array.from({ length: 300 }, () => stage.dial()));
    await stage.proxy.untilSessions(300);
    await stage.pause();
    for (const [index, client] of clients.entries()) client.socket.write(get(`/${index}`));
    stage.application.serve = (socket) => {
      socket.on("data", (bytes) => socket.write(ok(String(bytes).split(" ")[1] as string)));
    };
    await stage.application.restart();
    const { sessions, reset } = await stage.resume();
    assert.deepEqual({ sessions, reset }, { sessions: 300, reset: 0 });
    for (const [index, client] of clients.entries())
      assert.equal((await answersOf(client, 1))[0]?.body, `/${index}`);
  });
});

describe("an application that stays away", { timeout: 300_000 }, () => {
  let stage: ReplayStage;
  before(async () => {
    stage = await ReplayStage.start([{ protocol: "http", probes: ["/healthz"] }, { protocol: "auto" }], {
      stallMsMax: 10,
      unavailableMsMax: 100,
      lingerMsMax: 300,
    });
  });
  afterEach(() => stage.clear());
  after(() => stage.stop());

  it("has its clients' requests refused on connections that stay, and gets the later ones", async () => {
    const { client } = await stage.pair(get("/1"));
    const rest = await stage.pair(get("/"));
    rest.server.socket.write(ok("x"));
    await answersOf(rest.client, 1);
    stage.application.end();
    assert.equal((await answersOf(client, 1))[0]?.status, 503);
    client.socket.write(get("/2"));
    assert.equal((await answersOf(client, 2))[1]?.status, 503);
    rest.client.socket.write(get("/rest"));
    assert.equal((await answersOf(rest.client, 2))[1]?.status, 503);
    const fresh = await stage.dial();
    fresh.socket.write(post("/fresh", "body"));
    assert.equal((await answersOf(fresh, 1))[0]?.status, 503);
    await stage.application.begin();
    await stage.resume();
    for (const [index, each] of [client, rest.client, fresh].entries()) {
      const before = answersIn(each.received).length;
      each.socket.write(get(`/back/${index}`));
      const server = await stage.application.accept();
      await server.has(get(`/back/${index}`).length);
      assert.equal(String(server.received), get(`/back/${index}`));
      server.socket.write(ok("back"));
      assert.equal((await answersOf(each, before + 1)).at(-1)?.body, "back");
    }
  });

  it("comes back to a client that was in the middle of a body it will be refused for", async () => {
    const request = post("/up", "z".repeat(100));
    const { client } = await stage.pair(request.slice(0, -50));
    const other = await stage.pair(get("/other"));
    stage.application.end();
    assert.equal((await answersOf(other.client, 1))[0]?.status, 503, "given up");
    await stage.application.begin();
    await stage.resume();
    client.socket.write(request.slice(-50));
    assert.equal((await answersOf(client, 1))[0]?.status, 503);
    client.socket.write(get("/next"));
    const server = await stage.application.accept();
    await server.has(get("/next").length);
    assert.equal(String(server.received), get("/next"));
    server.socket.write(ok("next"));
    assert.equal((await answersOf(client, 2))[1]?.body, "next");
  });

  it("refuses clients that came in a pause that takes too long, and those that come then", async () => {
    await stage.pause();
    stage.application.end();
    const early = await stage.dial();
    early.socket.write(get("/early"));
    assert.equal((await answersOf(early, 1))[0]?.status, 503);
    const late = await stage.dial();
    late.socket.write(get("/late"));
    assert.equal((await answersOf(late, 1))[0]?.status, 503);
    await stage.application.begin();
    await stage.resume();
    late.socket.write(get("/now"));
    const server = await stage.application.accept();
    await server.has(get("/now").length);
    server.socket.write(ok("now"));
    assert.equal((await answersOf(late, 2))[1]?.body, "now");
  });

  it("answers a resume that is in vain, and counts what that cost", async () => {
    const { client } = await stage.pair(get("/1"));
    const { client: buying } = await stage.pair(post("/1", "x"));
    await stage.pause();
    stage.application.end();
    const { refused, sessions } = await stage.resume();
    assert.deepEqual({ refused, sessions }, { refused: 2, sessions: 2 });
    for (const each of [client, buying]) assert.equal((await answersOf(each, 1))[0]?.status, 503);
  });

  it("has those reset who would not understand a 503", async () => {
    stage.application.end();
    const client = await stage.dial(stage.ports[1]);
    client.socket.write(Buffer.from([0, 1, 2, 3]));
    assert.equal(await client.ending(), "ECONNRESET");
  });

  it("does not take our refusal of a health check for the application's answer", async () => {
    const real = await stage.pair(CHECK);
    real.server.socket.write(ok("real"));
    await answersOf(real.client, 1);
    stage.application.end();
    const refused = await stage.dial();
    refused.socket.write(CHECK);
    assert.equal((await answersOf(refused, 1))[0]?.status, 503);
    await stage.application.begin();
    await stage.resume();
    await stage.pause();
    const probe = await stage.dial();
    probe.socket.write(CHECK);
    assert.equal((await answersOf(probe, 1))[0]?.body, "real");
  });

  it("ends the connection of a client that has sent its FIN with the answer it gets", async () => {
    const { client } = await stage.pair(get("/1"));
    client.socket.end();
    stage.application.end();
    assert.equal(await client.ending(), "end");
    assert.equal(answersIn(client.received)[0]?.status, 503);
    await stage.proxy.untilSessions(0);
  });
});

describe("health checks", { timeout: 300_000 }, () => {
  let stage: ReplayStage;
  let epoch = 1;
  before(async () => {
    stage = await ReplayStage.start(
      [
        { protocol: "http", probes: ["/healthz"], naming: { from: "cookie", name: "sid", issue: true } },
        { protocol: "http", continuity: "transplant", probes: ["/healthz"] },
      ],
      { probeMsMax: 1500, unavailableMsMax: 30_000, lingerMsMax: 300, stallMsMax: 20 },
    );
  });
  afterEach(async () => {
    if ((await stage.proxy.status()).role === "held") await stage.proxy.call("rollback", { epoch });
    await stage.clear();
  });
  after(() => stage.stop());

  const interruptions = {
    "a pause": { begin: () => stage.pause(0, epoch), end: () => stage.resume(epoch) },
    "a hold": {
      begin: () => stage.proxy.call("hold", { epoch }),
      end: () => stage.proxy.call("rollback", { epoch: ++epoch }),
    },
  };
  let round = 0;
  for (const [name, { begin, end }] of Object.entries(interruptions)) {
    for (const tier of [0, 1]) {
      it(`are answered with the last real answer in ${name} (port ${tier})`, async () => {
        if (name === "a pause" && tier === 1) return; // a transplant session is not paused
        const port = stage.ports[tier] as number;
        const said = `healthy ${++round}`;
        const real = await stage.pair(CHECK, port);
        real.server.socket.write(ok(said, "X-Real: yes\r\n"));
        const [answer] = await answersOf(real.client, 1);
        assert.equal(answer?.headers.has("set-cookie"), false, "a check is no session");
        const before = await stage.count("probesAnswered");
        await begin();
        for (let check = 0; check < 2; check++) {
          const probe = await stage.dial(port);
          probe.socket.write(CHECK.slice(0, 10));
          probe.socket.write(CHECK.slice(10));
          const [given] = await answersOf(probe, 1);
          assert.ok(given !== undefined && answer !== undefined);
          assert.match(given.headers.get("age") ?? "", /^[0-9]$/);
          assert.equal(given.headers.get("connection"), "close");
          for (const added of ["age", "connection"]) given.headers.delete(added);
          answer.headers.delete("connection");
          assert.deepEqual({ ...given }, { ...answer });
          assert.equal(await probe.ending(), "end");
        }
        assert.equal((await stage.count("probesAnswered")) - before, 2);
        const other = await stage.dial(port);
        other.socket.write(get("/other"));
        assert.equal(other.receivedBytes, 0);
        const ended = end();
        const server = await stage.application.accept();
        await server.has(get("/other").length);
        assert.equal(
          String(server.received),
          get("/other"),
          "what was no check reaches the application whole",
        );
        server.socket.write(ok("other"));
        assert.equal((await answersOf(other, 1))[0]?.body, "other");
        await ended;
        // The session of what was no check is observed as any other.
        await stage.until(
          "it is shown",
          () => stage.proxy.sessions(),
          (all) => all.some(({ protocol, requests }) => protocol === "http" && requests === 1),
        );
        const outside = await stage.pair(CHECK, port);
        outside.server.socket.write(ok("asked again"));
        assert.equal((await answersOf(outside.client, 1))[0]?.body, "asked again");
      });
    }
  }

  it("wait when the application has never answered one, or for too long", async () => {
    const head = CHECK.replace("GET", "HEAD");
    await stage.pause(0, epoch);
    const unknown = await stage.dial();
    unknown.socket.write(head);
    await stage.until(
      "the check is read",
      () => stage.proxy.sessions(),
      (all) => all.some(({ bytesIn }) => bytesIn === head.length),
    );
    assert.equal(unknown.receivedBytes, 0);
    await stage.resume(epoch);
    const server = await stage.application.accept();
    await server.has(head.length);
    server.socket.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    await answersOf(unknown, 1, ["HEAD"]);
  });

  it("do not get our own refusal for an answer", async () => {
    const real = await stage.pair(CHECK);
    real.server.socket.write(ok("real"));
    await answersOf(real.client, 1);
    const poison = await stage.dial();
    stage.application.serve = (socket) => socket.once("data", () => socket.resetAndDestroy());
    await stage.application.restart();
    poison.socket.write(CHECK);
    assert.equal((await answersOf(poison, 1))[0]?.status, 503);
    await stage.pause(0, epoch);
    const probe = await stage.dial();
    probe.socket.write(CHECK);
    assert.equal((await answersOf(probe, 1))[0]?.body, "real");
  });
});

describe("names of sessions", { timeout: 300_000 }, () => {
  let stage: ReplayStage;
  before(async () => {
    const naming = (from: "cookie" | "header" | "query" | "subprotocol", name: string, issue = false) => ({
      protocol: "http" as const,
      naming: { from, name, issue },
    });
    stage = await ReplayStage.start([
      naming("cookie", "sid", true),
      naming("cookie", "sid"),
      naming("header", "X-Session"),
      naming("query", "session"),
      naming("subprotocol", "session."),
    ]);
  });
  afterEach(() => stage.clear());
  after(() => stage.stop());

  const given = {
    cookie: [1, get("/", "Cookie: a=b; sid=forty-two\r\n")],
    header: [2, get("/", "X-Session: forty-two\r\n")],
    query: [3, get("/path?x=1&session=forty-two")],
    subprotocol: [
      4,
      get(
        "/",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat, session.forty-two\r\n",
      ),
    ],
  } as const;
  for (const [from, [port, request]] of Object.entries(given)) {
    it(`come from a ${from}`, async () => {
      await stage.pair(request, stage.ports[port]);
      assert.deepEqual(
        (await stage.proxy.sessions()).map(({ name }) => name),
        ["forty-two"],
      );
    });
  }

  it("are given in a signed cookie, once, in the first answer, and taken back only as they were", async () => {
    const { client, server } = await stage.pair(get("/1"));
    stage.application.end();
    await stage.untilAway(1);
    await stage.application.begin();
    const next = await stage.application.accept();
    await next.has(get("/1").length);
    next.socket.write(`HTTP/1.1 103 Early Hints\r\n\r\n${ok("one")}`);
    const [first] = await answersOf(client, 1);
    const [, cookie = "", name = ""] =
      /^(sid=([\w-]+)\.[\w-]+); /.exec(first?.headers.get("set-cookie") ?? "") ?? [];
    assert.notEqual(name, "");
    client.socket.write(get("/2"));
    await next.has(get("/1").length + get("/2").length);
    next.socket.write(ok("two"));
    assert.equal((await answersOf(client, 2))[1]?.headers.has("set-cookie"), false);
    assert.equal((await stage.proxy.sessions())[0]?.name, name);
    assert.equal(server.over !== null, true);

    const known = await stage.pair(get("/3", `Cookie: ${cookie}\r\n`));
    known.server.socket.write(ok("three"));
    assert.equal((await answersOf(known.client, 1))[0]?.headers.has("set-cookie"), false);
    const names = (await stage.proxy.sessions()).map((session) => session.name);
    assert.deepEqual(names, [name, name]);

    const tampered = cookie.replace(/.$/, (last) => (last === "A" ? "B" : "A")).replace("sid=", "sid=x");
    const forged = await stage.pair(get("/4", `Cookie: ${tampered}\r\n`));
    forged.server.socket.write(ok("four"));
    const [another] = await answersOf(forged.client, 1);
    assert.match(another?.headers.get("set-cookie") ?? "", /^sid=/);
    assert.ok(!another?.headers.get("set-cookie")?.startsWith(cookie));
  });
});
