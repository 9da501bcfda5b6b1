/**
 * The real istiod at the switch of a laboratory. It reads its resources from files, and is given an API that has nothing (`kube-stub.ts`);
 * or from a real Kubernetes API. No authority, no webhooks, no leader, and no filter that Istio's own build of Envoy alone has.
 */
import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import type { Server } from "node:http";
import { join } from "node:path";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Lab, LabProcess } from "../lab/lab.ts";
import { listenAt } from "./in-network.ts";
import { serveKubeStub } from "./kube-stub.ts";
import { requireIstiod } from "./mesh-tools.ts";

const XDS_PORT = 15_010;
const STUB_PORT = 8_001;
const STARTING_MS_MAX = 60_000;
const SAID_CHARACTERS = 3_000;

/** Files of resources by their names, each a list of objects. */
export type ResourceFiles = Record<string, readonly object[]>;

/** Where its resources are: files, or the API that a kubeconfig file leads to. */
export type Source = { files: ResourceFiles } | { kubeconfig: string };

/** Keys of istiod's own. */
export type MeshConfig = Record<string, unknown>;

/** Over the laboratory's own. */
export interface IstiodOptions {
  env?: Record<string, string>;
  config?: MeshConfig;
}

export class Istiod {
  /** where it tells sidecars */
  readonly endpoint: Endpoint;
  readonly #lab: Lab;
  readonly #env: Record<string, string>;
  readonly #config: MeshConfig;
  readonly #kubeconfig: string;
  /** in the place of an API, for resources of files */
  readonly #stub: Server | null;
  #process: LabProcess | null = null;

  private constructor(lab: Lab, source: Source, { env = {}, config = {} }: IstiodOptions) {
    const { address } = lab.switch;
    this.endpoint = { address, port: XDS_PORT };
    this.#lab = lab;
    this.#env = env;
    this.#config = config;
    const ofFiles = "files" in source;
    this.#kubeconfig = ofFiles ? join(lab.dir, "stub.kubeconfig") : source.kubeconfig;
    this.#stub = ofFiles ? serveKubeStub(listenAt(lab.switch, { address, port: STUB_PORT })) : null;
    if (!ofFiles) return;
    writeFileSync(this.#kubeconfig, JSON.stringify(kubeconfigOf(`http://${address}:${STUB_PORT}`)));
    mkdirSync(this.#folder);
    for (const [name, objects] of Object.entries(source.files)) this.put(name, objects);
  }

  /** Resolves when it tells sidecars. @throws Error when set-up has not built it */
  static async start(lab: Lab, source: Source, options: IstiodOptions = {}): Promise<Istiod> {
    requireIstiod();
    const istiod = new Istiod(lab, source, options);
    try {
      istiod.configure({});
      await istiod.begin();
      return istiod;
    } catch (error) {
      istiod.close();
      throw error;
    }
  }

  get #folder(): string {
    return join(this.#lab.dir, "resources");
  }

  get #meshFile(): string {
    return join(this.#lab.dir, "mesh.yaml");
  }

  /** A file of resources, in place of one of that name. */
  put(name: string, objects: readonly object[]): void {
    replace(join(this.#folder, `${name}.yaml`), objects);
  }

  remove(name: string): void {
    rmSync(join(this.#folder, `${name}.yaml`));
  }

  /** @param config over what it was started with */
  configure(config: MeshConfig): void {
    const { address, port } = this.endpoint;
    const own = {
      ingressControllerMode: "OFF",
      ...(this.#stub === null ? {} : { configSources: [{ address: `fs://${this.#folder}` }] }),
      defaultConfig: { discoveryAddress: `${address}:${port}` },
    };
    replace(this.#meshFile, [{ ...own, ...this.#config, ...config }]);
  }

  /** Starts it, for the first time or again. Resolves when it tells sidecars. */
  async begin(): Promise<void> {
    const { address, port } = this.endpoint;
    this.#process = this.#lab.spawn(
      "switch",
      [
        ...[requireIstiod(), "discovery", "--registries=Kubernetes", "--kubeconfig", this.#kubeconfig],
        ...["--meshConfig", this.#meshFile, "--grpcAddr", `${address}:${port}`, "--secureGRPCAddr="],
        ...["--httpAddr", `${address}:8080`, "--httpsAddr=", "--monitoringAddr", `${address}:15014`],
        ...["--ctrlz_port", "0", "--keepaliveMaxServerConnectionAge", "30m"],
      ],
      { name: "istiod", env: { ...ENVIRONMENT, ...this.#env } },
    );
    await this.#process.waitFor(/All caches have been synced up/, STARTING_MS_MAX);
  }

  async kill(): Promise<void> {
    await this.#process?.stop("SIGKILL");
  }

  /** The last of its log. */
  get said(): string {
    return `${this.#process?.stdout}${this.#process?.stderr}`.slice(-SAID_CHARACTERS);
  }

  /** Its process is the laboratory's to end. */
  close(): void {
    this.#stub?.close();
    this.#stub?.closeAllConnections();
  }
}

const ENVIRONMENT = {
  ENABLE_CA_SERVER: "false",
  PILOT_CERT_PROVIDER: "none",
  ENABLE_LEADER_ELECTION: "false",
  INJECTION_WEBHOOK_CONFIG_NAME: "",
  VALIDATION_WEBHOOK_CONFIG_NAME: "",
  PILOT_ENABLE_METADATA_EXCHANGE: "false",
  PILOT_ENABLE_ALPN_FILTER: "false",
  XDS_AUTH: "false",
  POD_NAME: "istiod",
  POD_NAMESPACE: "istio-system",
};

/**
 * As JSON, which is YAML of every version. istiod takes a file that is being written for an empty one, and does not look again until another
 * changes.
 */
function replace(file: string, objects: readonly object[]): void {
  const text =
    objects.length === 0 ? "# none\n" : objects.map((one) => `${JSON.stringify(one)}\n`).join("---\n");
  writeFileSync(`${file}.new`, text);
  renameSync(`${file}.new`, file);
}

function kubeconfigOf(server: string): object {
  return {
    apiVersion: "v1",
    kind: "Config",
    clusters: [{ name: "stub", cluster: { server } }],
    users: [{ name: "istiod", user: {} }],
    contexts: [{ name: "stub", context: { cluster: "stub", user: "istiod" } }],
    "current-context": "stub",
  };
}
