/**
 * Where clients connect. Hands out libuv's accepted handles before `net` has made sockets of them: a leg needs its own
 * read buffer from the first byte on, which `net.Server` offers no option for. (Only this file and `tcp-leg.ts` know.)
 */
import net from "node:net";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { TcpHandle } from "#proxy/relay/tcp-leg.ts";

/** somaxconn caps it; a held proxy must not make the kernel drop SYNs */
const BACKLOG = 4096;

export interface ListenerOptions {
  address: string;
  port: number;
  /** gives a bound socket, ours from now on; null: bound here */
  bind: (() => number) | null;
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
    try {
      if (options.bind !== null) server.listen({ fd: options.bind() }, BACKLOG, resolve);
      else
        server.listen(
          { host: options.address, port: options.port, backlog: BACKLOG, exclusive: true },
          resolve,
        );
      await promise;
    } catch (cause) {
      throw cannotListen(options, cause as NodeJS.ErrnoException);
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

function cannotListen({ address, port }: ListenerOptions, cause: NodeJS.ErrnoException): HoldfastError {
  const where = address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
  const cures: Record<string, string> = {
    EADDRINUSE: `another process listens there: stop it (\`ss -ltnp sport = ${port}\` names it), or give the workload another port`,
    EADDRNOTAVAIL: "the address is not on this node: correct the configuration, or add the address",
    EACCES: "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE",
  };
  const cure = cures[cause.code ?? ""] ?? messageOf(cause);
  return new HoldfastError(`cannot listen for clients on ${where} (${cause.code ?? "no code"}): ${cure}`, {
    code: "PROXY_LISTEN",
    source: "downstream",
    retryable: true,
    cause,
  });
}
