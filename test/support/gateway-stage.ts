/** A gateway and owners within the test's own process, and a store of which the test says what it answers. */
import assert from "node:assert/strict";
import { pino } from "pino";
import { fail } from "#proxy/contract/error-codes.ts";
import type { GatewayConfig, GatewayListener, GatewayRoute } from "#proxy/contract/gateway.ts";
import { PROXY_LIMITS } from "#proxy/contract/limits.ts";
import { Gateway } from "#proxy/gateway/gateway.ts";
import type { LinkRecord, Ownership, Store, StoreWatch } from "#proxy/store/store.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";
import { type InProcess, type InProcessOptions, REAL_KERNEL, startInProcess } from "./in-process-proxy.ts";

/** What of a store a gateway asks. */
export class ToldStore implements Pick<Store, "link" | "watchLinks" | "lookup"> {
  /** "workload name" of sessions that there have been */
  readonly names = new Set<string>();
  /** nothing is answered, and nothing told */
  isAway = false;
  /** … told, but answered: a message was lost */
  isMute = false;
  /** of these it has a record that nobody understands */
  readonly unreadable = new Set<string>();
  /** … of these no answer comes */
  readonly unanswered = new Set<string>();
  looks = 0;
  /** how often a session's name was looked up; and whether that is ever answered */
  lookups = 0;
  isLookupSilent = false;
  readonly #records = new Map<string, LinkRecord>();
  readonly #watchers = new Set<(workload: string | null) => void>();

  put(workload: string, record: LinkRecord | null): void {
    if (record === null) this.#records.delete(workload);
    else this.#records.set(workload, record);
    if (!this.isAway && !this.isMute) for (const tell of this.#watchers) tell(workload);
  }

  async link(workload: string): Promise<LinkRecord | null> {
    this.looks++;
    if (this.isAway) throw fail("STORE_UNREACHABLE", "the test's store is away");
    if (this.unreadable.has(workload)) throw fail("STORE_CORRUPT", "the test's record is damaged");
    if (this.unanswered.has(workload)) throw fail("STORE_UNREACHABLE", "no answer within 1000 ms");
    return this.#records.get(workload) ?? null;
  }

  async lookup({ workload, name }: { workload: string; name: string }): Promise<Ownership | null> {
    this.lookups++;
    if (this.isLookupSilent) return new Promise(() => {});
    if (this.isAway) throw fail("STORE_UNREACHABLE", "the test's store is away");
    if (!this.names.has(`${workload} ${name}`)) return null;
    return { owner: "a", epoch: 1, state: "released", previous: null, migration: null };
  }

  watchLinks(onChange: (workload: string | null) => void): StoreWatch {
    this.#watchers.add(onChange);
    setImmediate(onChange, null);
    return { close: () => this.#watchers.delete(onChange) };
  }
}

export const LISTENER: Omit<GatewayListener, "routes"> = {
  at: { address: "127.0.0.1", port: 0 },
  sendProxyProtocol: false,
  proxyProtocol: null,
  sessionsMax: 50_000,
  sessionsPerClientMax: 50_000,
  keepAliveMs: 15_000,
  userTimeoutMs: 120_000,
  idleMsMax: 0,
};

export function routeTo(workload: string, port: number, named: Partial<GatewayRoute> = {}): GatewayRoute {
  return { sni: null, host: null, path: null, session: null, workloads: [workload], port, ...named };
}

export interface HereOptions {
  store: ToldStore;
  key: Buffer;
  /** one route that names nothing, or `routes` */
  listeners: (Partial<GatewayListener> & { workload?: string; port?: number })[];
  limits?: Partial<
    Pick<
      GatewayConfig,
      "heldSessionsMax" | "ownerMsMax" | "drainMsMax" | "linkResumeMsMax" | "trunkSessionsMax"
    >
  >;
  kernel?: Partial<LegKernel>;
  undecided?: { max?: number; msMax?: number };
  unansweredMsMax?: number;
}

export interface GatewayHere {
  gateway: Gateway;
  /** of its log, from warnings on */
  lines: Record<string, unknown>[];
}

export function startGatewayHere(options: HereOptions): GatewayHere {
  const { store, key, listeners, limits, kernel, undecided = {}, unansweredMsMax = 5_000 } = options;
  const lines: Record<string, unknown>[] = [];
  const gateway = new Gateway({
    config: {
      name: "g",
      listeners: listeners.map(({ workload = "w", port = 1, ...one }) => ({
        ...LISTENER,
        routes: [routeTo(workload, port)],
        ...one,
      })),
      links: "encrypted",
      heldSessionsMax: 100,
      ownerMsMax: 5_000,
      drainMsMax: 5_000,
      linkResumeMsMax: PROXY_LIMITS.linkResumeMsMax.default,
      trunkSessionsMax: PROXY_LIMITS.trunkSessionsMax.default,
      ...limits,
    },
    keysOf: () => [key],
    store,
    kernel: { ...REAL_KERNEL, ...kernel },
    undecided,
    unansweredMsMax,
    log: pino({ level: "warn" }, { write: (line) => lines.push(JSON.parse(line)) }),
  });
  gateway.open();
  return { gateway, lines };
}

/** Answers each byte with the name. */
export function answering(name: string): NonNullable<InProcessOptions["serve"]> {
  return (socket) => {
    socket.on("data", (bytes) => socket.write(name.repeat(bytes.length)));
    socket.on("end", () => socket.end());
  };
}

/** A proxy that owns a workload and takes links, and what its agent tells the store: ports of the workload from `port` on. */
export async function startOwner(
  { node, epoch, port }: { node: string; epoch: number; port: number },
  options: InProcessOptions = {},
): Promise<InProcess & { record: LinkRecord }> {
  const running = await startInProcess({ ...options, downstream: "gateway" });
  running.proxy.epoch = epoch;
  await running.proxy.openLinks();
  const link = running.proxy.linkEndpoint;
  assert.ok(link !== null);
  const ports = running.proxy.config.ports.map((_, index) => port + index);
  return { ...running, record: { node, epoch, link, ports } };
}
