/** Clients in numbers, and code that fails: what they take from others, which is nothing. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { connect } from "node:net";
import { constants } from "node:os";
import { after, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { sockets } from "#proxy/kernel/stream-sockets.ts";
import { sessionPage } from "#proxy/workload/view.ts";
import { startInProcess } from "#test/support/in-process-proxy.ts";
import { answersOf, get, ok, ReplayStage } from "#test/support/mortal-application.ts";
import { RawEnd } from "#test/support/raw-ends.ts";

const DESCRIPTORS_MAX = 200;
const CLIENTS = 150;

/** Clients that say nothing. One that is refused may know before it knows that it was connected. */
function crowd(stage: ReplayStage, count: number, port = stage.port): RawEnd[] {
  return Array.from({ length: count }, () => new RawEnd(connect({ host: "127.0.0.1", port })));
}

function hangUp(ends: RawEnd[]): void {
  for (const { socket } of ends) socket.resetAndDestroy();
}

for (const continuity of ["replay", "transplant"] as const) {
  describe(`a proxy whose clients take its descriptors (${continuity})`, { timeout: 30_000 }, () => {
    let stage: ReplayStage | undefined;
    after(() => stage?.stop());

    it("refuses those that are too many, goes on with the others, and takes new ones when there is room", async () => {
      stage = await ReplayStage.start([{ protocol: "http", continuity }]);
      const { application, proxy } = stage;
      application.serve = (socket) => socket.on("data", () => socket.write(ok("here")));
      const good = await stage.dial();
      good.socket.write(get("/one"));
      await answersOf(good, 1);
      execFileSync("prlimit", ["--pid", String(proxy.process.pid), `--nofile=${DESCRIPTORS_MAX}:`]);
      const ends = crowd(stage, CLIENTS);
      await stage.until(
        "all have been accepted or refused",
        () => stage?.status() as ReturnType<ReplayStage["status"]>,
        ({ counters }) =>
          (counters.sessionsAccepted as number) + (counters.sessionsRefused as number) === CLIENTS + 1,
      );
      assert.ok(proxy.descriptors < DESCRIPTORS_MAX - 20, `${proxy.descriptors} descriptors`);
      assert.equal(await stage.count("sessionsUnavailable"), 0);
      const refused = await stage.count("sessionsRefused");
      assert.ok(refused > CLIENTS / 4 && refused < CLIENTS, `${refused} refused`);
      await stage.until(
        "they know it",
        async () => ends.filter(({ over }) => over === "ECONNRESET").length,
        (count) => count >= refused,
      );

      good.socket.write(get("/two"));
      await answersOf(good, 2);
      hangUp(ends);
      await proxy.untilSessions(1);
      const late = await stage.dial();
      late.socket.write(get("/late"));
      await answersOf(late, 1);
    });
  });
}

describe("a port with bounds on its sessions", { timeout: 30_000 }, () => {
  let stage: ReplayStage | undefined;
  after(() => stage?.stop());

  it("refuses clients beyond them, and counts those of one address", async () => {
    stage = await ReplayStage.start([{ sessionsMax: 5 }, { sessionsPerClientMax: 3 }]);
    for (const [index, bound] of [5, 3].entries()) {
      const ends = crowd(stage, bound + 2, stage.ports[index]);
      await stage.until(
        "two are refused",
        async () => ends.filter(({ over }) => over !== null).length,
        (count) => count === 2,
      );
      hangUp(ends);
      await stage.proxy.untilSessions(0);
      const again = await stage.dial(stage.ports[index]);
      again.socket.write("anything");
      await (await stage.application.accept()).has(8);
      hangUp([again]);
      await stage.proxy.untilSessions(0);
    }
    assert.equal(await stage.count("sessionsRefused"), 4);
  });
});

describe("a session whose own code fails", { timeout: 30_000 }, () => {
  it("is reset, counted and logged once, and the others go on", async () => {
    const send = (fd: number, bytes: Buffer): number => {
      if (bytes.includes("poison")) throw new Error("a bug");
      return sockets.send(fd, bytes);
    };
    const { proxy, lines, listen, stop } = await startInProcess({ kernel: { send } });
    const [sick, well] = [await RawEnd.dial(listen), await RawEnd.dial(listen)];
    try {
      for (const end of [sick, well]) end.socket.write("hello");
      await Promise.all([sick.has(5), well.has(5)]);
      sick.socket.write("poison");
      well.socket.write("again");
      await Promise.all([sick.until("a reset", () => sick.over !== null), well.has(10)]);
      assert.equal(sick.over, "ECONNRESET");
      assert.equal(proxy.counters.sessionsBroken, 1);
      assert.deepEqual(
        lines.map(({ msg }) => msg),
        ["a session has broken"],
      );
    } finally {
      for (const end of [sick, well]) end.destroy();
      stop();
    }
  });
});

