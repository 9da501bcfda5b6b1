/**
 * The real istiod with a real Kubernetes API: what the controller writes there for Services that ask, and what comes of it in Envoys; what
 * Kubernetes' own objects do to long sessions; and a mesh that lets in nothing but mutual TLS.
 */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { isDeepStrictEqual } from "node:util";
import type { KubeObject } from "../kube/control-plane.ts";
import { type Place, projectRoot } from "../lab/lab.ts";
import { isClean } from "../lab/sweep.ts";
import { until } from "../support/moved-program.ts";
import { ADMIN } from "./bootstrap.ts";
import { CHANGES, delayOfIstiod, delayOfOwn } from "./endpoint-delay.ts";
import { GATEWAY, HELD_APP, isCut, openGatedSessions, openSessions, whileAsking } from "./held.ts";
import { hostOf, NAMESPACE } from "./istio-objects.ts";
import { knock, linkPort } from "./knock.ts";
import { allOf, endpointSlice, kubeService, peerAuthentication, pod, put, remove } from "./kube-objects.ts";
import { BARE, HELD, KubeStage, PATIENT, SERVICE, SPARE } from "./kube-stage.ts";
import type { LongSession } from "./long-sessions.ts";
import { PORTS, SERVED, type ServicePort } from "./several-workload.ts";
import { ask, APP as STICKY, ADDRESS as STICKY_ADDRESS, PORT as STICKY_PORT, serveAt } from "./sticky.ts";

const HOLDFAST = join(projectRoot, "bin/holdfast");
const ADMIN_URL = `http://${ADMIN.address}:${ADMIN.port}`;
const NETWORKING = "/apis/networking.istio.io";
const STICKY_COOKIE = "hf";
/** a few hundred a second are asked for */
const REQUESTS_MIN = 500;
interface Mesh {
  stickiness?: { cookie: string; workloads?: { name: string }[] };
}
/** what a Service asks for besides its Sidecar */
const BY_WORKLOAD = {
  stickiness: { cookie: STICKY_COOKIE, workloads: [{ name: "chat-0", labels: { app: HELD_APP } }] },
};
/** … with a patch of clients' sidecars */
const BY_ADDRESS = { stickiness: { cookie: STICKY_COOKIE, key: "address", clients: { app: "client" } } };
const HTTP_PORTS = SERVED.filter(({ protocol }) => protocol !== "tcp");
const MORE_PORTS: ServicePort[] = [...SERVED, { number: 9_301, protocol: "tcp" }];

