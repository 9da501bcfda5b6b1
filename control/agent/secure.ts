/**
 * The encrypted, authenticated stream between two agents: TLS 1.3 with an external pre-shared key (RFC 8446 §4.2.11)
 * and an ephemeral key exchange (`psk_dhe_ke`), so that a key stolen later opens no recorded stream.
 *
 * The cipher is TLS_AES_128_GCM_SHA256: the only AES suite OpenSSL pairs with an external key, and the fastest of those
 * this Node offers with forward secrecy. Loopback, both ends in one thread: 620–850 MB/s (a process each: 800–960); TLS
 * 1.3 ChaCha20 570; TLS 1.2 ECDHE-PSK-CHACHA20 540, ECDHE-PSK-AES128-CBC 260. DHE-PSK-AES128-GCM finds no shared cipher:
 * Node sets no DH parameters for a server without a certificate.
 *
 * Who is who: a holder of a key of the ring is an agent, and its PSK identity is its node's name and the key's id, `a#1f2e3d4c`,
 * so that the acceptor knows which of its keys is meant. A stream ends when the key that it was opened with is no longer in the ring.
 * With certificates (`identity:`) no key is spoken of: both sides show theirs, in TLS 1.3 too, and are the nodes these name (`identity.ts`). A
 * stream ends, at both sides, when its peer is revoked or none of the authorities vouches for it any more.
 * The dialler says which node it means (SNI), so a wrong address in `peers` is noticed. The ALPN name carries the version of what is spoken inside.
 * Not here: what is said on the stream (`proxy/contract/channel.ts`), and whether that node may do it.
 */
import { hkdfSync, randomBytes, type X509Certificate } from "node:crypto";
import { once } from "node:events";
import type { AddressInfo, Socket } from "node:net";
import { type ConnectionOptions, connect, createServer, type TLSSocket } from "node:tls";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { keyId } from "#proxy/contract/shared-keys.ts";
import { authoritiesIn, type IdentityText, isVouchedFor, nodeOf } from "./identity.ts";
import type { Trust } from "./trust.ts";

/**
 * What agents of this version speak, the newest first; a stream is of the highest that both know. Schemas are strict, so a message
 * with another key needs a number of its own. 1 and 2 have other words.
 */
export const AGENT_VERSIONS: readonly number[] = [3];
/** Offered last by a dialler: where no number is common, it is told on the stream which there are. */
const WHICH_VERSIONS = "holdfast-agent/?";
const WHICH_BYTES_MAX = 100;
const protocolOf = (version: number): string => `holdfast-agent/${version}`;
export const AGENT_CIPHER = "TLS_AES_128_GCM_SHA256";
const HANDSHAKE_MS_MAX = 5_000;
const DIAL_MS_MAX = 5_000;
const CONNECTIONS_MAX = 256;
const KEEP_ALIVE_MS = 5_000;
/** node, key id */
const PSK_IDENTITY = /^([a-z0-9.-]{1,63})#([0-9a-f]{8})$/;
const PSK_BYTES = 32;

const versions = { minVersion: "TLSv1.3", maxVersion: "TLSv1.3", ciphers: AGENT_CIPHER } as const;

/** Who is at the other end, and by what that is known. */
interface Peer {
  node: string;
  /** of the key */
  id: string;
  /** null: one that we have not */
  key: Buffer | null;
  certificate?: X509Certificate;
}

export interface ListenSecureOptions {
  host: string;
  /** 0: chosen by the kernel, see {@link SecureListener.port} */
  port: number;
  /** of this node */
  trust: Trust;
  /** an authenticated peer; hand the stream to a `Channel` in the same turn */
  onPeer(stream: TLSSocket, peerNode: string): void;
  /** one line for everything that was turned away */
  onRefused(line: string): void;
  handshakeMsMax?: number;
  /** for tests: default {@link AGENT_VERSIONS} */
  versions?: readonly number[];
  /** of peers; and of those that have not shown the key yet, of which the oldest makes room */
  connectionsMax?: number;
}

export interface SecureListener {
  readonly host: string;
  readonly port: number;
  /** Stops listening and cuts the streams that are open. */
  close(): Promise<void>;
}

export interface DialSecureOptions {
  host: string;
  port: number;
  /** of this node */
  trust: Trust;
  /** the node expected there; another one refuses */
  peer?: string;
  timeoutMs?: number;
  /** for tests: default {@link AGENT_VERSIONS} */
  versions?: readonly number[];
  signal?: AbortSignal;
}

