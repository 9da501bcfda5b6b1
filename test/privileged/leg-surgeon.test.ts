/** What happens to sessions while a surgeon that takes its time has their legs. */
import assert from "node:assert/strict";
import { closeSync, openSync, readdirSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { LegSurgeon } from "#proxy/contract/leg-surgeon.ts";
import { adoptDownstream, adoptUpstream } from "#proxy/cutover/adopt.ts";
import { captureDownstream, captureUpstream } from "#proxy/cutover/capture.ts";
import { hold } from "#proxy/cutover/hold.ts";
import { release } from "#proxy/cutover/release.ts";
import { retire } from "#proxy/cutover/retire.ts";
import { rollback } from "#proxy/cutover/rollback.ts";
import * as namespaces from "#proxy/kernel/namespaces.ts";
import { sockets } from "#proxy/kernel/stream-sockets.ts";
import { type InProcess, makeProxy, startInProcess } from "#test/support/in-process-proxy.ts";
import { lacking, Namespace } from "./tcp-stage.ts";

const WAIT_MS_MAX = 5_000;

async function until(what: string, done: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + WAIT_MS_MAX;
  while (!done()) {
    if (performance.now() > deadlineMs) throw new Error(`not within ${WAIT_MS_MAX} ms: ${what}`);
    await delay(5);
  }
}

/** of this process, which has both ends of each connection */
function descriptors(): number {
  return readdirSync("/proc/self/fd").length;
}

type Meanwhile = Partial<Record<keyof LegSurgeon, () => unknown>>;

/** Others have their turn before and after each call; `meanwhile` once, before the first call of that name. */
function slow(local: LegSurgeon, meanwhile: Meanwhile): LegSurgeon {
  const wrap =
    <A extends unknown[], R>(name: keyof LegSurgeon, call: (...args: A) => Promise<R>) =>
    async (...args: A): Promise<R> => {
      await delay(5);
      const work = meanwhile[name];
      delete meanwhile[name];
      await work?.();
      await delay(5);
      const result = await call(...args);
      await delay(5);
      return result;
    };
  return {
    shield: wrap("shield", (fds) => local.shield(fds)),
    capture: wrap("capture", (fds) => local.capture(fds)),
    uncapture: wrap("uncapture", (legs) => local.uncapture(legs)),
    adopt: wrap("adopt", (snapshots, options) => local.adopt(snapshots, options)),
    release: wrap("release", (legs) => local.release(legs)),
    provoke: wrap("provoke", (legs) => local.provoke(legs)),
  };
}

describe("while a surgeon has the legs", { skip: lacking(), timeout: 60_000 }, () => {
  const home = openSync("/proc/thread-self/ns/net", "r");
  let node: Namespace;
  before(() => {
    node = new Namespace();
    namespaces.setns(node.fd, namespaces.CLONE_NEWNET);
  });
  after(() => {
    namespaces.setns(home, namespaces.CLONE_NEWNET);
    for (const fd of [home, node.fd]) closeSync(fd);
  });

  interface Stage {
    stage: InProcess;
    meanwhile: Meanwhile;
    /** as many clients, each with an echo of "hello" */
    clients: number[];
  }

  async function held(count: number): Promise<Stage> {
    const meanwhile: Meanwhile = {};
    const stage = await startInProcess({
      downstream: "takeover",
      surgeon: (local) => slow(local, meanwhile),
    });
    const clients: number[] = [];
    for (let at = 0; at < count; at++) {
      const fd = sockets.dial({ address: "127.0.0.1", port: stage.listen });
      clients.push(fd);
      await until("sent", () => sockets.send(fd, Buffer.from("hello")) === 5);
      await until("the echo", () => sockets.unreadBytes(fd) === 5);
    }
    stage.proxy.role = "held";
    await hold(stage.proxy);
    return { stage, meanwhile, clients };
  }

  async function goesOn(fd: number, bytes: number): Promise<void> {
    assert.equal(sockets.send(fd, Buffer.from("again")), 5);
    await until("the echo", () => sockets.unreadBytes(fd) === bytes + 5);
  }

  it("bytes that arrive before the shield and after it are neither lost nor doubled, in a rollback and in a move", async () => {
    for (const how of ["rollback", "move"] as const) {
      const { stage, meanwhile, clients } = await held(2);
      const [talker, quiet] = clients as [number, number];
      let to: ReturnType<typeof makeProxy>["proxy"] | null = null;
      try {
        const upstreams = await captureUpstream(stage.proxy);
        meanwhile.shield = () => sockets.send(talker, Buffer.from("1"));
        meanwhile.capture = () => sockets.send(talker, Buffer.from("2"));
        const downstreams = await captureDownstream(stage.proxy);
        if (how === "rollback") {
          meanwhile.uncapture = () => sockets.send(talker, Buffer.from("3"));
          assert.deepEqual(await rollback(stage.proxy), { sessions: 2, lost: 0 });
        } else {
          retire(stage.proxy, null);
          const port = { ...stage.proxy.config.ports[0], listen: stage.listen };
          ({ proxy: to } = makeProxy({
            downstream: "takeover",
            port,
            surgeon: (local) => slow(local, meanwhile),
          }));
          await adoptUpstream(to, upstreams.sessions);
          await adoptDownstream(to, downstreams.sessions);
          meanwhile.release = () => sockets.send(talker, Buffer.from("3"));
          assert.equal((await release(to)).lost, 0);
        }
        await until("all echoes", () => sockets.unreadBytes(talker) === 8);
        const into = Buffer.alloc(16);
        assert.equal(into.toString("latin1", 0, sockets.recv(talker, into)), "hello123");
        await goesOn(talker, 0);
        await goesOn(quiet, 5);
      } finally {
        for (const fd of clients) sockets.close(fd);
        to?.stop();
        stage.stop();
      }
    }
  });

  for (const when of ["shield", "capture", "uncapture"] as const)
    it(`a client's reset during ${when} ends its session only, and leaves no descriptor`, async () => {
      const { stage, meanwhile, clients } = await held(2);
      const [odd, plain] = clients as [number, number];
      try {
        await captureUpstream(stage.proxy);
        const open = descriptors();
        meanwhile[when] = () => sockets.reset(odd);
        await captureDownstream(stage.proxy);
        await rollback(stage.proxy);
        await until("one session", () => stage.proxy.sessions.size === 1);
        // the client's own, the session's two, and the application's
        await until("its descriptors are closed", () => descriptors() === open - 4);
        await goesOn(plain, 5);
      } finally {
        sockets.close(plain);
        stage.stop();
      }
    });

  for (const when of ["capture", "uncapture"] as const)
    it(`a session that is ended during ${when} keeps its descriptors until the answer, and not longer`, async () => {
      const { stage, meanwhile, clients } = await held(2);
      const [odd, plain] = clients as [number, number];
      const { proxy } = stage;
      const session = [...proxy.sessions.values()].find(
        ({ client }) => client === `127.0.0.1:${sockets.localPort(odd)}`,
      );
      assert(session);
      const fdsOf = () =>
        [session.detachedUpstream, session.detachedDownstream].flatMap((leg) =>
          leg === null ? [] : [leg.fd],
        );
      let fds: number[] = [];
      const end = () => {
        fds = fdsOf();
        session.reset("ended");
        const busy = when === "capture" ? fds.slice(1) : fds;
        assert.ok(
          busy.length > 0 && busy.every((fd) => sockets.localPort(fd) > 0),
          "open while the surgeon has them",
        );
      };
      try {
        await captureUpstream(proxy);
        if (when === "capture") {
          meanwhile.capture = end;
          await captureDownstream(proxy);
        } else {
          await captureDownstream(proxy);
          meanwhile.uncapture = end;
        }
        assert.deepEqual(await rollback(proxy), { sessions: 1, lost: 0 });
        assert.ok(fds.length > 0);
        for (const fd of fds) assert.throws(() => sockets.localPort(fd), { code: "EBADF" });
        await goesOn(plain, 5);
      } finally {
        for (const fd of [odd, plain]) sockets.close(fd);
        stage.stop();
      }
    });

  it("a session that a failing release costs is reset at both ends, and the others go on", async () => {
    const { stage, meanwhile, clients } = await held(2);
    const [odd, plain] = clients as [number, number];
    let to: ReturnType<typeof makeProxy>["proxy"] | null = null;
    try {
      const upstreams = await captureUpstream(stage.proxy);
      const downstreams = await captureDownstream(stage.proxy);
      retire(stage.proxy, null);
      const oddPort = sockets.localPort(odd);
      ({ proxy: to } = makeProxy({
        downstream: "takeover",
        port: { ...stage.proxy.config.ports[0], listen: stage.listen },
        surgeon: (local) => {
          const surgeon = slow(local, meanwhile);
          return {
            ...surgeon,
            release: async (legs) =>
              (await surgeon.release(legs)).map((outcome, index) =>
                legs[index]?.side === "upstream" &&
                downstreams.sessions.find(
                  ({ upstream: _, downstream }) => downstream?.remote.port === oddPort,
                )?.id ===
                  upstreams.sessions.find(
                    ({ upstream }) => upstream?.local.port === legs[index]?.snapshot.local.port,
                  )?.id
                  ? { ok: false, error: new Error("odd") }
                  : outcome,
              ),
          };
        },
      }));
      await adoptUpstream(to, upstreams.sessions);
      await adoptDownstream(to, downstreams.sessions);
      assert.equal((await release(to)).lost, 1);
      await until("the client's reset", () => sockets.isClosed(odd));
      await goesOn(plain, 5);
      assert.equal(to.sessions.size, 1);
    } finally {
      for (const fd of [odd, plain]) sockets.close(fd);
      to?.stop();
      stage.stop();
    }
  });
});
