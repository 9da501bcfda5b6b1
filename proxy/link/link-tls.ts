/**
 * TLS 1.3 (RFC 8446) around the connection of a link, with a link key of the workload as external pre-shared key and an ephemeral
 * key exchange. Certificates play no part: proxies of one workload share its link keys and nothing else.
 *
 * Proxies of the version before speak no TLS. The acceptor speaks first on a link, so it says in its NONCE that it does; a dialler
 * that knows this answers with a SECURE frame, after which TLS begins, and one that does not goes on as it always did. Who alters the NONCE
 * on the way, to have them speak in the clear, makes the HELLO invalid, which signs it.
 */
import { hkdfSync, randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import { connect, createSecureContext, type SecureContext, TLSSocket } from "node:tls";
import { keyId, type SharedKeys } from "#proxy/contract/shared-keys.ts";
import { NONCE_BYTES } from "./link-auth.ts";
import { FRAME, frame } from "./link-codec.ts";

const MARK = Buffer.from("TLS3", "latin1");
const RESUMABLE_MARK = Buffer.from("RSM1", "latin1");
/** resumable, and … */
const TRUNK_MARK = Buffer.from("RSM2", "latin1");
/** what is left of a nonce beside both marks */
const RANDOM_BYTES = NONCE_BYTES - MARK.length - RESUMABLE_MARK.length;
const PSK_BYTES = 32;

/** The dialler's first bytes, where both speak TLS; what follows belongs to TLS. */
export const SECURE_FRAME: Buffer = frame(FRAME.secure);

let context: SecureContext | null = null;

function tlsOptions(): { secureContext: SecureContext } {
  context ??= createSecureContext({
    minVersion: "TLSv1.3",
    maxVersion: "TLSv1.3",
    // the one suite of TLS 1.3 with AES that OpenSSL pairs with an external key
    ciphers: "TLS_AES_128_GCM_SHA256",
  });
  return { secureContext: context };
}

/**
 * Never the same twice.
 * @param encrypted whether its sender speaks TLS
 * @param resumable … and can go on over another connection; "trunk": and takes trunks
 */
export function newNonce(encrypted: boolean, resumable: boolean | "trunk"): Buffer {
  return Buffer.concat([
    randomBytes(RANDOM_BYTES),
    resumable === "trunk" ? TRUNK_MARK : resumable ? RESUMABLE_MARK : randomBytes(RESUMABLE_MARK.length),
    encrypted ? MARK : randomBytes(MARK.length),
  ]);
}

/** One of a version that knows nothing of this has a mark by chance once in 2³² links: that link fails, the next does not. */
export function speaksTls(nonce: Buffer): boolean {
  return nonce.subarray(NONCE_BYTES - MARK.length).equals(MARK);
}

export function isResumable(nonce: Buffer): boolean {
  const mark = nonce.subarray(RANDOM_BYTES, RANDOM_BYTES + RESUMABLE_MARK.length);
  return mark.equals(RESUMABLE_MARK) || mark.equals(TRUNK_MARK);
}

export function takesTrunks(nonce: Buffer): boolean {
  return nonce.subarray(RANDOM_BYTES, RANDOM_BYTES + TRUNK_MARK.length).equals(TRUNK_MARK);
}

/** @param onSecure the acceptor has proven that it has the key */
export function dialTls(socket: Socket, key: Buffer, onSecure: (stream: TLSSocket) => void): TLSSocket {
  const stream = connect({
    ...tlsOptions(),
    socket,
    pskCallback: () => ({ psk: pskOf(key), identity: keyId(key) }),
    checkServerIdentity: () => new Error("it showed a certificate instead of the key"),
  });
  stream.once("secureConnect", () => {
    // OpenSSL counts a handshake by external key as a reused session; anything else was not authenticated by it.
    if (stream.isSessionReused()) onSecure(stream);
    else stream.destroy(new Error("it did not prove that it has the key"));
  });
  return stream;
}

/** @param rest what has been read of TLS already. Whoever has none of the keys never gets so far as to send a byte. */
export function acceptTls(
  socket: Socket,
  keys: SharedKeys,
  rest: Buffer,
  onUnknownKey: (id: string) => void,
): TLSSocket {
  socket.pause();
  if (rest.length > 0) socket.unshift(rest);
  return new TLSSocket(socket, {
    ...tlsOptions(),
    isServer: true,
    pskCallback: (_: TLSSocket, identity: string): Buffer | null => {
      const key = keys.find((one) => keyId(one) === identity);
      if (key === undefined) onUnknownKey(identity);
      return key === undefined ? null : pskOf(key);
    },
  } as ConstructorParameters<typeof TLSSocket>[1]);
}

/** Not the key itself: that signs greetings. */
function pskOf(key: Buffer): Buffer {
  return Buffer.from(hkdfSync("sha256", key, Buffer.alloc(0), "holdfast link tls v1", PSK_BYTES));
}
