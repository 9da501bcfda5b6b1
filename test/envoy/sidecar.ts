/**
 * Envoy as the sidecar of a place, as Istio has it: the place's TCP connections are led to it by the kernel (nftables in place of
 * istio-init's iptables), and it runs as the user whose own connections are left alone. What it does with them is told by hand, or by
 * istiod.
 */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Server as SecretServer } from "@grpc/grpc-js";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Lab, LabProcess, Place } from "../lab/lab.ts";
import { ADMIN, INBOUND_PORT, istioBootstrap, OUTBOUND_PORT, staticBootstrap } from "./bootstrap.ts";
import type { WorkloadCertificate } from "./certificates.ts";
import { connectFrom } from "./in-network.ts";
import { ENVOY } from "./mesh-tools.ts";
import { serveSecrets } from "./secret-server.ts";
import type { SidecarRoutes } from "./static-routes.ts";

/** Istio's, which its redirects know */
const USER = 1337;
const HOLDFAST_PORTS = 50;
const POLL_MS = 25;
const READY_MS_MAX = 60_000;

export type SidecarOptions = Redirects & {
  /** of its certificate; default "default" */
  account?: string;
  /** default: that of all */
  drainSeconds?: number;
} & ({ routes: SidecarRoutes } | ToldByIstiod);

export interface ToldByIstiod {
  labels: Record<string, string>;
  /** of its node, as ISTIO_META_… of a pod's sidecar */
  metadata?: Record<string, unknown>;
}

interface Redirects {
  /** What comes to these ports of the place is led to its Envoy; default: none. Others are an agent's, which a pod's network has not. */
  inboundOnly?: number[];
  /**
   * What its Envoy connects to at the loopback address, from this port on, comes to the place's own address: there an agent's proxy listens
   * where a pod's listens at every address.
   */
  holdfastFrom?: number;
  /** What goes out of the place is led to its Envoy, but for these addresses; default: none of it. */
  outboundBut?: string[];
}

export interface SidecarHost {
  lab: Lab;
  namespace: string;
  certificate: WorkloadCertificate;
  /** where it tells sidecars; null: none runs */
  istiod: Endpoint | null;
  /** how long connections of a replaced listener may go on; Istio's `drainDuration` */
  drainSeconds: number;
}

/** What an Envoy says of itself. */
export type Stats = Record<string, number>;

export class Sidecar {
  readonly place: Place;
  readonly process: LabProcess;
  /** how long it goes on with connections of a listener that was replaced */
  readonly drainSeconds: number;
  readonly #secrets: SecretServer;

  private constructor(place: Place, process: LabProcess, drainSeconds: number, secrets: SecretServer) {
    this.place = place;
    this.process = process;
    this.drainSeconds = drainSeconds;
    this.#secrets = secrets;
  }

  /** Resolves when it has been started, not when it is ready. */
  static async start(name: string, options: SidecarOptions, host: SidecarHost): Promise<Sidecar> {
    const { lab, certificate } = host;
    const { drainSeconds = host.drainSeconds } = options;
    const place = lab.place(name);
    const socket = join(lab.dir, `secrets-${name}.sock`);
    const secrets = await serveSecrets(socket, certificate);
    redirect(place, options);
    const file = join(lab.dir, `envoy-${name}.json`);
    writeFileSync(file, JSON.stringify(bootstrap(place, options, host, socket)), { mode: 0o644 });
    const process = lab.spawn(
      name,
      [
        ...["setpriv", `--reuid=${USER}`, `--regid=${USER}`, "--clear-groups", "--"],
        ...[ENVOY, "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"],
        ...["--drain-time-s", String(drainSeconds), "--drain-strategy", "immediate"],
        // its access log: ten seconds else
        ...["--file-flush-interval-msec", "100"],
      ],
      { name: "envoy" },
    );
    return new Sidecar(place, process, drainSeconds, secrets);
  }

