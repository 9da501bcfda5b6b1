/**
 * Restarts behind peers, each in a real run with the peers that need no Debian package: what clients see is counted right.
 * Nothing is said here of how long an application is unavailable.
 */
import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { MissingPeer } from "#bench/peers/peer.ts";
import {
  errorsOf,
  type RestartSample,
  renderRestart,
  restartFigures,
} from "#bench/restart/restart-figures.ts";
import { type RestartPeer, restartPeers } from "#bench/restart/restart-peers.ts";
import { measureRestarts } from "#bench/restart-behind-peers.ts";
import { Stage } from "#bench/stage.ts";

const HTTP_CLIENTS = 20;
const WEBSOCKET_CLIENTS = 20;
const EVERY_MS = 20;

describe("restarts behind peers", { timeout: 300_000 }, () => {
  const stage = new Stage();
  const problems: { where: string; what: string }[] = [];
  let samples: RestartSample[] = [];
  const of = (peer: string, kind: string): RestartSample => {
    const found = samples.find((each) => each.peer === peer && each.kind === kind);
    assert.ok(found, `${peer}, ${kind} was not measured`);
    return found;
  };
  after(() => stage.close());

  it("are measured for every peer and kind; one that is missing or does not start is named", async () => {
    const absent: RestartPeer = {
      name: "absent",
      start: async () => {
        throw new MissingPeer("nobody has it");
      },
    };
    const installed = restartPeers.filter(({ name }) =>
      ["direct", "holdfast-replay", "http-proxy"].includes(name),
    );
    assert.equal(installed.length, 3);
    samples = await measureRestarts(
      stage,
      { round: 1, peers: [...installed, absent] },
      { say: () => {}, problem: (where, what) => problems.push({ where, what }) },
    );
    assert.deepEqual(problems, [
      { where: "restart, ordered, behind absent", what: "missing: nobody has it" },
      { where: "restart, crash, behind absent", what: "missing: nobody has it" },
    ]);
    assert.equal(samples.length, 2 * installed.length);
    for (const { report, downMs } of samples) {
      assert.equal(report.gapsMs.length, HTTP_CLIENTS + WEBSOCKET_CLIENTS);
      assert.ok(Math.max(...report.gapsMs) > EVERY_MS && downMs > 0);
      // Everything that was due was answered or is an error; the first of each client was not yet due.
      const answered = report.answered.length - report.gapsMs.length;
      assert.equal(answered + errorsOf(report), report.due);
    }
  });

  it("without a proxy: every client loses its connection", () => {
    for (const kind of ["ordered", "crash"]) {
      const { report, repeated, repeatedGets } = of("direct", kind);
      // More than one each: who comes back while the application is ending loses that connection as well.
      assert.ok(report.lostConnections >= HTTP_CLIENTS + WEBSOCKET_CLIENTS);
      assert.ok((report.errors.ECONNREFUSED ?? 0) > 0 && (report.errors["not connected"] ?? 0) > 0);
      assert.equal(repeated + repeatedGets, 0, "nobody sends anything again");
    }
  });

  it("behind a proxy that has nothing for it: WebSockets are lost, requests are refused", () => {
    for (const kind of ["ordered", "crash"]) {
      const { report } = of("http-proxy", kind);
      assert.ok(report.lostConnections >= WEBSOCKET_CLIENTS);
      assert.ok((report.errors["status 502"] ?? 0) > 0);
    }
  });

  it("behind the replay tier: on command nobody notices, in a crash what may have been done is not done twice", () => {
    const ordered = of("holdfast-replay", "ordered");
    assert.deepEqual(ordered.report.errors, {});
    assert.deepEqual([ordered.report.lostConnections, ordered.repeated, ordered.repeatedGets], [0, 0, 0]);
    const crash = of("holdfast-replay", "crash");
    assert.deepEqual([crash.report.lostConnections, crash.repeated], [0, 0]);
    const { "status 503": refused = 0, "message not answered": lost = 0 } = crash.report.errors;
    assert.equal(errorsOf(crash.report), refused + lost, JSON.stringify(crash.report.errors));
  });

  it("are figures of one round each, and a table", () => {
    const figures = restartFigures(samples);
    for (const metric of ["errors", "lostConnections", "gapMs", "repeated", "repeatedGets", "downMs", "due"])
      assert.equal(
        figures.filter((figure) => figure.metric === `restart-${metric}`).length,
        samples.length,
        metric,
      );
    assert.ok(figures.every(({ rounds }) => rounds.length === 1));
    const text = renderRestart(samples).join("\n");
    assert.match(text, /^holdfast-replay\s+0\s+0\s+\d+\s+0\s+0\s+-$/m);
    assert.match(text, /^direct\s+[1-9]\d*\s+40\s/m);
  });
});
