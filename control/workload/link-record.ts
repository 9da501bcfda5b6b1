/**
 * Tells gateways, by the store, where this node's proxy takes links while it owns the workload, and in forward mode load balancers, where it
 * takes clients. Told when that changes, and again now and then: a store may have been emptied, or thrown back by a fail-over.
 */
import type { Logger } from "pino";
import type { Downstream } from "#proxy/contract/commands.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { LinkRecord, Store } from "#proxy/store/store.ts";
import { hasSidecar, type WorkloadConfig } from "../config/config.ts";

const AGAIN_MS = 10_000;

/** Whose links they are. */
export interface LinkRecordHost {
  readonly name: string;
  readonly config: Pick<WorkloadConfig, "ports" | "pod" | "listenAddress" | "listenIn">;
  readonly downstream: Downstream;
  readonly context: { readonly node: string; readonly store: Store; readonly log: Logger };
  readonly journal: { readonly role: string; readonly epoch: number };
  readonly keeper: { linkStatus(): Promise<{ link: Endpoint; epoch: number } | null> };
}

export class LinkRecords {
  readonly #host: LinkRecordHost;
  #told = "";
  #toldAtMs = Number.NEGATIVE_INFINITY;

  constructor(host: LinkRecordHost) {
    this.#host = host;
  }

  /** The store has lost something: what it was told of links, too, perhaps. */
  again(): void {
    this.#toldAtMs = Number.NEGATIVE_INFINITY;
  }

  /** Called whenever it may have changed, and about every second. What fails is tried again then. */
  async tell(): Promise<void> {
    const { name, downstream, config, context, journal, keeper } = this.#host;
    // an address that moves along is always the same
    if (downstream === "takeover" || journal.role !== "owner") return;
    const { epoch } = journal;
    try {
      const status = await keeper.linkStatus();
      if (status === null) return;
      const ports = config.ports.map(({ listen }) => listen);
      const clients = this.#clientsOf(status.link);
      const record: LinkRecord = {
        ...{ node: context.node, epoch: status.epoch, link: status.link, ports },
        ...(clients === null ? {} : { clients }),
      };
      const text = `${epoch} ${JSON.stringify(record)}`;
      if (text === this.#told && performance.now() - this.#toldAtMs < AGAIN_MS) return;
      await context.store.putLink({ workload: name, node: context.node, epoch, record });
      this.#told = text;
      this.#toldAtMs = performance.now();
    } catch (error) {
      context.log.debug({ workload: name, reason: messageOf(error) }, "gateways were not told; again soon");
    }
  }

  /** null: to gateways; or to a pod's address, which is not known here where the proxy is not in the pod */
  #clientsOf(link: Endpoint): Endpoint[] | null {
    const { config, downstream } = this.#host;
    if (downstream !== "forward") return null;
    const isInPod = config.listenIn === "container";
    if (isInPod && !hasSidecar(config)) return null;
    const address = isInPod ? link.address : config.listenAddress;
    return config.ports.map(({ listen }) => ({ address, port: listen }));
  }
}