  /** Resolves when it takes connections. @throws Error with its last words */
  async ready(): Promise<void> {
    const late = performance.now() + READY_MS_MAX;
    while (!(await this.#takesConnections().catch(() => false))) {
      if (this.process.exited || performance.now() > late)
        throw new Error(`no Envoy at ${this.place.name}:\n${this.process.stderr.slice(-2_000)}`);
      await sleep(POLL_MS);
    }
  }

  /** Envoy calls itself live before istiod has told it anything: then it has no listener. */
  async #takesConnections(): Promise<boolean> {
    if (!(await this.admin("/ready")).startsWith("LIVE")) return false;
    const { total = 0 } = await this.stats("^listener_manager\\.total_listeners_active$");
    return total > 0;
  }

  /** The answer of its admin interface. @throws Error where it does not answer with 200 */
  admin(path: string): Promise<string> {
    return askAdmin(this.place, path);
  }

  /** Counters and gauges whose name matches, and their sum as `total`. */
  async stats(pattern: string): Promise<Stats> {
    const text = await this.admin(`/stats?format=json&filter=${encodeURIComponent(pattern)}`);
    const { stats } = JSON.parse(text) as { stats: { name?: string; value?: number }[] };
    const found: Stats = {};
    let total = 0;
    // histograms have no value
    for (const { name, value } of stats)
      if (name !== undefined && typeof value === "number") {
        found[name] = value;
        total += value;
      }
    return { ...found, total };
  }

  /** What it does, with its endpoints: `envoy/config-dump.ts` reads it. */
  async configDump(): Promise<unknown> {
    return JSON.parse(await this.admin("/config_dump?include_eds"));
  }

  /** Connections that come to this port from now on are led to it, or are not any more. */
  lead(port: number, isLed: boolean): void {
    nft(this.place, `${isLed ? "add" : "delete"} element ip mesh inbound { ${port} }`);
  }

  /** Its process is the laboratory's to end. */
  close(): void {
    this.#secrets.forceShutdown();
  }
}

/** Of the Envoy that is at a place. @throws Error where it does not answer with 200 */
export function askAdmin(place: Place, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const createConnection = () => connectFrom(place, ADMIN);
    const asked = request({ host: ADMIN.address, path, createConnection }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("error", reject);
      response.on("end", () =>
        response.statusCode === 200
          ? resolve(text)
          : reject(new Error(`${path}: ${response.statusCode} ${text}`)),
      );
    });
    asked.on("error", reject);
    asked.end();
  });
}

function redirect(place: Place, { inboundOnly, outboundBut, holdfastFrom }: SidecarOptions): void {
  const inbound = inboundOnly && [
    `set inbound { type inet_service; elements = { ${inboundOnly.join(", ")} }; }`,
    "chain prerouting { type nat hook prerouting priority -100;",
    `tcp dport @inbound redirect to :${INBOUND_PORT}`,
    "}",
  ];
  const outbound = [
    "chain output { type nat hook output priority -100;",
    ...(holdfastFrom === undefined
      ? []
      : [
          `meta skuid ${USER} ip daddr 127.0.0.1 tcp dport ${holdfastFrom}-${holdfastFrom + HOLDFAST_PORTS} dnat to ${place.address}`,
        ]),
    `meta skuid ${USER} return`,
    ...(outboundBut === undefined
      ? []
      : [
          `ip daddr { ${["127.0.0.0/8", ...outboundBut].join(", ")} } return`,
          `meta l4proto tcp redirect to :${OUTBOUND_PORT}`,
        ]),
    "}",
  ];
  const rules = ["table ip mesh {", ...(inbound ?? []), ...outbound, "}"].join("\n");
  nft(place, rules);
}

function nft({ netns }: Place, rules: string): void {
  execFileSync("nsenter", [`--net=/run/netns/${netns}`, "--", "nft", "-f", "-"], {
    input: rules,
    stdio: ["pipe", "pipe", "pipe"],
  });
}

function bootstrap(place: Place, options: SidecarOptions, host: SidecarHost, secrets: string): object {
  if ("routes" in options) return staticBootstrap(place, options.routes, secrets);
  const { labels, metadata = {}, account = "default" } = options;
  const { namespace, istiod } = host;
  if (istiod === null) throw new Error(`no istiod tells the sidecar of ${place.name} what to do`);
  return istioBootstrap(place, { namespace, labels, account, metadata }, istiod, secrets);
}
