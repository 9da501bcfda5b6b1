/**
 * The greetings of a link, at either end, until it is ready: authenticated, and carrying nothing yet. What an acceptor is greeted with may
 * instead be that a link goes on over this connection, or that it is a trunk. The frames are described in `link-auth.ts`.
 */
import { randomBytes } from "node:crypto";
import type net from "node:net";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import {
  decodeHello,
  decodeRejoin,
  decodeTrunk,
  encodeHello,
  type Greeting,
  isWelcome,
  NONCE_BYTES,
  welcome,
} from "./link-auth.ts";
import { encodeRst, FRAME, frame, RST_CODE } from "./link-codec.ts";
import { type ConnectionSink, type LinkConnection, SocketConnection } from "./link-connection.ts";
import { LinkLeg, type LinkListener } from "./link-leg.ts";
import { isResumable, newNonce, speaksTls } from "./link-tls.ts";
import type { LinkWatch } from "./link-watch.ts";
import { connectionTo, type Trunks } from "./trunks.ts";

export interface AcceptOptions {
  keys: SharedKeys;
  onReady(link: LinkLeg): void;
  /** default true: speaks TLS where the other side does */
  encrypted?: boolean;
  /** never authenticated: closed already */
  onRefused(reason: string): void;
  /** It was another connection for a link that is there. */
  onRejoined?(link: LinkLeg): void;
  /** It is welcomed, and a trunk: it carries links. Default: takes no trunks, as without `watch`. */
  onTrunk?(connection: SocketConnection): void;
  listener: LinkListener;
  /** default: the link ends with its connection */
  watch?: LinkWatch<LinkLeg>;
}

export interface DialOptions {
  keys: SharedKeys;
  to: Endpoint;
  greeting: Greeting;
  /** default true: speaks TLS where the other side does */
  encrypted?: boolean;
  onReady(link: LinkLeg): void;
  listener: LinkListener;
  /** default: the link ends with its connection */
  watch?: LinkWatch<LinkLeg>;
  /** what carries links that can go on; default: each has a connection of its own */
  trunks?: Trunks;
}

/** On a connection of its own, which may turn out to be a trunk. */
export function acceptLink(socket: net.Socket, options: AcceptOptions): LinkLeg {
  const { encrypted = true, onTrunk } = options;
  let unknownKey: string | null = null;
  let connection: SocketConnection | null = null;
  const connect = (sink: ConnectionSink): LinkConnection => {
    const tls = {
      keys: options.keys,
      onUnknownKey: (id: string) => {
        unknownKey = `its link key ${id.slice(0, 8)} is none of this workload's`;
      },
    };
    connection = SocketConnection.accept(socket, sink, encrypted ? tls : null);
    return connection;
  };
  const nonce = newNonce(encrypted, options.watch?.isOn === true && (onTrunk ? "trunk" : true));
  return accepted(options, {
    connect,
    nonce,
    why: () => unknownKey,
    onTrunk: onTrunk && (() => onTrunk(connection as SocketConnection)),
  });
}

/** On a channel that the other end has opened. */
export function acceptLinkOn(channel: LinkConnection, options: AcceptOptions): LinkLeg {
  const connect = (sink: ConnectionSink): LinkConnection => {
    channel.sink = sink;
    return channel;
  };
  const nonce = newNonce(false, options.watch?.isOn === true);
  return accepted(options, { connect, nonce });
}

interface Arrival {
  connect(sink: ConnectionSink): LinkConnection;
  nonce: Buffer;
  /** why it was ended, where something is known */
  why?: () => string | null;
  /** default: it cannot be a trunk */
  onTrunk?: (() => void) | undefined;
}

