/** Where the clients of one workload connect: a listener for each of its ports, all of them or none. */
import type { Logger } from "pino";
import { CONTAINER_PORT_FIRST, type Configure, type Downstream } from "#proxy/contract/commands.ts";
import type { Side } from "#proxy/contract/leg-surgeon.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { LegSide, SocketKernel } from "#proxy/stream/socket-kernel.ts";
import { ClientListener } from "./client-listener.ts";

/** of the container's network: nobody knows which it has */
const ANY_ADDRESS = "0.0.0.0";

/** See `LegKernel`. */
export interface ListenKernel extends SocketKernel {
  setPeerTimeouts(fd: number, timeouts: { keepAliveMs: number; userTimeoutMs: number }): void;
  boundQueues(fd: number, side: LegSide): void;
  bindShielded(endpoint: Endpoint, side: Side): number;
  bindFree(endpoint: Endpoint): number;
  bindUpstream(endpoint: Endpoint): number;
}

/** Whose ports they are. */
export interface ListenersHost {
  readonly config: {
    readonly downstream: Downstream;
    readonly listenAddress: string;
    readonly listenIn?: Configure["listenIn"];
    readonly ports: readonly { listen: number; keepAliveMs: number; userTimeoutMs: number }[];
  };
  readonly kernel: ListenKernel;
  readonly counters: { acceptErrors: number };
  readonly log: Logger;
}

export class PortListeners {
  /** in the order of the configuration; empty: closed */
  readonly all: ClientListener[] = [];
  readonly #host: ListenersHost;
  readonly #onAccept: (port: number, fd: number) => void;

  /** @param onAccept a client's connection, ours from now on; `port`: which of the configuration's it came to */
  constructor(host: ListenersHost, onAccept: (port: number, fd: number) => void) {
    this.#host = host;
    this.#onAccept = onAccept;
  }

  /**
   * Does nothing where they are open. Shielded: there, even before their address is, and silent until the release.
   * @throws HoldfastError `PROXY_LISTEN`: none is left open
   */
  open({ shielded }: { shielded: boolean }): void {
    const { config, kernel, counters, log } = this.#host;
    if (this.all.length > 0) return;
    for (const [index, port] of config.ports.entries()) {
      try {
        const at = this.#placeOf(index);
        const listener = ClientListener.open({
          kernel,
          ...at,
          bind: this.#bind(at, shielded),
          onAccept: (fd) => this.#onAccept(index, fd),
          onError: (error) => {
            counters.acceptErrors++;
            log.warn({ err: error }, "accepting a client failed");
          },
        });
        this.all.push(listener);
        kernel.setPeerTimeouts(listener.fd, port);
        kernel.boundQueues(listener.fd, "client");
      } catch (error) {
        this.close();
        throw error;
      }
    }
  }

  #placeOf(index: number): Endpoint {
    const { listenIn, listenAddress, ports } = this.#host.config;
    return listenIn === "container"
      ? { address: ANY_ADDRESS, port: CONTAINER_PORT_FIRST + index }
      : { address: listenAddress, port: ports[index]?.listen ?? 0 };
  }

  /** Takeover: the address comes and goes without its listener. */
  #bind(at: Endpoint, shielded: boolean): (() => number) | null {
    const { config, kernel } = this.#host;
    const isInside = config.listenIn === "container";
    if (shielded) return () => kernel.bindShielded(at, isInside ? "upstream" : "downstream");
    if (isInside) return () => kernel.bindUpstream(at);
    return config.downstream === "takeover" ? () => kernel.bindFree(at) : null;
  }

  close(): void {
    for (const listener of this.all.splice(0)) listener.close();
  }
}
