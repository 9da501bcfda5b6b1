/**
 * A Kubernetes cluster on this machine: a laboratory (`test/lab`) whose switch runs the control plane and whose nodes each run
 * containerd, kubelet and kube-proxy, in namespaces and control groups of their own. Real in every part but the hardware.
 *
 *   10.99.0.1      the switch: etcd, kube-apiserver, kube-controller-manager, kube-scheduler (and Redis)
 *   10.99.0.2…     the nodes, in the order given; their pods are 10.244.N.0/24
 *   10.99.0.100    "client", which knows neither pods nor Services: it comes by a node's address
 *   10.96.0.0/16   Services
 *
 * Several run beside each other. `close()` leaves nothing behind, and neither does what ends a laboratory otherwise.
 */
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { mountedHierarchies } from "#control/runtime/cgroups.ts";
import { type CliResult, createLab, type Lab, type LabProcess } from "../lab/lab.ts";
import { labPrefixes } from "../lab/sweep.ts";
import { API_PORT, writeCredentials } from "./credentials.ts";
import { PAUSE } from "./images.ts";
import { type KubeTools, kubeTools } from "./kube-tools.ts";
import { nodeFiles } from "./node-config.ts";
import { archiveOf, type Image } from "./oci-archive.ts";

const CLUSTER_CIDR = "10.244.0.0/16";
const SERVICE_CIDR = "10.96.0.0/16";
const SERVICE_OF_API = "10.96.0.1";
const ETCD = "http://127.0.0.1:2379";
/** Kubernetes' own programs collect garbage when it is four times what they use: there is more memory than CPU. */
const SPARING = { GOGC: "400" };
const PROXY_SOCKET = "api.sock";
const POLL_MS = 100;
/** Joins the groups named before `--`, then becomes the command after it. */
const JOIN_GROUPS = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit; shift; done; shift; exec "$@"';
/** a machine that does much else beside */
const READY_MS_MAX = 120_000;
const NODE_END_MS = 10_000;
const EVICTION_REQUESTS = [
  "--feature-gates=EvictionRequestAPI=true",
  "--runtime-config=lifecycle.k8s.io/v1alpha1=true",
];

export interface ClusterOptions {
  /** default a and b */
  nodes?: string[];
  prefix?: string;
  /** names of hosts for gateways, default none */
  gateways?: string[];
  /** besides the pause image, on every node */
  images?: Image[];
  /** default true */
  redis?: boolean;
  /** EvictionRequests are served (lifecycle.k8s.io, alpha in Kubernetes 1.37); default false */
  evictionRequests?: boolean;
}

/** An object of the Kubernetes API, as far as tests look at one. */
export interface KubeObject {
  apiVersion?: string;
  kind?: string;
  metadata: { name: string; namespace?: string; [key: string]: unknown };
  // biome-ignore lint/suspicious/noExplicitAny: objects of any kind, looked at by tests
  [key: string]: any;
}

/** Resolves when every node is Ready and has the images. @throws Error when set-up has not made Kubernetes */
export async function createCluster(options: ClusterOptions = {}): Promise<Cluster> {
  const tools = kubeTools();
  const images = await Promise.all([PAUSE, ...(options.images ?? [])].map(archiveOf));
  const lab = await createLab({
    nodes: options.nodes ?? ["a", "b"],
    prefix: options.prefix ?? labPrefixes.clusters,
    ...(options.redis === undefined ? {} : { redis: options.redis }),
    ...(options.gateways === undefined ? {} : { gateways: options.gateways }),
  });
  const cluster = new Cluster(lab, tools, images, options.evictionRequests === true ? EVICTION_REQUESTS : []);
  try {
    await cluster.start();
    return cluster;
  } catch (error) {
    await cluster.close();
    throw error;
  }
}

export class Cluster {
  readonly lab: Lab;
  readonly #tools: KubeTools;
  readonly #images: string[];
  /** more arguments of kube-apiserver */
  readonly #apiServer: string[];
  readonly #nodes = new Map<string, LabProcess>();
  /** by a test: their end is no surprise */
  readonly #killed = new Set<LabProcess>();
  readonly #control = new Map<string, { argv: string[]; process: LabProcess }>();

