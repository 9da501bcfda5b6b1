/** Thousands of pods, watched by the controller as in a cluster of that size: that it knows each as it is, and how much memory that takes. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { after, before, describe, it } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { KubernetesApi } from "#control/kubernetes/client/api.ts";
import type { Pod } from "#control/kubernetes/client/objects.ts";
import type { Reflector } from "#control/kubernetes/client/reflector.ts";
import { Watches } from "#control/kubernetes/client/watches.ts";
import { type SeenPod, watchAllPods } from "#control/kubernetes/controller/all-pods.ts";
import { ControllerMetrics } from "#control/kubernetes/controller/metrics.ts";
import { reportMissedPods } from "#control/kubernetes/controller/missed-pods.ts";
import { keepServices } from "#control/kubernetes/services/keep.ts";
import { until } from "../support/moved-program.ts";

const PODS = 5_000;
/** of a pod as the API server shows it: half of it is who wrote what */
const POD_BYTES = 6_000;
/** what the parts of the controller look at, with room for V8's own */
const KEPT_BYTES_MAX = 2_500;

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

function keptBytes(): number {
  for (let turn = 0; turn < 3; turn++) collect();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

/** An API server with many pods and nothing else. */
class ManyPods {
  /** name → version */
  readonly versions = new Map<string, number>();
  readonly listed: string[] = [];
  readonly #watching = new Set<ServerResponse>();
  #version = 1;
  /** versions up to it are forgotten */
  #oldest = 0;
  readonly server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? "", "http://api");
    const isAll = pathname === "/api/v1/pods" && !searchParams.has("labelSelector");
    if (searchParams.has("watch")) {
      if (!isAll) return void response.writeHead(200).flushHeaders();
      if (Number(searchParams.get("resourceVersion")) < this.#oldest)
        return void response.end(`${JSON.stringify({ type: "ERROR", object: { code: 410 } })}\n`);
      response.writeHead(200).flushHeaders();
      this.#watching.add(response);
      response.once("close", () => this.#watching.delete(response));
      return;
    }
    if (isAll && !searchParams.has("continue")) this.listed.push(request.url ?? "");
    const from = Number(searchParams.get("continue") ?? 0);
    const to = from + Number(searchParams.get("limit"));
    const names = isAll ? [...this.versions.keys()].slice(from, to) : [];
    const more = isAll && to < this.versions.size ? { continue: String(to) } : {};
    const metadata = { resourceVersion: String(this.#version), ...more };
    response.end(JSON.stringify({ metadata, items: names.map((name) => this.#podOf(name)) }));
  });

  get isWatched(): boolean {
    return this.#watching.size > 0;
  }

  write(name: string): void {
    const type = this.versions.has(name) ? "MODIFIED" : "ADDED";
    this.versions.set(name, ++this.#version);
    this.#tell(type, this.#podOf(name));
  }

  remove(name: string): void {
    const object = this.#podOf(name);
    this.versions.delete(name);
    this.#tell("DELETED", {
      ...object,
      metadata: { ...object.metadata, resourceVersion: `${++this.#version}` },
    });
  }

  /** Nobody hears of changes from now on, and of what has been until it is over nobody is told any more. */
  away(): { over(): void } {
    const cut = [...this.#watching];
    this.#watching.clear();
    return {
      over: () => {
        this.#oldest = this.#version;
        for (const one of cut) one.end();
      },
    };
  }

  #tell(type: string, object: object): void {
    for (const one of this.#watching) one.write(`${JSON.stringify({ type, object })}\n`);
  }

  #podOf(name: string): Pod {
    const managedFields = [{ manager: "kubelet", fieldsV1: "f:".repeat(POD_BYTES / 4) }];
    const metadata = {
      ...{ name, namespace: "games", uid: `uid-of-${name}`, creationTimestamp: "2026-11-27T00:00:00Z" },
      resourceVersion: String(this.versions.get(name)),
      labels: { app: name.slice(0, 6), "pod-template-hash": "6d5f7c9b8" },
      annotations: {
        "holdfast.dev/injected": "1",
        "holdfast.dev/container": "app",
        "holdfast.dev/ports": "80:8080/http",
        "holdfast.dev/command": JSON.stringify(["/usr/bin/node", "/app/server.js"]),
        "somebody.example/config": "x".repeat(POD_BYTES / 4),
      },
      managedFields,
    };
    const env = [{ name: "CONFIG", value: "y".repeat(POD_BYTES / 4) }];
    const ports = [{ name: "http", containerPort: 8080, protocol: "TCP" }];
    return {
      metadata,
      spec: { nodeName: "a", containers: [{ name: "app", image: "app", env, ports }] },
      status: { phase: "Running", podIP: "10.244.1.9", conditions: [{ type: "Ready", status: "True" }] },
    };
  }
}

describe("thousands of pods", () => {
  const cluster = new ManyPods();
  const metrics = new ControllerMetrics();
  const end = new AbortController();
  let api: KubernetesApi;
  let watches: Watches;
  let pods: Reflector<SeenPod, Pod>;
  let parts: Promise<unknown>;
  let keptBefore = 0;

  before(async () => {
    for (let index = 0; index < PODS; index++) cluster.write(`pod-${index}`);
    cluster.server.listen(0, "127.0.0.1");
    await once(cluster.server, "listening");
    const { port } = cluster.server.address() as AddressInfo;
    api = new KubernetesApi({
      server: `http://127.0.0.1:${port}`,
      isUnchecked: false,
      namespace: "holdfast",
      credentials: async () => ({}),
    });
    keptBefore = keptBytes();
    const onProblem = (what: string, error: unknown): void => assert.fail(`${what}: ${String(error)}`);
    const shared = { api, silent: metrics.silent, onProblem };
    watches = new Watches(shared);
    pods = watchAllPods(watches);
    const missed = reportMissedPods({ ...shared, metrics, pods, namespace: "holdfast" }, end.signal);
    // without its table it waits
    const keeping = keepServices(
      { ...shared, onProblem: () => {}, pods, namespace: "holdfast", table: "gateways" },
      end.signal,
    );
    parts = Promise.all([missed, keeping]);
    await pods.synced;
  });
  after(async () => {
    end.abort();
    await parts;
    await watches.close();
    api.close();
    cluster.server.closeAllConnections();
    cluster.server.close();
  });

  /** By name: how each differs from what the server has. */
  const differences = (): string[] => {
    const known = [...pods.objects.values()].map(({ metadata }): [string, string] => [
      metadata.name,
      metadata.resourceVersion,
    ]);
    const wrong = known.filter(([name, version]) => String(cluster.versions.get(name)) !== version);
    const seen = new Set(known.map(([name]) => name));
    return [
      ...wrong.map(([name]) => name),
      ...[...cluster.versions.keys()].filter((name) => !seen.has(name)),
    ];
  };
  const counted = async (): Promise<number> =>
    Number(
      /^holdfast_controller_pods\{injection="injected"\} (\d+)/m.exec(await metrics.registry.metrics())?.[1],
    );

  it("are listed once for all parts of the controller", async () => {
    assert.deepEqual(differences(), []);
    await until("they are counted", async () => (await counted()) === PODS);
    assert.equal(cluster.listed.length, 1);
  });

  it("take little memory each", () => {
    const kept = keptBytes() - keptBefore;
    assert.ok(kept < PODS * KEPT_BYTES_MAX, `${Math.round(kept / PODS)} bytes a pod`);
  });

  it("are known as they are while many of them change", async () => {
    await until("they are watched", () => cluster.isWatched);
    for (let index = 0; index < PODS; index += 5) {
      cluster.write(`pod-${index}`);
      cluster.remove(`pod-${index + 1}`);
      cluster.write(`late-${index}`);
    }
    await until("all of it is known", () => differences().length === 0);
    assert.equal(await counted(), PODS);
    assert.equal(cluster.listed.length, 1);
  });

  it("are listed again where a watch missed more than the server remembers, and take no more memory then", async () => {
    const before = keptBytes();
    for (let round = 1; round <= 3; round++) {
      await until("they are watched", () => cluster.isWatched);
      const away = cluster.away();
      for (let index = 0; index < PODS; index += 5) {
        cluster.remove(`late-${index}`);
        cluster.write(`pod-${index + 2}`);
        cluster.write(`late-${index}`);
      }
      cluster.remove(`pod-${round * 5}`);
      assert.ok(differences().length > 0);
      away.over();
      await until("they are listed", () => cluster.listed.length === 1 + round);
      await until("all of it is known", () => differences().length === 0);
      assert.equal(await counted(), PODS - round);
    }
    const more = keptBytes() - before;
    // a round's removed pods alone would be four times that; what V8 keeps of its own scatters by half a megabyte
    assert.ok(more < PODS * 300, `${more} bytes more`);
  });
});
