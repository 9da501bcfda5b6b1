/**
 * The trunks of one proxy that dials links: one for each address, from the first link on until a while after the last. Where the other
 * end takes none, each link gets a connection of its own.
 */
import { randomBytes } from "node:crypto";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { encodeTrunk, isWelcome, NONCE_BYTES } from "./link-auth.ts";
import { FRAME, type FrameType, frame } from "./link-codec.ts";
import { type ConnectionSink, type LinkConnection, SocketConnection } from "./link-connection.ts";
import { speaksTls, takesTrunks } from "./link-tls.ts";
import { Trunk } from "./trunk.ts";

/** without a link */
const EMPTY_MS_MAX = 5_000;
/** until an address that takes no trunks is asked again */
const OWN_MS = 10_000;

export interface TrunksOptions {
  keys: SharedKeys;
  encrypted: boolean;
  /** links of a trunk at a time; 0: each link has a connection of its own */
  linksMax: number;
  /** What is at that address has broken the rules. */
  onFault(to: Endpoint): void;
  onBroken(error: unknown): void;
}

/** What is known of an address. */
interface Way {
  trunk: Trunk | null;
  /** performance.now() until which links get connections of their own */
  ownUntilMs: number;
}

export class Trunks {
  /** what is dialled with from now on */
  keys: SharedKeys;
  readonly #options: TrunksOptions;
  readonly #ways = new Map<string, Way>();
  /** retired ones included */
  readonly #trunks = new Set<Trunk>();

  constructor(options: TrunksOptions) {
    this.#options = options;
    this.keys = options.keys;
  }

  get size(): number {
    return this.#trunks.size;
  }

  /** A connection for a link, to be greeted. */
  open(to: Endpoint, sink: ConnectionSink): LinkConnection {
    const name = `${to.address} ${to.port}`;
    const way = this.#ways.get(name) ?? { trunk: null, ownUntilMs: 0 };
    this.#ways.set(name, way);
    if (this.#options.linksMax === 0 || way.ownUntilMs > performance.now())
      return SocketConnection.dial(to, sink);
    if (way.trunk === null || !way.trunk.hasRoom) {
      way.trunk?.retire();
      way.trunk = this.#dial(name, way, to);
    }
    return way.trunk.open(sink);
  }

  /** Those whose links have ended end; the others do with their last. */
  stop(): void {
    for (const trunk of [...this.#trunks]) trunk.retire();
  }

  #dial(name: string, way: Way, to: Endpoint): Trunk {
    const { linksMax, onBroken, onFault } = this.#options;
    let timer: NodeJS.Timeout | null = null;
    const stopTimer = (): void => {
      if (timer !== null) clearTimeout(timer);
      timer = null;
    };
    const trunk: Trunk = new Trunk((sink) => this.#greet(to, sink, () => trunk, way), {
      channelsMax: linksMax,
      onOpen: null,
      onEmpty: () => {
        timer ??= setTimeout(() => {
          timer = null;
          if (trunk.links === 0) trunk.end();
        }, EMPTY_MS_MAX).unref();
      },
      onGone: (why) => {
        stopTimer();
        this.#trunks.delete(trunk);
        if (why === "fault") onFault(to);
        if (way.trunk !== trunk) return;
        way.trunk = null;
        if (way.ownUntilMs === 0) this.#ways.delete(name);
      },
      onBroken,
    });
    this.#trunks.add(trunk);
    return trunk;
  }

  #greet(to: Endpoint, trunkSink: ConnectionSink, trunk: () => Trunk, way: Way): SocketConnection {
    const [key] = this.keys;
    let said: Buffer | null = null;
    const fail = (): void => {
      connection.destroy();
      trunkSink.onGone("fault");
    };
    const onNonce = (nonce: Buffer): void => {
      if (!takesTrunks(nonce)) {
        way.ownUntilMs = performance.now() + OWN_MS;
        useOwn(to, connection, nonce, trunk());
        return;
      }
      const greeting = encodeTrunk(key, nonce, randomBytes(NONCE_BYTES));
      said = greeting;
      const greet = (): void => connection.write(frame(FRAME.trunk, greeting));
      if (this.#options.encrypted && speaksTls(nonce)) connection.secure(key, greet);
      else greet();
    };
    const sink: ConnectionSink = {
      onData: fail,
      onFrame: (type: FrameType, payload: Buffer) => {
        if (said === null && type === FRAME.nonce) onNonce(payload);
        else if (said !== null && type === FRAME.welcome && isWelcome(key, said, payload)) trunk().ready();
        else fail();
      },
      onWritten: () => {},
      onGone: (why) => trunkSink.onGone(why),
      onThrown: (error) => trunkSink.onThrown(error),
    };
    const connection = SocketConnection.dial(to, sink);
    return connection;
  }
}

/** The other end takes no trunks: the connection is one link's, and the others dial. */
function useOwn(to: Endpoint, connection: SocketConnection, nonce: Buffer, trunk: Trunk): void {
  const [first, ...others] = trunk.takeWanted();
  for (const channel of others) channel.instead(SocketConnection.dial(to, channel.sink));
  if (first === undefined) {
    trunk.destroy();
    return;
  }
  first.instead(connection);
  trunk.leave();
  first.sink.onFrame(FRAME.nonce, nonce, 0);
}

/** A connection for a link, to be greeted. @param trunks null: one of its own */
export function connectionTo(to: Endpoint, trunks: Trunks | null, sink: ConnectionSink): LinkConnection {
  return trunks === null ? SocketConnection.dial(to, sink) : trunks.open(to, sink);
}
