/**
 * Where links arrive: the socket that listens for them, those that greet, and the trunks among them. A link is handed on when it is
 * authenticated; what it is for is its host's business.
 */
import net from "node:net";
import type { Logger } from "pino";
import { fail } from "#proxy/contract/error-codes.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Greeting } from "./link-auth.ts";
import type { SocketConnection } from "./link-connection.ts";
import { type AcceptOptions, acceptLink, acceptLinkOn } from "./link-greeting.ts";
import type { LinkLeg, LinkListener } from "./link-leg.ts";
import type { LinkWatch } from "./link-watch.ts";
import { CHANNELS_MAX, Trunk } from "./trunk.ts";
import type { Channel } from "./trunk-channel.ts";

const BACKLOG = 4096;
const GREETING_MAX = 4096;
const TRUNKS_MAX = 1024;

/** Whose links they are. */
export interface AcceptorHost {
  /** what links are accepted with from now on */
  readonly keys: SharedKeys;
  readonly config: { readonly links: "encrypted" | "plain"; readonly limits: { trunkSessionsMax: number } };
  readonly counters: { linksAccepted: number; linksRefused: number };
  readonly log: Logger;
}

export interface AcceptorOptions {
  /** that can go on over another connection */
  watch: LinkWatch<LinkLeg>;
  /** A descriptor more leaves the reserve alone. */
  hasRoom(): boolean;
  /** It is authenticated, and parked. */
  onLink(link: LinkLeg, greeting: Greeting): void;
  /** of each of them, from then on */
  listener: LinkListener;
  /** The other end of a trunk has broken the rules. */
  onTrunkFault(): void;
  onTrunkBroken(error: unknown): void;
}

export class LinkAcceptor {
  readonly #host: AcceptorHost;
  readonly #options: AcceptorOptions;
  readonly #trunks = new Set<Trunk>();
  #server: net.Server | null = null;
  #greeting = 0;

  constructor(host: AcceptorHost, options: AcceptorOptions) {
    this.#host = host;
    this.#options = options;
  }

  /** null: closed */
  get endpoint(): Endpoint | null {
    const address = this.#server?.address();
    if (address === undefined || address === null || typeof address === "string") return null;
    return { address: address.address, port: address.port };
  }

  /** trunks that were accepted and are there */
  get trunks(): number {
    return this.#trunks.size;
  }

  /** Does nothing where it is open. @param at see {@link splitAddress}. @throws HoldfastError `PROXY_LISTEN` */
  async open(at: string): Promise<void> {
    if (this.#server !== null) return;
    const { log } = this.#host;
    const [host, port] = splitAddress(at);
    const server = net.createServer((socket) => this.#onSocket(socket));
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.once("error", reject);
    server.listen({ host, port, backlog: BACKLOG, exclusive: true }, resolve);
    try {
      await promise;
    } catch (cause) {
      throw fail("PROXY_LISTEN", `cannot listen for links on ${at}: ${String(cause)}`, {
        source: "link",
        cause,
      });
    }
    server.on("error", (err) => log.warn({ err }, "accepting a link failed"));
    this.#server = server;
  }

  /** Links that are there go on. */
  close(): void {
    this.#server?.close();
    this.#server = null;
  }

  /** Those whose links have ended end; the others do with their last. */
  retireTrunks(): void {
    for (const trunk of [...this.#trunks]) trunk.retire();
  }

  /** A link more may greet; otherwise it is counted as refused. */
  #letsGreet(): boolean {
    const isLetIn = this.#options.hasRoom() && this.#greeting < GREETING_MAX;
    if (isLetIn) this.#greeting++;
    else this.#host.counters.linksRefused++;
    return isLetIn;
  }

  #onSocket(socket: net.Socket): void {
    if (!this.#letsGreet()) {
      socket.destroy();
      return;
    }
    const options = this.#acceptOptions();
    const takesTrunks = this.#host.config.limits.trunkSessionsMax > 0;
    if (takesTrunks) options.onTrunk = (connection) => this.#onTrunk(connection);
    acceptLink(socket, options);
  }

  #onTrunk(connection: SocketConnection): void {
    this.#greeting--;
    if (this.#trunks.size >= TRUNKS_MAX) {
      this.#host.counters.linksRefused++;
      connection.destroy();
      return;
    }
    const trunk: Trunk = new Trunk(() => connection, {
      channelsMax: CHANNELS_MAX,
      onOpen: (channel) => this.#onChannel(channel),
      onEmpty: () => {},
      onGone: (why) => {
        this.#trunks.delete(trunk);
        if (why === "fault") this.#options.onTrunkFault();
      },
      onBroken: (error) => this.#options.onTrunkBroken(error),
    });
    this.#trunks.add(trunk);
    trunk.ready();
  }

  #onChannel(channel: Channel): void {
    if (this.#letsGreet()) acceptLinkOn(channel, this.#acceptOptions());
    else channel.destroy();
  }

  #acceptOptions(): AcceptOptions {
    const { keys, config, counters, log } = this.#host;
    const { watch, listener } = this.#options;
    return {
      keys,
      encrypted: config.links === "encrypted",
      onReady: (link) => {
        this.#greeting--;
        counters.linksAccepted++;
        this.#options.onLink(link, link.greeting as Greeting);
      },
      onRefused: (reason) => {
        this.#greeting--;
        counters.linksRefused++;
        log.warn({ reason }, "link refused");
      },
      onRejoined: () => this.#greeting--,
      watch,
      listener,
    };
  }
}

/** "10.0.0.2", "10.0.0.2:0", "[fd00::1]:7401", "fd00::1" */
function splitAddress(text: string): [host: string, port: number] {
  const bracketed = /^\[([^\]]+)\](?::(\d+))?$/.exec(text);
  if (bracketed !== null) return [bracketed[1] as string, Number(bracketed[2] ?? 0)];
  if (net.isIP(text) !== 0) return [text, 0];
  const at = text.lastIndexOf(":");
  return at < 0 ? [text, 0] : [text.slice(0, at), Number(text.slice(at + 1))];
}
