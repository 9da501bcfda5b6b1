/** A gateway within the test's own process, and a store of which the test says what it answers. */
import { pino } from "pino";
import { fail } from "#proxy/contract/error-codes.ts";
import type { GatewayConfig, GatewayListener } from "#proxy/contract/gateway.ts";
import { Gateway } from "#proxy/gateway/gateway.ts";
import type { LinkRecord, Store, StoreWatch } from "#proxy/store/store.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";
import { REAL_KERNEL } from "./in-process-proxy.ts";

/** What of a store a gateway asks. */
export class ToldStore implements Pick<Store, "link" | "watchLinks"> {
  /** nothing is answered, and nothing told */
  isAway = false;
  /** … told, but answered: a message was lost */
  isMute = false;
  looks = 0;
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
    return this.#records.get(workload) ?? null;
  }

  watchLinks(onChange: (workload: string | null) => void): StoreWatch {
    this.#watchers.add(onChange);
    setImmediate(onChange, null);
    return { close: () => this.#watchers.delete(onChange) };
  }
}

export const LISTENER: Omit<GatewayListener, "workload" | "port"> = {
  at: { address: "127.0.0.1", port: 0 },
  proxyProtocol: null,
  sessionsMax: 50_000,
  sessionsPerClientMax: 50_000,
  keepAliveMs: 15_000,
  userTimeoutMs: 120_000,
  idleMsMax: 0,
};

export interface HereOptions {
  store: ToldStore;
  key: Buffer;
  listeners: (Partial<GatewayListener> & Pick<GatewayListener, "workload" | "port">)[];
  limits?: Partial<Pick<GatewayConfig, "heldSessionsMax" | "ownerMsMax" | "drainMsMax">>;
  kernel?: Partial<LegKernel>;
}

export interface GatewayHere {
  gateway: Gateway;
  /** of its log, from warnings on */
  lines: Record<string, unknown>[];
}

export function startGatewayHere(options: HereOptions): GatewayHere {
  const { store, key, listeners, limits, kernel } = options;
  const lines: Record<string, unknown>[] = [];
  const gateway = new Gateway({
    config: {
      name: "g",
      listeners: listeners.map((one) => ({ ...LISTENER, ...one })),
      links: "encrypted",
      heldSessionsMax: 100,
      ownerMsMax: 5_000,
      drainMsMax: 5_000,
      ...limits,
    },
    keysOf: () => [key],
    store,
    kernel: { ...REAL_KERNEL, ...kernel },
    log: pino({ level: "warn" }, { write: (line) => lines.push(JSON.parse(line)) }),
  });
  gateway.open();
  return { gateway, lines };
}