describe("istiod in a cluster", () => {
  let stage: KubeStage;
  before(async () => {
    stage = await KubeStage.open();
  });
  after(async () => {
    await stage?.mesh.close();
    assert.ok(stage === undefined || isClean(stage.lab.leftovers()), "the mesh left something behind");
  });

  const openDirect = (): Promise<LongSession[]> => openSessions(stage.lab, HELD_APP, SERVICE.address);
  const cutOf = (sessions: LongSession[]): string[] =>
    sessions.filter(({ seen }) => isCut(seen)).map(({ kind }) => kind);
  function assertGoOn(sessions: LongSession[]): void {
    for (const { kind, seen } of sessions) {
      const { ended, failed } = seen;
      const refused = failed.length === 0 ? [] : stage.mesh.answered().refused;
      assert.deepEqual({ kind, ended, failed, refused }, { kind, ended: null, failed: [], refused: [] });
    }
  }

  /** What the controller has made. */
  async function made(): Promise<KubeObject[]> {
    const { api } = stage.mesh;
    const kinds = [
      ["v1", "sidecars"],
      ["v1", "destinationrules"],
      ["v1", "virtualservices"],
      ["v1alpha3", "envoyfilters"],
    ] as const;
    const all = await Promise.all(
      kinds.map(([version, plural]) => allOf(api, `${NETWORKING}/${version}`, plural)),
    );
    return all.flat();
  }

  /** What `holdfast envoy verify` says of objects at a place: `KIND PART STATE` of each that is for it, and its warnings. */
  async function verified(place: string, objects: KubeObject[]): Promise<string[]> {
    const file = join(stage.lab.dir, "made.json");
    writeFileSync(file, objects.map((one) => `${JSON.stringify(one)}\n`).join("---\n"));
    const command = [HOLDFAST, "envoy", "verify", "--admin", ADMIN_URL, "-f", file, "--json"];
    const { json, stderr } = await stage.lab.run(place, command);
    assert.ok(json !== undefined, stderr);
    interface Part {
      resource: string;
      part: string;
      state: string;
      warnings: string[];
    }
    const { results } = json as { results: Part[] };
    return results
      .filter(({ state }) => state !== "elsewhere")
      .flatMap(({ resource, part, state, warnings }) => [
        `${resource.split(" ")[0]} ${part} ${state}`,
        ...warnings,
      ]);
  }

  it("tells sidecars what the controller writes for a Service that asks: verify finds it in them", async () => {
    const [direct, gated] = await Promise.all([openDirect(), openGatedSessions(stage.lab)]);
    await whileAsking([...direct, ...gated], () => stage.mesh.push(() => askFor(BY_WORKLOAD)));
    const objects = await made();
    const { uid } = (await stage.mesh.api.api("GET", `/api/v1/namespaces/${NAMESPACE}/services/${HELD_APP}`))
      .metadata;
    assert.deepEqual(
      objects.map(({ kind, metadata }) => [kind, (metadata.ownerReferences as { uid: string }[])[0]?.uid]),
      ["Sidecar", "DestinationRule", "VirtualService"].map((kind) => [kind, uid]),
    );
    assert.deepEqual(await verified(HELD.name, objects), [
      ...SERVED.map((_, index) => `Sidecar ingress[${index}] applied`),
      "DestinationRule subsets[0] applied",
      // by the cookie, and of who has none, at each port of HTTP
      ...HTTP_PORTS.flatMap((_, index) =>
        [0, 1].map((of) => `VirtualService http[${2 * index + of}] applied`),
      ),
    ]);
    assert.equal(await cookieOf(), `${STICKY_COOKIE}=chat-0`);
    // a Sidecar's first coming ends what its pods have, as audit says; not what a gateway's clients have
    assert.deepEqual(cutOf(direct), ["tcp", "websocket", "grpc"]);
    assertGoOn(gated);
    for (const session of [...direct, ...gated]) session.close();
  });

  /** The cookie that a request of somebody new is given, without what is said of it. */
  async function cookieOf(): Promise<string> {
    const url = `http://${SERVICE.address}:${PORTS.http.number}/`;
    const command = ["curl", "-sS", "-o", "/dev/null", "-H", `host: ${hostOf(HELD_APP)}`, "-D", "-", url];
    const { stdout } = await stage.lab.run("client", command);
    return /^set-cookie: ([^;]*)/im.exec(stdout)?.[1] ?? "";
  }

  it("has what render --from-cluster prints and nothing else of ours, with a patch at clients too", async () => {
    await stage.mesh.push(() => askFor(BY_ADDRESS));
    const objects = await made();
    const filters = await verified("client", objects);
    assert.deepEqual(
      filters,
      HTTP_PORTS.map((_, index) => `EnvoyFilter configPatches[${index}] applied`),
    );
    const access = ["--kubeconfig", stage.mesh.api.kubeconfig, "-n", NAMESPACE];
    const command = [HOLDFAST, "envoy", "render", "--from-cluster", ...access, "-o", "json"];
    const { json, stderr } = await stage.lab.run("switch", command);
    assert.ok(json !== undefined, stderr);
    const { items } = json as { items: KubeObject[] };
    const shown = (all: KubeObject[]) =>
      all.map(({ kind, metadata: { name }, spec }) => ({ kind, name, spec }));
    assert.deepEqual(shown(items), shown(objects));
    await stage.mesh.push(() => askFor(BY_WORKLOAD));
  });

  it("keeps sessions through a port of the Service, another writing, and a controller that begins anew", async () => {
    const before = await made();
    const sessions = [...(await openDirect()), ...(await openGatedSessions(stage.lab))];
    const versionOf = (objects: KubeObject[]) =>
      objects.find(({ kind }) => kind === "Sidecar")?.metadata.resourceVersion;
    const two = [...BY_WORKLOAD.stickiness.workloads, { name: "chat-1", labels: { app: HELD_APP } }];
    const earlier = stage.mesh.answered();
    const requests = stage.startRequests();
    await whileAsking(sessions, async () => {
      await stage.mesh.push(() => askFor(BY_WORKLOAD, MORE_PORTS));
      await stage.stopController();
      await stage.startController();
      // that it is written is the new one's doing, which has looked at all of them by then
      const more = { stickiness: { ...BY_WORKLOAD.stickiness, workloads: two } };
      await stage.mesh.push(() => askFor(more, MORE_PORTS));
      await stage.mesh.push(() => askFor(BY_WORKLOAD));
    });
    assertGoOn(sessions);
    assert.equal(requests.exited, false, requests.stdout);
    await requests.stop();
    const { count, refused } = stage.mesh.answered();
    assert.deepEqual(refused.slice(earlier.refused.length), []);
    assert.ok(count - earlier.count > REQUESTS_MIN, `${count - earlier.count} requests`);
    for (const session of sessions) session.close();
    assert.equal(versionOf(await made()), versionOf(before), "the Sidecar was written again");
  });

  it("has verify warn at clients of a subset whose labels no pod has, which is there all the same", async () => {
    const [mine] = BY_WORKLOAD.stickiness.workloads as [{ name: string; labels: object }];
    const workloads = [mine, { name: "nobody", labels: { app: "nobody" } }];
    await stage.mesh.push(() => askFor({ stickiness: { cookie: STICKY_COOKIE, workloads } }));
    const rule = (await made()).filter(({ kind }) => kind === "DestinationRule");
    const [first, second, warning] = await verified("client", rule);
    assert.deepEqual(
      [first, second],
      ["DestinationRule subsets[0] applied", "DestinationRule subsets[1] applied"],
    );
    assert.match(warning ?? "", /^outbound\|\d+\|nobody\|\S+ has no endpoints: /);
    await stage.mesh.push(() => askFor(BY_WORKLOAD));
  });

  /** The Service asks for this, and the controller has made all of it: routes come some time after their subsets, and go before them. */
  async function askFor(mesh: Mesh, ports?: readonly ServicePort[]): Promise<void> {
    const wanted = (mesh.stickiness?.workloads ?? []).map(({ name }) => name);
    await stage.ask(mesh, ports);
    await until("there are the subsets and the routes to them, and no others", async () => {
      const all = await made();
      const subsets = all.flatMap(({ spec }) => spec.subsets ?? []).map(({ name }) => name);
      const routes = all.flatMap(({ spec }) => spec.http ?? []).flatMap(({ route }) => route);
      const ledTo = new Set(routes.map(({ destination }) => destination.subset));
      return isDeepStrictEqual([subsets, [...ledTo]], [wanted, wanted]);
    });
  }

  it("keeps sessions of a sidecar with a long drainDuration, though its listener is replaced", async () => {
    const { app, address } = PATIENT;
    const sessions = await openSessions(stage.lab, app, address);
    const service = (ports: readonly ServicePort[]) => [
      kubeService(app, address, ports),
      endpointSlice(app, [SPARE], ports),
    ];
    const draining = async (): Promise<number> =>
      (await stage.mesh.sidecar(SPARE.name).stats("^listener_manager\\.total_listeners_draining$")).total ??
      0;
    const before = await draining();
    await whileAsking(sessions, () => stage.mesh.push(() => put(stage.mesh.api, ...service(MORE_PORTS))));
    assert.equal(await draining(), before + 1);
    assertGoOn(sessions);
    for (const session of sessions) session.close();
  });

  it("leaves sessions where they are when the last endpoint goes; requests are answered again when one is there", async () => {
    const { api } = stage.mesh;
    const all = await openDirect();
    const sessions = all.filter(({ kind }) => kind !== "http");
    const [request] = all.filter(({ kind }) => kind === "http") as [LongSession];
    await whileAsking(sessions, async () => {
      await stage.mesh.push(() => put(api, endpointSlice(HELD_APP, [], SERVED)));
      await request.ask();
      assert.deepEqual(request.failed, ["status 503"]);
      await stage.mesh.push(() => put(api, endpointSlice(HELD_APP, [HELD], SERVED)));
    });
    assertGoOn(sessions);
    const { answers } = request;
    await request.ask();
    assert.equal(request.answers, answers + 1);
    for (const session of all) session.close();
  });

  it("hears of each change of an EndpointSlice, as an Envoy of our own endpoints does of the store", async (context) => {
    const istiod = await delayOfIstiod(stage);
    const own = await delayOfOwn(stage.lab, "switch");
    const ratio = istiod / own;
    context.diagnostic(
      `median of ${CHANGES} changes: EndpointSlice to Envoy by istiod ${istiod.toFixed(0)} ms, store to Envoy by holdfast envoy endpoints ${own.toFixed(1)} ms, ratio ${ratio.toFixed(1)}`,
    );
  });

  it("keeps clients at a pod that drains by its label, or that Kubernetes ends, where the Service has istiod's label", async () => {
    const { api } = stage.mesh;
    const { lab } = stage;
    const places = [lab.place(BARE.name), lab.switch] as const;
    const servers = serveAt(places);
    const ports: ServicePort[] = [{ number: STICKY_PORT, protocol: "http" }];
    const podAt = (place: Place, labels = {}) => pod(STICKY, place, { hasSidecar: false, labels });
    const pods = places.map((place) => podAt(place));
    const service = (labels: Record<string, string>) =>
      kubeService(STICKY, STICKY_ADDRESS, ports, { labels });
    const label = { "istio.io/persistent-session": STICKY_COOKIE };
    try {
      await stage.mesh.push(() => put(api, ...pods, service(label), endpointSlice(STICKY, places, ports)));
      const old = await ask(lab, null);
      assert.match(old.cookie ?? "", new RegExp(`^${STICKY_COOKIE}=`));
      const mine = places.find(({ name }) => name === old.place) as Place;
      const others = places.filter((place) => place !== mine);
      const assertDrains = async (): Promise<void> => {
        for (let count = 0; count < 4; count++) {
          assert.equal((await ask(lab, old.cookie)).place, mine.name);
          assert.notEqual((await ask(lab, null)).place, mine.name);
        }
      };
      await stage.mesh.push(() => put(api, podAt(mine, { "istio.io/draining": "true" })));
      await assertDrains();
      await stage.mesh.push(() => put(api, podAt(mine)));
      await stage.mesh.push(() => put(api, endpointSlice(STICKY, others, ports, [mine])));
      await assertDrains();
      // without istiod's label a pod that ends is none of the Service's any more
      await stage.mesh.push(() => put(api, service({})));
      assert.notEqual((await ask(lab, old.cookie)).place, mine.name);
    } finally {
      for (const server of servers) server.close();
    }
  });

  it("tells the pod's sidecar no more than the Sidecar lets it that would hold without what the controller writes", async () => {
    const { api } = stage.mesh;
    const lockdown = {
      ...{ apiVersion: "networking.istio.io/v1", kind: "Sidecar" },
      metadata: { name: "default", namespace: NAMESPACE },
      spec: {
        egress: [{ hosts: [`./${hostOf(HELD_APP)}`] }],
        outboundTrafficPolicy: { mode: "REGISTRY_ONLY" },
      },
    };
    const knows = async (app: string): Promise<boolean> => {
      const clusters = await stage.mesh.sidecar(HELD.name).admin("/clusters");
      return clusters.includes(`||${hostOf(app)}::`);
    };
    const isAll = async () => (await knows(HELD_APP)) && (await knows(PATIENT.app));
    assert.ok(await isAll());
    await put(api, lockdown);
    await until("it is told of its own Service alone", async () => !(await knows(PATIENT.app)));
    assert.ok(await knows(HELD_APP));
    const ours = (await made()).find(({ metadata }) => metadata.name === `${HELD_APP}-holdfast`);
    const { ingress, egress, outboundTrafficPolicy } = ours?.spec ?? {};
    assert.deepEqual({ egress, outboundTrafficPolicy }, lockdown.spec);
    assert.equal(ingress?.length, SERVED.length);
    await remove(api, lockdown);
    await until("it is told of all again", isAll);
  });

  describe("where nothing but mutual TLS is let in", () => {
    const strict = peerAuthentication("default", "STRICT");
    let gated: LongSession[];
    let links: number;
    before(async () => {
      links = linkPort(stage.lab);
      gated = await openGatedSessions(stage.lab);
    });
    after(() => {
      for (const session of gated ?? []) session.close();
    });

    it("goes on with a gateway's clients when that begins: the sidecar leaves the port of links alone", async () => {
      await whileAsking(gated, () => stage.mesh.push(() => put(stage.mesh.api, strict)));
      assertGoOn(gated);
    });

    it("has sessions of every kind over mutual TLS alone, through a port of the Service and another writing", async () => {
      const server = stage.mesh.sidecar(HELD.name);
      const handshakes = async () => (await server.stats("ssl\\.handshake$")).total ?? 0;
      const earlier = await handshakes();
      const sessions = await openDirect();
      assert.ok((await handshakes()) > earlier);
      await whileAsking([...sessions, ...gated], async () => {
        await stage.mesh.push(() => askFor(BY_WORKLOAD, MORE_PORTS));
        await stage.mesh.push(() => askFor({}));
      });
      assertGoOn([...sessions, ...gated]);
      for (const session of sessions) session.close();
      const { address } = stage.lab.place(HELD.name);
      assert.equal(await knock(stage.lab.switch, { address, port: PORTS.tcp.number }), "refused");
    });

    it("refuses links that come to a sidecar, unless a Service declares their port and the gateway is in the mesh", async () => {
      const { lab } = stage;
      const { api } = stage.mesh;
      const to = { address: lab.place(HELD.name).address, port: links };
      const knockFromBoth = () =>
        Promise.all([lab.place(GATEWAY.name), lab.switch].map((from) => knock(from, to)));
      assert.deepEqual(await knockFromBoth(), ["greeted", "greeted"]);
      stage.mesh.sidecar(HELD.name).lead(links, true);
      assert.deepEqual(await knockFromBoth(), ["refused", "refused"]);
      const ports: ServicePort[] = [{ number: links, protocol: "tcp" }];
      const declared = [kubeService("links", null, ports), endpointSlice("links", [HELD], ports)].map(
        (one) => ({
          ...one,
          ...(one.kind === "Service" ? { spec: { ...one.spec, selector: { app: HELD_APP } } } : {}),
        }),
      );
      await stage.mesh.push(() => put(api, ...declared));
      assert.deepEqual(await knockFromBoth(), ["greeted", "refused"]);
      for (const session of gated.splice(0)) session.close();
      await stage.restartGateway();
      const sessions = await openGatedSessions(lab);
      for (const session of sessions) await session.ask();
      assertGoOn(sessions);
      for (const session of sessions) session.close();
    });
  });
});
