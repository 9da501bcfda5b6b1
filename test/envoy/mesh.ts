/**
 * A service mesh on this machine: a laboratory (`test/lab`) with the real Envoy as sidecar of some of its places, mutual TLS between
 * them, and connections that the kernel leads to them. Each sidecar's routes are told by hand, or by the real istiod.
 *
 *   10.99.0.1      the switch: istiod
 *   10.99.0.2…     the nodes; a sidecar's place stands for a pod
 *   10.99.0.100    "client"
 *   10.96.0.0/16   addresses of services
 *
 * Several run beside each other. `close()` leaves nothing behind.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ControlPlane, type KubeObject } from "../kube/control-plane.ts";
import { kubeTools } from "../kube/kube-tools.ts";
import { createLab, type Lab, type LabOptions, projectRoot } from "../lab/lab.ts";
import { MeshAuthority } from "./certificates.ts";
import { NAMESPACE } from "./istio-objects.ts";
import { Istiod, type MeshConfig, type ResourceFiles } from "./istiod.ts";
import { put } from "./kube-objects.ts";
import { requireEnvoy, requireIstioDefinitions } from "./mesh-tools.ts";
import { Sidecar, type SidecarOptions } from "./sidecar.ts";

const POLL_MS = 50;
/** No configuration came for so long: that was all of it. istiod waits 250 ms for more files, and 100 for more changes. */
const QUIET_MS = 800;
const PUSH_MS_MAX = 30_000;
const LOG_FORMAT = `${[
  ...["%START_TIME%", "%RESPONSE_CODE%", "%RESPONSE_FLAGS%", "%RESPONSE_CODE_DETAILS%", "%DURATION%ms"],
  ...["route=%ROUTE_NAME%", "cluster=%UPSTREAM_CLUSTER_RAW%", "host=%UPSTREAM_HOST%"],
  ...["at=%DOWNSTREAM_LOCAL_ADDRESS%", "tls=%UPSTREAM_TRANSPORT_FAILURE_REASON%"],
].join(" ")}\n`;

export interface MeshOptions extends Pick<LabOptions, "nodes" | "gateways"> {
  /** by the name of their place */
  sidecars: Record<string, SidecarOptions>;
  /** what there is of resources from the start, as files; with neither this nor `objects` no istiod runs */
  resources?: ResourceFiles;
  /** … as objects of a Kubernetes API, which then is there, with Istio's definitions and the namespace */
  objects?: readonly KubeObject[];
  /** of istiod, over the laboratory's own */
  istiodEnv?: Record<string, string>;
  /** every sidecar writes down what it answers, from the start: {@link Mesh.answered} */
  logsAccess?: boolean;
  /** default 1: what a push ends has soon ended */
  drainSeconds?: number;
}

/** Resolves when every sidecar is ready. @throws Error when set-up has not brought Envoy, or built istiod */
export async function createMesh(options: MeshOptions): Promise<Mesh> {
  requireEnvoy();
  const { nodes, gateways } = options;
  const mesh = new Mesh(await createLab({ ...(nodes && { nodes }), ...(gateways && { gateways }) }));
  try {
    await mesh.start(options);
    return mesh;
  } catch (error) {
    await mesh.close();
    throw error;
  }
}

export class Mesh {
  readonly lab: Lab;
  readonly #sidecars = new Map<string, Sidecar>();
  #istiod: Istiod | null = null;
  #api: ControlPlane | null = null;

  constructor(lab: Lab) {
    this.lab = lab;
  }