  constructor(lab: Lab, tools: KubeTools, images: string[], apiServer: string[]) {
    this.lab = lab;
    this.#apiServer = apiServer;
    this.#tools = tools;
    this.#images = images;
  }

  get #credentials(): string {
    return join(this.lab.dir, "credentials");
  }

  /** Of one who may do everything, at the switch. */
  get kubeconfig(): string {
    return join(this.#credentials, "admin.kubeconfig");
  }

  /** What the API server shows at the switch's address, and who has signed it: for a webhook there. */
  get serverCertificate(): { certificate: string; key: string; authority: string } {
    const [certificate, key, authority] = ["apiserver.crt", "apiserver.key", "ca.crt"].map((file) =>
      join(this.#credentials, file),
    ) as [string, string, string];
    return { certificate, key, authority };
  }

  /** Part of {@link createCluster}. */
  async start(): Promise<void> {
    const nodes = [...this.lab.nodes.keys()];
    writeCredentials({
      folder: this.#credentials,
      server: this.lab.switch.address,
      service: SERVICE_OF_API,
      nodes,
    });
    this.#route();
    // a node's runtime takes its images while the control plane starts
    for (const node of nodes) this.#startNode(node);
    await this.#startControlPlane();
    await Promise.all(
      [...this.#nodes.values()].map((node) => node.waitFor(/^images are there$/m, READY_MS_MAX)),
    );
    await this.until("every node is Ready", async () => {
      const { items } = await this.api("GET", "/api/v1/nodes");
      const ready = (items as KubeObject[]).filter((node) => condition(node, "Ready") === "True");
      return ready.length === nodes.length;
    });
    // without it no pod is admitted
    await this.until("there is a default ServiceAccount", () =>
      this.find("/api/v1/namespaces/default/serviceaccounts/default"),
    );
  }

  // ---- use ----

  /** One request to the API server, as administrator. @throws Error with the server's message, for a status of 400 and above */
  async api(method: string, path: string, body?: unknown, type = "application/json"): Promise<KubeObject> {
    const { status, text } = await this.#ask(method, path, body, type);
    if (status >= 400) throw new Error(`${method} ${path}: ${status} ${messageIn(text)}`);
    return JSON.parse(text) as KubeObject;
  }

  /** null: there is no such object */
  async find(path: string): Promise<KubeObject | null> {
    const { status, text } = await this.#ask("GET", path);
    if (status === 404) return null;
    if (status >= 400) throw new Error(`GET ${path}: ${status} ${messageIn(text)}`);
    return JSON.parse(text) as KubeObject;
  }

  /** `kubectl apply` of objects. @throws Error with what kubectl says */
  async apply(...objects: KubeObject[]): Promise<void> {
    const file = join(this.lab.dir, "applied.json");
    writeFileSync(file, JSON.stringify({ apiVersion: "v1", kind: "List", items: objects }));
    await this.kubectl(["apply", "-f", file]);
  }

  /** @throws Error with what kubectl says, when it fails */
  async kubectl(args: string[], options: { timeoutMs?: number } = {}): Promise<string> {
    const result = await this.run(["kubectl", ...args], options);
    if (result.status !== 0) throw new Error(`kubectl ${args.join(" ")}: ${result.stderr || result.stdout}`);
    return result.stdout;
  }

  /** A program beside the control plane, with the administrator's kubeconfig. */
  run(argv: string[], options: { timeoutMs?: number } = {}): Promise<CliResult> {
    return this.lab.run("switch", argv, {
      env: this.#environment({ KUBECONFIG: this.kubeconfig }),
      ...options,
    });
  }

  /** … that goes on until it is stopped, or the cluster is closed. */
  spawn(name: string, argv: string[]): LabProcess {
    return this.lab.spawn("switch", argv, { name, env: this.#environment({ KUBECONFIG: this.kubeconfig }) });
  }

  /** A pod that is Ready. @throws Error that shows the pod's status, after `msMax` */
  async readyPod(name: string, options: { namespace?: string; msMax?: number } = {}): Promise<KubeObject> {
    const path = `/api/v1/namespaces/${options.namespace ?? "default"}/pods/${name}`;
    let pod: KubeObject | null = null;
    const isReady = async (): Promise<boolean> => {
      pod = await this.find(path);
      return pod !== null && condition(pod, "Ready") === "True";
    };
    await this.until(`pod ${name} is Ready`, isReady, options.msMax).catch((error: unknown) => {
      throw new Error(`${String(error)}: ${JSON.stringify((pod as KubeObject | null)?.status)}`);
    });
    return pod as unknown as KubeObject;
  }

  /** Resolves when somebody takes a client's connection there. */
  async untilOpen(address: string, port: number): Promise<void> {
    const knock = ["timeout", "1", "bash", "-c", `exec 3<>/dev/tcp/${address}/${port}`];
    await this.until(
      `clients come in at ${address}:${port}`,
      async () => (await this.lab.run("client", knock)).status === 0,
    );
  }

  /** Waits for what only asking again tells. */
  async until(what: string, holds: () => Promise<unknown>, msMax = READY_MS_MAX): Promise<void> {
    const late = performance.now() + msMax;
    for (;;) {
      this.#throwIfEnded();
      if (await holds()) return;
      if (performance.now() > late)
        throw new Error(`not after ${msMax} ms: ${what} (logs are in ${this.lab.dir})`);
      await sleep(POLL_MS);
    }
  }

  // ---- what goes wrong ----

  /** A part of the control plane, e.g. "kube-apiserver", until it is started again. */
  async killControl(program: string): Promise<void> {
    const { process } = this.#part(program);
    this.#killed.add(process);
    await process.stop("SIGKILL");
  }

  /** … as it was. */
  startControl(program: string): void {
    const part = this.#part(program);
    part.process = this.#launch(program, part.argv);
  }

  #launch(program: string, argv: string[]): LabProcess {
    return this.lab.spawn("switch", argv, { name: program, env: this.#environment({}) });
  }

  #part(program: string): { argv: string[]; process: LabProcess } {
    const part = this.#control.get(program);
    if (part === undefined) throw new Error(`no ${program} runs`);
    return part;
  }

  /**
   * kubelet and the container runtime of a node end by SIGKILL, and are started again when the returned function is called; the containers go
   * on, as they do on a real node.
   */
  killDaemons(node: string): () => void {
    const folder = join(this.lab.dir, `node-${node}`);
    const down = join(folder, "daemons.down");
    writeFileSync(down, "");
    writeFileSync(join(folder, "daemons.kept"), "");
    const inside = `cd "${folder}" && kill -KILL $(cat kubelet.pid) $(cat containerd.pid)`;
    const pid = String(this.#firstProcess(node));
    execFileSync("nsenter", ["--target", pid, "--pid", "--mount", "--", "sh", "-c", inside], {
      stdio: "pipe",
    });
    return () => rmSync(down);
  }

  /** PID 1 of the node's own PID namespace, as this one numbers it. */
  #firstProcess(node: string): number {
    for (let pid = this.#nodes.get(node)?.pid ?? 0; ; ) {
      const [child] = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ");
      if (!child) throw new Error(`node ${node} does not run`);
      pid = Number(child);
      if (readFileSync(`/proc/${pid}/comm`, "utf8").trim() === "catatonit") return pid;
    }
  }

  /** The API server answers nobody, until it is resumed. */
  pauseApi(): void {
    this.#signalApi("SIGSTOP");
  }
  resumeApi(): void {
    this.#signalApi("SIGCONT");
  }

  #signalApi(signal: NodeJS.Signals): void {
    this.#part("kube-apiserver").process.child.kill(signal);
  }

  /** A node loses its power: everything on it ends at once, and not a word of it gets out. It stays so. */
  async switchOff(name: string): Promise<void> {
    const node = this.#nodes.get(name);
    if (node === undefined) throw new Error(`no node ${name} is on`);
    this.#nodes.delete(name);
    this.lab.setLink(name, "down");
    await node.stop("SIGKILL", NODE_END_MS);
  }

  async close(): Promise<void> {
    // a node's processes end with its first one: the kernel takes its time over many
    await Promise.all([...this.#nodes.values()].map((node) => node.stop("SIGKILL", NODE_END_MS)));
    await this.lab.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  // ---- parts ----

  /** Who finds which pods where: gateways do, as if they were pods. The client finds none: it is outside. */
  #route(): void {
    const nodes = [...this.lab.nodes.values()];
    for (const place of [this.lab.switch, ...this.lab.gateways.values(), ...nodes]) {
      for (const [index, node] of nodes.entries())
        if (node !== place) ip("-n", place.netns, "route", "add", podCidr(index), "via", node.address);
      if (!nodes.includes(place)) continue;
      // to nowhere: without a route the kernel refuses a Service's address before kube-proxy's rules are asked
      ip("-n", place.netns, "route", "add", "default", "via", this.lab.switch.address);
      execFileSync("nsenter", [
        `--net=/run/netns/${place.netns}`,
        ...["--", "sysctl", "-qw", "net.ipv4.ip_forward=1"],
      ]);
    }
  }

  async #startControlPlane(): Promise<void> {
    const folder = this.#credentials;
    const { address } = this.lab.switch;
    this.#spawn("etcd", [
      `--data-dir=${join(this.lab.dir, "etcd")}`,
      "--unsafe-no-fsync",
      `--listen-client-urls=${ETCD}`,
      `--advertise-client-urls=${ETCD}`,
      "--listen-peer-urls=http://127.0.0.1:2380",
    ]);
    this.#spawn("kube-apiserver", [
      `--etcd-servers=${ETCD}`,
      `--bind-address=${address}`,
      `--advertise-address=${address}`,
      `--secure-port=${API_PORT}`,
      `--cert-dir=${join(this.lab.dir, "apiserver")}`,
      `--tls-cert-file=${folder}/apiserver.crt`,
      `--tls-private-key-file=${folder}/apiserver.key`,
      `--client-ca-file=${folder}/ca.crt`,
      `--token-auth-file=${folder}/tokens.csv`,
      "--service-account-issuer=https://kubernetes.default.svc",
      `--service-account-key-file=${folder}/service-account.pub`,
      `--service-account-signing-key-file=${folder}/service-account.key`,
      `--kubelet-client-certificate=${folder}/kubelet-client.crt`,
      `--kubelet-client-key=${folder}/kubelet-client.key`,
      "--kubelet-preferred-address-types=InternalIP",
      `--service-cluster-ip-range=${SERVICE_CIDR}`,
      "--authorization-mode=Node,RBAC",
      "--enable-admission-plugins=NodeRestriction",
      "--allow-privileged=true",
      // no kube-proxy runs at the switch: webhooks are reached at their pods
      "--enable-aggregator-routing=true",
      ...this.#apiServer,
    ]);
    this.#spawn("kubectl", [
      `--kubeconfig=${this.kubeconfig}`,
      ...["proxy", `--unix-socket=${join(this.lab.dir, PROXY_SOCKET)}`, "--disable-filter"],
    ]);
    await this.until("the API server is ready", async () => {
      if (!existsSync(join(this.lab.dir, PROXY_SOCKET))) return false;
      return (await this.#ask("GET", "/readyz").catch(() => null))?.text === "ok";
    });
    const who = [
      `--kubeconfig=${this.kubeconfig}`,
      `--authentication-kubeconfig=${this.kubeconfig}`,
      `--authorization-kubeconfig=${this.kubeconfig}`,
      "--leader-elect=false",
      "--bind-address=127.0.0.1",
    ];
    this.#spawn("kube-controller-manager", [
      ...who,
      `--service-account-private-key-file=${folder}/service-account.key`,
      `--root-ca-file=${folder}/ca.crt`,
      "--use-service-account-credentials=true",
    ]);
    this.#spawn("kube-scheduler", who);
  }

  #spawn(program: string, args: string[]): void {
    const argv = [join(this.#tools.bin, program), ...args];
    this.#control.set(program, { argv, process: this.#launch(program, argv) });
  }

  #startNode(name: string): void {
    const { lab } = this;
    const folder = join(lab.dir, `node-${name}`);
    const index = [...lab.nodes.keys()].indexOf(name);
    const { address } = lab.place(name);
    const files = nodeFiles({
      folder,
      address,
      podCidr: podCidr(index),
      clusterCidr: CLUSTER_CIDR,
      credentials: this.#credentials,
      cni: this.#tools.cni,
      pauseImage: PAUSE.name,
      openFilesMax: openFilesMax(),
    });
    for (const [file, text] of Object.entries(files)) {
      mkdirSync(dirname(join(folder, file)), { recursive: true });
      writeFileSync(join(folder, file), text);
    }
    copyFileSync(join(this.#credentials, `node-${name}.kubeconfig`), join(folder, "kubelet.kubeconfig"));
    copyFileSync(join(this.#credentials, "kube-proxy.kubeconfig"), join(folder, "kube-proxy.kubeconfig"));
    const own = ["--mount", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child", "--mount-proc"];
    const first = ["/usr/bin/catatonit", "--", "/bin/sh", join(import.meta.dirname, "node.sh"), folder];
    const argv = [
      "sh",
      "-c",
      JOIN_GROUPS,
      "sh",
      ...nodeGroups(lab.id, name),
      "--",
      "unshare",
      ...own,
      ...first,
    ];
    const env = { NODE: name, ADDRESS: address, IMAGES: this.#images.join("\n") };
    this.#nodes.set(name, lab.spawn(name, argv, { name: "node", env: this.#environment(env) }));
  }

  #environment(more: Record<string, string>): NodeJS.ProcessEnv {
    return { ...process.env, PATH: `${this.#tools.bin}:${process.env.PATH}`, ...SPARING, ...more };
  }

  /** What has ended is why nothing comes. */
  #throwIfEnded(): void {
    if (this.lab.closing) throw new Error("the cluster is closed");
    const control = [...this.#control.values()].map(({ process }) => process);
    for (const one of [...control, ...this.#nodes.values()])
      if (one.exited && !this.#killed.has(one))
        throw new Error(`a part of the cluster has ended:\n${one.stderr.slice(-2_000)}`);
  }

  #ask(
    method: string,
    path: string,
    body?: unknown,
    type = "application/json",
  ): Promise<{ status: number; text: string }> {
    return new Promise((resolve, reject) => {
      const socketPath = join(this.lab.dir, PROXY_SOCKET);
      const asked = request({ socketPath, method, path, headers: { "content-type": type } }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => {
          text += chunk;
        });
        response.on("error", reject);
        response.on("end", () => resolve({ status: response.statusCode ?? 0, text }));
      });
      asked.on("error", reject);
      asked.end(body === undefined ? undefined : JSON.stringify(body));
    });
  }
}

/** "True", "False", "Unknown"; null: it has no such condition */
export function condition(object: KubeObject, type: string): string | null {
  const conditions: { type: string; status: string }[] = object.status?.conditions ?? [];
  return conditions.find((one) => one.type === type)?.status ?? null;
}

function podCidr(index: number): string {
  return `10.244.${index + 1}.0/24`;
}

function messageIn(text: string): string {
  try {
    return String(JSON.parse(text).message);
  } catch {
    return text;
  }
}

/** Makes a control group for the node in every hierarchy, below one of the laboratory's; each one's `cgroup.procs`. */
function nodeGroups(id: string, node: string): string[] {
  return mountedHierarchies(readFileSync("/proc/self/mountinfo", "utf8")).map((hierarchy) => {
    let group = hierarchy;
    for (const name of [id, node]) {
      const above = group;
      group = join(group, name);
      if (existsSync(group)) continue;
      mkdirSync(group);
      // a new one has none, and takes no process (cgroup-v1/cpusets.rst)
      for (const file of ["cpuset.cpus", "cpuset.mems"])
        if (existsSync(join(group, file)) && existsSync(join(group, "cgroup.clone_children")))
          writeFileSync(join(group, file), readFileSync(join(above, file)));
    }
    return join(group, "cgroup.procs");
  });
}

function openFilesMax(): number {
  return Number(
    /^Max open files\s+\S+\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1] ?? 1_024,
  );
}

function ip(...args: string[]): void {
  execFileSync("ip", args, { stdio: "pipe" });
}