function accepted(options: AcceptOptions, { connect, nonce, why, onTrunk }: Arrival): LinkLeg {
  const { keys } = options;
  const watch = options.watch?.isOn ? options.watch : null;
  let refused = false;
  const refuse = (reason: string): void => {
    if (!refused) options.onRefused(reason);
    refused = true;
  };
  const link: LinkLeg = new LinkLeg({
    connect,
    events: options.listener,
    isEncrypted: options.encrypted ?? true,
    onGreeting: (type, payload) => {
      const isRejoin = type === FRAME.rejoin && watch !== null;
      const isTrunk = type === FRAME.trunk && onTrunk !== undefined;
      let isSigned = false;
      if (isRejoin) isSigned = onRejoin(link, { nonce, payload, watch, options, refuse });
      else if (isTrunk) isSigned = onTrunkGreeting(link, { nonce, payload, keys, onTrunk });
      else if (type === FRAME.hello) isSigned = onHello(link, { nonce, payload, watch, options });
      if (isSigned) return;
      refuse("the greeting was not signed with a link key of this workload");
      link.failGreeting();
    },
    onFailed: () => refuse(why?.() ?? "the greeting was cut off or took too long"),
  });
  link.connection.write(frame(FRAME.nonce, nonce));
  return link;
}

// Of each kind of greeting. False: it is not signed with one of the keys.

function onHello(
  link: LinkLeg,
  {
    nonce,
    payload,
    watch,
    options,
  }: { nonce: Buffer; payload: Buffer; watch: LinkWatch<LinkLeg> | null; options: AcceptOptions },
): boolean {
  const hello = decodeHello(options.keys, nonce, payload);
  if (hello === null) return false;
  link.greeting = hello.greeting;
  link.connection.write(frame(FRAME.welcome, welcome(hello.key, payload)));
  link.ready(hello.resumable && watch !== null ? { watch, trunks: null } : null, hello.key, payload);
  options.onReady(link);
  return true;
}

function onTrunkGreeting(
  link: LinkLeg,
  { nonce, payload, keys, onTrunk }: { nonce: Buffer; payload: Buffer; keys: SharedKeys; onTrunk(): void },
): boolean {
  const key = decodeTrunk(keys, nonce, payload);
  if (key === null) return false;
  link.leave().write(frame(FRAME.welcome, welcome(key, payload)));
  onTrunk();
  return true;
}

/** A link that is there goes on over the connection. It was this one's to read; nothing else of this one is needed. */
function onRejoin(
  link: LinkLeg,
  {
    nonce,
    payload,
    watch,
    options,
    refuse,
  }: {
    nonce: Buffer;
    payload: Buffer;
    watch: LinkWatch<LinkLeg>;
    options: AcceptOptions;
    refuse(reason: string): void;
  },
): boolean {
  const said = decodeRejoin(options.keys, nonce, payload);
  if (said === null) return false;
  const { session, attempt } = said.rejoin;
  const there = watch.find(session);
  const why = there === undefined ? "its session is not here" : there.refusesRejoin(attempt, nonce, payload);
  if (there === undefined || why !== null) {
    refuse(`it would go on with a link, but ${why}`);
    link.connection.write(encodeRst(RST_CODE.unknownSession));
    link.abandon();
    return true;
  }
  const connection = link.leave();
  connection.greeted();
  connection.write(frame(FRAME.welcome, welcome(said.key, payload)));
  there.rejoined(connection, { attempt, nonce, payload, key: said.key });
  options.onRejoined?.(there);
  return true;
}

export function dialLink(options: DialOptions): LinkLeg {
  const { encrypted = true, to, greeting } = options;
  const [key] = options.keys;
  const watch = options.watch?.isOn ? options.watch : null;
  const trunks = watch === null ? null : (options.trunks ?? null);
  let hello: Buffer | null = null;
  let again: { watch: LinkWatch<LinkLeg>; trunks: Trunks | null } | null = null;
  const link: LinkLeg = new LinkLeg({
    connect: (sink) => connectionTo(to, trunks, sink),
    events: options.listener,
    isEncrypted: encrypted,
    dialled: { to, greeting },
    onGreeting: (type, payload) => {
      if (hello === null && type === FRAME.nonce) {
        if (watch !== null && isResumable(payload)) again = { watch, trunks };
        const own = randomBytes(NONCE_BYTES);
        const signed = encodeHello(key, payload, own, greeting, again !== null);
        hello = signed;
        const { connection } = link;
        const greet = (): void => connection.write(frame(FRAME.hello, signed));
        if (encrypted && speaksTls(payload)) connection.secure(key, greet);
        else greet();
      } else if (hello !== null && type === FRAME.welcome && isWelcome(key, hello, payload)) {
        link.ready(again, key, hello);
        options.onReady(link);
      } else link.failGreeting();
    },
  });
  return link;
}