  /** Part of {@link createMesh}. */
  async start(options: MeshOptions): Promise<void> {
    const {
      sidecars,
      resources,
      objects,
      istiodEnv: env = {},
      logsAccess = false,
      drainSeconds = 1,
    } = options;
    const { lab } = this;
    const istiod = { env, config: logsAccess ? this.#startLog() : {} };
    // an Envoy runs as another user, and has to come to its socket and its bootstrap
    chmodSync(lab.dir, 0o711);
    if (resources !== undefined) this.#istiod = await Istiod.start(lab, { files: resources }, istiod);
    if (objects !== undefined) {
      this.#api = await startApi(lab, objects);
      this.#istiod = await Istiod.start(lab, { kubeconfig: this.#api.kubeconfig }, istiod);
    }
    const authority = new MeshAuthority(join(lab.dir, "certificates"));
    for (const [name, options] of Object.entries(sidecars)) {
      const certificate = authority.certificateOf(NAMESPACE, options.account ?? "default");
      // to nowhere: without a route the kernel refuses a service's address before the redirects are asked
      const way = ["route", "add", "default", "via", lab.switch.address];
      execFileSync("ip", ["-n", lab.place(name).netns, ...way]);
      const istiod = this.#istiod?.endpoint ?? null;
      const host = { lab, namespace: NAMESPACE, certificate, istiod, drainSeconds };
      this.#sidecars.set(name, await Sidecar.start(name, options, host));
    }
    await Promise.all([...this.#sidecars.values()].map((sidecar) => sidecar.ready()));
  }

  sidecar(place: string): Sidecar {
    const found = this.#sidecars.get(place);
    if (found === undefined) throw new Error(`no sidecar is at ${place}`);
    return found;
  }

  get istiod(): Istiod {
    if (this.#istiod === null) throw new Error("no istiod runs in this mesh");
    return this.#istiod;
  }

  get api(): ControlPlane {
    if (this.#api === null) throw new Error("no Kubernetes API is in this mesh");
    return this.#api;
  }

  /**
   * Makes a change and resolves when what istiod pushes of it is over: every sidecar that it is for has it, and nothing drains any more, but
   * where that takes longer than is waited for.
   * @throws Error when nothing was pushed
   */
  async push(change: () => Promise<void> | void, reaches: "some" | "all listeners" = "some"): Promise<void> {
    const before = await this.#updates();
    const listenersBefore = await this.#listenerUpdates();
    const hasReached = async (): Promise<boolean> =>
      reaches === "some" ||
      (await this.#listenerUpdates()).every((count, index) => count > (listenersBefore[index] ?? 0));
    await change();
    const late = performance.now() + PUSH_MS_MAX;
    let last = before;
    let quietSinceMs = performance.now();
    for (;;) {
      await sleep(POLL_MS);
      const now = await this.#updates();
      if (now !== last) {
        last = now;
        quietSinceMs = performance.now();
      } else if (
        now !== before &&
        performance.now() - quietSinceMs > QUIET_MS &&
        (await hasReached()) &&
        !(await this.#drains())
      )
        return;
      if (performance.now() > late) throw new Error(`no push came, or it never ended: ${this.istiod.said}`);
    }
  }

  /** Of all kinds of configuration of all sidecars: whatever comes changes it. */
  async #updates(): Promise<string> {
    const counts = await this.#all((sidecar) => sidecar.stats("update_(success|rejected)$"));
    return counts.map(({ total }) => total).join(" ");
  }

  /** Of listeners, a number for each sidecar. */
  async #listenerUpdates(): Promise<number[]> {
    const counts = await this.#all((sidecar) => sidecar.stats("^listener_manager\\.lds\\.update_success$"));
    return counts.map(({ total }) => total ?? 0);
  }

  async #drains(): Promise<boolean> {
    const draining = "^listener_manager\\.total_(listeners|filter_chains)_draining$";
    const isWaitedFor = ({ drainSeconds }: Sidecar): boolean => drainSeconds * 1_000 < PUSH_MS_MAX;
    const counts = await this.#all(async (sidecar) =>
      isWaitedFor(sidecar) ? ((await sidecar.stats(draining)).total ?? 0) : 0,
    );
    return counts.some((count) => count !== 0);
  }

  #all<T>(ask: (sidecar: Sidecar) => Promise<T>): Promise<T[]> {
    return Promise.all([...this.#sidecars.values()].map(ask));
  }

  /** @returns the configuration with which every sidecar writes to one file, which is of the Envoys' user, too */
  #startLog(): MeshConfig {
    writeFileSync(this.#log, "");
    chmodSync(this.#log, 0o666);
    return { accessLogFile: this.#log, accessLogFormat: LOG_FORMAT };
  }

  get #log(): string {
    return join(this.lab.dir, "access.log");
  }

  /**
   * How many requests sidecars have answered, or passed an answer to, and those that were refused, with why: {@link LOG_FORMAT}. What the last
   * tenth of a second had may not be there yet.
   */
  answered(): { count: number; refused: string[] } {
    const requests = readFileSync(this.#log, "utf8")
      .split("\n")
      .map((line) => ({ line, status: Number(line.split(" ")[1]) }))
      .filter(({ status }) => status > 0);
    const refused = requests.filter(({ status }) => status >= 400);
    return { count: requests.length, refused: refused.map(({ line }) => line) };
  }

  async close(): Promise<void> {
    for (const sidecar of this.#sidecars.values()) sidecar.close();
    this.#istiod?.close();
    await this.lab.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** An API server with Istio's definitions, and Holdfast's: nobody but those who write objects and those who watch them. */
async function startApi(lab: Lab, objects: readonly KubeObject[]): Promise<ControlPlane> {
  const api = new ControlPlane(lab, kubeTools());
  await api.start();
  const definitions = [requireIstioDefinitions(), join(projectRoot, "charts/holdfast/crds")];
  await api.kubectl(["create", ...definitions.flatMap((file) => ["-f", file])]);
  await api.kubectl(["wait", "--for=condition=Established", "crd", "--all"]);
  const namespaces = [NAMESPACE, "istio-system"].map((name) => ({
    ...{ apiVersion: "v1", kind: "Namespace" },
    metadata: { name },
  }));
  await api.apply(...namespaces);
  await put(api, ...objects);
  return api;
}
