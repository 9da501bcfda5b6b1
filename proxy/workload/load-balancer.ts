/**
 * A port behind a load balancer that speaks the PROXY protocol: who may be that balancer, and the header at the beginning of each of
 * its connections. The header is ours alone: everything behind it (what the protocol is, names, bounds of one client) sees the
 * client's address and the bytes after it.
 *
 *   accepted ──(from another peer)──▶ reset
 *       └──▶ awaited ──(complete)──▶ a session as any other, begun with the bytes that follow
 *               └──(not a header; FIN; not complete after `headerMsMax`)──▶ reset
 *
 * Until it is complete the session is not dialled, and a move takes along what there is of it.
 */
import { BlockList, isIP } from "node:net";
import type { Logger } from "pino";
import { endpointIn } from "#proxy/contract/address.ts";
import type { ProxyProtocol } from "#proxy/contract/commands.ts";
import { PartialBytes } from "#proxy/protocol/partial-bytes.ts";
import { HEADER_BYTES_MAX, readProxyHeader } from "#proxy/protocol/proxy-header.ts";
import type { HeaderReader, LiveSession } from "./live-session.ts";

/** a line in the log for all that are refused meanwhile */
const LOG_MS = 60_000;

interface Told {
  atMs: number;
  since: number;
}

/** One port's. */
export class Front {
  readonly headerMsMax: number;
  readonly #peers = new BlockList();
  readonly #listen: number;
  readonly #log: Logger;
  readonly #told = new Map<string, Told>();

  constructor({ from, headerMsMax }: ProxyProtocol, listen: number, log: Logger) {
    this.headerMsMax = headerMsMax;
    this.#listen = listen;
    this.#log = log;
    for (const { address, prefix } of from)
      this.#peers.addSubnet(address, prefix, isIP(address) === 4 ? "ipv4" : "ipv6");
  }

  /** @param peer "address:port", as `SocketKernel.peerOf` gives it */
  trusts(peer: string): boolean {
    const address = endpointIn(peer)?.address ?? "";
    const family = isIP(address);
    return family !== 0 && this.#peers.check(address, family === 4 ? "ipv4" : "ipv6");
  }

  refusePeer(peer: string): void {
    this.#tell("not from a peer of proxyProtocol.from", {
      peer,
      cure: "add the load balancer's address to ports[].proxyProtocol.from; clients themselves may not come to this port",
    });
  }

  refuseHeader(peer: string, why: string): void {
    this.#tell("without a PROXY protocol header", {
      peer,
      why,
      cure: "let the load balancer send it (HAProxy: send-proxy-v2; nginx: proxy_protocol on; Envoy: upstream_proxy_protocol)",
    });
  }

  #tell(what: string, about: Record<string, unknown>): void {
    const told = this.#told.get(what) ?? { atMs: Number.NEGATIVE_INFINITY, since: 0 };
    this.#told.set(what, told);
    told.since++;
    const nowMs = performance.now();
    if (nowMs - told.atMs < LOG_MS) return;
    this.#log.warn({ port: this.#listen, ...about, refused: told.since }, `connections are refused: ${what}`);
    told.atMs = nowMs;
    told.since = 0;
  }
}

export interface HeaderOptions {
  session: LiveSession;
  msMax: number;
  /** of a session that comes from another node: what that had read of the header */
  begun: Buffer;
  /** It is read, and the session has no header any more. `client`: see `ProxyHeader`. The bytes after it follow when this returns. */
  onRead(client: string | null): void;
  /** The session is to be reset. */
  onRefused(why: string): void;
}

/** One session's, while it is awaited. Whoever waits for nothing else is read, held or not: the header is for the proxy. */
export class FrontHeader implements HeaderReader {
  readonly #options: HeaderOptions;
  readonly #bytes = new PartialBytes();
  #timer: NodeJS.Timeout | null = null;

  constructor(options: HeaderOptions) {
    this.#options = options;
    this.#bytes.append(options.begun, 0, options.begun.length);
    options.session.inbound.spooling = true;
    this.#wait();
  }

  get bytes(): Buffer {
    return Buffer.from(this.#bytes.bytes);
  }

  fromClient(chunk: Buffer): void {
    const before = this.#bytes.length;
    this.#bytes.append(chunk, 0, Math.min(chunk.length, HEADER_BYTES_MAX - before));
    const header = readProxyHeader(this.#bytes.bytes);
    if (header.is === "incomplete") return;
    if (header.is === "invalid") {
      this.#refuse(header.why);
      return;
    }
    this.stop();
    const { session, onRead } = this.#options;
    const rest = Buffer.from(chunk.subarray(header.bytes - before));
    session.header = null;
    session.inbound.spooling = false;
    onRead(header.client);
    if (rest.length > 0 && session.state !== "closed") session.fromClient(rest);
  }

  clientFin(): void {
    // Somebody who only looks whether the port is open.
    if (this.#bytes.length === 0) this.#options.session.reset("closed before its header");
    else this.#refuse("it ends too early");
  }

  stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  #wait(): void {
    const { session, msMax } = this.#options;
    this.#timer = setTimeout(() => {
      // Captured or adopted, it cannot say anything.
      if (session.state !== "waiting") this.#wait();
      else session.guard(() => this.#refuse(`not complete after ${msMax} ms`));
    }, msMax).unref();
  }

  #refuse(why: string): void {
    this.stop();
    this.#options.onRefused(why);
  }
}