/** @throws HoldfastError `LISTEN_FAILED` */
export async function listenSecure(options: ListenSecureOptions): Promise<SecureListener> {
  const { trust } = options;
  const { ring, node: own } = trust;
  const spoken = options.versions ?? AGENT_VERSIONS;
  /** what each has said that it is; key null: it has shown one that we have not */
  const said = new WeakMap<TLSSocket, Peer>();
  const open = new Set<TLSSocket>();
  // No certificate: a client without the key has nothing to fall back to.
  const pskCallback = (socket: TLSSocket, identity: string): Buffer | null => {
    const [, node, id] = PSK_IDENTITY.exec(identity) ?? [];
    if (node === undefined || id === undefined) return null;
    const key = ring.find(id);
    said.set(socket, { node, id, key });
    // a key that nobody has fails as a wrong one does
    return key === null ? randomBytes(PSK_BYTES) : streamKey(key);
  };
  const server = createServer({
    ...versions,
    handshakeTimeout: options.handshakeMsMax ?? HANDSHAKE_MS_MAX,
    ...(trust.identity === null ? { pskCallback } : byCertificate(trust.identity)),
    ALPNCallback: ({ servername, protocols }) => {
      const meant = !servername || servername === own; // not a string when there was no SNI
      if (!meant) return undefined;
      const common = spoken.map(protocolOf).find((name) => protocols.includes(name));
      return common ?? (protocols.includes(WHICH_VERSIONS) ? WHICH_VERSIONS : undefined);
    },
  });
  const stopRenewing = trust.onChange(() => {
    if (trust.identity !== null) server.setSecureContext({ ...versions, ...byCertificate(trust.identity) });
  });
  server.once("close", stopRenewing);
  const connectionsMax = options.connectionsMax ?? CONNECTIONS_MAX;
  /** by remote address and port, the oldest first */
  const strangers = new Map<string, Socket>();
  const nameOf = (socket: Socket): string => `${socket.remoteAddress}:${socket.remotePort}`;
  server.on("connection", (socket: Socket) => {
    // After the handshake has failed the socket can still report errors; they have nothing to add.
    socket.on("error", () => {});
    const name = nameOf(socket);
    // A peer has shown the key within milliseconds: whoever has taken longest is the one to go, so that nobody keeps the peers out.
    if (strangers.size >= connectionsMax) {
      const [oldest] = strangers;
      if (oldest !== undefined) {
        strangers.delete(oldest[0]);
        oldest[1].destroy();
      }
    }
    strangers.set(name, socket);
    socket.once("close", () => {
      if (strangers.get(name) === socket) strangers.delete(name);
    });
  });
  server.on("tlsClientError", (error, socket) => {
    const from =
      socket.remoteAddress === undefined ? "a connection" : `${socket.remoteAddress}:${socket.remotePort}`;
    const peer = said.get(socket);
    const why =
      peer?.key === null
        ? `it says that it is node ${peer.node}, and its key ${peer.id} is not in our key file (there are: ${ring.ids.join(", ")})`
        : explainRefusal(error);
    options.onRefused(`refused ${from}: ${why}`);
    socket.destroy();
  });
  server.on("secureConnection", (socket) => {
    const peer = trust.identity === null ? said.get(socket) : certified(socket);
    strangers.delete(nameOf(socket));
    socket.on("error", () => {});
    if (open.size >= connectionsMax) {
      options.onRefused(`refused ${socket.remoteAddress}: too many connections of peers`);
      socket.destroy();
      return;
    }
    const refuse = (why: string): void => {
      options.onRefused(`refused ${socket.remoteAddress}: ${why}`);
      socket.destroy();
    };
    if (peer === null)
      return refuse("its certificate names no node (one DNS name NODE.holdfast is expected)");
    if (peer === undefined || peer.key === null || !socket.alpnProtocol)
      return refuse("it did not name its node or its protocol");
    const why = endOf(trust, peer);
    if (why !== null) return refuse(why);
    if (socket.alpnProtocol === WHICH_VERSIONS) {
      socket.end(spoken.join());
      options.onRefused(
        `refused node ${peer.node}: it speaks no version of the agents' protocol that this agent does (${spoken.join(", ")})`,
      );
      return;
    }
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    open.add(socket);
    socket.once("close", () => open.delete(socket));
    endWithTrust(socket, trust, peer, (reason) =>
      options.onRefused(`ended the stream of node ${peer.node}: ${reason}`),
    );
    options.onPeer(socket, peer.node);
  });
  server.listen({ host: options.host, port: options.port });
  try {
    await once(server, "listening");
  } catch (cause) {
    throw fail("LISTEN_FAILED", `cannot listen on ${options.host}:${options.port}: ${messageOf(cause)}`, {
      cause,
    });
  }
  server.on("error", (error) => options.onRefused(`listener: ${messageOf(error)}`));
  const { address, port } = server.address() as AddressInfo;
  return {
    host: address,
    port,
    close: async () => {
      const closed = Promise.withResolvers<void>();
      server.close(() => closed.resolve());
      for (const socket of [...open, ...strangers.values()]) socket.destroy();
      await closed.promise;
    },
  };
}

