/**
 * Istio and Holdfast in one pod: Istio's own charts, injector, validating webhook, authority, agent and redirections, and an Envoy without its filters
 * (`istio.ts`). Applications are on a and b; node c is where istiod, the parts of the chart, and a client of the mesh are. `scripts/setup.sh kube`
 * and `scripts/setup.sh mesh` make what it needs.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { isFinal } from "#control/api/resources.ts";
import { type CliResult, projectRoot } from "../lab/lab.ts";
import { isClean } from "../lab/sweep.ts";
import { type Load, startLoad } from "../load/load.ts";
import { APP_PORT, appContainer, nodePortService } from "./applications.ts";
import { type Cluster, condition, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE } from "./images.ts";
import { EDGE, installChart, makeEdge, stateOf, uninstallChart, upgradeChart } from "./install.ts";
import { installIstio, istiodAlias, PILOT, PROXY } from "./istio.ts";
import { enterNetwork } from "./pod-network.ts";
import { ServiceInMesh, type VerifyMode } from "./verified.ts";
import {
  ALSO_LEADS,
  egressSidecar,
  FOREIGN,
  foreignFilter,
  REFUSED_FILTERS,
  WRONG_FILTERS,
} from "./wrong-resources.ts";

const HOLDFAST = "holdfast";
const GAMES = "games";
const NODE = "c";
const NODE_PORT = 30080;
/** a Service of the pods of "chat" that leads past its gateways */
const PAST = "past";
/** a Service that has not asked: what is made for it nobody keeps as it is */
const UNKEPT = "unkept";
/** its pods, whose Envoys have their admin interface at Istio's port, and at one of their own */
const UNKEPT_PODS = ["unkept-0", "unkept-1"] as const;
const OTHER_ADMIN_PORT = 15_111;
const SESSIONS = 20;
/** answers that clients have had before and after a move, each */
const ANSWERS = 5;
const PODS = `/api/v1/namespaces/${GAMES}/pods`;
const SERVICES = `/api/v1/namespaces/${GAMES}/services`;
const MIGRATIONS = `/apis/holdfast.dev/v1alpha1/namespaces/${GAMES}/migrations`;
const MESH = "holdfast.dev/mesh";
const SIDECARS_ALONE = ["sidecars.networking.istio.io"];
/** what the controller makes for Services that ask */
const MADE = ["sidecars", "destinationrules", "virtualservices", "envoyfilters"].map(
  (kind) => `${kind}.networking.istio.io`,
);
const WORKLOADS = [{ name: "mesh-0", labels: { app: "mesh" } }];
const ADMIN = "http://127.0.0.1:15000";
const HOLDFAST_PROGRAM = join(projectRoot, "bin/holdfast");

