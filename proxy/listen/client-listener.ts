/** Where clients connect: a socket that listens, and what accept(2) gives. */
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { READY, type SocketKernel, type Watcher } from "#proxy/stream/socket-kernel.ts";

/** somaxconn caps it; a held proxy must not make the kernel drop SYNs */
const BACKLOG = 4096;
/** before sessions have their turn */
const ACCEPTS_MAX = 256;
/** until a descriptor is free again */
const RETRY_MS = 100;

export interface ListenerOptions {
  kernel: SocketKernel;
  address: string;
  port: number;
  /** gives a bound socket, ours from now on; null: bound here */
  bind: (() => number) | null;
  /** a connection, ours from now on */
  onAccept(fd: number): void;
  /** accept(2) failed: no descriptors left, mostly; it is tried again */
  onError(error: Error): void;
}

export class ClientListener implements Watcher {
  readonly #options: ListenerOptions;
  readonly #kernel: SocketKernel;
  #retry: NodeJS.Timeout | null = null;
  /** has asked for another turn and not had it yet */
  #isQueued = false;
  /** -1: closed */
  fd: number;

  private constructor(options: ListenerOptions, fd: number) {
    this.#options = options;
    this.#kernel = options.kernel;
    this.fd = fd;
    this.#kernel.watch(fd, this);
  }

  /** @throws HoldfastError `PROXY_LISTEN`; its cause's `code` is EADDRNOTAVAIL while the address is not on this node */
  static open(options: ListenerOptions): ClientListener {
    try {
      const on =
        options.bind === null ? { address: options.address, port: options.port } : { fd: options.bind() };
      const fd = options.kernel.listen(on, BACKLOG);
      try {
        return new ClientListener(options, fd);
      } catch (error) {
        options.kernel.close(fd);
        throw error;
      }
    } catch (cause) {
      throw cannotListen(options, cause as NodeJS.ErrnoException);
    }
  }

  get port(): number {
    return this.#kernel.localPort(this.fd);
  }

  onReady(events: number): void {
    if (events === 0) this.#isQueued = false;
    // One answer is enough for all who come until then.
    if (this.#isQueued || this.#retry !== null) return;
    for (let accepts = 0; this.fd >= 0; accepts++) {
      if (accepts === ACCEPTS_MAX) {
        this.#isQueued = true;
        this.#kernel.soon(this);
        return;
      }
      const accepted = this.#kernel.accept(this.fd);
      if (accepted >= 0) {
        this.#options.onAccept(accepted);
        continue;
      }
      const code = this.#kernel.errnoName(-accepted);
      if (code === "EAGAIN") return;
      // The client has gone while it waited.
      if (code === "ECONNABORTED" || code === "EINTR") continue;
      this.#options.onError(new Error(`accept: ${code}`));
      this.#retry = setTimeout(() => {
        this.#retry = null;
        this.onReady(READY.in);
      }, RETRY_MS);
      return;
    }
  }

  /** One client's beginning has gone wrong: the others are accepted. */
  onBroken(error: unknown): void {
    this.#options.onError(error as Error);
    if (this.fd < 0 || this.#isQueued) return;
    this.#isQueued = true;
    this.#kernel.soon(this);
  }

  close(): void {
    if (this.fd < 0) return;
    if (this.#retry !== null) clearTimeout(this.#retry);
    this.#kernel.unwatch(this.fd);
    this.#kernel.close(this.fd);
    this.fd = -1;
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
  return fail("PROXY_LISTEN", `cannot listen for clients on ${where} (${cause.code ?? "no code"}): ${cure}`, {
    cause,
  });
}
