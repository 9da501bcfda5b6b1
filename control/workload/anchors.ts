/**
 * Anchors of a workload in forward mode: nodes whose proxies hold clients' sockets while the application is elsewhere. The owner's agent
 * tells theirs of a move; one that cannot be reached dials again when its links break, and must not keep a workload where it is.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { Channel } from "#proxy/contract/channel.ts";
import type { Downstream, PrepareLinksResult, ProxyCommands } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { AnchorPrepareReply } from "../api/migration.ts";

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
    command<Name extends keyof ProxyCommands, Result = unknown>(
      name: Name,
      params: ProxyCommands[Name],
    ): Promise<{ result: Result }>;
  };
}

export interface LinkOwner {
  node: string;
  link: Endpoint;
}

const DIAL_MS_MAX = 1_000;
const CALL_MS_MAX = 5_000;
/** how long a network may take until it lets links through to a pod that is new, as those that enforce policies do */
const REACH_MS_MAX = 10_000;
const AGAIN_MS = 500;

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

  /**
   * Links to `target` are dialled, before anybody is held; gateways are told on theirs. Asked again for a while where nobody gets there:
   * a network may open the way to a new pod a little later.
   * @param signal the move is to end: returns
   * @throws HoldfastError `LINKS_UNREACHABLE`: clients would be cut off by the move
   */
  async prepare(epoch: number, to: string, target: Endpoint, signal: AbortSignal): Promise<void> {
    const untilMs = performance.now() + REACH_MS_MAX;
    for (;;) {
      const unreachable = await this.#cutOff(epoch, to, target);
      if (unreachable.length === 0 || signal.aborted) return;
      if (performance.now() >= untilMs)
        throw fail(
          "LINKS_UNREACHABLE",
          `${unreachable.join(", ")}: no connection to ${target.address}:${target.port}, where ${to} takes the links of sessions, whose clients would be cut off by the move: open that port (firewall, NetworkPolicy)`,
        );
      await delay(AGAIN_MS, undefined, { signal }).catch(() => {});
    }
  }

  /** Those who hold clients' sockets, and do not get there. */
  async #cutOff(epoch: number, to: string, target: Endpoint): Promise<string[]> {
    const { name, proxy } = this.#host;
    const [here, ...elsewhere] = await Promise.all([
      proxy.command<"prepareLinks", PrepareLinksResult>("prepareLinks", { epoch, target }),
      ...this.#tell<AnchorPrepareReply | null>(to, "anchor.prepare", { workload: name, epoch, target }),
    ]);
    const told = elsewhere.flatMap((reply) => reply?.unreachable ?? []);
    return [...(here.result.unreachable ?? []), ...told];
  }

  /** Before the commit: nothing that gateways were sent is still on its way. @throws HoldfastError `PROXY_QUIESCE` */
  async settle(epoch: number): Promise<void> {
    const { downstream, proxy } = this.#host;
    if (downstream === "gateway") await proxy.command("settleLinks", { epoch });
  }

  /** The move is done. */
  async switchTo(epoch: number, owner: LinkOwner): Promise<void> {
    await Promise.all(this.#tell(owner.node, "anchor.switch", { workload: this.#host.name, epoch, owner }));
  }

  /** What each answers; undefined: it could not be asked. */
  #tell<Result>(except: string, method: string, params: object): Promise<Result | undefined>[] {
    const told = this.#host.journal.anchors.filter((anchor) => anchor !== except);
    return told.map((anchor) =>
      this.#call<Result>(anchor, method, params).catch((error: unknown) => {
        this.#host.context.log.warn(
          { workload: this.#host.name, anchor, reason: messageOf(error) },
          `${method} failed; continuing`,
        );
        return undefined;
      }),
    );
  }

  async #call<Result>(anchor: string, method: string, params: object): Promise<Result> {
    const channel = await this.#host.context.dial(anchor, DIAL_MS_MAX);
    try {
      return (await channel.call<Result>(method, params, { timeoutMs: CALL_MS_MAX })).result;
    } finally {
      channel.close();
    }
  }

  // ---- at an anchor ----

  /** null: it has not been told since this agent began */
  get ownerLink(): Endpoint | null {
    return this.#ownerLink;
  }

  async onPrepare(epoch: number, target: Endpoint): Promise<AnchorPrepareReply> {
    const { result } = await this.#host.proxy.command<"prepareLinks", PrepareLinksResult>("prepareLinks", {
      epoch,
      target,
    });
    return { unreachable: result.unreachable ?? [] };
  }

  async onSwitch(epoch: number, owner: LinkOwner): Promise<void> {
    if (epoch < this.#host.journal.epoch) return; // told late
    await this.#host.proxy.command("switchOwner", { epoch, owner });
    this.#host.record({ epoch });
    this.#ownerLink = owner.link;
  }
}