describe("pods that Istio and Holdfast inject", () => {
  let cluster: Cluster;
  const loads: Load[] = [];

  before(async () => {
    cluster = await createCluster({ nodes: ["a", "b", NODE], images: [AGENT, APPS, INSIDE, PILOT, PROXY] });
    const onEdge = await makeEdge(cluster, NODE);
    await cluster.apply(
      namespace(HOLDFAST, { "pod-security.kubernetes.io/enforce": "privileged" }),
      namespace(GAMES, { "holdfast.dev/inject": "enabled", "istio-injection": "enabled" }),
    );
    await Promise.all([
      installIstio(cluster, EDGE),
      installChart(cluster, HOLDFAST, {
        "store.url": cluster.lab.redis.url,
        "webhook.replicas": "1",
        "controller.replicas": "1",
        "gateway.replicas": "1",
        "gateway.drainSeconds": "2",
        "mesh.enabled": "true",
        ...onEdge,
      }),
    ]);
    // nothing but mutual TLS is let in, where Istio has the say
    await cluster.apply({
      apiVersion: "security.istio.io/v1",
      kind: "PeerAuthentication",
      metadata: { name: "default", namespace: GAMES },
      spec: { mtls: { mode: "STRICT" } },
    });
    await cluster.kubectl(["cordon", "b"]);
    const hostAliases = await istiodAlias(cluster);
    const sidecar = { "holdfast.dev/mode": "forward", "holdfast.dev/proxy": "sidecar" };
    const admin = { "proxy.istio.io/config": JSON.stringify({ proxyAdminPort: OTHER_ADMIN_PORT }) };
    await cluster.apply(
      nodePortService(
        { name: "chat", namespace: GAMES, labels: { "holdfast.dev/gateway": "enabled" } },
        NODE_PORT,
      ),
      deployment("chat", {}, hostAliases),
      meshService("mesh"),
      meshService(PAST, "chat"),
      deployment("mesh", sidecar, hostAliases),
      clientPod(hostAliases),
      oldStylePod(hostAliases),
      meshService(UNKEPT),
      ...UNKEPT_PODS.map((name, index) =>
        singlePod(name, UNKEPT, { ...sidecar, ...(index === 0 ? {} : admin) }, hostAliases),
      ),
    );
  });
  after(async () => {
    await cluster?.close();
    if (cluster !== undefined) assert.ok(isClean(cluster.lab.leftovers()), "something is left behind");
  });

  async function failed(what: unknown): Promise<never> {
    const logs = ["-n", HOLDFAST, "logs", "-l", "app.kubernetes.io/component=agent", "--prefix", "--tail=25"];
    const agents = await cluster.kubectl(logs).catch(String);
    return assert.fail(`${String(what)}\n${await stateOf(cluster, GAMES).catch(String)}\n${agents}`);
  }
  const until = (what: string, holds: () => Promise<unknown>): Promise<void> =>
    cluster.until(what, holds).catch(failed);

  async function list(path: string): Promise<KubeObject[]> {
    return (await cluster.api("GET", path)).items as KubeObject[];
  }

  async function pod(name: string): Promise<KubeObject> {
    let found: KubeObject | null = null;
    await until(`pod ${name} is Ready`, async () => {
      found = await cluster.find(`${PODS}/${name}`);
      return found !== null && condition(found, "Ready") === "True";
    });
    return found as unknown as KubeObject;
  }

  async function theOnlyPod(app: string, node: string): Promise<KubeObject> {
    let found: KubeObject[] = [];
    await until(`one pod of ${app} is Ready, on ${node}`, async () => {
      found = await list(`${PODS}?labelSelector=app=${app}`);
      const [first] = found;
      return found.length === 1 && first?.spec.nodeName === node && condition(first, "Ready") === "True";
    });
    return found[0] as KubeObject;
  }

  const inPod = (of: KubeObject, argv: string[]): Promise<CliResult> =>
    cluster.run([...enterNetwork(of, "pilot-agent"), ...argv]);

  /** The sum of what a pod's Envoy counts by names that match. */
  async function count(of: KubeObject, filter: string): Promise<number> {
    const { stdout } = await inPod(of, [
      "curl",
      "-sS",
      `${ADMIN}/stats?filter=${encodeURIComponent(filter)}`,
    ]);
    return stdout
      .split("\n")
      .map((line) => Number(/: (\d+)$/.exec(line)?.[1] ?? 0))
      .reduce((sum, one) => sum + one, 0);
  }

  async function start(target: { address: string; port: number }, enter?: string[]): Promise<Load> {
    const options = { target, sessions: SESSIONS, intervalMs: 20 };
    const load = await (enter === undefined
      ? startLoad(cluster.lab, "ws", options)
      : startLoad(cluster.lab, "ws", options, "switch", enter));
    loads.push(load);
    return load;
  }

  /** Clients in the pod of the mesh, which come to the Service by its address. */
  async function startInMesh(service = "mesh"): Promise<Load> {
    const { spec } = await cluster.api("GET", `${SERVICES}/${service}`);
    const enter = enterNetwork(await pod("client"), "pilot-agent");
    return await start({ address: spec.clusterIP, port: 80 }, enter);
  }

  async function answered(load: Load): Promise<void> {
    const wanted = load.messages + ANSWERS * SESSIONS;
    await until("clients are answered", async () => load.messages >= wanted);
  }

  async function nobodyIsLost(load: Load): Promise<void> {
    await answered(load);
    const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
    const found = { lost, repeated, corrupt, resets, alive, problems };
    const wanted = { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS, problems: [] };
    if (JSON.stringify(found) !== JSON.stringify(wanted)) await failed(JSON.stringify(found));
    await load.mark();
  }

  async function migration(name: string): Promise<KubeObject> {
    return await cluster.api("GET", `${MIGRATIONS}/${name}`);
  }

  async function migrate(name: string, { metadata }: KubeObject, node: string): Promise<void> {
    await cluster.apply({
      apiVersion: "holdfast.dev/v1alpha1",
      kind: "Migration",
      metadata: { name, namespace: GAMES },
      spec: { pod: metadata.name, target: { node } },
    });
  }

  /** The last one of a pod, when it has moved: at its first attempt. */
  async function moved({ metadata: { uid } }: KubeObject): Promise<KubeObject> {
    let found: KubeObject | undefined;
    await until("it has moved", async () => {
      found = (await list(MIGRATIONS)).findLast(({ status }) => status?.source?.podUid === uid);
      return found !== undefined && isFinal(found.status?.phase);
    });
    const { status } = found as KubeObject;
    if (status.phase !== "Succeeded" || status.attempt !== 1) await failed(JSON.stringify(status));
    return found as KubeObject;
  }

  async function ask(mesh: object): Promise<void> {
    await cluster.kubectl([
      ...["-n", GAMES, "annotate", "--overwrite", "service", "mesh"],
      `${MESH}=${JSON.stringify(mesh)}`,
    ]);
  }

  /** Kinds of the controller's objects that are there. */
  async function kinds(): Promise<string[]> {
    const found = await Promise.all(
      MADE.map(async (kind) => {
        const argv = ["-n", GAMES, "get", kind, "-l", "holdfast.dev/policy=mesh", "-o", "name"];
        return (await cluster.kubectl(argv)).trim() === "" ? [] : [kind];
      }),
    );
    return found.flat();
  }
  const untilMade = (...wanted: string[]): Promise<void> =>
    until(`there are ${wanted.join(" and ") || "none of the controller's objects"}`, async () => {
      return JSON.stringify(await kinds()) === JSON.stringify(wanted);
    });

  /** `VERB RESOURCE` of Istio's groups, of those that the controller may. */
  async function allowed(): Promise<string[]> {
    const as = `--as=system:serviceaccount:${HOLDFAST}:holdfast-controller`;
    const text = await cluster.kubectl(["auth", "can-i", "--list", as, "-n", GAMES, "--no-headers"]);
    return text
      .split("\n")
      .map((line) => /^(\S+\.istio\.io)\s.*\[([^\]]*)\]\s*$/.exec(line))
      .flatMap((match) => (match?.[2] ?? "").split(" ").map((verb) => `${verb} ${match?.[1]}`))
      .filter((one) => !one.startsWith(" "))
      .toSorted();
  }

  it("are Ready with both sidecars, in Istio's old style too", async () => {
    const [chat, mesh, old] = [
      await theOnlyPod("chat", "a"),
      await theOnlyPod("mesh", "a"),
      await pod("old"),
    ];
    for (const { spec, metadata } of [chat, mesh]) {
      assert.deepEqual(namesOf(spec.initContainers), ["istio-init", "istio-proxy", "holdfast-proxy"]);
      assert.deepEqual(namesOf(spec.containers), ["app"]);
      const said = metadata.annotations as Record<string, string>;
      assert.equal(said["traffic.sidecar.istio.io/excludeInboundPorts"], "15898,15899");
    }
    assert.deepEqual(namesOf(old.spec.initContainers), ["holdfast-proxy", "istio-init"]);
    assert.deepEqual(namesOf(old.spec.containers), ["app", "istio-proxy"]);
    for (const one of [chat, mesh, old])
      assert.equal(await count(one, "(lds|cds)\\.update_rejected$"), 0, one.metadata.name);
    const whole = await cluster.run([HOLDFAST_PROGRAM, "check", "--cluster", "-o", "json"]);
    assert.deepEqual([whole.status, JSON.parse(whole.stdout).findings], [0, []], whole.stdout + whole.stderr);
  });

  it("move in Istio's old style, too", async () => {
    await cluster.kubectl(["uncordon", "b"]);
    const old = await pod("old");
    await migrate("old-to-b", old, "b");
    const { status } = await moved(old);
    await cluster.kubectl(["-n", GAMES, "delete", "pod", status.target.pod, "--grace-period=0", "--force"]);
  });

  it("have the controller write what their Service asks for, which Istio's webhook lets in", async () => {
    const sidecar = (port: number): KubeObject => ({
      apiVersion: "networking.istio.io/v1",
      kind: "Sidecar",
      metadata: { name: "wrong", namespace: GAMES },
      spec: {
        ingress: [
          { port: { number: 9000, protocol: "TCP", name: "tcp" }, defaultEndpoint: `10.0.0.1:${port}` },
        ],
      },
    });
    await assert.rejects(
      cluster.apply(sidecar(15_900)),
      /admission webhook "\S*validation\.istio\.io" denied/,
    );
    await ask({ stickiness: { cookie: "hf", workloads: WORKLOADS } });
    await untilMade(...MADE.slice(0, 3));
    await ask({ stickiness: { cookie: "hf", key: "address", clients: { app: "client" } } });
    await untilMade("sidecars.networking.istio.io", "envoyfilters.networking.istio.io");
    await ask({});
    await untilMade(...SIDECARS_ALONE);
    const events = await cluster.kubectl(["-n", GAMES, "get", "events", "-o", "custom-columns=R:.reason"]);
    assert.doesNotMatch(events, /^(Refused|MadeByAnother|PolicyInvalid|NotInPod)$/m);
  });

  it("have a controller that may do that with its objects of Istio, and nothing else of Istio's", async () => {
    const verbs = ["list", "watch", "create", "update", "delete"];
    const wanted = MADE.flatMap((kind) => verbs.map((verb) => `${verb} ${kind}`)).toSorted();
    assert.deepEqual(await allowed(), wanted);
  });

  it("have what their Service asks for in the cluster and in their own Envoys, says verify --from-cluster", async () => {
    const { metadata } = await theOnlyPod("mesh", "a");
    const mesh = new ServiceInMesh(cluster, GAMES, "mesh");
    await finds(mesh, "sidecar", ["0", "mesh: Sidecar applied", `${metadata.name}: ingress[0] applied`]);
    await finds(mesh, "envoyfilter", ["1", "mesh: EnvoyFilter not-in-cluster", `${metadata.name}: `]);
    const text = await cluster.run([HOLDFAST_PROGRAM, "envoy", "verify", "--from-cluster", "-n", GAMES]);
    assert.match(text.stdout, /^Service mesh, in the cluster\n/m, text.stderr);
    // of a Service that leads past the gateways of its pods
    assert.match(text.stderr, /^Service past: NotInPod: /m);
  });

  /** In the end: a push takes its time. */
  async function finds(
    service: ServiceInMesh,
    mode: VerifyMode,
    wanted: string[],
    why: readonly RegExp[] = [],
  ): Promise<void> {
    let found = await service.verified(mode);
    const isAsWanted = (): boolean => JSON.stringify(found.said) === JSON.stringify(wanted);
    if (!isAsWanted())
      await until(`verify says ${wanted.join("; ")}`, async () => {
        found = await service.verified(mode);
        return isAsWanted();
      }).catch((error) => assert.fail(`${error}\nit says ${JSON.stringify(found)}`));
    for (const [index, pattern] of why.entries()) assert.match(found.why[index] ?? "", pattern);
  }

  describe("whose resources nobody keeps, by verify --from-cluster", () => {
    const ANY = /(?:)/;
    let service: ServiceInMesh;
    let filter: KubeObject;
    let sidecar: KubeObject;
    before(async () => {
      service = new ServiceInMesh(cluster, GAMES, UNKEPT);
      await Promise.all(UNKEPT_PODS.map(pod));
      filter = await service.rendered("envoyfilter");
      sidecar = await service.rendered("sidecar");
    });
    after(async () => {
      const argv = ["-n", GAMES, "delete", "service", UNKEPT];
      await cluster.kubectl(argv);
      const pods = ["-n", GAMES, "delete", "pod", ...UNKEPT_PODS, "--grace-period=0", "--force"];
      await cluster.kubectl(pods);
    });

    const found = (
      mode: VerifyMode,
      [status, there, ...pods]: readonly [0 | 1, string, string, string?],
      why: readonly RegExp[] = [],
    ): Promise<void> => {
      const [first = "", second = first] = pods;
      const [one, other] = UNKEPT_PODS;
      return finds(
        service,
        mode,
        [`${status}`, `${UNKEPT}: ${there}`, `${one}: ${first}`, `${other}: ${second}`],
        why,
      );
    };
    const wrong = ({ edit }: (typeof WRONG_FILTERS)[number]): KubeObject => {
      const edited = structuredClone(filter);
      edit(edited.spec.configPatches, APP_PORT);
      return edited;
    };
    const isWell = (mode: VerifyMode): Promise<void> =>
      mode === "sidecar"
        ? found(mode, [0, "Sidecar applied", "ingress[0] applied"])
        : found(mode, [0, "EnvoyFilter applied", "configPatches[0] applied"]);

    it("are found to have none of what is not in the cluster", async () => {
      await found("envoyfilter", [1, "EnvoyFilter not-in-cluster", ""]);
      await found("sidecar", [1, "Sidecar not-in-cluster", ""]);
    });

    for (const one of WRONG_FILTERS)
      it(`are found not to have ${one.what}`, async () => {
        await service.put(wrong(one));
        await found("envoyfilter", [1, "EnvoyFilter not-as-asked", one.found], [ANY, one.why, one.why]);
      });

    it("are found to have it when it is mended", async () => {
      await service.put(filter);
      await isWell("envoyfilter");
    });

    for (const one of REFUSED_FILTERS)
      it(`are found not to have ${one.what}, and to have it when it is mended`, async () => {
        await service.put(wrong(one));
        await found("envoyfilter", [1, "EnvoyFilter not-as-asked", one.found], [ANY, one.why, one.why]);
        await service.put(filter);
        await isWell("envoyfilter");
      });

    for (const { what, patch, why } of FOREIGN)
      it(`are found not to have it where somebody else's EnvoyFilter ${what}`, async () => {
        await service.put(foreignFilter(UNKEPT, patch(APP_PORT), GAMES));
        await found(
          "envoyfilter",
          [1, "EnvoyFilter applied", "configPatches[0] other-value"],
          [ANY, why, why],
        );
      });

    it("are found to have it when that is gone", async () => {
      await service.remove(foreignFilter(UNKEPT, {}, GAMES));
      await isWell("envoyfilter");
      await service.remove(filter);
    });

    it("are found to have a Sidecar that somebody edited, which is not what is asked for", async () => {
      const edited = structuredClone(sidecar);
      edited.spec.ingress[0].defaultEndpoint = "127.0.0.1:15901";
      await service.put(edited);
      await found("sidecar", [1, "Sidecar not-as-asked", "ingress[0] applied"]);
      await service.put(sidecar);
      await isWell("sidecar");
    });

    it("are found to lead elsewhere as well behind a Sidecar, where somebody else's EnvoyFilter says so", async () => {
      const { patch, why } = ALSO_LEADS;
      await service.put(foreignFilter(UNKEPT, patch(APP_PORT), GAMES));
      await found("sidecar", [1, "Sidecar applied", "ingress[0] other-value"], [ANY, why, why]);
      await service.remove(foreignFilter(UNKEPT, {}, GAMES));
      await isWell("sidecar");
    });

    it("are found not to have a Sidecar beside another that was made before", async () => {
      const older = egressSidecar("a-sidecar", UNKEPT, GAMES);
      await service.remove(sidecar);
      await service.put(older);
      await service.put(sidecar);
      const why = /^inbound\|9000\|\| is ORIGINAL_DST, .*: Sidecar games\/a-sidecar holds$/;
      await found("sidecar", [1, "Sidecar applied", "ingress[0] other-value"], [ANY, why, why]);
      await service.remove(older);
      await isWell("sidecar");
    });

    it("are said not to be reached where no Envoy answers at the port that the pod says", async () => {
      const first = await pod(UNKEPT_PODS[0]);
      const nft = (...argv: string[]): Promise<CliResult> => inPod(first, ["nft", ...argv]);
      const table = ["inet", "holdfast_test"];
      const chain = "{ type filter hook output priority 0; }";
      for (const argv of [
        ["add", "table", ...table],
        ["add", "chain", ...table, "output", chain],
        ["add", "rule", ...table, "output", "tcp", "dport", "15000", "reject", "with", "tcp", "reset"],
      ]) {
        const { status, stderr } = await nft(...argv);
        assert.equal(status, 0, stderr);
      }
      const why = new RegExp(
        `^no Envoy answers at port 15000 of pod ${GAMES}/${UNKEPT_PODS[0]} \\(Istio's own\\): .*: kubectl: .*connection refused`,
      );
      await found("sidecar", [1, "Sidecar applied", "not looked at", "ingress[0] applied"], [ANY, why]);
      await nft("delete", "table", ...table);
      await isWell("sidecar");
    });
  });

  it("keep a gateway's clients when their node is drained, whoever came past the gateway", async () => {
    const { address } = cluster.lab.place(NODE);
    await cluster.untilOpen(address, NODE_PORT);
    const load = await start({ address, port: NODE_PORT });
    await answered(load);
    const past = await startInMesh(PAST);
    await answered(past);
    const sources = [await theOnlyPod("chat", "a"), await theOnlyPod("mesh", "a")];
    const drain = ["drain", "a", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s"];
    await cluster.kubectl(drain, { timeoutMs: 250_000 }).catch(failed);
    for (const source of sources) await moved(source);
    for (const app of ["chat", "mesh"]) await theOnlyPod(app, "b");
    await nobodyIsLost(load);
    await load.stop();
    await until("who came past the gateway is cut", async () => past.alive === 0);
    await past.stop();
    await cluster.kubectl(["uncordon", "a"]);
  });

  it("get clients of the mesh through Istio's Envoy, and no others", async () => {
    const mesh = await theOnlyPod("mesh", "b");
    const load = await startInMesh();
    await nobodyIsLost(load);
    // an Envoy of Istio's agent counts no handshakes; without one nobody is let in, as the next shows
    const { stdout: clusters } = await inPod(mesh, ["curl", "-sS", `${ADMIN}/clusters`]);
    const led = /^inbound\|9000\|\|::127\.0\.0\.1:15900::cx_active::(\d+)$/m.exec(clusters)?.[1];
    assert.equal(Number(led), SESSIONS, clusters);
    const url = `http://${mesh.status.podIP}:${APP_PORT}/`;
    const plain = await cluster.run(["curl", "-sS", "--max-time", "10", url]);
    assert.notEqual(plain.status, 0, plain.stdout);
    const shown = await cluster.run([
      ...[HOLDFAST_PROGRAM, "sessions", `pod/${mesh.metadata.name}`, "-n", GAMES],
    ]);
    assert.equal(shown.stdout.match(/websocket/g)?.length, SESSIONS, shown.stdout + shown.stderr);
    await load.stop();
  });

  it("keep clients of the mesh while the pod that they are connected to stays for them", async () => {
    const source = await theOnlyPod("mesh", "b");
    const load = await startInMesh();
    await answered(load);
    await migrate("to-a", source, "a");
    await until("the pod stays for its clients", async () => {
      return (await migration("to-a")).status?.reason === "ClientsOfSource";
    });
    await nobodyIsLost(load);
    await load.stop();
    const { status } = await moved(source);
    assert.deepEqual([status.move.downstream, status.move.sessions], ["forward", SESSIONS]);
    await theOnlyPod("mesh", "a");
    const next = await startInMesh();
    await nobodyIsLost(next);
    await next.stop();
  });

  it("are deleted with clients of the mesh that have not gone in time, whose next connections come to the new pod", async () => {
    await cluster.apply({
      apiVersion: "holdfast.dev/v1alpha1",
      kind: "ContinuityPolicy",
      metadata: { name: "default", namespace: GAMES },
      spec: { anchorSeconds: 1 },
    });
    const source = await theOnlyPod("mesh", "a");
    const load = await startInMesh();
    await answered(load);
    await migrate("to-b", source, "b");
    await moved(source);
    await until("their connections have ended", async () => load.alive === 0);
    await load.stop();
    await theOnlyPod("mesh", "b");
    const next = await startInMesh();
    await nobodyIsLost(next);
    await next.stop();
  });

  it("lose nothing but what was made for them when the chart keeps it no more, and when it goes", async () => {
    for (const takeAway of [
      () => upgradeChart(cluster, HOLDFAST, { "mesh.enabled": "false" }),
      () => uninstallChart(cluster, HOLDFAST),
    ]) {
      await takeAway().catch(failed);
      assert.deepEqual(await kinds(), []);
      const { metadata } = await cluster.api("GET", `${SERVICES}/mesh`);
      assert.equal((metadata.annotations as Record<string, string> | undefined)?.[MESH], undefined);
      assert.deepEqual(await allowed(), []);
      // their proxy takes clients from Istio's Envoy without a Sidecar, too
      const load = await startInMesh();
      await nobodyIsLost(load);
      await load.stop();
      if ((await cluster.find(`/api/v1/namespaces/${HOLDFAST}/services/holdfast-webhook`)) === null) break;
      await upgradeChart(cluster, HOLDFAST, { "mesh.enabled": "true" }).catch(failed);
      await ask({});
      await untilMade(...SIDECARS_ALONE);
    }
  });
});

