/**
 * Anchors of a workload in forward mode: nodes whose proxies hold clients' sockets while the application is elsewhere. The owner's agent
 * tells theirs of a move; one that cannot be reached dials again when its links break, and must not keep a workload where it is.
 */
import type { Logger } from "pino";
import type { Channel } from "#proxy/contract/channel.ts";
import type { Downstream, ProxyCommands } from "#proxy/contract/commands.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";

/** Whose anchors they are. */
export interface AnchorsHost {
  readonly name: string;
  readonly downstream: Downstream;
  readonly context: {
    readonly node: string;
    readonly log: Logger;
    dial(node: string, timeoutMs?: number): Promise<Channel>;
  };
  readonly journal: { readonly anchors: readonly string[]; readonly epoch: number };
  record(patch: { epoch: number }): void;
  readonly proxy: {
    command<Name extends keyof ProxyCommands>(name: Name, params: ProxyCommands[Name]): Promise<unknown>;
  };
}

export interface LinkOwner {
  node: string;
  link: Endpoint;
}

const DIAL_MS_MAX = 1_000;
const CALL_MS_MAX = 5_000;

export class Anchors {
  readonly #host: AnchorsHost;
  /** as an anchor: where it has been told that the owner takes links */
  #ownerLink: Endpoint | null = null;

  constructor(host: AnchorsHost) {
    this.#host = host;
  }

  // ---- at the owner ----

  /** Nodes whose proxies have clients of this workload once it has left. */
  afterLeaving(to: string): string[] {
    const { downstream, journal, context } = this.#host;
    if (downstream !== "forward") return [];
    return [...new Set([...journal.anchors, context.node])].filter((node) => node !== to);
  }

  /** Links to `target` are dialled, before anybody is held; gateways are told on theirs. */
  async prepare(epoch: number, to: string, target: Endpoint): Promise<void> {
    const { name, proxy } = this.#host;
    await Promise.all([
      proxy.command("prepareLinks", { epoch, target }),
      this.#tell(to, "anchor.prepare", { workload: name, epoch, target }),
    ]);
  }

  /** Before the commit: nothing that gateways were sent is still on its way. @throws HoldfastError `PROXY_QUIESCE` */
  async settle(epoch: number): Promise<void> {
    const { downstream, proxy } = this.#host;
    if (downstream === "gateway") await proxy.command("settleLinks", { epoch });
  }

  /** The move is done. */
  async switchTo(epoch: number, owner: LinkOwner): Promise<void> {
    await this.#tell(owner.node, "anchor.switch", { workload: this.#host.name, epoch, owner });
  }

  async #tell(except: string, method: string, params: object): Promise<void> {
    const told = this.#host.journal.anchors.filter((anchor) => anchor !== except);
    await Promise.all(
      told.map((anchor) =>
        this.#call(anchor, method, params).catch((error: unknown) =>
          this.#host.context.log.warn(
            { workload: this.#host.name, anchor, reason: messageOf(error) },
            `${method} failed; continuing`,
          ),
        ),
      ),
    );
  }

  async #call(anchor: string, method: string, params: object): Promise<void> {
    const channel = await this.#host.context.dial(anchor, DIAL_MS_MAX);
    try {
      await channel.call(method, params, { timeoutMs: CALL_MS_MAX });
    } finally {
      channel.close();
    }
  }

  // ---- at an anchor ----

  /** null: it has not been told since this agent began */
  get ownerLink(): Endpoint | null {
    return this.#ownerLink;
  }

  async onPrepare(epoch: number, target: Endpoint): Promise<void> {
    await this.#host.proxy.command("prepareLinks", { epoch, target });
  }

  async onSwitch(epoch: number, owner: LinkOwner): Promise<void> {
    if (epoch < this.#host.journal.epoch) return; // told late
    await this.#host.proxy.command("switchOwner", { epoch, owner });
    this.#host.record({ epoch });
    this.#ownerLink = owner.link;
  }
}