/**
 * The stream is handed over with an 'error' listener that does nothing; 'close' always follows.
 * @throws HoldfastError `PEER_UNREACHABLE` (retryable), `PEER_TIMEOUT` (retryable), `PEER_AUTH` (keys differ, wrong
 * node, or no agent)
 */
export async function dialSecure(options: DialSecureOptions): Promise<TLSSocket> {
  const { ring, node, identity: certificate } = options.trust;
  if (certificate !== null)
    return dialAs(options, { ...byCertificate(certificate), checkServerIdentity: () => undefined }, null);
  const key = ring.first;
  const peer = { node: options.peer ?? "", id: keyId(key), key };
  return dialAs(options, byKey(`${node}#${keyId(key)}`, key), peer);
}

/** @param keyed null: the peer shows a certificate */
async function dialAs(
  options: DialSecureOptions,
  proof: ConnectionOptions,
  keyed: Peer | null,
): Promise<TLSSocket> {
  const { host, port, peer, trust } = options;
  const where = peer === undefined ? `${host}:${port}` : `node ${peer} at ${host}:${port}`;
  const spoken = options.versions ?? AGENT_VERSIONS;
  const { promise, resolve, reject } = Promise.withResolvers<Peer>();
  const socket = connect({
    host,
    port,
    ...versions,
    ALPNProtocols: [...spoken.map(protocolOf), WHICH_VERSIONS],
    ...(peer === undefined ? {} : { servername: peer }),
    ...proof,
  });
  socket.setNoDelay(true);
  socket.on("error", (cause) => reject(dialError(where, cause, keyed === null)));
  const timeoutMs = options.timeoutMs ?? DIAL_MS_MAX;
  const timer = setTimeout(() => {
    reject(fail("PEER_TIMEOUT", `${where} did not answer within ${timeoutMs} ms`));
  }, timeoutMs);
  const onAbort = () => {
    reject(fail("PEER_ABORTED", `dialling ${where} was given up`));
  };
  if (options.signal?.aborted) onAbort();
  options.signal?.addEventListener("abort", onAbort);
  socket.once("secureConnect", () => {
    const found = keyed ?? certified(socket);
    if (socket.alpnProtocol === WHICH_VERSIONS)
      versionsSaid(socket).then(
        (theirs) =>
          reject(
            authError(
              where,
              `it speaks version ${theirs} of the agents' protocol, this agent ${spoken.join(", ")}: bring them to versions of Holdfast that follow each other`,
            ),
          ),
        () => reject(authError(where, "it speaks no version of the agents' protocol that this agent does")),
      );
    else if (!socket.alpnProtocol) reject(authError(where, "it speaks another protocol"));
    else if (found === null) reject(authError(where, "its certificate names no node"));
    // OpenSSL counts a handshake by external key as a reused session; anything else was not authenticated by it.
    else if (keyed !== null && !socket.isSessionReused())
      reject(authError(where, "it did not prove that it has the key"));
    else if (keyed === null && peer !== undefined && found.node !== peer)
      reject(authError(where, `its certificate says that it is node ${found.node}`));
    else resolve(found);
  });
  socket.once("close", () =>
    reject(dialError(where, new Error("the connection was closed"), keyed === null)),
  );
  try {
    const found = await promise;
    const why = endOf(trust, found);
    if (why !== null) throw authError(where, why);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    endWithTrust(socket, trust, found);
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(timer);
    options.signal?.removeEventListener("abort", onAbort);
  }
}

