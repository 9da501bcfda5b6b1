/** What `holdfast envoy verify --from-cluster` says of one Service, part by part, and the resources of Istio that a test has it find. */
import { join } from "node:path";
import { type CliResult, projectRoot } from "../lab/lab.ts";
import type { Cluster, KubeObject } from "./cluster.ts";

const HOLDFAST = join(projectRoot, "bin/holdfast");
const PLURALS: Record<string, string> = { EnvoyFilter: "envoyfilters", Sidecar: "sidecars" };

export type VerifyMode = "sidecar" | "envoyfilter";

interface Part {
  resource: string;
  part: string;
  state: string;
  reason: string | null;
  why: string | null;
  warnings: string[];
}

interface SeenPod {
  pod: string;
  error: string | null;
  results: Part[];
}

export interface Verified {
  /** exit status, and a line of the cluster and of each pod: `chat: Sidecar applied`, `chat-0: ingress[0] other-value` */
  said: string[];
  /** why, of each line: errors of pods, clauses and warnings of parts */
  why: string[];
}

export class ServiceInMesh {
  readonly #cluster: Cluster;
  readonly #namespace: string;
  readonly #name: string;

  constructor(cluster: Cluster, namespace: string, name: string) {
    this.#cluster = cluster;
    this.#namespace = namespace;
    this.#name = name;
  }

  #holdfast(command: "render" | "verify", mode: VerifyMode, more: string[]): Promise<CliResult> {
    const of = ["--from-cluster", "-n", this.#namespace, "--service", this.#name, "--mode", mode];
    return this.#cluster.run([HOLDFAST, "envoy", command, ...of, ...more]);
  }

  async verified(mode: VerifyMode = "sidecar"): Promise<Verified> {
    const { status, json, stderr } = await this.#holdfast("verify", mode, ["--json"]);
    if (json === undefined) return { said: [`${status}`, stderr], why: [] };
    const { services } = json as { services: { service: string; cluster: Part[]; pods: SeenPod[] }[] };
    const shown = (parts: Part[]) => parts.map(({ state, reason }) => reason ?? state);
    const lines = services.flatMap(({ service, cluster, pods }) => [
      {
        said: `${service}: ${cluster.map(({ resource }, index) => `${resource.split(" ")[0]} ${shown(cluster)[index]}`)}`,
        why: whyOf(cluster),
      },
      ...pods.map(({ pod, error, results }) => ({
        said: `${pod}: ${error === null ? results.map(({ part }, index) => `${part} ${shown(results)[index]}`) : "not looked at"}`,
        why: error ?? whyOf(results),
      })),
    ]);
    return { said: [`${status}`, ...lines.map(({ said }) => said)], why: lines.map(({ why }) => why) };
  }

  /** What it asks for in this mode, as `render` prints it: one object. */
  async rendered(mode: VerifyMode): Promise<KubeObject> {
    const { json, stderr } = await this.#holdfast("render", mode, ["-o", "json"]);
    if (json === undefined) throw new Error(stderr);
    return json as KubeObject;
  }

  /** Makes it, or makes it what this says. */
  async put(object: KubeObject): Promise<void> {
    const path = `${this.#pathOf(object)}?fieldManager=test&force=true`;
    await this.#cluster.api("PATCH", path, object, "application/apply-patch+yaml");
  }

  async remove(object: KubeObject): Promise<void> {
    await this.#cluster.api("DELETE", this.#pathOf(object));
  }

  #pathOf({ apiVersion, kind = "", metadata }: KubeObject): string {
    return `/apis/${apiVersion}/namespaces/${this.#namespace}/${PLURALS[kind]}/${metadata.name}`;
  }
}

function whyOf(parts: Part[]): string {
  return parts.flatMap(({ why, warnings }) => [...(why === null ? [] : [why]), ...warnings]).join("; ");
}