function namesOf(containers: { name: string }[]): string[] {
  return containers.map(({ name }) => name);
}

function namespace(name: string, labels: Record<string, string>): KubeObject {
  return { apiVersion: "v1", kind: "Namespace", metadata: { name, labels } };
}

const CHAT = ["/usr/bin/node", "/app/chat.js"];

function template(annotations: Record<string, string>, hostAliases: object[]): KubeObject["spec"] {
  return {
    metadata: { annotations: { "holdfast.dev/ports": `${APP_PORT}/websocket`, ...annotations } },
    spec: { terminationGracePeriodSeconds: 0, hostAliases, containers: [appContainer(CHAT)] },
  };
}

function deployment(name: string, annotations: Record<string, string>, hostAliases: object[]): KubeObject {
  const { metadata, spec } = template(annotations, hostAliases);
  const labels = { app: name };
  return {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name, namespace: GAMES },
    spec: {
      replicas: 1,
      selector: { matchLabels: labels },
      template: { metadata: { ...metadata, labels }, spec },
    },
  };
}

/** Of clients in the mesh, who come by its name or address. */
function meshService(name: string, app = name): KubeObject {
  return {
    apiVersion: "v1",
    kind: "Service",
    metadata: { name, namespace: GAMES },
    spec: { selector: { app }, ports: [{ name: "http-chat", port: 80, targetPort: APP_PORT }] },
  };
}

