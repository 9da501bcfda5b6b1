/** Where the clients of one workload connect: a listener for each of its ports, all of them or none. */
import type { Logger } from "pino";
import type { Downstream } from "#proxy/contract/commands.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { LegSide, SocketKernel } from "#proxy/stream/socket-kernel.ts";
import { ClientListener } from "./client-listener.ts";

/** See `LegKernel`. */
export interface ListenKernel extends SocketKernel {
  setPeerTimeouts(fd: number, timeouts: { keepAliveMs: number; userTimeoutMs: number }): void;
  boundQueues(fd: number, side: LegSide): void;
  bindShielded(endpoint: Endpoint): number;
  bindFree(endpoint: Endpoint): number;
}

/** Whose ports they are. */
export interface ListenersHost {
  readonly config: {
    readonly downstream: Downstream;
    readonly listenAddress: string;
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
        const listener = ClientListener.open({
          kernel,
          address: config.listenAddress,
          port: port.listen,
          bind: this.#bind(port.listen, shielded),
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

  /** Takeover: the address comes and goes without its listener. */
  #bind(port: number, shielded: boolean): (() => number) | null {
    const { config, kernel } = this.#host;
    const { downstream, listenAddress: address } = config;
    if (shielded) return () => kernel.bindShielded({ address, port });
    return downstream === "takeover" ? () => kernel.bindFree({ address, port }) : null;
  }

  close(): void {
    for (const listener of this.all.splice(0)) listener.close();
  }
}
