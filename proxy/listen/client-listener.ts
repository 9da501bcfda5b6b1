/**
 * Where clients connect. Hands out libuv's accepted handles before `net` has made sockets of them: a leg needs its own
 * read buffer from the first byte on, which `net.Server` offers no option for. (Only this file and `tcp-leg.ts` know.)
 */
import net from "node:net";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { TcpHandle } from "#proxy/relay/tcp-leg.ts";

/** somaxconn caps it; a held proxy must not make the kernel drop SYNs */
const BACKLOG = 4096;

export interface ListenerOptions {
  address: string;
  port: number;
  /** bound already, and ours from now on */
  fd: number | null;
  onAccept(handle: TcpHandle): void;
  /** accept(2) failed: no descriptors left */
  onError(error: Error): void;
}

interface ServerHandle {
  fd: number;
  onconnection: (status: number, handle: TcpHandle | undefined) => void;
}

export class ClientListener {
  readonly #server: net.Server;
  readonly #handle: ServerHandle;

  private constructor(server: net.Server, handle: ServerHandle) {
    this.#server = server;
    this.#handle = handle;
  }

  /** @throws HoldfastError `PROXY_LISTEN`; its cause's `code` is EADDRNOTAVAIL while the address is not on this node */
  static async open(options: ListenerOptions): Promise<ClientListener> {
    const server = net.createServer({ allowHalfOpen: true });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.once("error", reject);
    if (options.fd !== null) server.listen({ fd: options.fd }, BACKLOG, resolve);
    else
      server.listen(
        { host: options.address, port: options.port, backlog: BACKLOG, exclusive: true },
        resolve,
      );
    try {
      await promise;
    } catch (cause) {
      throw new HoldfastError(`cannot listen on ${options.address} port ${options.port}: ${String(cause)}`, {
        code: "PROXY_LISTEN",
        source: "downstream",
        retryable: true,
        cause,
      });
    }
    server.off("error", reject);
    server.on("error", options.onError);
    const handle = (server as unknown as { _handle: ServerHandle })._handle;
    handle.onconnection = (status, accepted) => {
      if (accepted === undefined) options.onError(new Error(`accept: status ${status}`));
      else options.onAccept(accepted);
    };
    return new ClientListener(server, handle);
  }

  get fd(): number {
    return this.#handle.fd;
  }

  get port(): number {
    return (this.#server.address() as net.AddressInfo).port;
  }

  close(): void {
    this.#server.close();
  }
}