function singlePod(
  name: string,
  app: string,
  annotations: Record<string, string>,
  hostAliases: object[],
): KubeObject {
  const { metadata, spec } = template(annotations, hostAliases);
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { ...metadata, name, namespace: GAMES, labels: { app } },
    spec,
  };
}

/** Its sidecar is not a native one, as before Istio 1.27. */
function oldStylePod(hostAliases: object[]): KubeObject {
  const { metadata, spec } = template({ "sidecar.istio.io/nativeSidecar": "false" }, hostAliases);
  return { apiVersion: "v1", kind: "Pod", metadata: { ...metadata, name: "old", namespace: GAMES }, spec };
}

/** With Istio's sidecar alone; a test's clients are in its network. */
function clientPod(hostAliases: object[]): KubeObject {
  const wait = [...CHAT.slice(0, 1), "-e", "setInterval(Object, 1e6)"];
  const { readinessProbe: _, ...container } = appContainer(wait);
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      name: "client",
      namespace: GAMES,
      labels: { app: "client", "holdfast.dev/inject": "disabled" },
    },
    spec: {
      terminationGracePeriodSeconds: 0,
      hostAliases,
      nodeSelector: { pool: EDGE },
      tolerations: [{ operator: "Exists" }],
      containers: [container],
    },
  };
}