describe("a session that is not as it can be", { timeout: 30_000 }, () => {
  it("is reset by the assertion that sees it, counted and logged, and the others lose no byte", async () => {
    const { proxy, lines, listen, stop } = await startInProcess();
    const [sick, well] = [await RawEnd.dial(listen), await RawEnd.dial(listen)];
    try {
      for (const end of [sick, well]) end.socket.write("hello");
      await Promise.all([sick.has(5), well.has(5)]);
      const session = [...proxy.sessions.values()].find(({ client }) =>
        client.endsWith(`:${sick.socket.localPort}`),
      );
      assert.ok(session !== undefined);
      // bytes that nobody has sent
      session.guard(() => session.inbound.removeSink(Buffer.from("from nowhere")));
      well.socket.write("again");
      await Promise.all([sick.until("a reset", () => sick.over !== null), well.has(10)]);
      assert.equal(sick.over, "ECONNRESET");
      assert.equal(well.received.toString(), "helloagain");
      assert.equal(proxy.counters.sessionsBroken, 1);
      assert.deepEqual(
        lines.map(({ msg, err }) => [msg, (err as { code?: string }).code]),
        [["a session has broken", "ERR_ASSERTION"]],
      );
    } finally {
      for (const end of [sick, well]) end.destroy();
      stop();
    }
  });
});

describe("a node that lacks what a dial needs", { timeout: 30_000 }, () => {
  it("has new clients told to come later, and does not take the application for gone", async () => {
    let isShort = true;
    const dial = (to: Endpoint): number => (isShort ? -constants.errno.EMFILE : sockets.dial(to));
    const { proxy, lines, listen, stop } = await startInProcess({
      kernel: { dial },
      port: { continuity: "replay", protocol: "http" },
    });
    const early = await RawEnd.dial(listen);
    const late = await RawEnd.dial(listen);
    try {
      early.socket.write(get("/early"));
      assert.deepEqual(
        (await answersOf(early, 1)).map(({ status }) => status),
        [503],
      );
      assert.equal(proxy.availabilities[0]?.isAbsent, false);
      assert.ok(proxy.counters.dialShortages > 0);
      assert.equal(lines.length, 1, "one line for all of them");
      isShort = false;
      const next = await RawEnd.dial(listen);
      next.socket.write(get("/next"));
      await next.has(get("/next").length);
      next.destroy();
    } finally {
      for (const end of [early, late]) end.destroy();
      stop();
    }
  });
});

describe("a list of sessions, asked for a page at a time", { timeout: 30_000 }, () => {
  it("has each session that was there throughout once, whoever comes and goes meanwhile", async () => {
    const { proxy, listen, stop } = await startInProcess({ serve: () => {} });
    const ends: RawEnd[] = [];
    const come = async (count: number): Promise<void> => {
      const there = proxy.sessions.size;
      for (let n = 0; n < count; n++) ends.push(new RawEnd(connect({ host: "127.0.0.1", port: listen })));
      while (proxy.sessions.size < there + count) await delay(1);
    };
    try {
      await come(5);
      const ids = [...proxy.sessions.keys()];
      const first = sessionPage(proxy, 0, 2);
      assert.deepEqual([first.sessions.map(({ id }) => id), first.next !== null], [ids.slice(0, 2), true]);
      proxy.sessions.get(ids[1] as string)?.reset("gone");
      proxy.sessions.get(ids[2] as string)?.reset("gone");
      await come(1);
      const second = sessionPage(proxy, first.next ?? 0, 2);
      assert.deepEqual(
        second.sessions.map(({ id }) => id),
        ids.slice(3, 5),
      );
      const third = sessionPage(proxy, second.next ?? 0, 2);
      assert.deepEqual(
        [third.sessions.map(({ id }) => id), third.next],
        [[...proxy.sessions.keys()].slice(3), null],
      );
      assert.equal(sessionPage(proxy, 0, 1_000).sessions.length, 4);
    } finally {
      hangUp(ends);
      stop();
    }
  });
});
