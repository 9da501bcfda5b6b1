/**
 * The Kubernetes API on this machine: etcd and kube-apiserver at the switch of a laboratory (`test/lab`). With nothing more it keeps objects
 * that a test writes, and tells who watches them; `cluster.ts` has the rest of a cluster.
 */
import { existsSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { CliResult, Lab, LabProcess } from "../lab/lab.ts";
import { API_PORT, writeCredentials } from "./credentials.ts";
import type { KubeTools } from "./kube-tools.ts";

const SERVICE_CIDR = "10.96.0.0/16";
const SERVICE_OF_API = "10.96.0.1";
const ETCD = "http://127.0.0.1:2379";
/** Kubernetes' own programs collect garbage when it is four times what they use: there is more memory than CPU. */
const SPARING = { GOGC: "400" };
const PROXY_SOCKET = "api.sock";
const POLL_MS = 100;
/** a machine that does much else beside */
export const READY_MS_MAX = 120_000;

/** An object of the Kubernetes API, as far as tests look at one. */
export interface KubeObject {
  apiVersion?: string;
  kind?: string;
  metadata: { name: string; namespace?: string; [key: string]: unknown };
  // biome-ignore lint/suspicious/noExplicitAny: objects of any kind, looked at by tests
  [key: string]: any;
}

export class ControlPlane {
  readonly lab: Lab;
  protected readonly tools: KubeTools;
  /** more arguments of kube-apiserver */
  readonly #apiServer: string[];
  /** by a test: their end is no surprise */
  readonly #killed = new Set<LabProcess>();
  readonly #parts = new Map<string, { argv: string[]; process: LabProcess }>();

  /** @param apiServer more arguments of kube-apiserver */
  constructor(lab: Lab, tools: KubeTools, apiServer: string[] = []) {
    this.lab = lab;
    this.tools = tools;
    this.#apiServer = apiServer;
  }

  protected get credentials(): string {
    return join(this.lab.dir, "credentials");
  }

  /** Of one who may do everything, at the switch. */
  get kubeconfig(): string {
    return join(this.credentials, "admin.kubeconfig");
  }

  /** What the API server shows at the switch's address, and who has signed it: for a webhook there. */
  get serverCertificate(): { certificate: string; key: string; authority: string } {
    const [certificate, key, authority] = ["apiserver.crt", "apiserver.key", "ca.crt"].map((file) =>
      join(this.credentials, file),
    ) as [string, string, string];
    return { certificate, key, authority };
  }

  /** Certificates, tokens and kubeconfig files, of these nodes too. */
  protected writeCredentials(nodes: string[]): void {
    const { credentials: folder, lab } = this;
    writeCredentials({ folder, server: lab.switch.address, service: SERVICE_OF_API, nodes });
  }

  /** Resolves when objects can be written. */
  async start(): Promise<void> {
    this.writeCredentials([]);
    await this.startApi();
  }

  protected async startApi(): Promise<void> {
    const folder = this.credentials;
    const { address } = this.lab.switch;
    this.launchPart("etcd", [
      `--data-dir=${join(this.lab.dir, "etcd")}`,
      "--unsafe-no-fsync",
      `--listen-client-urls=${ETCD}`,
      `--advertise-client-urls=${ETCD}`,
      "--listen-peer-urls=http://127.0.0.1:2380",
    ]);
    this.launchPart("kube-apiserver", [
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
    this.launchPart("kubectl", [
      `--kubeconfig=${this.kubeconfig}`,
      ...["proxy", `--unix-socket=${join(this.lab.dir, PROXY_SOCKET)}`, "--disable-filter"],
    ]);
    await this.until("the API server is ready", async () => {
      if (!existsSync(join(this.lab.dir, PROXY_SOCKET))) return false;
      return (await this.#ask("GET", "/readyz").catch(() => null))?.text === "ok";
    });
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
      env: this.environment({ KUBECONFIG: this.kubeconfig }),
      ...options,
    });
  }

  /** … that goes on until it is stopped, or the cluster is closed. */
  spawn(name: string, argv: string[]): LabProcess {
    return this.lab.spawn("switch", argv, { name, env: this.environment({ KUBECONFIG: this.kubeconfig }) });
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
    return this.lab.spawn("switch", argv, { name: program, env: this.environment({}) });
  }

  #part(program: string): { argv: string[]; process: LabProcess } {
    const part = this.#parts.get(program);
    if (part === undefined) throw new Error(`no ${program} runs`);
    return part;
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

  // ---- parts ----

  protected launchPart(program: string, args: string[]): void {
    const argv = [join(this.tools.bin, program), ...args];
    this.#parts.set(program, { argv, process: this.#launch(program, argv) });
  }

  protected environment(more: Record<string, string>): NodeJS.ProcessEnv {
    return { ...process.env, PATH: `${this.tools.bin}:${process.env.PATH}`, ...SPARING, ...more };
  }

  /** What runs for as long as it is there. */
  protected get processes(): LabProcess[] {
    return [...this.#parts.values()].map(({ process }) => process);
  }

  /** What has ended is why nothing comes. */
  #throwIfEnded(): void {
    if (this.lab.closing) throw new Error("the cluster is closed");
    for (const one of this.processes)
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

function messageIn(text: string): string {
  try {
    return String(JSON.parse(text).message);
  } catch {
    return text;
  }
}
