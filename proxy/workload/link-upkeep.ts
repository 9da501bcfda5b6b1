/** What there is to do for links whichever end of them this is: their connections' peer timeouts, and what becomes of these connections. */
import type { Logger } from "pino";
import type { Configure, PortConfig } from "#proxy/contract/commands.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { LinkLeg } from "#proxy/link/link-leg.ts";
import type { Counters } from "./counters.ts";
import type { LegKernel, PeerTimeouts } from "./leg-kernel.ts";
import type { LiveSession } from "./live-session.ts";

/** Whose links they are. */
export interface UpkeepHost {
  readonly config: Pick<Configure, "downstream" | "ports" | "limits">;
  readonly kernel: Pick<LegKernel, "setPeerTimeouts">;
  readonly log: Logger;
  readonly counters: Pick<Counters, "linksInterrupted" | "linksContinued" | "linksLate">;
  readonly sessions: ReadonlyMap<string, LiveSession>;
}

export class LinkUpkeep {
  readonly #host: UpkeepHost;
  /** of trunks */
  readonly #sharedTimeouts: PeerTimeouts;

  constructor(host: UpkeepHost) {
    this.#host = host;
    this.#sharedTimeouts = strictestOf(host.config.ports);
  }

  /**
   * Behind gateways a link is to an owner what a client's connection is where clients come to it: one whose other end has vanished must not
   * keep the workload from moving, nor a client at a gateway waiting.
   */
  watchOver(link: LinkLeg, port: number): void {
    const { config, kernel } = this.#host;
    const { fd } = link;
    const bounds = link.isShared ? this.#sharedTimeouts : (config.ports[port] as PortConfig);
    // a port that never asks its clients for a sign of life leaves links with what they have
    if (config.downstream === "gateway" && fd >= 0 && bounds.keepAliveMs > 0)
      kernel.setPeerTimeouts(fd, bounds);
  }

  // ---- events of a `LinkListener` that mean the same at both ends

  onInterrupted(): void {
    this.#host.counters.linksInterrupted++;
  }

  onContinued(link: LinkLeg): void {
    const { counters, sessions } = this.#host;
    counters.linksContinued++;
    const session = sessions.get(link.id);
    if (session !== undefined) this.watchOver(link, session.port);
  }

  onLate({ id, greeting }: LinkLeg): void {
    const { counters, config, log } = this.#host;
    counters.linksLate++;
    const { linkResumeMsMax } = config.limits;
    log.warn(
      { session: id, client: greeting?.client, linkResumeMsMax },
      "a link has not come back: its session ends; look at the network between the two proxies",
    );
  }

  // ---- trunks

  /** @param to null: it was accepted */
  onTrunkFault(to: Endpoint | null): void {
    this.#host.log.warn(
      { to },
      "a connection of many links is closed: its other end has sent what is none of ours, or asks and does not read; look at the versions of both",
    );
  }

  onTrunkBroken(err: unknown): void {
    this.#host.log.error({ err }, "a trunk has broken");
  }
}

/**
 * For a connection that links of all these ports may share: the shortest there are, whichever have links on it. It need not be known then which
 * do, nor set again when another comes, and one that is given up early costs nothing: its links go on over the next.
 */
function strictestOf(ports: readonly PortConfig[]): PeerTimeouts {
  const shortest = (times: number[]): number => {
    const set = times.filter((ms) => ms > 0);
    return set.length === 0 ? 0 : Math.min(...set);
  };
  // a port that never asks says nothing of links
  const asking = ports.filter(({ keepAliveMs }) => keepAliveMs > 0);
  return {
    keepAliveMs: shortest(asking.map(({ keepAliveMs }) => keepAliveMs)),
    userTimeoutMs: shortest(asking.map(({ userTimeoutMs }) => userTimeoutMs)),
  };
}