function byKey(identity: string, key: Buffer): ConnectionOptions {
  const psk = streamKey(key);
  return {
    pskCallback: () => ({ psk, identity }),
    // Only called when the other side offers a certificate instead of proving that it has the key.
    checkServerIdentity: () => new Error("it showed a certificate instead of the key"),
  };
}

/** For either side; whom the certificate names is looked at afterwards. */
function byCertificate(identity: IdentityText) {
  return { ...identity, requestCert: true, rejectUnauthorized: true };
}

/** @returns as "3, 2" */
async function versionsSaid(socket: TLSSocket): Promise<string> {
  let said = "";
  for await (const chunk of socket) {
    said += String(chunk);
    if (said.length > WHICH_BYTES_MAX) break;
  }
  if (!/^\d+(,\d+)*$/.test(said)) throw new Error("it does not say");
  return said.replaceAll(",", ", ");
}

/** null: it names no node */
function certified(socket: TLSSocket): Peer | null {
  const certificate = socket.getPeerX509Certificate();
  const node = certificate === undefined ? null : nodeOf(certificate);
  if (certificate === undefined || node === null) return null;
  return { node, id: "", key: Buffer.alloc(0), certificate };
}

/** Why such a stream must not be (any more), or null. */
function endOf({ ring, revoked, identity }: Trust, { id, key, node, certificate }: Peer): string | null {
  if (certificate === undefined)
    return key !== null && ring.has(key) ? null : `its key ${id} has left our key file`;
  if (identity !== null && !isVouchedFor(certificate, authoritiesIn(identity.ca)))
    return "none of our authorities vouches for its certificate any more";
  return revoked.refuses(node, certificate.serialNumber);
}

function endWithTrust(
  stream: TLSSocket,
  trust: Trust,
  peer: Peer,
  onEnd: (why: string) => void = () => {},
): void {
  const stop = trust.onChange(() => {
    const why = endOf(trust, peer);
    if (why === null) return;
    onEnd(why);
    stream.destroy();
  });
  stream.once("close", stop);
}

/** Not the key itself: what seals the store is derived from the same file. */
function streamKey(key: Buffer): Buffer {
  return Buffer.from(hkdfSync("sha256", key, Buffer.alloc(0), "holdfast agent stream v1", PSK_BYTES));
}

function explainRefusal(error: Error & { code?: string; reason?: string }): string {
  const text = `${error.code ?? ""} ${messageOf(error)}`;
  if (/HANDSHAKE_TIMEOUT/.test(text)) return "silent: no TLS handshake in time";
  if (/binder|BINDER|DIGEST_CHECK|BAD_PSK/.test(text))
    return "its key is not ours (or was altered on the way)";
  if (/NO_SUITABLE_SIGNATURE|NO_SHARED_CIPHER|psk identity/i.test(text))
    return "TLS, but without a node's key";
  if (/APPLICATION_PROTOCOL/i.test(text))
    return "it wants another node, or speaks no version of the protocol that this agent does";
  if (/ECONNRESET|socket hang up|disconnected/.test(text)) return "it left before the TLS handshake was done";
  if (/WRONG_VERSION|HTTP_REQUEST|UNSUPPORTED_PROTOCOL|wrong version|http request/i.test(text))
    return "not TLS 1.3";
  return messageOf(error).slice(0, 200);
}

function dialError(where: string, cause: Error & { code?: string }, isCertified: boolean): HoldfastError {
  const text = `${cause.code ?? ""} ${messageOf(cause)}`;
  if (/APPLICATION_PROTOCOL/i.test(text)) {
    return authError(where, "another node answers there, or an agent of another version", cause);
  }
  if (isCertified && /SSL|TLS|CERT|certificate|DECRYPT|SIGNATURE|ISSUER/i.test(text))
    return authError(
      where,
      `it refused our certificate, or we its: ${messageOf(cause)} (status and log there say more)`,
      cause,
    );
  if (/SSL|TLS|certificate|DECRYPT/.test(text)) {
    return authError(where, "it refused our key: is the same key file on both nodes?", cause);
  }
  return fail("PEER_UNREACHABLE", `cannot reach ${where}: ${messageOf(cause)}`, { cause });
}

function authError(where: string, why: string, cause?: unknown): HoldfastError {
  return fail("PEER_AUTH", `${where}: ${why}`, { cause });
}
