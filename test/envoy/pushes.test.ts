/**
 * The real istiod and Envoys: what each push does to long sessions, and what of it Holdfast spares them; that `envoy audit` says the same, and
 * what `envoy verify` says of patches that came to what they say, and of those that did not.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import type { Audit } from "#envoy/audit/audit.ts";
import { type DumpedProxy, readDump } from "#envoy/config-dump.ts";
import { objectsOf, verify } from "#envoy/verify/verify.ts";
import { type Place, projectRoot } from "../lab/lab.ts";
import { isClean } from "../lab/sweep.ts";
import { ADMIN } from "./bootstrap.ts";
import { GATEWAY, isCut, SESSION_KINDS } from "./held.ts";
import { hostOf, rendered } from "./istio-objects.ts";
import { PushStage, WAYS } from "./push-stage.ts";
import { cutBy, HELD, PLAIN, PUSHES, SPARE, SUBJECTS } from "./pushes.ts";
import { PORTS, SERVED } from "./several-workload.ts";
import { ask, serveAt, stickyPolicy, stickyRendered, stickyService } from "./sticky.ts";
import { wrongPatches } from "./wrong-patches.ts";

const ADMIN_URL = `http://${ADMIN.address}:${ADMIN.port}`;
type Places = [Place, Place, Place];

describe("istiod", () => {
  let stage: PushStage;
  before(async () => {
    stage = await PushStage.open();
  });
  after(async () => {
    await stage?.mesh.close();
    assert.ok(stage === undefined || isClean(stage.mesh.lab.leftovers()), "the mesh left something behind");
  });

  async function dumpOf(place: string): Promise<DumpedProxy> {
    return readDump(await stage.mesh.sidecar(place).configDump(), place);
  }

  /** By the command, which asks the proxy's admin interface. */
  async function auditAt(place: string): Promise<Audit> {
    const command = [join(projectRoot, "bin/holdfast"), "envoy", "audit", "--admin", ADMIN_URL, "--json"];
    const { json, stderr } = await stage.mesh.lab.run(place, command);
    assert.ok(json !== undefined, stderr);
    return json as Audit;
  }

  it("leads clients over mutual TLS to a service, and to Holdfast before one", async () => {
    for (const way of ["without", "pinned"] as const) {
      const server = stage.mesh.sidecar(SUBJECTS[way].pod.name);
      const handshakes = async () => (await server.stats("ssl\\.handshake$")).total ?? 0;
      const before = await handshakes();
      const sessions = await stage.open(way);
      for (const session of sessions) session.close();
      assert.ok((await handshakes()) > before, way);
    }
  });

  for (const push of PUSHES)
    it(`${push.what}: ends what audit says, and nothing of a gateway's clients`, async () => {
      const interrupted = await stage.linksInterrupted();
      const seen = await stage.see(push);
      const cuts = Object.fromEntries(
        WAYS.map((way) => [way, SESSION_KINDS.filter((kind) => isCut(seen[way][kind]))]),
      );
      const said = { without: cutBy(push, false), pinned: cutBy(push, true), gateway: [] };
      assert.deepEqual(cuts, said, JSON.stringify(seen));
      for (const kind of SESSION_KINDS) assert.deepEqual(seen.gateway[kind].failed, [], kind);
      // it is the link that was cut, and went on over another connection
      assert.equal((await stage.linksInterrupted()) > interrupted, push.cutsLinks ?? false, "links");
    });

  it("has an inbound listener pinned by what render makes, and another not: audit sees which", async () => {
    const [pinned, follows] = (await Promise.all([HELD.name, PLAIN.name].map(auditAt))) as [Audit, Audit];
    const ofPort = ({ facts }: typeof pinned) => facts.ports.map(({ port }) => port);
    assert.deepEqual(
      [pinned, follows].map(({ facts: { isPinned, hasFilterDisabled } }) => ({
        isPinned,
        hasFilterDisabled,
      })),
      [
        { isPinned: true, hasFilterDisabled: true },
        { isPinned: false, hasFilterDisabled: true },
      ],
    );
    const numbers = SERVED.map(({ number }) => number);
    assert.deepEqual([pinned, follows].map(ofPort), [numbers, numbers]);
    const kinds = ({ findings }: typeof pinned) => [...new Set(findings.map(({ id }) => id))];
    // the other was told of a longer silence by its node's metadata, as a policy's idleSeconds do
    assert.deepEqual([pinned, follows].map(kinds), [
      ["drain-time", "tcp-idle"],
      ["not-pinned", "drain-time"],
    ]);
    assert.match(JSON.stringify(pinned.findings), /ends 1 s later/);
  });

  it("applies what render makes, in both modes: verify sees it in the proxies", async () => {
    const { mesh } = stage;
    const withHeader = [PORTS.tcp];
    const sidecar = rendered(SUBJECTS.pinned.app, SERVED, { withHeader });
    const filters = rendered(SUBJECTS.without.app, SERVED, { mode: "envoyfilter", withHeader });
    await mesh.push(() => {
      mesh.istiod.put("chat-sidecar", sidecar);
      mesh.istiod.put("plain-more", filters);
    });
    const statesAt = async (place: string, objects: object[]) =>
      verify(await dumpOf(place), objectsOf(objects)).map(({ part, state }) => `${part} ${state}`);
    assert.deepEqual(await statesAt(HELD.name, sidecar), [
      ...SERVED.map((_, index) => `ingress[${index}] applied`),
      "configPatches[0] applied",
    ]);
    assert.deepEqual(await statesAt(PLAIN.name, filters), [
      ...SERVED.map((_, index) => `configPatches[${index}] applied`),
      "configPatches[0] applied",
    ]);
    await mesh.push(() => {
      mesh.istiod.put("chat-sidecar", rendered(SUBJECTS.pinned.app, SERVED));
      mesh.istiod.put("plain-more", []);
    });
  });

  it("leads a client back to the application that has its session, on its first try after a move", async () => {
    const { mesh } = stage;
    const { lab } = mesh;
    const [one, two, next] = [SPARE.name, "switch", GATEWAY.name].map((name) => lab.place(name)) as Places;
    const { documents } = stickyRendered("workload", "hf");
    const objects = documents.map((document) => document.object);
    const servers = serveAt([one, two, next]);
    try {
      await mesh.push(() => mesh.istiod.put("sticky", [...stickyService({ one, two }), ...objects]));
      const first = await ask(lab, "hf=one");
      assert.deepEqual([first.status, first.place], [200, one.name]);
      // whoever has no cookie is given one, and comes back to where it was
      const fresh = await ask(lab, null);
      const back = await ask(lab, fresh.cookie);
      assert.equal(back.place, fresh.place);
      await mesh.push(() => mesh.istiod.put("sticky", [...stickyService({ one: next, two }), ...objects]));
      const moved = await ask(lab, "hf=one");
      assert.deepEqual([moved.status, moved.place], [200, next.name]);
    } finally {
      for (const server of servers) server.close();
      await mesh.push(() => mesh.istiod.put("sticky", []));
    }
  });

  it("keeps sessions by address with its own labels, at a pod that drains too", async () => {
    const { mesh } = stage;
    const { lab } = mesh;
    const [one, two] = [SPARE.name, "switch"].map((name) => lab.place(name)) as Places;
    const { marks } = stickyRendered("address", "hf");
    const labels = { service: marks.find(({ on }) => on === "service")?.labels ?? {} };
    const servers = serveAt([one, two]);
    try {
      await mesh.push(() => mesh.istiod.put("sticky", stickyService({ one, two }, labels)));
      const states = verify(await dumpOf("client"), [], { policy: stickyPolicy("address", "hf"), marks }).map(
        ({ state }) => state,
      );
      assert.deepEqual(states, ["applied"]);
      const old = await ask(lab, null);
      assert.notEqual(old.cookie, null);
      const drained = old.place === one.name ? "one" : "two";
      const pods = { [drained]: { "istio.io/draining": "true" } };
      await mesh.push(() => mesh.istiod.put("sticky", stickyService({ one, two }, { ...labels, pods })));
      for (let count = 0; count < 4; count++) {
        assert.equal((await ask(lab, old.cookie)).place, old.place);
        assert.notEqual((await ask(lab, null)).place, old.place);
      }
    } finally {
      for (const server of servers) server.close();
      await mesh.push(() => mesh.istiod.put("sticky", []));
    }
  });

  it("takes a wrong patch of each kind without a word: verify says of each why it came to nothing", async () => {
    const { mesh } = stage;
    const wrong = wrongPatches(hostOf(SUBJECTS.pinned.app));
    const filters = wrong.map(({ filter }) => filter);
    await mesh.push(() => mesh.istiod.put("wrong", filters));
    const reasons: (string | null)[][] = [];
    for (const { place, filter } of wrong)
      reasons.push(verify(await dumpOf(place), objectsOf([filter])).map(({ reason }) => reason));
    assert.deepEqual(
      reasons,
      wrong.map(({ reason }) => [reason]),
    );
  });
});
