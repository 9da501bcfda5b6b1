/**
 * A Kubernetes cluster on this machine: a laboratory (`test/lab`) whose switch runs the control plane and whose nodes each run
 * containerd or CRI-O, kubelet and kube-proxy, in namespaces and control groups of their own. Real in every part but the hardware.
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
import { dirname, join } from "node:path";
import { mountedHierarchies } from "#control/runtime/cgroups.ts";
import { createLab, type Lab, type LabProcess } from "../lab/lab.ts";
import { labPrefixes } from "../lab/sweep.ts";
import { ControlPlane, type KubeObject, READY_MS_MAX } from "./control-plane.ts";
import { fillStore } from "./image-store.ts";
import { PAUSE } from "./images.ts";
import { type Crio, findCrio, type KubeTools, kubeTools, type OciRuntime } from "./kube-tools.ts";
import { type ContainerRuntime, criSocket, nodeFiles } from "./node-config.ts";
import { archiveOf, type Image } from "./oci-archive.ts";

export type { KubeObject };

const CLUSTER_CIDR = "10.244.0.0/16";
/** Joins the groups named before `--`, then becomes the command after it. */
const JOIN_GROUPS = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit; shift; done; shift; exec "$@"';
const NODE_END_MS = 10_000;
const EVICTION_REQUESTS = [
  "--feature-gates=EvictionRequestAPI=true",
  "--runtime-config=lifecycle.k8s.io/v1alpha1=true",
];

interface Options {
  /** paths of archives */
  images: string[];
  /** null: nodes run containerd */
  crio: Crio | null;
  ociRuntime: OciRuntime;
  /** arguments of kube-apiserver */
  apiServer: string[];
}

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
  /** what runs the nodes' containers; default what HOLDFAST_CRI says, or containerd */
  runtime?: ContainerRuntime;
  /** what CRI-O starts containers by; default runc */
  ociRuntime?: OciRuntime;
  /** EvictionRequests are served (lifecycle.k8s.io, alpha in Kubernetes 1.37); default false */
  evictionRequests?: boolean;
}

/** Resolves when every node is Ready and has the images. @throws Error when set-up has not made Kubernetes */
export async function createCluster(options: ClusterOptions = {}): Promise<Cluster> {
  const tools = kubeTools();
  const runtime = options.runtime ?? process.env.HOLDFAST_CRI ?? "containerd";
  const crio = runtime === "cri-o" ? findCrio() : null;
  const images = await Promise.all([PAUSE, ...(options.images ?? [])].map(archiveOf));
  const lab = await createLab({
    nodes: options.nodes ?? ["a", "b"],
    prefix: options.prefix ?? labPrefixes.clusters,
    ...(options.redis === undefined ? {} : { redis: options.redis }),
    ...(options.gateways === undefined ? {} : { gateways: options.gateways }),
  });
  const cluster = new Cluster(lab, tools, {
    images,
    crio,
    ociRuntime: options.ociRuntime ?? "runc",
    apiServer: options.evictionRequests === true ? EVICTION_REQUESTS : [],
  });
  try {
    await cluster.start();
    return cluster;
  } catch (error) {
    await cluster.close();
    throw error;
  }
}

export class Cluster extends ControlPlane {
  readonly #options: Options;
  readonly #nodes = new Map<string, LabProcess>();

  constructor(lab: Lab, tools: KubeTools, options: Options) {
    super(lab, tools, options.apiServer);
    this.#options = options;
  }

  /** Socket of the container runtime, on each node. */
  get cri(): string {
    return criSocket(this.#options.crio);
  }

  /** Part of {@link createCluster}. */
  override async start(): Promise<void> {
    const nodes = [...this.lab.nodes.keys()];
    this.writeCredentials(nodes);
    this.#route();
    // a node's runtime takes its images while the control plane starts
    await Promise.all([this.#startNodes(nodes), this.#startControlPlane()]);
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

  /**
   * kubelet and the container runtime of a node end by SIGKILL, and are started again when the returned function is called; the containers go
   * on, as they do on a real node.
   */
  killDaemons(node: string): () => void {
    const folder = join(this.lab.dir, `node-${node}`);
    const down = join(folder, "daemons.down");
    writeFileSync(down, "");
    writeFileSync(join(folder, "daemons.kept"), "");
    const inside = `cd "${folder}" && kill -KILL $(cat kubelet.pid) $(cat runtime.pid)`;
    const pid = String(this.#firstProcess(node));
    execFileSync("nsenter", ["--target", pid, "--pid", "--mount", "--", "sh", "-c", inside], {
      stdio: "pipe",
    });
    return () => rmSync(down);
  }

  /** Where a file of a node is for a process of this machine. */
  pathOn(node: string, path: string): string {
    return `/proc/${this.#firstProcess(node)}/root${path}`;
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
    await this.startApi();
    const who = [
      `--kubeconfig=${this.kubeconfig}`,
      `--authentication-kubeconfig=${this.kubeconfig}`,
      `--authorization-kubeconfig=${this.kubeconfig}`,
      "--leader-elect=false",
      "--bind-address=127.0.0.1",
    ];
    this.launchPart("kube-controller-manager", [
      ...who,
      `--service-account-private-key-file=${this.credentials}/service-account.key`,
      `--root-ca-file=${this.credentials}/ca.crt`,
      "--use-service-account-credentials=true",
    ]);
    this.launchPart("kube-scheduler", who);
  }

  async #startNodes(nodes: string[]): Promise<void> {
    const { crio, images } = this.#options;
    if (crio !== null) {
      const policy = join(this.lab.dir, "policy.json");
      writeFileSync(policy, JSON.stringify({ default: [{ type: "insecureAcceptAnything" }] }));
      await fillStore(join(this.lab.dir, "images"), images, policy);
    }
    for (const node of nodes) this.#startNode(node);
  }

  #startNode(name: string): void {
    const { lab } = this;
    const folder = join(lab.dir, `node-${name}`);
    const index = [...lab.nodes.keys()].indexOf(name);
    const { address } = lab.place(name);
    const { crio, ociRuntime, images } = this.#options;
    const files = nodeFiles({
      folder,
      crio,
      ociRuntime,
      address,
      podCidr: podCidr(index),
      clusterCidr: CLUSTER_CIDR,
      credentials: this.credentials,
      cni: this.tools.cni,
      pauseImage: PAUSE.name,
      openFilesMax: openFilesMax(),
    });
    for (const [file, text] of Object.entries(files)) {
      mkdirSync(dirname(join(folder, file)), { recursive: true });
      writeFileSync(join(folder, file), text, { mode: text.startsWith("#!") ? 0o755 : 0o644 });
    }
    copyFileSync(join(this.credentials, `node-${name}.kubeconfig`), join(folder, "kubelet.kubeconfig"));
    copyFileSync(join(this.credentials, "kube-proxy.kubeconfig"), join(folder, "kube-proxy.kubeconfig"));
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
    const env = {
      NODE: name,
      ADDRESS: address,
      RUNTIME: crio === null ? "containerd" : "cri-o",
      OCI_RUNTIME: ociRuntime,
      ...(crio === null ? {} : { PATH: `${crio.bin}:${this.environment({}).PATH}` }),
      IMAGES: images.join("\n"),
    };
    this.#nodes.set(name, lab.spawn(name, argv, { name: "node", env: this.environment(env) }));
  }

  protected override get processes(): LabProcess[] {
    return [...super.processes, ...this.#nodes.values()];
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
